"""A robust fit of a law's constants to measured kernels of one kind and dtype, on log time, with intervals.

Minimises Σ ρ((log predicted − log measured) / σ) + Σ ((constant − prior) / spread)² within bounds, constants on their
own scale; ρ is the soft absolute error, which limits the pull of single bad rows. A constant that the data cannot
determine stays at its prior and is marked. The loss has several minima, since one constant can take the place of
another, so a fit takes a few steps from the priors and from points around them and finishes the best. A library runs
several kernels under one kind and dtype; their sizes decide which, so they stay together, and of several for one shape
the fastest is kept. Operators and modules become dims: indices into a list (`KernelKind.category`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, least_squares

from profiler.record.kernel_table import DIMS, Kernels
from roofline.laws.fitted import Z90
from roofline.laws.kinds import KINDS
from roofline.laws.law import Constant, Facts, Floats, Law, Values

ALTERNATIVES = ("kind", "dtype", "op", "distribution", "framework", "version", *DIMS)
"""Columns that are equal for kernels that could run the same shape."""


@dataclass(frozen=True, eq=False)
class Observations:
    """Measured kernels, one a row; all arrays have the same length."""

    kind: str
    """Kind of the table of kernels: "matmul", "aten::mul"."""
    dtype: str
    """dtype of the arithmetic's inputs, torch's name; other differences, such as an fp8 cache, are dims."""
    dims: Mapping[str, Floats]
    time_s: Floats
    """Seconds, positive and finite."""
    group: NDArray[np.str_]
    """Label of the rows that are held out together: a weight shape ("n4096 k4096"), a head layout, a model."""

    def __post_init__(self) -> None:
        lengths = {len(self.time_s), len(self.group), *(len(column) for column in self.dims.values())}
        if len(lengths) != 1:
            raise ValueError(f"columns of {self.kind} have different lengths: {sorted(lengths)}")
        if not bool((np.isfinite(self.time_s) & (self.time_s > 0)).all()):
            raise ValueError(f"{self.kind}: a time is positive and finite; clean the table first")

    def __len__(self) -> int:
        return len(self.time_s)

    def take(self, rows: NDArray[np.int_] | NDArray[np.bool_]) -> "Observations":
        dims = {name: column[rows] for name, column in self.dims.items()}
        return Observations(self.kind, self.dtype, dims, self.time_s[rows], self.group[rows])


def joined(kind: str, parts: Sequence[Observations]) -> Observations:
    """Rows of several tables of one dtype, with the sizes that they all have."""
    names = [name for name in parts[0].dims if all(name in part.dims for part in parts)]
    return Observations(
        kind=kind,
        dtype=parts[0].dtype,
        dims={name: np.concatenate([part.dims[name] for part in parts]) for name in names},
        time_s=np.concatenate([part.time_s for part in parts]),
        group=np.concatenate([part.group for part in parts]),
    )


def observations(kernels: Kernels) -> dict[tuple[str, str], Observations]:
    """All rows by (kind, dtype). Raises ValueError for an `op` that is not in its kind's list."""
    columns = {name: kernels.table[name].to_numpy() for name in ("time_s", "group", "kernel", *ALTERNATIVES)}
    tables = {}
    for kind, dtype in kernels.counts():
        rows = np.flatnonzero((columns["kind"] == kind) & (columns["dtype"] == dtype))
        rows = rows[_fastest({name: column[rows] for name, column in columns.items()})]
        sizes = {name: columns[name][rows] for name in DIMS}
        dims = {name: column for name, column in sizes.items() if np.isfinite(column).all()}
        row = KINDS.get(kind)  # None: a kind without a law is kept, and reported as not calibrated
        if row is not None and row.category is not None:
            name, places = row.category
            if unknown := sorted(set(columns["op"][rows]) - set(places)):
                raise ValueError(f"{kind} {unknown[0]!r} is none of {', '.join(places)}")
            dims[name] = np.array([places.index(op) for op in columns["op"][rows]], dtype=float)
        tables[kind, dtype] = Observations(
            kind, dtype, dims, columns["time_s"][rows], columns["group"][rows].astype(np.str_)
        )
    return tables


