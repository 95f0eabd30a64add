"""The few sizes of a model that the accounting of arXiv 2402.16363 knows, read from a traced graph.

That accounting describes one kind of model: a stack of equal layers, each with query, key, value and output
projections around softmax attention, and a dense MLP with or without a gate. `paper_shape` finds these by their place
in the graph and by their shapes, whatever the modules are called, and refuses a graph that holds anything else.

Example: ``paper_shape(graph).hidden == 4096``
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import Field

from roofline.layers import layer_of
from roofline.op import Kind, Op, OpGraph
from roofline.record import Record

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
INSTEAD = "use the default accounting"
_NO_RULE = {
    Kind.GROUPED_MATMUL: "mixtures of experts",
    Kind.CONV: "state-space models and other convolutions",
    Kind.SCAN: "state-space models",
    Kind.COLLECTIVE: "a model in shards",
    Kind.TRANSFER: "weights or caches that are moved",
}


class PaperShape(Record):
    """A model as the paper sees it; its head size is always hidden ÷ heads."""

    hidden: int = Field(gt=0)
    """Width of the residual stream."""
    intermediate: int = Field(gt=0)
    """Width inside the MLP."""
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    """Query heads."""
    kv_heads: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    """Rows of the head."""
    gated: bool = True
    """Whether the MLP has a gate beside its up projection."""
    paths: dict[str, str] = {}
    """The paper's name of a projection → path of the module, with * for the layer; fused ones share theirs."""


@dataclass
class _Layer:
    attention: list[Op] = field(default_factory=list)
    mlp: list[Op] = field(default_factory=list)


def paper_shape(graph: OpGraph) -> PaperShape:
    """The sizes of the model in `graph`, traced from any workload.

    Raises: ValueError, with what to do, where the paper's accounting has no rule for the model.
    """
    _refuse_what_has_no_rule(graph)
    if graph.heads is None:
        raise _unknown("a model whose config names no attention heads")
    layers, outside = _layers(graph)
    shapes = [_layer_shape(layer, graph.heads[0]) for layer in layers]
    if any(shape != shapes[0] for shape in shapes):
        raise _unknown("layers that differ from each other")
    if len(outside) != 1 or outside[0].dims["k"] != shapes[0]["hidden"]:
        raise _unknown("a model that does not end in its layers and one head as wide as they")
    head = outside[0]
    return PaperShape.model_validate({
        **shapes[0],
        "layers": round(sum(layer.attention[-1].count for layer in layers)),
        "heads": graph.heads[0],
        "vocabulary": head.dims["n"],
        "paths": {**_paths(layers[0]), "lm_head": head.path},
    })  # fmt: skip


def _refuse_what_has_no_rule(graph: OpGraph) -> None:
    for op in graph.ops:
        if op.routing is not None or "expert" in op.path:
            raise _unknown(_NO_RULE[Kind.GROUPED_MATMUL])
        if op.kind in _NO_RULE:
            raise _unknown(_NO_RULE[op.kind])


def _layers(graph: OpGraph) -> tuple[list[_Layer], list[Op]]:
    """Products with weights: those of each repeated layer, and those after the last of them, in the graph's order."""
    attention = {op.path for op in graph.ops if op.kind == Kind.ATTENTION} | {m.path for m in graph.attention_modules}
    found: dict[tuple[str, int], _Layer] = defaultdict(_Layer)
    outside: list[Op] = []
    for op in graph.ops:
        if op.kind != Kind.MATMUL or not any(graph.tensors[a.tensor].role == "weight" for a in op.reads):
            continue
        place = layer_of(op.path)
        if place is None:
            outside.append(op)
            continue
        outside.clear()
        layer = found[place.prefix, place.layer]
        (layer.attention if _within(op.path, attention) else layer.mlp).append(op)
    if not found or not attention:
        raise _unknown("a model without attention (a state-space model)")
    return list(found.values()), outside


def _within(path: str, parents: Iterable[str]) -> bool:
    return any(path.startswith(f"{parent}.") for parent in parents)


def _layer_shape(layer: _Layer, heads: int) -> dict[str, int | bool]:
    """hidden, intermediate, kv_heads and gated, from the shapes of one layer's products."""
    if len(layer.attention) < 2 or len(layer.mlp) < 2:
        raise _unknown("layers that are not attention and a dense MLP (a state-space model, or a hybrid of one)")
    *projections, out = layer.attention
    *entries, down = layer.mlp
    hidden, intermediate = out.dims["n"], down.dims["k"]
    if any(op.dims["k"] != hidden for op in projections):
        raise _unknown("latent attention")
    kv_heads = _kv_heads([op.dims["n"] for op in projections], out.dims["k"], heads)
    widths = [op.dims["n"] for op in entries]
    if down.dims["n"] != hidden or any(op.dims["k"] != hidden for op in entries):
        raise _unknown("an MLP that is not one hidden layer")
    if widths not in ([intermediate], [intermediate, intermediate], [2 * intermediate]):
        raise _unknown("an MLP that is not up and down projections with at most one gate")
    return {"hidden": hidden, "intermediate": intermediate, "kv_heads": kv_heads, "gated": widths != [intermediate]}


def _kv_heads(widths: list[int], inner: int, heads: int) -> int:
    """From the widths of the products before attention, fused or not, and the width of its result."""
    head_dim = inner // heads
    kv_heads = (sum(widths) - inner) // (2 * head_dim) if head_dim else 0
    kv_width = kv_heads * head_dim
    expected = {1: [inner + 2 * kv_width], 2: [inner, 2 * kv_width], 3: [inner, kv_width, kv_width]}
    whole = inner % heads == 0 and kv_heads > 0 and heads % kv_heads == 0
    if not whole or sorted(widths) != sorted(expected.get(len(widths), [])):
        raise _unknown("attention that is not query, key, value and output projections")
    return kv_heads


def _paths(layer: _Layer) -> dict[str, str]:
    """Projection in the paper's words → path of the product that holds it."""
    *projections, out = layer.attention
    *entries, down = layer.mlp
    names = dict(zip(PROJECTIONS, _spread(projections, len(PROJECTIONS)), strict=True))
    names["out_proj"] = out.path
    gated = sum(op.dims["n"] for op in entries) == 2 * down.dims["k"]
    entry_names = ("gate_proj", "up_proj") if gated else ("up_proj",)
    names |= dict(zip(entry_names, _spread(entries, len(entry_names)), strict=True))
    names["down_proj"] = down.path
    return {name: _starred(path) for name, path in names.items()}


def _spread(ops: list[Op], wanted: int) -> list[str]:
    """One path for each of `wanted` projections; the last product holds all that are left."""
    return [ops[min(i, len(ops) - 1)].path for i in range(wanted)]


def _starred(path: str) -> str:
    place = layer_of(path)
    return f"{place.prefix}.*.{place.inner}" if place else path


def _unknown(what: str) -> ValueError:
    return ValueError(f"the paper's accounting has no rule for {what}; {INSTEAD}")
