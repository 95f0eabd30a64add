"""How a what-if is written down: names, options and their types."""

import inspect
import re

import pytest
from graphs import GraphBuilder

from roofline.graph.op import OpGraph
from roofline.whatif.quantise import quantise
from roofline.whatif.registry import WHAT_IFS, WhatIf, check_order, parse, usage


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


@pytest.mark.parametrize("name", WHAT_IFS)
def test_every_function_takes_a_graph_and_options_that_can_be_written(name: str) -> None:
    first, *options = inspect.signature(WHAT_IFS[name]).parameters
    assert first == "graph"
    assert usage(name) == name if not options else usage(name).startswith(f"{name}:{options[0]}=")
    assert [part.partition("=")[0] for part in usage(name).partition(":")[2].split(",") if part] == options


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("fuse_attention", "fuse_attention", {}),
        ("fuse_attention:", "fuse_attention", {}),
        ("tensor_parallel:degree=8", "tensor_parallel", {"degree": 8}),
        ("tensor_parallel:degree=8,link=pcie", "tensor_parallel", {"degree": 8, "link": "pcie"}),
        ("offload:weights=0.5,overlap=false", "offload", {"weights": 0.5, "overlap": False}),
        ("quantise:kv=8", "quantise", {"kv": 8.0}),
        ("quantise:where=*.mlp.*|*.self_attn.*", "quantise", {"where": ("*.mlp.*", "*.self_attn.*")}),
        ("quantise:weights=4,weight_format=float", "quantise", {"weights": 4.0, "weight_format": "float"}),
    ],
)
def test_parse(text: str, name: str, options: dict[str, object]) -> None:
    found = parse(text)
    assert (found.name, dict(found.options)) == (name, options)
    assert {key: type(value) for key, value in found.options.items()} == {k: type(v) for k, v in options.items()}


@pytest.mark.parametrize("name", [name for name in WHAT_IFS if "=" in usage(name)])
def test_defaults_can_be_written_out(name: str) -> None:
    given = [part for part in usage(name).partition(":")[2].split(",") if not part.endswith("=")]
    needed = {p.name for p in list(inspect.signature(WHAT_IFS[name]).parameters.values())[1:] if p.default is p.empty}
    filled = [f"{option}=1" for option in needed]
    found = parse(f"{name}:{','.join([*given, *filled])}")
    for option, parameter in inspect.signature(WHAT_IFS[name]).parameters.items():
        if option in found.options and option not in needed:
            assert found.options[option] == parameter.default


def test_it_is_applied_with_its_options() -> None:
    assert WhatIf("quantise", {"weights": 16})(graph()) == quantise(graph(), weights=16)
    # float32 has no 16-bit identity: the matrix is halved
    halved = parse("quantise:weights=16")(graph())
    assert halved.tensors[0].storage_bytes == 32


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no what-if ''; known: quantise, "),
        ("frobnicate", "no what-if 'frobnicate'; known: "),
        ("quantize:weights=4", "no what-if 'quantize'; did you mean quantise?"),
        ("tensor_parallel", "lacks degree; write tensor_parallel:degree=,link=nvlink"),
        ("pipeline_stage:link=pcie", "lacks stages, stage; write pipeline_stage:stages=,stage=,link=network"),
        ("tensor_parallel:8", "'8' is no option; write tensor_parallel:degree=,link=nvlink"),
        ("tensor_parallel:size=8", "'size=8' is no option"),
        ("tensor_parallel:graph=8", "'graph=8' is no option"),
        ("tensor_parallel:degree=two", "tensor_parallel: degree takes a whole number; not 'two'"),
        ("tensor_parallel:degree=", "degree takes a whole number; not ''"),
        ("tensor_parallel:degree=2,degree=4", "degree stands there twice; keep one"),
        ("offload:weights=half", "weights takes a number; not 'half'"),
        ("offload:overlap=no", "overlap takes true or false; not 'no'"),
        ("quantise:weight_format=bits", "weight_format takes int, float; not 'bits'"),
    ],
)
def test_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as refusal:
        parse(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (("quantise:weights=8,activations=8", "tensor_parallel:degree=2"), "write tensor_parallel before"),
        (("expert_parallel:degree=2", "skew_experts:exponent=1"), "write skew_experts before expert_parallel"),
        (("offload:weights=1", "low_rank:rank=4"), "write offload after low_rank"),
    ],
)
def test_orders_that_would_mislead_are_refused(texts: tuple[str, ...], line: str) -> None:
    changes = [parse(text) for text in texts]
    check_order(changes[::-1])
    with pytest.raises(ValueError, match=line):
        check_order(changes)
