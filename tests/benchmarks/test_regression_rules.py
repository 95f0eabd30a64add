"""What rules of regression gates find on a simulated machine, and how often they are red where nothing changed.

    python -m pytest -s tests/benchmarks/test_regression_rules.py

200 kernels; a process differs from the next by 0.5 %, the machine drifts by 1 % within a session, 1 % of the processes
are far off, samples and the machine are autocorrelated, and each boot has a bias of 1 % of its own for each kernel.
Ten pairs of processes, thirty samples each. The other rules see the same data, interleaved as the gate draws them, and
once more as most teams compare: a stored run of an earlier boot against one of today.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from regression_noise import Array, Machine, Noise, SimulatedSampler
from scipy.stats import mannwhitneyu, ttest_ind

from calibrate.regression.gate import Plan, run_gate

KERNELS, PAIRS, SAMPLES = 200, 10, 30
SLOW = 10
"""Kernels of a suite that are slower, where some are."""

Rule = Callable[[Array, Array], Array]
"""From log times of base and new, shape (kernels, processes, samples), the kernels that are called slower."""


def pooled_t(base: Array, new: Array) -> Array:
    """Student's test on all samples of all processes, p < 0.05: pyperf's rule before its limit of 1 %."""
    a, b = (np.exp(side).reshape(len(side), -1) for side in (base, new))
    return np.asarray((ttest_ind(b, a, axis=1).pvalue < 0.05) & (b.mean(axis=1) > a.mean(axis=1)))


def mann_whitney(base: Array, new: Array) -> Array:
    a, b = (side.reshape(len(side), -1) for side in (base, new))
    return np.asarray(mannwhitneyu(b, a, axis=1, alternative="greater").pvalue < 0.05)


def five_percent(base: Array, new: Array) -> Array:
    return np.asarray(_ratio(base, new) > 1.05)


def hud(base: Array, new: Array) -> Array:
    """PyTorch's dashboard: above 1.35 × the median of three days (here: of the base's processes)."""
    return np.asarray(_ratio(base, new) > 1.35)


def pyperf(base: Array, new: Array) -> Array:
    """Student's two-sample test at 95 % on the means of processes, and a change of at least 1 % of the mean."""
    a, b = (np.exp(side).mean(axis=2) for side in (base, new))
    ratio = b.mean(axis=1) / a.mean(axis=1)
    return np.asarray((ttest_ind(b, a, axis=1).pvalue < 0.05) & (ratio > 1.01))


def nvbench(base: Array, new: Array) -> Array:
    """Slower by more than the smaller relative standard deviation of both sides' samples."""
    a, b = (np.exp(side).reshape(len(side), -1) for side in (base, new))
    noise = np.minimum(a.std(axis=1) / a.mean(axis=1), b.std(axis=1) / b.mean(axis=1))
    return np.asarray(b.mean(axis=1) / a.mean(axis=1) - 1 > noise)


RULES: dict[str, Rule] = {
    "pooled t-test": pooled_t,
    "Mann-Whitney, pooled": mann_whitney,
    "5 % threshold": five_percent,
    "1.35 × the median": hud,
    "pyperf": pyperf,
    "nvbench": nvbench,
}


def _ratio(base: Array, new: Array) -> Array:
    return np.asarray(np.exp(np.median(new, axis=(1, 2)) - np.median(base, axis=(1, 2))))


def _data(machine: Machine, is_stored: bool, slowdown: Array) -> tuple[Array, Array]:
    if is_stored:
        base, new = machine.processes(PAIRS), machine.rebooted().processes(PAIRS)
    else:
        times = machine.processes(2 * PAIRS)
        base, new = times[:, ::2], times[:, 1::2]
    new = new + np.log1p(slowdown)[:, None]
    return machine.samples(base, SAMPLES), machine.samples(new, SAMPLES)


def gate_rates(gates: int, random: np.random.Generator, **noise: float) -> tuple[float, float, list[float]]:
    """Red A/A gates and false alarms of a kernel, and the share of slowdowns of 1, 2 and 3 % that is found."""

    def slower(sizes: dict[int, float]) -> set[str]:
        sampler = SimulatedSampler(Machine(KERNELS, random, Noise(**noise)), sizes)
        outcome = run_gate(sampler, sampler.names, Plan(tolerance=0.05, resampled=0), random)
        return {row.name for row in outcome.comparisons if row.verdict == "slower"}

    red = [len(slower({})) for _ in range(gates)]
    found = []
    for size in (0.01, 0.02, 0.03):
        hits = [len(slower(dict.fromkeys(range(SLOW), size)) & set(map(str, range(SLOW)))) for _ in range(gates // 10)]
        found.append(sum(hits) / len(hits) / SLOW)
    return float(np.mean(np.array(red) > 0)), sum(red) / gates / KERNELS, found


def rule_rates(
    rule: Rule, is_stored: bool, gates: int, random: np.random.Generator
) -> tuple[float, float, list[float]]:
    none = np.zeros(KERNELS)
    alarms = [rule(*_data(Machine(KERNELS, random), is_stored, none)).sum() for _ in range(gates)]
    found = []
    for size in (0.01, 0.02, 0.03):
        slow = np.where(np.arange(KERNELS) < SLOW, size, 0.0)
        hits = [rule(*_data(Machine(KERNELS, random), is_stored, slow))[:SLOW].sum() for _ in range(gates)]
        found.append(sum(hits) / gates / SLOW)
    return float(np.mean(np.array(alarms) > 0)), sum(alarms) / gates / KERNELS, found


def show(name: str, rates: tuple[float, float, Sequence[float]]) -> None:
    red, alarms, found = rates
    print(f"{name:34}{100 * red:>9.2f} %{100 * alarms:>11.4f} %" + "".join(f"{100 * f:>8.1f} %" for f in found))


@pytest.mark.parametrize("gates", [2000])
def test_rules(gates: int) -> None:
    random = np.random.default_rng(16)
    print(f"\n{'rule':34}{'red A/A':>11}{'of kernels':>13}{'1 %':>10}{'2 %':>10}{'3 %':>10}")
    red, alarms, found = gate_rates(gates, random)
    show(f"this gate, {gates} gates", (red, alarms, found))
    show("this gate, uneven noise", gate_rates(gates // 4, random, uneven=0.5))
    for is_stored in (False, True):
        for name, rule in RULES.items():
            show(f"{name}, {'stored' if is_stored else 'interleaved'}", rule_rates(rule, is_stored, 20, random))
    assert red <= 1e-3
    assert found[0] >= 0.80 and found[1] >= 0.95 and found[2] >= 0.99
