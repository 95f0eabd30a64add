"""Families of graphs made by hand, whose tracer counts what it is asked for."""

from collections.abc import Callable, Iterator, Sequence

import pytest
from parametric_graphs import Traced, decoder, totals, workload

from roofline.graph.fold import fold
from roofline.graph.op import OpGraph
from roofline.sweep.family import FEW, MOST_ALONE, Family, Piece, Trace
from roofline.workload import Workload

DECODES = [workload(batch, 1, context) for batch in (1, 4) for context in range(10, 3000, 130)]
PREFILLS = [workload(batch, query, 0) for batch in (1, 3) for query in range(20, 3000, 130)]
CHUNKS = [workload(batch, 16, context) for batch in (1, 3) for context in range(20, 3000, 130)]


def serving(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """The piece of each workload, of which there is one."""
    found = [[piece for piece in pieces if i in piece.index] for i in range(count)]
    assert all(len(one) == 1 for one in found)
    return [one[0] for one in found]


def right(pieces: Sequence[Piece], workloads: Sequence[Workload], make: Callable[[Workload], OpGraph]) -> None:
    """Every workload is served by a graph that is what its own trace folds to."""
    for piece, w in zip(serving(pieces, len(workloads)), workloads, strict=True):
        assert piece.graph.differs(fold(make(w))) is None
        assert totals(piece.graph.at(w)) == pytest.approx(totals(make(w)), rel=1e-12)


def fitted(pieces: Sequence[Piece]) -> list[Piece]:
    return [piece for piece in pieces if len(piece.graph.monomials) > 1]


def test_few_traces_serve_a_regime_each() -> None:
    trace = Traced()
    family = Family(trace)
    workloads = DECODES + PREFILLS + CHUNKS
    pieces = family.cover(workloads)
    assert len(pieces) == len(fitted(pieces)) == 6
    assert family.notes == []
    assert len(trace.made) < 50 < len(workloads)
    right(pieces, workloads, decoder)


def test_no_trace_is_made_twice() -> None:
    def threshold(w: Workload) -> OpGraph:
        return decoder(w, layers=2 if w.context_tokens > 1000 else 3)

    trace, smaller = Traced(threshold), Traced(lambda w: threshold(w))
    family = Family(trace, smaller=lambda whole: [smaller], chunks=(64,))
    family.cover(DECODES)
    family.cover(DECODES + CHUNKS)
    family.cover(DECODES[:2])
    assert set(trace.made.values()) == set(smaller.made.values()) == {1}


def test_what_was_checked_is_said() -> None:
    trace = Traced()
    workloads = [workload(b, 1, c) for b, c in ((2, 10), (2, 5000), (64, 300), (8, 40))]
    (piece,) = Family(trace, few=1).cover(workloads)
    assert piece.graph.checked == (workload(2, 1, 5000), workload(2, 1, 10), workload(64, 1, 300))
    assert all(trace.made[w] == 1 for w in piece.graph.checked)


def test_few_workloads_are_traced_themselves() -> None:
    trace = Traced()
    workloads = [DECODES[i % FEW] for i in range(10)]
    pieces = Family(trace).cover(workloads)
    assert dict(trace.made) == dict.fromkeys(DECODES[:FEW], 1)
    assert len(pieces) == FEW and not fitted(pieces)
    right(pieces, workloads, decoder)


@pytest.mark.parametrize("at", [200, 1111, 2900])
def test_a_hidden_threshold_splits_a_regime(at: int) -> None:
    def make(w: Workload) -> OpGraph:
        return decoder(w, layers=5, steps=20 if w.context_tokens >= at else 1)

    family = Family(Traced(make))
    workloads = [workload(2, 1, context) for context in range(10, 3000, 31)]
    pieces = family.cover(workloads)
    right(pieces, workloads, make)
    assert len(fitted(pieces)) >= 2
    assert any("split at decode-b2" in note and "operations at" in note for note in family.notes)


def test_a_threshold_in_sizes_alone_is_noticed_too() -> None:
    def make(w: Workload) -> OpGraph:
        return decoder(w.model_copy(update={"query_tokens": min(w.query_tokens, 1500)})).model_copy(
            update={"workload": w}
        )

    family = Family(Traced(make))
    pieces = family.cover(PREFILLS)
    right(pieces, PREFILLS, make)
    assert any("sizes are not polynomials" in note for note in family.notes)


def test_a_threshold_in_the_batch_is_noticed() -> None:
    def make(w: Workload) -> OpGraph:
        return decoder(w, steps=9 if w.batch > 32 else 1)

    workloads = [workload(2, 1, 3000), workload(2, 1, 10), workload(2, 1, 20), workload(64, 1, 100), workload(9, 1, 20)]
    family = Family(Traced(make))
    right(family.cover(workloads), workloads, make)
    assert family.notes


def test_workloads_that_nothing_describes_are_traced_alone_up_to_a_number() -> None:
    def make(w: Workload) -> OpGraph:
        return decoder(w, layers=1, vocabulary=10**6 + w.context_tokens**3 % 89)

    workloads = [workload(1, 1, context) for context in range(10, 10 + MOST_ALONE)]
    trace = Traced(make)
    family = Family(trace)
    pieces = family.cover(workloads)
    assert not fitted(pieces) and len(pieces) == MOST_ALONE
    right(pieces, workloads, make)
    assert any("traced one by one" in note for note in family.notes)
    with pytest.raises(ValueError, match=rf"would each need a trace of their own .*; ask for at most {MOST_ALONE}$"):
        family.cover([*workloads, workload(1, 1, 9999)])


def test_edges_of_a_window_are_traced_alone() -> None:
    window = 500

    def make(w: Workload) -> OpGraph:
        """An implementation that changes its list of operations at one token or another around the window."""
        total = w.context_tokens + w.query_tokens
        graph = decoder(w.model_copy(update={"context_tokens": min(w.context_tokens, window - 1)}), layers=3)
        return decoder(w, layers=3) if total < window else graph.model_copy(update={"workload": w})

    workloads = [workload(1, 1, context) for context in range(480, 520)]
    family = Family(Traced(make), windows=(window,))
    pieces = family.cover(workloads)
    right(pieces, workloads, make)
    alone = {workloads[int(i)].context_tokens for piece in pieces if piece not in fitted(pieces) for i in piece.index}
    assert alone == {window - 2, window - 1, window, window + 1}
    assert len(fitted(pieces)) == 2 and not family.notes


def test_more_than_the_most_edges_are_refused_at_once() -> None:
    trace = Traced()
    family = Family(trace, windows=(500,))
    with pytest.raises(ValueError, match=f"at most {MOST_ALONE}"):
        family.cover([workload(batch, 1, 500) for batch in range(1, MOST_ALONE + 2)])
    assert not trace.made


def layers(count: int) -> Callable[[Workload], OpGraph]:
    return lambda w: decoder(w, layers=count)


def hybrid(count: int) -> Callable[[Workload], OpGraph]:
    """Every third layer has experts."""

    def make(w: Workload) -> OpGraph:
        plain, routed = decoder(w, layers=count), decoder(w, layers=count, experts=4)
        other = {f"layers.{i}" for i in range(2, count, 3)}
        pairs = zip(plain.ops, routed.ops, strict=True)
        return plain.model_copy(update={"ops": tuple(b if a.path in other else a for a, b in pairs)})

    return make


@pytest.mark.parametrize(("kind", "few", "enough"), [(layers, 2, 2), (hybrid, 2, 3), (hybrid, 5, 6)])
def test_small_models_stand_for_the_whole_where_they_can(
    kind: Callable[[int], Callable[[Workload], OpGraph]], few: int, enough: int
) -> None:
    whole, small, more = Traced(kind(12)), Traced(kind(few)), Traced(kind(enough))
    asked: list[OpGraph] = []

    def smaller(graph: OpGraph) -> Iterator[Trace]:
        asked.append(graph)
        yield from (small, more)

    family = Family(whole, smaller=smaller)
    workloads = [w for w in DECODES if w.batch == 4]
    pieces = family.cover(workloads)
    right(pieces, workloads, kind(12))
    (piece,) = pieces
    assert set(whole.made) == {workloads[-1]} == {graph.workload for graph in asked}
    assert len(small.made) == (1 if few < enough else 6), "one is enough to see that it cannot stand for the whole"
    assert piece.graph.template.weight_bytes == fold(kind(12)(workloads[0])).weight_bytes
    assert family.notes == []


def test_where_no_small_model_stands_for_the_whole_that_is_sampled_itself() -> None:
    whole, small = Traced(hybrid(7)), Traced(hybrid(2))
    pieces = Family(whole, smaller=lambda graph: [small]).cover(DECODES)
    right(pieces, DECODES, hybrid(7))
    assert len(small.made) == 2 and len(whole.made) > 8


def test_small_models_with_other_widths_or_paths_are_rejected() -> None:
    def wider(w: Workload) -> OpGraph:
        graph = decoder(w, layers=2)
        ops = (*graph.ops[:-1], graph.ops[-1].model_copy(update={"matrix_flops": 5}))
        return graph.model_copy(update={"ops": ops})

    def elsewhere(w: Workload) -> OpGraph:
        graph = decoder(w, layers=2)
        return graph.model_copy(
            update={"ops": (*graph.ops[:-1], graph.ops[-1].model_copy(update={"path": "other_head"}))}
        )

    for make in (wider, elsewhere):
        small = Traced(make)
        pieces = Family(Traced(), smaller=lambda graph, small=small: [small]).cover(DECODES)
        right(pieces, DECODES, decoder)
        assert len(small.made) == 2


def test_counts_of_a_small_model_grow_with_its_loops() -> None:
    def make(count: int) -> Callable[[Workload], OpGraph]:
        return lambda w: decoder(w, layers=count, steps=max(2, w.query_tokens))

    family = Family(Traced(make(9)), smaller=lambda graph: [Traced(make(2))])
    workloads = [workload(1, query, 0) for query in (20, 45, 101, 333)]
    (piece,) = family.cover(workloads)
    right([piece], workloads, make(9))
    assert max(op.count for op in piece.graph.at(workload(1, 10**6, 0)).ops) == 10**6


def test_a_loop_over_tokens_is_never_traced_at_its_length() -> None:
    trace = Traced(lambda w: decoder(w, layers=2, steps=max(2, w.query_tokens)))
    family = Family(trace, few=0, longest_check=100)
    (piece,) = family.cover([workload(1, 10**5, 0), workload(1, 8000, 0)])
    assert max(w.query_tokens for w in trace.made) == 100
    assert piece.graph.checked == (workload(1, 100, 0),)
    assert max(op.count for op in piece.graph.at(workload(1, 10**5, 0)).ops) == 10**5


def test_a_shorter_check_stays_on_its_side_of_a_window() -> None:
    trace = Traced(lambda w: decoder(w, layers=2, steps=2 * max(2, w.query_tokens) if w.query_tokens > 150 else 3))
    family = Family(trace, windows=(150,), few=0, longest_check=100)
    (piece,) = family.cover([workload(1, 700, 0), workload(1, 400, 0)])
    assert piece.graph.checked[0] == workload(1, 700, 0)


def test_types_of_data_are_not_mixed() -> None:
    def make(w: Workload) -> OpGraph:
        size = 4 if w.dtype == "float32" else 2
        return decoder(w, vocabulary=1000 * size)

    workloads = [workload(1, 1, context, dtype) for context in (50, 90, 700, 9) for dtype in ("float32", "bfloat16")]
    pieces = Family(Traced(make)).cover(workloads)
    right(pieces, workloads, make)
    assert {piece.graph.template.workload.dtype for piece in pieces} == {"float32", "bfloat16"}


def test_the_pieces_of_nothing_are_none() -> None:
    assert Family(Traced()).cover([]) == []
