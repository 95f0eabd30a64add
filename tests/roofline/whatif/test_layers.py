"""Fewer layers, against traces of models that have fewer."""

import pytest
from each import each
from graphs import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st
from whatif_graphs import PHASES, check, totals, traced

from roofline.fusion.fuse import fused
from roofline.graph.op import OpGraph, Tensor, layer_of
from roofline.whatif.layers import early_exit, remove_layers, repeated_layers
from roofline.whatif.quantise import quantise


@each("phase", PHASES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "mixtral", "falcon", "mamba", "phi", "gpt_oss"])
def test_leaving_early_is_a_model_of_fewer_layers(name: str, phase: str) -> None:
    fewer = traced(name, phase, layers=2) if name != "gpt_oss" else None
    graph = traced(name, phase, layers=4) if fewer else traced(name, phase)
    left = early_exit(graph, 2 if fewer else 1)
    check(left)
    if fewer is None:
        return
    assert left.ops == fewer.ops
    assert [t.model_copy(update={"held": None}) for t in left.tensors] == [
        t.model_copy(update={"held": None}) for t in fewer.tensors
    ]
    assert (left.parameters, left.inactive, left.attention_modules) == (
        fewer.parameters, fewer.inactive, fewer.attention_modules,
    )  # fmt: skip
    assert left.options["removed_layers"] == "2-3"


@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "gemma3", "qwen3_next", "mamba2"])
def test_removed_layers_take_their_own_work_with_them(name: str) -> None:
    graph = traced(name, "decode")
    layer = repeated_layers(graph)[-1]
    removed = remove_layers(graph, [layer])
    check(removed)

    def own(whole: OpGraph, figure: str) -> float:
        return sum(getattr(op, figure) for op in whole.ops if (p := layer_of(op.path)) and p.layer == layer)

    for figure in ("matrix_flops", "vector_flops"):
        assert totals(graph)[figure] - totals(removed)[figure] == own(graph, figure)
    assert own(removed, "matrix_flops") == 0
    assert not any(f".{layer}." in (t.name or "") for t in removed.tensors if t.role == "weight")
    assert not any((t.name or "").startswith(f"{layer}.") for t in removed.tensors if t.role == "kv")


def test_layers_differ_by_the_same_work() -> None:
    graph = traced("llama", "chunk", layers=4)
    one, two = (totals(remove_layers(graph, layers)) for layers in ([1], [1, 2]))
    for figure, whole in totals(graph).items():
        assert whole - two[figure] == 2 * (whole - one[figure])


@given(st.sets(st.integers(0, 3), max_size=3), st.permutations(range(4)))
@settings(max_examples=20, deadline=None)
def test_order_of_removal_does_not_matter(layers: set[int], order: list[int]) -> None:
    graph = traced("llama", "decode", layers=4)
    at_once, one_by_one = remove_layers(graph, sorted(layers)), graph
    for layer in (i for i in order if i in layers):
        one_by_one = remove_layers(one_by_one, [layer])
    assert one_by_one == at_once


@each("after", [1, 3, 4])
def test_leaving_early_and_quantising_commute(after: int) -> None:
    graph = traced("llama", "chunk", layers=4)

    def narrow(g: OpGraph) -> OpGraph:
        return quantise(g, weights=8, activations=8, kv=8, group=-1)

    assert narrow(early_exit(graph, after)) == early_exit(narrow(graph), after)


def test_the_reader_of_a_removed_run_reads_what_that_was_given() -> None:
    graph = traced("llama", "decode", layers=4)
    left = remove_layers(graph, [1, 2])
    norm = next(op for op in left.ops if op.path == "model.layers.3.input_layernorm")
    given_on = next(op for op in reversed(left.ops) if op.path == "model.layers.0")
    assert norm.reads[0].tensor == given_on.writes[0].tensor


def test_what_all_layers_read_is_not_what_they_pass_on() -> None:
    b = GraphBuilder()
    b.op("pointwise", writes={"mask": 8}, path="model")
    b.op("pointwise", writes={"0": 8}, path="model")
    for layer in range(3):
        b.op("pointwise", ["mask", str(layer)], {str(layer + 1): 8}, path=f"model.layers.{layer}")
    b.op("pointwise", ["3"], {"out": 8}, path="model.norm")
    left = remove_layers(b.graph(), [0, 2])
    names = [[left.tensors[a.tensor].name for a in op.reads] for op in left.ops]
    assert names == [[], [], ["mask", "0"], ["2"]]
    assert [t.name for t in left.tensors] == ["mask", "0", "2", "out"]


def test_a_layer_that_others_need_more_of_stays() -> None:
    b = GraphBuilder()
    b.op("pointwise", writes={"0": 8}, path="embed")
    b.op("pointwise", ["0"], {"keys": 6, "1": 8}, path="layers.0")
    b.op("pointwise", ["1", "keys"], {"2": 8}, path="layers.1")
    with pytest.raises(ValueError, match=r"layers\.1 needs more of layers\.0 than what it was given"):
        remove_layers(b.graph(), [0])


def test_parameters_that_nothing_reads_go_too() -> None:
    graph = traced("llama", "decode", layers=2)
    spare = Tensor(id=len(graph.tensors), storage_bytes=80, role="weight", name="model.layers.1.spare.weight")
    changed = {"tensors": (*graph.tensors, spare), "inactive": (spare.name,), "parameters": graph.parameters + 40}
    assert early_exit(graph.model_copy(update=changed), 1) == early_exit(graph, 1)


@each(
    ("layers", "message"),
    [([4], "has no layer 4; its layers are 0-3"), ([-1], "has no layer -1"), (range(4), "all 4 layers")],
)
def test_layers_that_cannot_be_removed(layers: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        remove_layers(traced("llama", "decode", layers=4), layers)


def test_other_bad_requests() -> None:
    graph = traced("llama", "decode", layers=4)
    for after in (0, 5):
        with pytest.raises(ValueError, match="the graph has 4; use 1 to 4"):
            early_exit(graph, after)
    with pytest.raises(ValueError, match="2 of 32 layers"):
        remove_layers(graph.model_copy(update={"layers": (2, 32)}), [0])
    with pytest.raises(ValueError, match="before fusing"):
        remove_layers(fused(graph), [0])
