"""What a device reaches when nothing else runs, from samples of which some shared it with other work.

Other work only ever makes a sample slower. So a peak is the rate of the fastest tenth of the samples (the 10th
percentile of their times), the same candidate is timed on several visits some seconds apart, and the best candidate
is chosen by the same estimator. A median says what the machine had left at that moment; the fastest sample alone
would rest on one reading of the clock.

Example: ``fastest_s(merged([first_visit, second_visit])[0].samples)``
"""

import dataclasses
from collections.abc import Iterable
from typing import TypeVar

from profiler.timing.clock import Call, Clock
from profiler.timing.sampler import Samples, sample

FASTEST = 0.1
"""Quantile of the times of samples that a figure is made of."""
VISITS = 3
"""Times that every figure is measured within the device step."""
SAMPLES = 20
"""Samples of a figure, over all visits, from which a tenth is two of them; fewer only where the time ends."""
PER_VISIT = -(-SAMPLES // VISITS)
CALLS_BEFORE = 3
"""Calls of `sample` before its first sample: warm-up and count of repeats."""

_NO_SAMPLES = Samples((), 1, "precise", "")

M = TypeVar("M")


def fastest_s(samples: Samples) -> float:
    """Seconds a call, by the fastest tenth of the samples."""
    return samples.quantile_s(FASTEST)


def collect(call: Call, clock: Clock, *, budget_s: float, min_sample_s: float) -> Samples:
    """Samples of one visit, until the budget ends: however alike they are, all may have been slowed alike."""
    return sample(
        call,
        clock,
        min_samples=PER_VISIT,
        min_time_s=budget_s,
        max_time_s=budget_s,
        min_sample_s=min_sample_s,
        relative_width=0.0,
    )


def merged(found: Iterable[M]) -> list[M]:
    """One record for each candidate, with the samples of all its visits.

    Records are hashable dataclasses with a field `samples`; those that are alike but for it are one candidate.
    """
    alike: dict[M, list[Samples]] = {}
    for one in found:
        key = dataclasses.replace(one, samples=_NO_SAMPLES)  # type: ignore[type-var]
        alike.setdefault(key, []).append(one.samples)  # type: ignore[attr-defined]
    return [dataclasses.replace(key, samples=_joined(visits)) for key, visits in alike.items()]  # type: ignore[type-var]


def _joined(visits: list[Samples]) -> Samples:
    times = tuple(time for samples in visits for time in samples.times_s)
    last = visits[-1]
    return Samples(times, min(samples.repeats for samples in visits), last.stop_reason, last.clock)
