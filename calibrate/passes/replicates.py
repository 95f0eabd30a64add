"""The middle of repeated measurements with an interval: the rounds of a measured pass, the visits of a calibration.

Passes of one round share the state of the machine, so the round is the replicate: `by_round` takes the mean of each
round's passes, so that other work counts in proportion, and `median_of` the mean of the middle half of the rounds.

The standard error is that of a normal sample's median, 1.253 σ ÷ √n, a little more than the middle half's. σ comes from
the mean absolute deviation, which a burst of other work moves less than a standard deviation. Neighbours that resemble
each other (a drift) count as fewer: n (1 − ρ) ÷ (1 + ρ) for a correlation ρ of neighbours. Intervals are Student's, so
a few rounds give a wide one, and a single round gives none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from profiler.record.measurement import middle_mean
from roofline.laws.fitted import PROBES, LevelRatio, ReferenceLevel, probe_of

Floats = NDArray[np.float64]

MIDDLE = "mean of the middle half"
"""Name of `middle` in reports."""
COVERED = 0.9
"""Default coverage of intervals."""
NORMAL = math.sqrt(math.pi / 2)
"""1.253: standard deviation of a normal sample ÷ its mean absolute deviation, and also the standard error of its median
÷ that of its mean."""


def middle(values: Floats, axis: int = -1) -> Floats:
    """The mean of the middle half of rounds or visits that should be alike. A quarter of them may be anything at either
    end; unlike medians, figures of parts nearly add up to the whole's."""
    return middle_mean(np.moveaxis(np.asarray(values, dtype=float), axis, 0))


@dataclass(frozen=True, slots=True)
class Median:
    """A median with its uncertainty."""

    value: float
    error: float
    """Standard error; infinite for one replicate."""
    freedom: float
    """Degrees of freedom of that error."""

    def half(self, covered: float = COVERED) -> float:
        """Half the width of the interval, in the unit of the value; infinite for one replicate."""
        if not math.isfinite(self.error):
            return math.inf
        return self.error * float(stdtrit(self.freedom, (1 + covered) / 2))

    def interval(self, covered: float = COVERED) -> tuple[float, float] | None:
        """(low, high); None for one replicate."""
        return around(self.value, self.half(covered))


def around(value: float, half: float) -> tuple[float, float] | None:
    """(low, high); None where the half-width is not finite."""
    return (value - half, value + half) if math.isfinite(half) else None


