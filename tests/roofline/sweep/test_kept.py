"""A family that keeps its graphs gives those that a trace gives, and traces a regime once."""

import pytest
from parametric_graphs import Traced, decoder, totals, workload

from roofline.graph.fold import fold
from roofline.graph.op import OpGraph
from roofline.sweep.family import Family, Source
from roofline.sweep.kept import kept
from roofline.workload import Workload

ASKED = [workload(1, 1, 77), workload(9, 1, 5000), workload(3, 700, 0), workload(1, 31, 0), workload(2, 16, 900)]


def source(trace: Traced) -> Source:
    return kept(Source("a model", 7, lambda w: fold(trace(w)), lambda: Family(lambda w: fold(trace(w)))))


@pytest.mark.parametrize("asked", ASKED, ids=lambda w: w.key)
def test_a_workload_near_one_that_was_asked_needs_no_trace(asked: Workload) -> None:
    trace = Traced()
    of = source(trace)
    of.whole(asked)
    seen = sum(trace.made.values())
    change = {
        "batch": 3 * asked.batch if asked.batch > 1 else 1,
        "query_tokens": asked.query_tokens + 2 * (asked.query_tokens > 1),
    }
    near = asked.model_copy(update=change | {"context_tokens": 2 * asked.context_tokens})
    assert totals(of.whole(near)) == pytest.approx(totals(decoder(near)), rel=1e-12)
    assert sum(trace.made.values()) == seen


def test_a_list_of_workloads_is_served_by_what_is_kept_and_what_is_new() -> None:
    of = source(Traced())
    of.whole(ASKED[1])
    pieces = of.family().cover(ASKED)
    assert sorted(int(i) for piece in pieces for i in piece.index) == list(range(len(ASKED)))
    for piece in pieces:
        for i in piece.index:
            assert totals(piece.graph.at(ASKED[i])) == pytest.approx(totals(decoder(ASKED[i])), rel=1e-12)


def test_beyond_what_was_checked_a_new_trace_decides() -> None:
    """A kept graph is never stretched to a length at which nothing was traced."""

    def threshold(w: Workload) -> OpGraph:
        return decoder(w, layers=2 if w.context_tokens > 200_000 else 3)

    of, far = source(Traced(threshold)), workload(2, 1, 300_000)
    of.whole(ASKED[1])
    assert totals(of.whole(far)) == pytest.approx(totals(threshold(far)), rel=1e-12)
    assert totals(of.whole(ASKED[1])) == pytest.approx(totals(threshold(ASKED[1])), rel=1e-12)


def test_where_the_range_around_cannot_be_traced_the_workload_alone_is() -> None:
    def small(w: Workload) -> OpGraph:
        if w.context_tokens + w.query_tokens > 1024:
            raise ValueError("a position beyond the last")
        return decoder(w)

    of = source(Traced(small))
    assert totals(of.whole(ASKED[0])) == pytest.approx(totals(decoder(ASKED[0])), rel=1e-12)
    with pytest.raises(ValueError, match="beyond the last"):
        of.whole(workload(1, 1, 2000))
