"""How a what-if is written down: names, options and their types."""

import inspect
import itertools
import re
from collections.abc import Sequence

import pytest
from graphs import GraphBuilder
from whatif_graphs import check_rank, stored, traced, transfers

from roofline.graph.edit import Edit
from roofline.graph.op import OpGraph
from roofline.hardware.load import load_device
from roofline.whatif.quantise import quantise
from roofline.whatif.registry import CONTRADICTORY, WHAT_IFS, WhatIf, help_text, linked, ordered, parse, usage


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
        written, summary, *lines = help_text(name).split("\n")
        assert written == usage(name) and summary.strip().endswith("."), name
        described = [line.strip().split(": ", 1) for line in lines]
        assert [option for option, _ in described] == options, name
        assert all(len(text.partition(" (")[0]) > 10 for _, text in described), name


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
    offload = parse("offload:weights=1")
    assert ordered([thin, offload]) == [offload, thin]  # a row at the end of the table is applied last


def test_it_is_applied_with_its_options() -> None:
    assert WhatIf("quantise", {"weights": 16})(graph()) == quantise(graph(), weights=16)
    # float32 has no 16-bit identity: the matrix is halved
    halved = parse("quantise:weights=16")(graph())
    assert halved.tensors[0].storage_bytes == 32


REFUSED = {
    "": "no what-if ''; known: remove_layers, ",
    "frobnicate": "no what-if 'frobnicate'; known: ",
    "quantize:weights=4": "no what-if 'quantize'; did you mean quantise?",
    "tensor_parallel": "needs degree; write tensor_parallel:degree=,link=",
    "pipeline_stage:link=pcie": "needs stages; write pipeline_stage:stages=,stage=0,link=",
    "tensor_parallel:8": "'8' is not one of its options; write tensor_parallel:degree=,link=",
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


WRITTEN = {
    "remove_layers": ("remove_layers:layers=2",),
    "early_exit": ("early_exit:after_layers=3",),
    "draft_head": ("draft_head",),
    "fuse_attention": ("fuse_attention",),
    "skew_experts": ("skew_experts:exponent=1",),
    "compress_kv": ("compress_kv:ratio=2",),
    "low_rank": ("low_rank:rank=4",),
    "sparsify_2_4": ("sparsify_2_4",),
    "tensor_parallel": ("tensor_parallel:degree=2",),
    "expert_parallel": ("expert_parallel:degree=2",),
    "quantise": ("quantise:weights=4,kv=8", "quantise:weights=8,activations=8,group=-1"),
    "lora": ("lora:rank=4,adapters=2",),
    "unfuse_attention": ("unfuse_attention",),
    "pipeline_stage": ("pipeline_stage:stages=2,stage=1",),
    "offload": ("offload:weights=0.5,kv=1",),
    "send_kv": ("send_kv",),
}


def made(graph: OpGraph, *texts: str) -> OpGraph:
    for change in ordered([parse(text) for text in texts]):
        graph = change(graph)
    return graph


def is_refused(graph: OpGraph, text: str) -> bool:
    try:
        parse(text)(graph)
    except ValueError:
        return True
    return False


def test_pairs_give_one_graph_in_either_order_or_are_refused() -> None:
    """Dense, experts, and experts with latent attention; a pair whose parts each make sense makes sense together."""
    assert set(WRITTEN) == set(WHAT_IFS)
    tried = 0
    for name in ("llama", "mixtral", "deepseek_v3"):
        for one, other in itertools.combinations(WRITTEN, 2):
            phase = "prefill" if "send_kv" in (one, other) else "decode"
            attn = "eager" if "fuse_attention" in (one, other) else "default"
            graph = traced(name, phase, layers=4, attn=attn)
            for pair in itertools.product(WRITTEN[one], WRITTEN[other]):
                if any(is_refused(graph, text) for text in pair):
                    continue
                if why := CONTRADICTORY.get((one, other)):
                    with pytest.raises(ValueError, match=f"{why}; leave one out"):
                        made(graph, *pair)
                    continue
                both = made(graph, *pair)
                assert both == made(graph, *pair[::-1]), (name, pair)
                check_rank(both)
                tried += 1
    assert tried > 200


def test_what_a_rank_holds_is_what_is_stored_and_sent() -> None:
    def kv(*texts: str) -> float:
        return stored(made(traced("deepseek_v3", "decode"), *texts), "kv")

    # latents and the shared rope key are whole on each rank
    assert kv("quantise:kv=8", "tensor_parallel:degree=2") == kv("quantise:kv=8")
    sent = [
        sum(op.link_bytes for op in transfers(made(traced("llama", "prefill"), "send_kv", *texts), "send_kv"))
        for texts in ((), ("tensor_parallel:degree=2",), ("quantise:kv=8",))
    ]
    tokens, elements = 2 * 12, 2 * 2 * 2 * 8  # of a token: two layers, keys and values, two heads of 8
    assert sent == [tokens * elements * 2, tokens * elements, tokens * elements * (1 + 2 / 8)]  # a scale a head
    graph = traced("mixtral", "decode")
    held = made(graph, "quantise:weights=4", "expert_parallel:degree=2")
    whole = made(graph, "quantise:weights=4")
    flops = [sum(op.vector_flops for op in g.ops if op.routing) for g in (held, whole)]
    hit = [sum(op.routing.hit for op in g.ops if op.routing) for g in (held, whole)]
    assert flops[0] / flops[1] == pytest.approx(hit[0] / hit[1])  # dequantised: the experts hit on the rank


def test_what_makes_sense_once_is_given_once() -> None:
    with pytest.raises(ValueError, match="what-if tensor_parallel is given 2 times; give it once"):
        ordered([parse("tensor_parallel:degree=2"), parse("tensor_parallel:degree=4")])
    with pytest.raises(ValueError, match="leave tensor_parallel out"):
        ordered([parse("tensor_parallel:degree=2"), parse("expert_parallel:degree=2,attention=tensor")])
    several = [parse("remove_layers:layers=1"), parse("remove_layers:layers=0")]
    assert ordered(several) == ordered(several[::-1])


def test_the_device_s_own_link_is_the_default() -> None:
    cases = (
        ("nvidia-h100-sxm", "tensor_parallel:degree=8", "nvlink"),
        ("nvidia-h100-sxm", "pipeline_stage:stages=4", "nvlink"),
        ("nvidia-h100-sxm", "offload:weights=1", "pcie"),
        ("nvidia-gh200-96gb", "offload:weights=1", "nvlink-c2c"),
        ("amd-mi300x", "expert_parallel:degree=8", "infinity-fabric"),
        ("nvidia-a100-pcie-80gb", "tensor_parallel:degree=2", "nvlink"),
        ("nvidia-a100-pcie-80gb", "tensor_parallel:degree=4", "pcie"),  # a bridge joins two cards
        ("google-tpu-v5e", "send_kv", "ici"),
        ("intel-gaudi-3", "tensor_parallel:degree=8", "network"),
        ("nvidia-l4", "tensor_parallel:degree=2", "pcie"),
    )
    for device, text, link in cases:
        peaks = load_device(device).datasheet
        assert peaks is not None
        (change,) = linked([parse(text)], peaks, device)
        assert change.options["link"] == link, (device, text)
    refused = (
        ("nvidia-h100-sxm", "tensor_parallel:degree=8,link=network", r"no link network \(its links: nvlink, pcie\)"),
        ("nvidia-h100-nvl", "tensor_parallel:degree=4,link=nvlink", "joins 2 devices, not 4"),
        ("google-tpu-v5e", "offload:kv=1", r"no known link to its host \(its links: ici\)"),
    )
    for device, text, line in refused:
        peaks = load_device(device).datasheet
        assert peaks is not None
        with pytest.raises(ValueError, match=line) as refusal:
            linked([parse(text)], peaks, device)
        assert "\n" not in str(refusal.value) and "--link" in str(refusal.value)
