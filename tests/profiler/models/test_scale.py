"""Few layers standing for all of them, against the trace of the whole model."""

import pytest
from tiny import tiny

from profiler.models.inputs import prepare
from profiler.models.scale import scale
from profiler.models.trace import trace
from profiler.models.truncate import truncate
from profiler.models.weights import build_meta
from profiler.record.run import RequestError
from roofline.graph.op import OpGraph
from roofline.workload import Workload


def graph(name: str, layers: int | None) -> OpGraph:
    config = tiny(name)
    workload = Workload(batch=1, query_tokens=1, context_tokens=12, dtype="float32")
    model = build_meta(truncate(config, layers) if layers else config, "float32")
    return trace(model, prepare(model, workload), workload, name=name, target="cpu", options={})


@pytest.mark.parametrize(("name", "layers"), [("llama", 1), ("gpt2", 1), ("deepseek_v3", 2), ("mamba", 1)])
def test_scaled_totals_are_those_of_the_whole_model(name: str, layers: int) -> None:
    part, whole = graph(name, layers), graph(name, None)
    scaled = scale(part, part, whole)
    for figure in ("matrix_flops", "vector_flops"):
        assert sum(getattr(op, figure) * op.count for op in scaled.ops) == sum(getattr(op, figure) for op in whole.ops)
    bytes_ = sum(t.total * op.count for op, t in zip(scaled.ops, scaled.traffic, strict=True))
    assert bytes_ == sum(t.total for t in whole.traffic)
    assert scaled.layers is not None and scaled.layers[0] == layers
    assert scaled.parameters == whole.parameters


def test_a_missing_kind_of_layer_is_refused() -> None:
    part, whole = graph("deepseek_v3", 1), graph("deepseek_v3", None)  # the first layer is dense, the others are not
    with pytest.raises(RequestError, match=r"model\.layers\.1; use --layers 2 or more"):
        scale(part, part, whole)