def _fastest(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """True for rows of the fastest kernel for their shape, all its repeated measurements included."""
    if len(set(columns["kernel"])) == 1:
        return np.ones(len(columns["kernel"]), dtype=bool)
    frame = pd.DataFrame(columns)
    centre = frame.groupby([*ALTERNATIVES, "kernel"], dropna=False)["time_s"].transform("median")
    best = frame.assign(centre=centre).groupby(list(ALTERNATIVES), dropna=False)["centre"].transform("min")
    return np.asarray(centre == best)


def halves(observations: Observations, seed: int) -> tuple[Observations, Observations]:
    """Rows of a random half of the groups (rounded up), for a fit, and of the others, to score it. Whole groups are
    held out, since rows of one weight shape or head layout resemble each other. Raises ValueError for a single
    group."""
    names = np.unique(observations.group)
    if len(names) < 2:
        raise ValueError(
            f"all {len(observations)} rows of {observations.kind} {observations.dtype} are of one group "
            f"({names[0] if len(names) else 'none'}), and none can be held out; score on another run with --score"
        )
    drawn = np.random.default_rng(seed).permutation(len(names))[: (len(names) + 1) // 2]
    seen = np.isin(observations.group, names[drawn])
    return observations.take(seen), observations.take(~seen)


NOISE = 0.05
"""Relative error of a good law: σ of the loss."""
STARTS = 8
"""Number of starts: the priors, and points drawn from them."""
FIRST_STEPS = 4
"""Most evaluations of the gradient before starts are compared: most have found their valley by then."""
FINISHED = 3
"""Number of best starts that are finished."""
AS_GOOD = 3.0
"""Difference of two minima in the loss, a negative log probability, up to which both are plausible: odds of 20 to 1."""
SLOW_MEMORY = 0.6
"""Least usual part of the datasheet's bandwidth: streams of all known devices reach 0.75 to 0.95."""
MEMORY = ("memory", "bandwidth")
"""Names of constants that are main memory's bandwidth, unless their prior is below `SLOW_MEMORY`."""
NATURAL = (0.0, 1.0)
"""Ends of a share, nothing and all: a constant without a unit may reach them without a doubt."""
AT_BOUND = 0.01
"""Part of the range between bounds within which a constant is at its bound."""
DONE = 1e-5
"""Relative change of loss and constants at which a fit ends, far within its intervals."""
DETERMINED = 0.5
"""Largest part of its prior's spread to which data narrow a determined constant."""
STEP = 1.5e-8
"""Finite-difference step on a constant's own scale: the root of a float's precision."""
TRIED = 0.1
"""Spreads around the priors at which pricing all at once is compared with pricing one by one."""


@dataclass(frozen=True)
class Fitted:
    """Fitted constants of one law for one dtype of a device."""

    values: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    """Ends of each 90 % interval, from the curvature of the loss."""
    undetermined: tuple[str, ...]
    """Constants that the data do not determine."""
    scale: float
    """Robust standard deviation of log measured ÷ predicted on the fitted rows; it is not the law's accuracy."""
    points: int
    doubts: tuple[str, ...] = ()
    """Reasons to doubt the constants, a sentence each."""


def fit(law: Law, observations: Observations, facts: Facts, seed: int = 0, start: Values | None = None) -> Fitted:
    """Fit a law; deterministic for a seed. Raises ValueError where there are no rows. `start` replaces all starts by
    constants near which the best is known to be."""
    if len(observations) == 0:
        raise ValueError(f"no rows to fit {law.name} to")
    constants = law.constants(facts, observations.dtype)
    priors = np.array([_inner(c, c.prior) for c in constants])
    spreads = np.array([c.spread for c in constants])
    lows = np.array([_inner(c, c.low) for c in constants])
    highs = np.array([_inner(c, c.high) for c in constants])
    logs = np.log(observations.time_s)
    priced = _pricing(law, observations, facts, constants, priors, spreads)

    def residuals(inner: Floats) -> Floats:
        return rows_of(inner[None])[0]

    def rows_of(places: Floats) -> Floats:
        """Residuals at several places at once: shape (places, rows and constants)."""
        off = (np.log(priced(places)) - logs) / NOISE
        soft = np.sign(off) * np.sqrt(2 * (np.sqrt(1 + off**2) - 1))
        return np.concatenate([soft, (places - priors) / spreads], axis=1)

    def slopes(inner: Floats) -> Floats:
        """Slopes by forward differences, whose steps lead away from a bound."""
        steps = STEP * np.maximum(1.0, np.abs(inner))
        steps = np.where(inner + steps > highs, -steps, steps)
        rows = rows_of(np.concatenate([inner[None], inner + np.diag(steps)]))
        return np.asarray(((rows[1:] - rows[0]) / steps[:, None]).T)

    margin = 1e-6 * (highs - lows)

    def searched(place: Floats, steps: int | None = None) -> OptimizeResult:
        return least_squares(
            residuals,
            np.clip(place, lows + margin, highs - margin),
            jac=slopes,
            bounds=(lows, highs),
            x_scale=spreads,
            ftol=DONE,
            xtol=DONE,
            max_nfev=steps,
        )

    if start is not None:
        minima = [searched(np.array([_inner(c, start[c.name]) for c in constants]))]
    else:
        drawn = priors + spreads * np.random.default_rng(seed).normal(size=(STARTS - 1, len(priors)))
        first = sorted((searched(place, FIRST_STEPS) for place in (priors, *drawn)), key=lambda result: result.cost)
        minima = sorted((searched(result.x) for result in first[:FINISHED]), key=lambda result: result.cost)
    best = minima[0]
    deviations = np.sqrt(np.diag(np.linalg.pinv(best.jac.T @ best.jac)))
    values, low, high = (_outer(constants, best.x + side * Z90 * deviations) for side in (0, -1, 1))
    relative = np.log(law.time_s(observations.dims, facts, observations.dtype, values)) - logs
    return Fitted(
        values=values,
        low={c.name: max(c.low, low[c.name]) for c in constants},
        high={c.name: min(c.high, high[c.name]) for c in constants},
        undetermined=tuple(c.name for c, d in zip(constants, deviations, strict=True) if d > DETERMINED * c.spread),
        scale=float(1.4826 * np.median(np.abs(relative - np.median(relative)))),
        points=len(observations),
        doubts=tuple(_doubts(constants, facts, best, minima[1:], deviations)),
    )


def _pricing(
    law: Law, observations: Observations, facts: Facts, constants: tuple[Constant, ...], priors: Floats, spreads: Floats
) -> Callable[[Floats], Floats]:
    """A function from several places of the constants to the seconds of every row, shape (places, rows). It calls the
    law once where the law's arithmetic accepts a column of values for each constant, as a trial decides."""

    def one_by_one(places: Floats) -> Floats:
        times = (law.time_s(observations.dims, facts, observations.dtype, _outer(constants, place)) for place in places)
        return np.stack([np.broadcast_to(time_s, len(observations)) for time_s in times])

    def together(places: Floats) -> Floats:
        columns = {
            c.name: (np.exp(x) if c.logarithmic else x)[:, None] for c, x in zip(constants, places.T, strict=True)
        }
        return np.asarray(law.time_s(observations.dims, facts, observations.dtype, columns))

    tried = priors + TRIED * spreads * np.stack([np.linspace(-1, 1, len(priors)) * turn for turn in (0, 1, -1)])
    # a share below nothing has no meaning, and laws may take its root
    tried = np.clip(tried, *np.array([(_inner(c, c.low), _inner(c, c.high)) for c in constants]).T)
    expected = one_by_one(tried)
    try:
        at_once = together(tried)
    except (ValueError, TypeError, IndexError):
        return one_by_one
    same = at_once.shape == expected.shape and np.allclose(at_once, expected, rtol=1e-12)
    return together if same else one_by_one


def _doubts(
    constants: tuple[Constant, ...],
    facts: Facts,
    best: OptimizeResult,
    others: list[OptimizeResult],
    deviations: Floats,
) -> Iterator[str]:
    """Sentences about constants that the data determine; the others are their priors."""
    values = _outer(constants, best.x)
    determined = [c for c, d in zip(constants, deviations, strict=True) if d <= DETERMINED * c.spread]
    for c in determined:
        value, low, high = (_inner(c, figure) for figure in (values[c.name], c.low, c.high))
        for name, bound, inner in (("lower", c.low, low), ("upper", c.high, high)):
            natural = c.unit == "1" and bound in NATURAL
            if not natural and abs(value - inner) < AT_BOUND * (high - low):
                yield f"{c.name} is at its {name} bound, {_shown(bound, c)}"
    slow = SLOW_MEMORY * facts.bandwidth_bytes_per_s
    for c in constants:
        if c.name.split(".")[-1] in MEMORY and c.prior >= slow and values[c.name] < slow:
            part = values[c.name] / facts.bandwidth_bytes_per_s
            yield f"{c.name} is {part:.2f} of the datasheet's bandwidth; at least {SLOW_MEMORY} is usual"
    for other in others:
        if other.cost - best.cost > AS_GOOD:
            continue
        for c, here, there in zip(constants, best.x, other.x, strict=True):
            if c in determined and abs(here - there) > c.spread:
                elsewhere = _outer((c,), np.array([there]))[c.name]
                yield f"{c.name} is {_shown(values[c.name], c)} or, about as likely, {_shown(elsewhere, c)}"
        break


def _shown(value: float, constant: Constant) -> str:
    return f"{value:.3g}" if constant.unit == "1" else f"{value:.3g} {constant.unit}"


def _inner(constant: Constant, value: float) -> float:
    return float(np.log(value)) if constant.logarithmic else value


def _outer(constants: tuple[Constant, ...], inner: Floats) -> dict[str, float]:
    return {c.name: float(np.exp(x)) if c.logarithmic else float(x) for c, x in zip(constants, inner, strict=True)}