def by_round(samples: Sequence[float] | Floats, rounds: int) -> Floats:
    """Mean of each round's samples, in the order of rounds, from samples of shape (…, passes) in the order they were
    taken; where their number is no multiple of the rounds, each is a round of its own."""
    values = np.asarray(samples, dtype=float)
    passes = values.shape[-1]
    if rounds < 1 or passes == 0 or passes % rounds:
        return values
    return np.asarray(values.reshape(*values.shape[:-1], rounds, passes // rounds).mean(axis=-1))


def medians_by_round(samples: Sequence[Sequence[float]], rounds: int) -> Floats:
    """Mean of each round's samples of several things, shape (things, rounds); 0 where nothing was sampled. A thing with
    another number of samples than rounds of equal length have gets its middle in every round."""
    means = np.zeros((len(samples), max(rounds, 1)))
    for row, values in zip(means, samples, strict=True):
        if values:
            own = by_round(values, rounds)
            row[:] = own if len(own) == len(row) else middle(np.asarray(values, dtype=float))
    return means


def median_by_round(samples: Sequence[float], rounds: int) -> float:
    """Middle of the rounds of the mean of each round's samples; 0 where nothing was sampled."""
    return float(middle(by_round(samples, rounds))) if samples else 0.0


def median_of(values: Sequence[float] | Floats) -> Median:
    """The median of replicates in the order they were taken. Raises ValueError where there is none."""
    replicates = np.asarray(values, dtype=float)
    count = len(replicates)
    if count == 0:
        raise ValueError("a median needs at least one value")
    value = float(middle(replicates))
    if count == 1:
        return Median(value, math.inf, 1.0)
    off = replicates - value
    scale = NORMAL * float(np.abs(off).sum()) / (count - 1)
    independent = count * _independent_share(off)
    return Median(value, NORMAL * scale / math.sqrt(independent), count - 1.0)


def error_within(samples: Sequence[float] | Floats, rounds: int) -> float:
    """Standard error of the median of all samples if rounds differed by nothing but the noise of single samples (0
    where a round has one sample), which rounds that agree by chance would hide."""
    values = np.asarray(samples, dtype=float)
    if rounds < 1 or len(values) % rounds or len(values) <= rounds:
        return 0.0
    split = values.reshape(rounds, -1)
    off = np.abs(split - np.median(split, axis=1, keepdims=True)).sum()
    return float(NORMAL**2 * off / (len(values) - rounds) / math.sqrt(len(values)))


def difference(first: Median, second: Median) -> Median:
    """`first` − `second`, independent of each other; degrees of freedom by Welch and Satterthwaite."""
    error = math.hypot(first.error, second.error)
    value = first.value - second.value
    if not math.isfinite(error) or error == 0:
        return Median(value, error, min(first.freedom, second.freedom))
    freedom = error**4 / (first.error**4 / first.freedom + second.error**4 / second.freedom)
    return Median(value, error, freedom)


def _independent_share(off: Floats) -> float:
    """(1 − ρ) ÷ (1 + ρ) of the correlation ρ of neighbouring deviations, if positive; at least 1 ÷ their number."""
    square = float(off @ off)
    correlation = max(float(off[:-1] @ off[1:]) / square, 0.0) if square > 0 else 0.0
    return max((1 - correlation) / (1 + correlation), 1 / len(off))


def levels(
    beside_pass: Mapping[str, Sequence[float]], calibration: Mapping[str, ReferenceLevel], dtype: str, rounds: int
) -> dict[str, LevelRatio]:
    """The ratio of each of `PROBES` that ran in both, from seconds within each of the `rounds` of a pass and of each
    visit: in the `dtype` of the pass, or without one. A round counts by the mean of its times, as its passes do. A
    probe with a single round or visit on either side has no interval and is left out."""
    ratios: dict[str, LevelRatio] = {}
    for probe in PROBES:
        name = probe_of(probe, dtype, calibration, beside_pass)
        if name is None or not beside_pass[name]:
            continue
        reference = calibration[name]
        ratio = level_ratio(by_round(beside_pass[name], rounds), reference.seconds, reference.centre_s)
        if ratio is not None:
            ratios[probe] = ratio
    return ratios


def level_ratio(
    pass_s: Sequence[float] | Floats, calibration_s: Sequence[float], centre_s: float | None = None
) -> LevelRatio | None:
    """Median of `pass_s` ÷ median of `calibration_s`, shrunk towards 1; None without an interval. With `centre_s`, the
    level to which the calibration was brought, ÷ that number, which is exact.

    A ratio that is noise would add that noise to every prediction. Its logarithm x, known to a standard error e, is
    therefore multiplied by t² ÷ (t² + e²), the posterior mean of a normal level whose standard deviation before the
    pass was t (empirical Bayes; Efron and Morris, JASA 68(341), 1973). t is what the machine is seen to do: the
    standard deviation of the calibration's own readings, or x itself less its noise, √(x² − e²), where that is more.
    """
    readings = np.log(calibration_s)
    beside, during = median_of(np.log(pass_s)), median_of(readings)
    log_ratio = (
        difference(beside, during) if centre_s is None else replace(beside, value=beside.value - math.log(centre_s))
    )
    ends = log_ratio.interval()
    if ends is None:
        return None
    noise = log_ratio.error**2
    plausible = max(float(np.var(readings)), log_ratio.value**2 - noise)
    kept = plausible / (plausible + noise) if noise > 0 else 1.0
    return LevelRatio(ratio=math.exp(log_ratio.value * kept), low=math.exp(ends[0]), high=math.exp(ends[1]))
