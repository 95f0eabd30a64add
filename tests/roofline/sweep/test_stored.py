"""Files of graphs: what they say is what the model says, and what they do not hold is refused in one line."""

from functools import cache
from pathlib import Path

import pytest
from tiny import tiny

from profiler.models.graphs import ModelGraphs, Tracing, model_source, stored_graphs
from profiler.record.files import read_record
from roofline.graph.fold import fold
from roofline.graph.op import GRAPH_SCHEMA, OpGraph
from roofline.sweep.family import Form, StoredGraphs, source
from roofline.whatif.registry import parse
from roofline.workload import Workload

SIZES = ((1, 12, 0), (2, 1, 41), (2, 5, 90))


@cache
def models(name: str) -> ModelGraphs:
    return ModelGraphs(tiny(name), name, Tracing("bfloat16"))


@cache
def stored(name: str) -> StoredGraphs:
    return StoredGraphs.model_validate_json(stored_graphs(models(name)).model_dump_json())


def workload(batch: int, query: int, context: int, dtype: str = "bfloat16") -> Workload:
    return Workload(batch=batch, query_tokens=query, context_tokens=context, dtype=dtype)


def totals(graph: OpGraph) -> dict[str, float]:
    found = {name: sum(getattr(op, name) * op.count for op in graph.ops) for name in ("matrix_flops", "vector_flops")}
    for t, op in zip(graph.traffic, graph.ops, strict=True):
        for name, size in t:
            found[name] = found.get(name, 0.0) + size * op.count
    return found


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_a_file_says_what_the_model_says(name: str) -> None:
    for form in ["fused", "executed"]:
        alone, model = source(stored(name), (), form), model_source(models(name), (), form)
        assert (alone.name, alone.parameters) == (model.name, model.parameters), form
        for sizes in SIZES:
            assert totals(alone.whole(workload(*sizes))) == pytest.approx(
                totals(model.whole(workload(*sizes))), rel=1e-9
            ), form


def test_windows_are_kept() -> None:
    model = model_source(models("mistral"), (), "fused")
    alone = source(stored("mistral"), (), "fused")
    assert stored("mistral").windows == (8,)
    for sizes in ((1, 1, 40), (1, 40, 0), (2, 1, 41)):
        assert totals(alone.whole(workload(*sizes))) == pytest.approx(totals(model.whole(workload(*sizes))), rel=1e-9)
    with pytest.raises(ValueError, match=r"on the edge of a sliding window \(8 tokens\); ask for a few tokens more"):
        alone.whole(workload(1, 1, 8))


def test_changes_are_made_to_what_was_executed() -> None:
    change = parse("quantise:weights=4")
    alone, model = source(stored("llama"), [change], "fused"), model_source(models("llama"), [change], "fused")
    here, there = (totals(one.whole(workload(2, 1, 41))) for one in (alone, model))
    assert here["activation_read"] == pytest.approx(there.pop("activation_read"), rel=0.1)  # fused within a layer
    assert {name: here[name] for name in there} == pytest.approx(there, rel=1e-9)


def test_another_dtype_is_refused_with_the_right_one() -> None:
    with pytest.raises(ValueError, match="saved in bfloat16, not in float32; use --dtype bfloat16"):
        stored("llama").at(workload(1, 12, 0, "float32"), "fused")


def test_a_regime_that_was_not_saved_is_refused() -> None:
    some = stored("llama")
    prefills = some.model_copy(update={"regimes": tuple(r for r in some.regimes if r.regime.phase == "prefill")})
    with pytest.raises(ValueError, match="does not describe decode-b1-q1-c40-bfloat16; save it again"):
        source(prefills, (), "fused").whole(workload(1, 1, 40))


@pytest.mark.parametrize("form", ["fused", "executed"])
def test_one_graph_is_its_own_workload_alone(form: Form, tmp_path: Path) -> None:
    asked = workload(1, 12, 0)
    (tmp_path / "graph.json").write_text(models("llama").whole(asked).model_dump_json())
    alone = source(read_record(tmp_path / "graph.json", OpGraph, GRAPH_SCHEMA), (), form)
    assert alone.whole(asked) == model_source(models("llama"), (), form).whole(asked)
    with pytest.raises(ValueError, match="holds prefill-b1-q12-c0-bfloat16 alone, not prefill-b1-q13-c0-bfloat16"):
        alone.whole(workload(1, 13, 0))
    (piece,) = alone.family().cover([asked, asked])
    assert piece.graph.at(asked).ops == fold(alone.whole(asked)).ops
