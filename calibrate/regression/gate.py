"""Decides whether a kernel got slower, from pairs of fresh processes that one after the other run the base and the new
side; never by one draw alone.

1. Both arms run the base (A/A). From those pairs follow the gate's rate of false alarms on this machine, and the
   smallest slowdown of each kernel that the budget finds.
2. Pairs of base and new are drawn until a kernel is settled: it is not slower by more than the tolerance, or it is a
   candidate, or twice the pairs were drawn.
3. Candidates are drawn again later in processes of their own, with twice the pairs. Only these pairs, which had no part
   in the choice, decide. Nothing is red unless a false discovery rate of `RED` says so, so that among gates of
   unchanged code at most that share is red, however often step 2 looked at its pairs.

`tests/benchmarks/test_regression_rules.py` prints what this rule and others find, and their false alarms.

Example::

    outcome = run_gate(sampler, Plan(pairs=10), np.random.default_rng(seed))
    outcome.exit_code    # 0 good, 1 slower, 3 too noisy to say, 4 a kernel fails
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import false_discovery_control

from calibrate.regression.compare import COVERED, Comparison, judge
from calibrate.regression.statistics import LEAST_ROWS, TRIM, Array, Estimates, joined, moderated, paired

SCREEN = 0.02
"""One-sided p below which a kernel is drawn again; it costs time only, as other pairs decide."""
RED = 5e-4
"""False discovery rate of what is called slower: half of one red gate in a thousand, as tails of real noise are
heavier than Student's."""
SETTLED = 0.3
"""One-sided p above which a kernel shows no sign of being slower at the first look. One that is slower by three
standard errors has so large a p at 0.6 of the pairs in 1 of 30 gates."""
FIRST = 0.6
"""Share of the pairs after which the first look is taken."""
FOUND = 0.95
"""Probability with which the smallest detectable slowdown is found."""


MOST_PAIRS = 1000
"""Pairs that a gate may have: some hours of processes."""


@dataclass(frozen=True)
class Plan:
    """Limits on what a gate may spend, and the slowdown that it has to tell."""

    pairs: int = 10
    """Pairs of processes for a kernel that is not settled before; twice as many where they leave it open."""
    confirming: int = 20
    """Further pairs for a candidate."""
    tolerance: float = 0.03
    """Relative slowdown that has to be found: a kernel too noisy for it is said to be so."""
    least: float = 0.005
    """Relative slowdown that is not called one, however certain."""
    resampled: int = 1000
    """Gates that the self-test resamples for the rate of false alarms; a thousand take seconds."""


@dataclass(frozen=True)
class Drawn:
    """Times of pairs in the order they were drawn."""

    pairs: Mapping[str, Sequence[tuple[float, float]]]
    """Kernel -> (base, new) seconds."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Kernel -> the reason why it has no time, with the side."""


class Sampler(Protocol):
    """Runs pairs of processes."""

    def draw(self, kernels: Sequence[str], pairs: int, against_itself: bool = False, again: bool = False) -> Drawn:
        """Time these kernels in so many pairs of fresh processes; both arms run the base if `against_itself`, and a
        second device runs what is drawn `again` where there is one."""


@dataclass(frozen=True)
class SelfTest:
    """Slowdowns that this machine's noise lets the gate tell."""

    detectable: Mapping[str, float]
    """Kernel -> relative slowdown that is found with a probability of `FOUND`."""
    red: int
    """Resampled gates of unchanged kernels that were red."""
    gates: int
    """All resampled gates."""
    spread: float
    """Median over kernels of the standard deviation of a time from process to process, relative."""
    needed: Mapping[str, int | None] = field(default_factory=dict)
    """Kernel that is too noisy for the tolerance -> the fewest pairs with which it would not be; None: no `MOST_PAIRS`.
    """

    @property
    def rate_below(self) -> float:
        """Upper end of the 95 % interval of the rate of false alarms (Clopper and Pearson)."""
        from scipy.stats import beta

        return float(beta.ppf(0.95, self.red + 1, self.gates - self.red)) if self.red < self.gates else 1.0

    def too_noisy(self, tolerance: float) -> tuple[str, ...]:
        """Kernels in which a slowdown of the tolerance may be missed."""
        return tuple(name for name, size in self.detectable.items() if size > tolerance)


