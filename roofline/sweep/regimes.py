"""Regimes: workloads whose passes run the same list of operations, and the workloads to sample in one.

The list changes between one query token and several, with and without a context, between one sequence and several, with
the logits that are wanted, and on each side of a sliding window. Within a regime sizes are polynomials of low degree in
batch, query and context.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction

from roofline.record import Record
from roofline.sweep.polynomial import Exponents, powers
from roofline.workload import Logits, Phase, Workload

EDGE = 1
"""Tokens around a window where implementations differ by one: such workloads are traced one by one."""
STEPS = (11, 13, 17, 19, 23, 29)
"""Distances of samples from the start of a regime: primes, so that no size is the product of two others."""
BATCHES = (2, 3)


class Regime(Record):
    """The properties of a workload that decide the list of operations."""

    phase: Phase
    batched: bool
    sides: tuple[int, ...]
    """Side of each window: 0 all tokens fit in it, 1 the query passes it, 2 the context fills it."""
    logits: Logits = "last"


def regime_of(workload: Workload, windows: Sequence[int]) -> Regime | None:
    """The regime of a workload; None on the edge of a window, or where a lone token has no context."""
    context, total = workload.context_tokens, workload.context_tokens + workload.query_tokens
    if any(abs(context - w) <= EDGE or abs(total - w) <= EDGE for w in windows) or total == 1:
        return None
    sides = tuple(0 if total <= w else 2 if context >= w else 1 for w in windows)
    return Regime(phase=workload.phase, batched=workload.batch > 1, sides=sides, logits=workload.logits)


def monomials(regime: Regime, chunked: bool) -> tuple[Exponents, ...]:
    """Monomials of sizes in a regime: attention is a product of two lengths, everything is linear in batch."""
    has_context = regime.phase == "chunk"
    lengths = [(0, 0, 0), (0, 1, 0)] if regime.phase == "decode" else [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    lengths += [(0, 1, 0), (1, 1, 0), (0, 2, 0)] if has_context else []
    if chunked and regime.phase != "decode":
        lengths += [(0, 0, 1), (1, 0, 1), (0, 0, 2), *([(0, 1, 1)] if has_context else [])]
    return tuple((b, *exponents) for exponents in lengths for b in range(1 + regime.batched))


def samples(
    regime: Regime,
    windows: Sequence[int],
    dtype: str,
    *,
    chunk: int = 1,
    filled: bool = False,
    start: tuple[int, int] = (0, 0),
) -> list[Workload] | None:
    """Workloads of the regime that tell its monomials apart, small ones first; None where it has too few.

    Args: `start` is (query, context) tokens from which samples are taken; with chunks, queries have several of them,
    and all are full where they are to be `filled` (their number is then no monomial), else the last is not.
    """
    wanted = monomials(regime, chunk > 1 and not filled)
    chosen: list[Workload] = []
    rows: list[list[Fraction]] = []
    origins = sorted({0, *(window + EDGE for window in windows)})
    queries = [1] if regime.phase == "decode" else _lengths(origins, start[0], chunk, filled)
    contexts = [0] if regime.phase == "prefill" else _lengths(origins, start[1])
    batches = BATCHES if regime.batched else (1,)
    for _, query, context, batch in sorted((q + c, q, c, b) for q in queries for c in contexts for b in batches):
        workload = Workload(batch=batch, query_tokens=query, context_tokens=context, dtype=dtype, logits=regime.logits)
        if regime_of(workload, windows) != regime:
            continue
        rest = powers(workload, wanted, chunk)
        for row in rows:  # what is left when multiples of the others, each reduced by those before it, are taken away
            pivot = next(i for i, value in enumerate(row) if value)
            factor = rest[pivot] / row[pivot]
            rest = [a - factor * b for a, b in zip(rest, row, strict=True)]
        if any(rest):
            chosen.append(workload)
            rows.append(rest)
        if len(chosen) == len(wanted):
            return chosen
    return None


def _lengths(origins: Iterable[int], start: int, chunk: int = 1, filled: bool = False) -> list[int]:
    """Lengths to sample; with chunks, several of them, so that a loop over them is seen as one, and any remainder."""
    first = [max(origin, start) for origin in origins]
    if filled:
        return sorted({(-(-o // chunk) + 5 + i) * chunk for o in first for i in range(len(STEPS))})
    if chunk > 1:
        full = (-(-o // chunk) * chunk for o in first)
        return sorted({o + (5 + i // 2) * chunk + 1 + s % (chunk - 1) for o in full for i, s in enumerate(STEPS)})
    return sorted({o + step for o in first for step in STEPS})
