"""Intervals of a figure from fresh processes that measured it: the process is the unit of replication.

Samples within a process are correlated (one address layout, one clock history, one neighbour) and share the luck of
their process, so they are never counted as independent: each process gives one estimate, the median or a quantile of
its samples, and the interval is Student's t on the logarithms of these. Pooled samples under-cover badly: the test
beside this module shows a "90 %" interval of pooled samples that holds less than half of the time.

Contract: estimates come in the order in which the processes ran. The interval holds the estimate of the median
process of that session (over processes and over the session's drift), which for symmetric noise is its expectation.
- From `DETRENDED_FROM` processes on, a linear trend over the order is removed before the spread is taken: a drift of
  the machine adds nothing to the error of the mean of a session, and left in it makes intervals too wide. It costs
  one degree of freedom (8 % of width at 5 processes, 1.5 % at 10) and is exact for normal noise, drift or none. It is
  always removed: a 90 % interval that removes it only where it is significant holds 88 % of the time at 5 processes.
  At 3 and 4 processes it stays in, and with a drift above twice the spread they hold more often than they say (93 %
  of the time and up); never less often.
- A process that shared the machine widens the interval and moves its middle; both are meant. With each process
  disturbed with a chance of one in ten, by 2 to 20 spreads, 90 % intervals hold 87–93 % of the time at 3 to 10
  processes. Rejecting outlying processes first (Grubbs) gives 85 % at ten; a trimmed mean (Yuen) is a quarter
  wider at 5 where nothing outlies.

Example: ``interval([1.02e-3, 1.01e-3, 1.05e-3])`` is ``(0.99…e-3, 1.06…e-3)``.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

FEWEST = 3
"""Processes for an interval. Two leave one degree of freedom: t is 6.3 at 90 %, 12.7 at 95 %, and the interval says
only that two numbers were alike by chance."""
DETRENDED_FROM = 5
"""Processes from which a trend is removed: below, the degrees of freedom left (1 of 3, 2 of 4) cost more width than a
drift as large as the spread."""


def interval(estimates: Sequence[float], confidence: float = 0.9) -> tuple[float, float] | None:
    """Low and high end, in the unit of the estimates (one a process, in the order they ran); None below `FEWEST`.

    Raises ValueError for an estimate that is not finite and positive.
    """
    logs = _logs(estimates)
    if len(logs) < FEWEST:
        return None
    low, high = log_interval(logs, confidence)
    return float(np.exp(low)), float(np.exp(high))


def center(estimates: Sequence[float]) -> float:
    """Geometric mean: the middle of the interval on its logarithmic scale. Raises ValueError as `interval` does."""
    return float(np.exp(_logs(estimates).mean()))


def coefficient_of_variation(estimates: Sequence[float]) -> float:
    """Standard deviation (n − 1) of the estimates over their mean, drift and outlying processes included.

    Raises ValueError as `interval` does, and for fewer than two estimates.
    """
    values = np.exp(_logs(estimates))
    if len(values) < 2:
        raise ValueError("a spread between processes needs two of them; run more")
    return float(values.std(ddof=1) / values.mean())


def log_interval(logs: NDArray[np.float64], confidence: float = 0.9) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the intervals of many sessions at once: logs of shape (..., processes) to two of shape (...).

    mean ± t(df) s / √n, with s² the squared residuals from the mean, or from the line over the order of the
    processes, over df = n − 1 or n − 2. The order is centred, so the line's value at its middle is the mean, and its
    error is that of the mean (simple regression at x = x̄; Draper and Smith, Applied Regression Analysis, 1.4).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, not at {confidence}")
    n = logs.shape[-1]
    if n < FEWEST:
        raise ValueError(f"an interval needs {FEWEST} processes, not {n}; run more")
    means = logs.mean(axis=-1)
    residuals = logs - means[..., None]
    freedom = n - 1
    if n >= DETRENDED_FROM:
        order = np.arange(n) - (n - 1) / 2
        slopes = residuals @ order / (order @ order)
        residuals = residuals - slopes[..., None] * order
        freedom -= 1
    half = t.ppf((1 + confidence) / 2, freedom) * np.sqrt((residuals**2).sum(axis=-1) / freedom / n)
    return means - half, means + half


def _logs(estimates: Sequence[float]) -> NDArray[np.float64]:
    if len(estimates) == 0:
        raise ValueError("no estimates; one for each process is needed")
    for value in estimates:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"an estimate is finite and positive, not {value}; leave out the process that failed")
    return np.log(np.asarray(estimates, dtype=np.float64))
