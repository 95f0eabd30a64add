"""Times of kernels as a machine would give them, with known answers: what a regression gate is judged by.

One process after the other runs all kernels. A process's log time is the sum of: the kernel's own bias in this boot of
the machine, drift of the machine (a random walk that every kernel shares), noise of the machine from process to process
(autocorrelated, shared), and the process's own (pages, layout), which sometimes is far off. Samples within a process
scatter around its time, autocorrelated. All are relative, as fractions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from calibrate.regression.gate import Drawn

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """Standard deviations of log times, and what shapes them.

    `drift` is that of the walk between the first and the last process of a session, `within` that of a sample within a
    process, which is autocorrelated as the machine's own noise is, and `uneven` that of the logarithm of a kernel's own
    `spread`: 0 where all kernels are equally noisy. A share of `outliers` is slower by an exponential size, whose mean
    is `outlier`.
    """

    spread: float = 0.005
    drift: float = 0.01
    machine: float = 0.002
    autocorrelation: float = 0.6
    outliers: float = 0.01
    outlier: float = 0.10
    boot: float = 0.01
    within: float = 0.004
    uneven: float = 0.0


@dataclass
class Machine:
    """A machine between two boots."""

    kernels: int
    random: np.random.Generator
    noise: Noise = field(default_factory=Noise)

    def __post_init__(self) -> None:
        self.bias = self.random.normal(0, self.noise.boot, self.kernels)
        self.own = self.noise.spread * np.exp(self.random.normal(0, self.noise.uneven, self.kernels))

    def rebooted(self) -> "Machine":
        other = replace(self)
        other.own = self.own
        return other

    def processes(self, count: int) -> Array:
        """Log times of so many processes in a row, shape (kernels, processes), around 0."""
        noise, random = self.noise, self.random
        walk = np.cumsum(random.normal(0, noise.drift / np.sqrt(count), count))
        shared = random.normal(0, noise.machine, count)
        for i in range(1, count):
            shared[i] += noise.autocorrelation * shared[i - 1]
        times = self.bias[:, None] + walk + shared + random.normal(size=(self.kernels, count)) * self.own[:, None]
        far = random.random((self.kernels, count)) < noise.outliers
        return times + far * random.exponential(noise.outlier, (self.kernels, count))

    def pairs(self, count: int, slowdown: Array | float = 0.0) -> Array:
        """Log ratios new ÷ base of pairs in ABBA order, shape (kernels, pairs)."""
        times = self.processes(2 * count).reshape(self.kernels, count, 2)
        is_new_first = (np.arange(count) + self.random.integers(2)) % 2 == 0
        difference = np.where(is_new_first, times[:, :, 0] - times[:, :, 1], times[:, :, 1] - times[:, :, 0])
        return difference + np.broadcast_to(np.log1p(slowdown), (self.kernels,))[:, None]

    def samples(self, processes: Array, count: int) -> Array:
        """Log times of `count` samples in each process, shape (kernels, processes, samples)."""
        steps = self.random.normal(0, self.noise.within, (*processes.shape, count))
        rho = self.noise.autocorrelation
        for i in range(1, count):
            steps[..., i] = rho * steps[..., i - 1] + np.sqrt(1 - rho**2) * steps[..., i]
        return processes[..., None] + steps


class SimulatedSampler:
    """Pairs of a machine for `run_gate`: kernels "0", "1", …, those in `slowdown` slower by that fraction."""

    def __init__(self, machine: Machine, slowdown: Mapping[int, float] | None = None) -> None:
        self.machine = machine
        self.slowdown = np.zeros(machine.kernels)
        for kernel, size in (slowdown or {}).items():
            self.slowdown[kernel] = size
        self.asked: list[tuple[int, int, bool]] = []

    @property
    def names(self) -> list[str]:
        return [str(i) for i in range(self.machine.kernels)]

    def draw(self, kernels: Sequence[str], pairs: int, against_itself: bool = False, again: bool = False) -> Drawn:
        self.asked.append((len(kernels), pairs, against_itself))
        logs = self.machine.pairs(pairs, 0.0 if against_itself else self.slowdown)
        return Drawn({name: [(1.0, float(np.exp(x))) for x in logs[int(name)]] for name in kernels})


NIGHTLY = {"iid 0.5 %": (0.005, 0.0, 0.0), "iid 1 %": (0.01, 0.0, 0.0), "AR(0.6), 0.5 %": (0.005, 0.6, 0.0),
           "iid 0.5 %, walk of 0.1 %": (0.005, 0.0, 0.001)}  # fmt: skip
"""Name -> standard deviation of a night, correlation of neighbours, and of the walk from night to night."""


def nightly(kind: str, kernels: int, nights: int, random: np.random.Generator) -> Array:
    """Log times around 0, shape (kernels, nights), 1 % of the nights far off."""
    spread, rho, walk = NIGHTLY[kind]
    times = random.normal(0, spread, (kernels, nights))
    for i in range(1, nights):
        times[:, i] = rho * times[:, i - 1] + np.sqrt(1 - rho**2) * times[:, i]
    times += np.cumsum(random.normal(0, walk, (kernels, nights)), axis=1)
    return times + (random.random((kernels, nights)) < 0.01) * random.exponential(0.1, (kernels, nights))
