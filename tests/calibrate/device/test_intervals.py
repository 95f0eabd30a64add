"""Intervals from processes hold as often as they say, with every kind of noise that a machine makes."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import t

from calibrate.device.figures import center, coefficient_of_variation, interval, log_interval

SAMPLES = 30
"""Samples a process."""
PROCESSES = 40_000
"""Simulated processes for each coverage: 13333 sessions of three, 8000 of five, 4000 of ten."""
QUANTILES = {"median": 0.5, "10th percentile": 0.1}
POSITIVE = st.floats(1e-9, 1e9)


@dataclass(frozen=True)
class Noise:
    """What a simulated machine does; spreads are standard deviations of log time."""

    between: float
    within: float
    rho: float = 0.0
    """Autocorrelation of successive samples, AR(1)."""
    drift: float = 0.0
    """Linear, over the whole session."""
    outliers: float = 0.0
    """Share of the samples that are 1.2 to 3 times slower."""
    disturbed: float = 0.0
    """Share of the processes that shared the machine ..."""
    slower: float = 0.0
    """... and are slower by this."""


SCENARIOS = {
    "quiet": Noise(0.005, 0.01),
    "loud": Noise(0.02, 0.03),
    "autocorrelated": Noise(0.005, 0.03, rho=0.8),
    "a little autocorrelated": Noise(0.01, 0.02, rho=0.4),
    "drift": Noise(0.01, 0.02, drift=0.01),
    "drift, twice the spread": Noise(0.005, 0.01, drift=0.01),
    "1 % outliers": Noise(0.005, 0.01, outliers=0.01),
    "5 % outliers": Noise(0.005, 0.02, outliers=0.05),
    "everything": Noise(0.01, 0.03, rho=0.8, drift=0.01, outliers=0.05),
    "processes of ten 5 % slower": Noise(0.01, 0.02, disturbed=0.1, slower=0.05),
    "processes of ten 20 % slower": Noise(0.005, 0.01, rho=0.5, disturbed=0.1, slower=0.2),
}


def samples(noise: Noise, places: NDArray[np.float64], span: float, generator: np.random.Generator):
    """Log times, (processes, samples), of processes that begin at `places` of the session and last `span` of it."""
    shape = (len(places), SAMPLES)
    innovations = generator.standard_normal(shape) * math.sqrt(1 - noise.rho**2)
    innovations[:, 0] /= math.sqrt(1 - noise.rho**2)  # stationary from its first sample
    logs = noise.within * lfilter([1], [1, -noise.rho], innovations)
    logs += noise.between * generator.standard_normal((len(places), 1))
    logs += noise.slower * (generator.random((len(places), 1)) < noise.disturbed)
    logs += noise.drift * (places[:, None] + span * (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5)
    slow = generator.random(shape) < noise.outliers
    logs[slow] += np.log(generator.uniform(1.2, 3, int(slow.sum())))
    return logs


def sessions(noise: Noise, processes: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Log times of processes that follow one another, (sessions, processes, samples)."""
    count = PROCESSES // processes
    places = np.tile(np.arange(processes) / processes, count)
    return samples(noise, places, 1 / processes, generator).reshape(count, processes, SAMPLES)


@functools.cache
def truths(name: str) -> dict[str, float]:
    """Estimate of the median process, from processes that no interval sees, anywhere in the session."""
    generator = np.random.default_rng([1, list(SCENARIOS).index(name)])
    places = generator.random(PROCESSES) - 0.05
    found = np.quantile(samples(SCENARIOS[name], places, 0.1, generator), list(QUANTILES.values()), axis=-1)
    return dict(zip(QUANTILES, np.median(found, axis=-1), strict=True))


def coverage(logs: NDArray[np.float64], truth: float) -> float:
    low, high = log_interval(logs)
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize("processes", [3, 5, 10])
def test_ninety_percent_intervals_hold_nine_times_of_ten(processes: int) -> None:
    for number, (name, scenario) in enumerate(SCENARIOS.items()):
        logs = sessions(scenario, processes, np.random.default_rng([2, processes, number]))
        for estimator, estimates in zip(QUANTILES, np.quantile(logs, list(QUANTILES.values()), axis=-1), strict=True):
            share = coverage(estimates, truths(name)[estimator])
            print(f"{name} | {estimator} | {processes} | {100 * share:.1f}")  # noqa: T201 - shown with -s: the table
            assert 0.87 <= share <= 0.93, f"{name}, {estimator}: {share:.3f}"