@dataclass(frozen=True)
class Outcome:
    """Findings of a gate."""

    comparisons: tuple[Comparison, ...]
    self_test: SelfTest
    plan: Plan
    candidates: tuple[str, ...] = ()
    """Kernels that were drawn again."""
    drawn: int = 0
    """Pairs of processes in all, the self-test's included."""

    @property
    def exit_code(self) -> int:
        """0: nothing is slower. 1: a kernel is. 4: a kernel failed. 3: the machine is too noisy for the tolerance."""
        verdicts = {row.verdict for row in self.comparisons}
        if "slower" in verdicts:
            return 1
        if "failed" in verdicts:
            return 4
        return 3 if "ambiguous" in verdicts else 0


def run_gate(
    sampler: Sampler,
    kernels: Sequence[str],
    plan: Plan,
    random: np.random.Generator,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Test this machine, draw, draw candidates again, and judge. `say` is told a sentence when a step ends."""
    own = sampler.draw(kernels, plan.pairs, against_itself=True)
    failed = dict(own.failed)
    names = [name for name in kernels if name not in failed]
    test = self_test({name: own.pairs[name] for name in names}, plan, random)
    noisy = test.too_noisy(plan.tolerance)
    say(_sentence(test, noisy, plan))
    drawn = plan.pairs
    if len(noisy) == len(names):
        rows = [_failed(name, why) for name, why in failed.items()]
        rows += [Comparison((("kernel", name),), "ambiguous", _too_noisy(name, test, plan)) for name in names]
        return Outcome(tuple(rows), test, plan, drawn=drawn)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    first = min(max(round(FIRST * plan.pairs), 2), plan.pairs)
    waiting = names
    for count, settled in ((first, SETTLED), (plan.pairs - first, SCREEN), (plan.pairs, SCREEN)):
        if not count or not waiting:
            continue
        more = sampler.draw(waiting, count)
        drawn += count
        failed.update(more.failed)
        for name in waiting:
            times[name] += more.pairs.get(name, ())
        names = [name for name in names if name not in failed]
        waiting = _waiting(names, waiting, times, settled, plan)
    screened = estimate([times[name] for name in names])
    candidates = [name for name, p in zip(names, screened.p_slower(), strict=True) if p < SCREEN]
    again: dict[str, Sequence[tuple[float, float]]] = {}
    if candidates:
        say(f"{len(candidates)} of {len(names)} kernels may be slower and are drawn again")
        more = sampler.draw(candidates, plan.confirming, again=True)
        drawn += plan.confirming
        failed.update(more.failed)
        again = {name: more.pairs[name] for name in candidates if name not in failed}
    names = [name for name in names if name not in failed]
    rows = [_failed(name, why) for name, why in failed.items()]
    if names:
        rows += _judged(names, times, again, test, plan)
    return Outcome(tuple(rows), test, plan, tuple(candidates), drawn)


def _waiting(
    names: Sequence[str],
    before: Sequence[str],
    times: Mapping[str, Sequence[tuple[float, float]]],
    settled: float,
    plan: Plan,
) -> list[str]:
    """Kernels that need more pairs: at the first look all that may be slower, later those that nobody can tell."""
    known = estimate([times[name] for name in names])
    p, above = known.p_slower(), known.value + known.half(COVERED)
    is_open = above > math.log1p(plan.tolerance)
    more = (p < settled) | is_open if settled == SETTLED else (p >= settled) & is_open
    return [name for name, wants in zip(names, more, strict=True) if wants and name in before]


def estimate(times: Sequence[Sequence[tuple[float, float]]]) -> Estimates:
    """Log ratios of kernels from their pairs, with moderated errors, in the kernels' order."""
    return moderated(_raw(times))


def confirmed(screened: Estimates, again: Estimates, least: float) -> NDArray[np.bool_]:
    """Which candidates are slower by the pairs `again`.

    `screened` lends what it knows of each kernel's noise. But the later pairs may have met other work, and a candidate
    may have become one by too small an error, so that the candidates' own variances, pooled, have to say the same.
    """
    known = moderated(joined([screened, again]))
    error, p = known.error[len(screened.value) :], known.p_slower()[len(screened.value) :]
    noisier = np.mean((again.error / np.maximum(error, np.finfo(float).tiny)) ** 2)
    freedom = np.full(len(error), again.freedom.sum())
    p = np.maximum(p, Estimates(again.value, error * math.sqrt(noisier), freedom, again.size).p_slower())
    return (false_discovery_control(p) <= RED) & (again.value > math.log1p(least))


def self_test(own: Mapping[str, Sequence[tuple[float, float]]], plan: Plan, random: np.random.Generator) -> SelfTest:
    """Return what follows from A/A pairs: the smallest slowdown that is found, and how often unchanged kernels are red.

    Gates are resampled from the pairs themselves, in random order and with the arms exchanged at random, as both arms
    ran the same code; pairs are drawn for all kernels together, as they share the machine's state.
    """
    if not own:
        return SelfTest({}, 0, 0, 0.0)
    known = moderated(_raw(list(own.values())))
    detectable = _detectable(known, plan, plan.pairs)
    needed = {name: _needed(known, at, plan) for at, name in enumerate(own) if detectable[at] > plan.tolerance}
    deviation = known.error * np.sqrt(known.size)
    length = min(len(pairs) for pairs in own.values())
    logs = np.array([[math.log(new / base) for base, new in pairs[:length]] for pairs in own.values()])
    red = sum(_resampled(logs, deviation, plan, random) for _ in range(plan.resampled))
    spread = float(np.median(known.error)) * math.sqrt(plan.pairs / 2)  # a pair is a difference of two processes
    return SelfTest(dict(zip(own, map(float, detectable), strict=True)), red, plan.resampled, spread, needed)


def _detectable(known: Estimates, plan: Plan, pairs: int) -> Array:
    """Relative slowdown of each kernel that is found with a probability of `FOUND` in so many pairs, and in as many
    confirming ones for each as in `plan`; `known` is of A/A pairs."""
    deviation = known.error * np.sqrt(known.size)
    size, later = (n - 2 * int(TRIM * n) for n in (pairs, pairs * plan.confirming // plan.pairs))
    rivals = 1 + SCREEN * len(deviation)
    each = (1 + FOUND) / 2
    freedom = np.minimum(known.freedom + np.maximum(size - known.size, 0), 1e9)  # more pairs know their noise better
    found = [
        deviation / math.sqrt(count) * (stdtrit(own_freedom, 1 - p) + stdtrit(own_freedom, each))
        for count, p, own_freedom in (
            (size, SCREEN, freedom),
            (later, RED / rivals, np.minimum(np.maximum(freedom, later - 1), rivals * (later - 1))),
        )
    ]
    above_least = math.log1p(plan.least) + deviation / math.sqrt(later) * stdtrit(freedom, each)
    return np.asarray(np.expm1(np.maximum.reduce([*found, above_least])))


def _needed(known: Estimates, kernel: int, plan: Plan) -> int | None:
    """The fewest pairs that find a slowdown of the tolerance in this kernel; None where `MOST_PAIRS` do not."""
    budgets = range(plan.pairs, MOST_PAIRS + 1)
    at = bisect_left(budgets, True, key=lambda pairs: bool(_detectable(known, plan, pairs)[kernel] <= plan.tolerance))
    return budgets[at] if at < len(budgets) else None


def _resampled(logs: Array, deviation: Array, plan: Plan, random: np.random.Generator) -> bool:
    """Whether a gate of unchanged kernels is red whose pairs are drawn from A/A pairs of shape (kernels, pairs).

    In a suite, each deviation is that of some kernel in the same pair, in units of its noise: an outlier among ten
    pairs of one kernel is not one in ten of all its pairs.
    """
    scaled = logs / np.maximum(deviation, np.finfo(float).tiny)[:, None] if len(logs) >= LEAST_ROWS else None

    def pairs(kernels: NDArray[np.intp], count: int) -> Array:
        columns, signs = random.integers(logs.shape[1], size=count), random.choice((-1.0, 1.0), count)
        if scaled is None:
            return logs[kernels][:, columns] * signs
        return (
            scaled[random.integers(len(logs), size=(len(kernels), count)), columns] * deviation[kernels, None] * signs
        )

    screened = paired(pairs(np.arange(len(logs)), plan.pairs))
    chosen = np.flatnonzero(moderated(screened).p_slower() < SCREEN)
    return bool(chosen.size) and bool(confirmed(screened, paired(pairs(chosen, plan.confirming)), plan.least).any())


def _raw(times: Sequence[Sequence[tuple[float, float]]]) -> Estimates:
    """Estimates of kernels that may have different numbers of pairs, in order."""
    groups: dict[int, list[int]] = {}
    for index, pairs in enumerate(times):
        groups.setdefault(len(pairs), []).append(index)
    parts = [
        paired(np.array([[math.log(new / base) for base, new in times[index]] for index in members]))
        for members in groups.values()
    ]
    whole = joined(parts)
    order = np.argsort([index for members in groups.values() for index in members])
    return Estimates(*(getattr(whole, name)[order] for name in Estimates.__slots__))


def _judged(
    names: Sequence[str],
    times: Mapping[str, Sequence[tuple[float, float]]],
    again: Mapping[str, Sequence[tuple[float, float]]],
    test: SelfTest,
    plan: Plan,
) -> list[Comparison]:
    screened = _raw([times[name] for name in names])
    red: set[str] = set()
    if again:
        late = _raw(list(again.values()))
        red = {name for name, is_red in zip(again, confirmed(screened, late, plan.least), strict=True) if is_red}
    final = {name: again.get(name, times[name]) for name in names}
    estimates = estimate([final[name] for name in names])
    verdicts, p, low, high = judge(estimates, plan.tolerance, plan.least)
    rows = []
    for at, name in enumerate(names):
        verdict, reason = verdicts[at], ""
        if name in red:
            verdict = "slower"
        elif test.detectable[name] > plan.tolerance:
            verdict, reason = "ambiguous", _too_noisy(name, test, plan)
        elif verdict != "faster":
            verdict = "same" if high[at] <= math.log1p(plan.tolerance) else "ambiguous"
            reason = "the second draw did not confirm that it is slower" if name in again else ""
        base, new = (float(np.median([pair[arm] for pair in final[name]])) for arm in (0, 1))
        rows.append(
            Comparison(
                key=(("kernel", name),),
                verdict=verdict,
                reason=reason,
                base_s=base,
                new_s=new,
                ratio=math.exp(float(estimates.value[at])),
                low=math.exp(float(low[at])) if np.isfinite(low[at]) else None,
                high=math.exp(float(high[at])) if np.isfinite(high[at]) else None,
                p=float(p[at]),
                replicates=(len(final[name]), len(final[name])),
            )
        )
    return rows


def _failed(name: str, why: str) -> Comparison:
    return Comparison((("kernel", name),), "failed", why)


def _too_noisy(name: str, test: SelfTest, plan: Plan) -> str:
    from roofline.units import percent

    told = f"too noisy here: slowdowns below {percent(test.detectable[name])} may be missed"
    return f"{told}; {_budget(test.needed[name], plan)}"


def _budget(pairs: int | None, plan: Plan) -> str:
    from roofline.units import percent

    asked = percent(plan.tolerance)
    return f"--pairs {pairs} would find {asked}" if pairs else f"not even {MOST_PAIRS:,} pairs would find {asked}"


def _sentence(test: SelfTest, noisy: Sequence[str], plan: Plan) -> str:
    from roofline.units import percent

    if not test.detectable:
        return "self-test: no kernel of the base runs"
    sizes = sorted(test.detectable.values())
    line = (
        f"self-test: a process differs from the next by {percent(test.spread)}; slowdowns of "
        f"{percent(sizes[len(sizes) // 2])} (median), {percent(sizes[-1])} (noisiest kernel) are found in "
        f"{percent(FOUND)} of gates; {test.red} of {test.gates:,} resampled gates of unchanged kernels were red "
        f"(at most {percent(test.rate_below)})"
    )
    if not noisy:
        return line
    most = max(pairs or math.inf for pairs in test.needed.values())
    budget = _budget(None if math.isinf(most) else int(most), plan)
    return f"{line}; {len(noisy)} kernels are too noisy for {percent(plan.tolerance)}: {budget} in all of them"
