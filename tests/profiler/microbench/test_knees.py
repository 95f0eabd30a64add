"""Levels of simulated memories whose capacities and rates are known, and curves without any level."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.microbench.knees import Plateau, knees, noise, plateaus

SEEDS = 500
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Memory:
    """Capacities of all levels but the last, in bytes, and the rates of all."""

    capacities: tuple[int, ...]
    rates: tuple[float, ...]
    smallest: int = 16 * KIB
    largest: int = 8 * GIB

    def sizes(self, per_octave: int = 4) -> list[int]:
        steps = round(per_octave * math.log2(self.largest / self.smallest))
        return [round(self.smallest * 2 ** (i / per_octave)) for i in range(steps + 1)]

    def curve(self, sizes: list[int], octaves: float) -> np.ndarray:
        """Rates; the share of bytes that miss a level rises from 0 to 1 over `octaves` past its capacity."""
        seconds = np.full(len(sizes), 1 / self.rates[0])
        for i, capacity in enumerate(self.capacities):
            past = np.log2(np.array(sizes) / capacity)
            missed = (past > 1e-9) if octaves == 0 else np.clip(past / octaves, 0, 1)
            seconds += missed * (1 / self.rates[i + 1] - 1 / self.rates[i])
        return 1 / seconds


MEMORIES = {
    "H100: L2 and HBM": Memory((28 * MIB,), (5.5e12, 3.1e12), 512 * KIB),
    "desktop: L1, L2, L3, DRAM": Memory((48 * KIB, 2 * MIB, 64 * MIB), (4e11, 1.5e11, 6e10, 2e10), 4 * KIB),
    "server core: L2, L3, DRAM": Memory((MIB, 32 * MIB), (1.4e11, 5e10, 1.2e10), 32 * KIB, 2 * GIB),
}


def noisy(curve: np.ndarray, spread: float, seed: int) -> list[float]:
    return list(curve * np.exp(spread * np.random.default_rng([7, seed]).standard_normal(len(curve))))


def is_found(memory: Memory, sizes: list[int], rates: list[float]) -> bool:
    found = plateaus(sizes, rates)
    at = knees(sizes, found)
    return (
        len(found) == len(memory.rates)
        and len(at) == len(memory.capacities)
        and all(1 / 1.5 <= a / c <= 1.5 for a, c in zip(at, memory.capacities, strict=True))
        and all(abs(p.rate / r - 1) <= 0.05 for p, r in zip(found, memory.rates, strict=True))
    )


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.03, 0.05])
@pytest.mark.parametrize("octaves", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("name", MEMORIES)
def test_every_level_is_found_where_it_is(name: str, octaves: float, spread: float) -> None:
    memory = MEMORIES[name]
    sizes = memory.sizes()
    curve = memory.curve(sizes, octaves)
    hits = [is_found(memory, sizes, noisy(curve, spread, seed)) for seed in range(SEEDS if spread else 1)]
    print(f"{name} | {octaves} octaves | noise {spread} | {np.mean(hits):.3f}")  # noqa: T201 - shown with -s
    assert np.mean(hits) >= 0.95