def pooled_coverage(name: str) -> float:
    logs = sessions(SCENARIOS[name], 5, np.random.default_rng(3)).reshape(PROCESSES // 5, -1)
    count = logs.shape[1]
    half = t.ppf(0.95, count - 1) * logs.std(axis=-1, ddof=1) / math.sqrt(count)
    return float((abs(logs.mean(axis=-1)) <= half).mean())  # symmetric noise around 0


def test_pooled_samples_hold_far_less_often_than_they_say() -> None:
    assert pooled_coverage("quiet") < 0.55
    assert pooled_coverage("loud") < 0.5
    assert pooled_coverage("autocorrelated") < 0.45


def test_a_strong_drift_never_makes_intervals_too_narrow() -> None:
    for processes, widest in ((3, 1.0), (4, 1.0), (5, 0.93), (10, 0.93)):
        logs = sessions(Noise(0.005, 0.01, drift=0.05), processes, np.random.default_rng(4))
        assert 0.89 <= coverage(np.median(logs, axis=-1), 0.0) <= widest, processes


def test_normal_noise_is_covered_exactly_at_any_confidence() -> None:
    for processes in (3, 4, 5, 8):
        logs = np.random.default_rng(5).standard_normal((40_000, processes))
        for confidence in (0.5, 0.95, 0.99):
            low, high = log_interval(logs, confidence)
            share = ((low <= 0) & (high >= 0)).mean()
            error = math.sqrt(confidence * (1 - confidence) / 40_000)
            assert abs(share - confidence) < 4 * error, (processes, confidence)


def test_the_ends_by_hand() -> None:
    # Logs −1, 0, 1: s = 1, t(0.95, 2) = 2.919986.
    low, high = interval([1 / math.e, 1.0, math.e]) or (0, 0)
    assert math.log(high) == pytest.approx(2.919986 / math.sqrt(3), rel=1e-6) and low == pytest.approx(1 / high)
    # Five on a line but for ±0.1 at right angles to it: 1, −2, 0, 2, −1 over √10; 3 degrees of freedom.
    bent = [math.exp(i + 0.1 * b) for i, b in enumerate((1, -2, 0, 2, -1))]
    low, high = interval(bent) or (0, 0)
    assert math.log(high / low) / 2 == pytest.approx(2.353363 * math.sqrt(0.1 / 3 / 5), rel=1e-6)
    assert math.log(center(bent)) == pytest.approx(2)


def test_two_processes_give_no_interval() -> None:
    assert interval([1.0, 1.1]) is None and interval([1.0]) is None
    assert interval([1.0, 1.1, 1.2]) is not None
    with pytest.raises(ValueError, match="run more"):
        log_interval(np.zeros((4, 2)))


def test_estimates_that_are_none_are_refused() -> None:
    for statistic in (interval, center, coefficient_of_variation):
        for wrong in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="finite and positive"):
                statistic([1.0, wrong, 2.0])
        with pytest.raises(ValueError, match="no estimates"):
            statistic([])
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval([1.0, 2.0, 3.0], 90)


def test_the_spread_by_hand() -> None:
    assert coefficient_of_variation([9.0, 10.0, 11.0]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="two"):
        coefficient_of_variation([1.0])


@settings(deadline=None)
@given(st.lists(POSITIVE, min_size=3, max_size=12), st.floats(1e-3, 1e3))
def test_the_center_lies_within_and_units_do_not_matter(estimates: list[float], unit: float) -> None:
    low, high = interval(estimates) or (math.nan, math.nan)
    assert low <= center(estimates) * (1 + 1e-9) and center(estimates) <= high * (1 + 1e-9)
    scaled = interval([unit * value for value in estimates]) or (math.nan, math.nan)
    logs = np.log([low, high])
    assert np.log(scaled) == pytest.approx(logs + math.log(unit), abs=1e-6 + 1e-9 * float(abs(logs).max()))


@settings(deadline=None)
@given(st.lists(POSITIVE, min_size=3, max_size=12))
def test_more_confidence_is_a_wider_interval(estimates: list[float]) -> None:
    narrow, wide = interval(estimates, 0.8), interval(estimates, 0.95)
    assert narrow and wide and wide[0] <= narrow[0] <= narrow[1] <= wide[1]
