"""How a what-if is written down: names, options and their types."""

import inspect
import re
from collections.abc import Sequence

import pytest
from graphs import GraphBuilder

from roofline.graph.edit import Edit
from roofline.graph.op import OpGraph
from roofline.whatif.quantise import quantise
from roofline.whatif.registry import WHAT_IFS, WhatIf, check_order, help_text, parse, usage


def graph() -> OpGraph:
    b = GraphBuilder()
    b.weight("model.layers.0.mlp.w", 64)
    b.op(
        "matmul",
        reads={"model.layers.0.mlp.w": 64, "x": 16},
        writes={"y": 8},
        path="model.layers.0.mlp",
        matrix=64.0,
        b=1,
        m=2,
        n=4,
        k=4,
    )
    return b.graph()


def test_every_function_takes_a_graph_and_options_that_can_be_written() -> None:
    for name, function in WHAT_IFS.items():
        first, *options = inspect.signature(function).parameters
        assert first == "graph", name
        assert usage(name) == name if not options else usage(name).startswith(f"{name}:{options[0]}=")
        written = usage(name).partition(":")[2].split(",")
        assert [part.partition("=")[0] for part in written if part] == options, name
        written, summary = help_text(name).split("\n")
        assert written == usage(name) and summary.strip().endswith("."), name


PARSED: list[tuple[str, str, dict[str, object]]] = [
    ("fuse_attention", "fuse_attention", {}),
    ("fuse_attention:", "fuse_attention", {}),
    ("tensor_parallel:degree=8", "tensor_parallel", {"degree": 8}),
    ("tensor_parallel:degree=8,link=pcie", "tensor_parallel", {"degree": 8, "link": "pcie"}),
    ("offload:weights=0.5,overlap=false", "offload", {"weights": 0.5, "overlap": False}),
    ("quantise:kv=8", "quantise", {"kv": 8.0}),
    ("quantise:where=*.mlp.*|*.self_attn.*", "quantise", {"where": ("*.mlp.*", "*.self_attn.*")}),
    ("quantise:weights=4,weight_format=float", "quantise", {"weights": 4.0, "weight_format": "float"}),
]


def test_parse() -> None:
    for text, name, options in PARSED:
        what_if = parse(text)
        assert (what_if.name, dict(what_if.options)) == (name, options)
        assert {key: type(value) for key, value in what_if.options.items()} == {k: type(v) for k, v in options.items()}


def test_defaults_can_be_written_out() -> None:
    for name, function in WHAT_IFS.items():
        _, *parameters = inspect.signature(function).parameters.values()
        given = [part for part in usage(name).partition(":")[2].split(",") if part and not part.endswith("=")]
        needed = [p.name for p in parameters if p.default is p.empty]
        options = parse(f"{name}:{','.join([*given, *(f'{option}=1' for option in needed)])}").options
        assert len(options) == len(given) + len(needed), name
        for p in parameters:
            if p.name in options and p.name not in needed:
                assert options[p.name] == p.default, (name, p.name)


def test_a_new_what_if_is_its_function_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file beside the others would add one: typed options, and a graph made with `Edit`."""

    def thin_weights(graph: OpGraph, share: float, roles: Sequence[str] = ("weight",), half: bool = False) -> OpGraph:
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; use more than 0, up to 1")
        edit = Edit(graph)
        for tensor in graph.tensors:
            if tensor.role in roles:
                edit.resize(tensor.id, tensor.storage_bytes * share / (2 if half else 1))
        return edit.done({"thin_weights": f"{share:g}"})

    monkeypatch.setitem(WHAT_IFS, "thin_weights", thin_weights)
    assert usage("thin_weights") == "thin_weights:share=,roles=weight,half=false"
    thin = parse("thin_weights:share=0.5,half=true")
    assert [t.storage_bytes for t in thin(graph()).tensors] == [16, 8, 16]  # w, y, x
    assert parse("thin_weights:share=1,roles=weight|activation")(graph()).options == {"thin_weights": "1"}
    with pytest.raises(ValueError, match="share='no' should be a valid number; write thin_weights:share="):
        parse("thin_weights:share=no")
    with pytest.raises(ValueError, match="did you mean thin_weights"):
        parse("thin_weight:share=1")
    with pytest.raises(ValueError, match="write offload after thin_weights"):
        check_order([parse("offload:weights=1"), thin])


def test_it_is_applied_with_its_options() -> None:
    assert WhatIf("quantise", {"weights": 16})(graph()) == quantise(graph(), weights=16)
    # float32 has no 16-bit identity: the matrix is halved
    halved = parse("quantise:weights=16")(graph())
    assert halved.tensors[0].storage_bytes == 32


REFUSED = {
    "": "no what-if ''; known: quantise, ",
    "frobnicate": "no what-if 'frobnicate'; known: ",
    "quantize:weights=4": "no what-if 'quantize'; did you mean quantise?",
    "tensor_parallel": "needs degree; write tensor_parallel:degree=,link=nvlink",
    "pipeline_stage:link=pcie": "needs stages, stage; write pipeline_stage:stages=,stage=,link=network",
    "tensor_parallel:8": "'8' is not one of its options; write tensor_parallel:degree=,link=nvlink",
    "tensor_parallel:size=8": "'size=8' is not one of its options",
    "tensor_parallel:graph=8": "'graph=8' is not one of its options",
    "tensor_parallel:degree=two": "tensor_parallel: degree='two' should be a whole number; write tensor_parallel:",
    "tensor_parallel:degree=": "degree='' should be a whole number",
    "tensor_parallel:degree=8.0": "degree='8.0' should be a whole number; write",
    "tensor_parallel:degree=1_0": "degree='1_0' should be a whole number; write",
    "tensor_parallel:degree=2,degree=4": "degree is given twice; give it once",
    "offload:weights=half": "weights='half' should be a valid number",
    **{
        f"offload:overlap={v}": f"overlap='{v}' should be true or false; write"
        for v in ("no", "yes", "on", "1", "True")
    },
    "remove_layers:layers=1|b": "layers='1|b' should be a whole number",
    "remove_layers:layers=1|2.0": "layers='1|2.0' should be a whole number",
    "quantise:weight_format=bits": "weight_format='bits' should be 'int' or 'float'",
}


def test_refused_in_one_line() -> None:
    for text, says in REFUSED.items():
        with pytest.raises(ValueError, match=re.escape(says)) as refusal:
            parse(text)
        assert "\n" not in str(refusal.value)


def test_orders_that_would_mislead_are_refused() -> None:
    for texts, line in (
        (("quantise:weights=8,activations=8", "tensor_parallel:degree=2"), "write tensor_parallel before"),
        (("expert_parallel:degree=2", "skew_experts:exponent=1"), "write skew_experts before expert_parallel"),
        (("offload:weights=1", "low_rank:rank=4"), "write offload after low_rank"),
    ):
        changes = [parse(text) for text in texts]
        check_order(changes[::-1])
        with pytest.raises(ValueError, match=line):
            check_order(changes)
