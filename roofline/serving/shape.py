"""From a traced graph to what a serving engine runs: a short list of kernels whose sizes follow from a step's tokens.

An engine does not run a model's operations one by one. Products of one input are one product (QKV, gate and up),
attention is one paged kernel for the sequences that decode and one for those that prefill, the experts are one grouped
kernel, a residual and its norm are one, and logits are made only where a token is sampled. `served` reads these from
the graph of one rank, traced in decode and divided by `roofline.whatif.tensor_parallel`, then fused
(`roofline.fusion`): each anchor of the fused graph is a kernel here, and the operations between anchors are counted as
streaming kernels by their role, whose number an engine decides (`roofline.serving.engine`).

Example: ``served(fused(rank), rank, layers={3: 58.0})`` for a graph whose layer 3 stands for 58
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from roofline.graph.op import Kind, Op, OpGraph, layer_of

Where = Literal["layer", "shared", "router", "head"]
"""Products of attention and feed-forward networks; of shared experts; of a router; of the vocabulary."""

NORM_OPS = ("aten::rsqrt", "aten::native_layer_norm", "aten::rms_norm", "aten::_fused_rms_norm")
"""Operators that a norm runs once."""
ACTIVATION_OPS = ("aten::silu", "aten::gelu", "aten::relu", "aten::sigmoid")
NORM, INNER_NORM, ACTIVATION, ROUTE = "norm", "inner_norm", "activation", "route"
"""Roles of streaming kernels: residual and norm; norm within attention, of heads or a latent vector; activation of a
feed-forward network; choice of experts. Attention and quantised products bring more, which an engine counts."""
ELEMENT = 2.0
"""Bytes of an element of an activation in 16 bits."""
UNSERVED = (Kind.SCAN, Kind.CONV, Kind.OTHER)
"""Kinds of operations that no kernel here stands for."""


@dataclass(frozen=True)
class Product:
    """Tokens × weights on one rank."""

    name: str
    where: Where
    n: int
    k: int
    count: float
    """Number of such products in a step of the whole model."""


@dataclass(frozen=True)
class Attention:
    """Paged attention of one rank."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int
    """Most keys that a query sees; 0 is all."""
    latent: int
    """Width of the cached latent vector (multi-head latent attention); 0 where keys and values are cached."""
    rope: int
    """Width of the cached key that carries the position, beside the latent vector."""
    count: float


@dataclass(frozen=True)
class Experts:
    """Routed experts of a layer, of all ranks: an engine divides them (`moe_tp`, `moe_ep`)."""

    hidden: int
    inner: int
    experts: int
    topk: int
    count: float


@dataclass(frozen=True)
class Collective:
    operation: Literal["all_reduce", "all_gather"]
    where: Literal["layer", "experts", "embedding", "head"]
    token_bytes: float
    """Bytes of a rank's buffer for each token; of all_gather the whole output."""
    count: float


@dataclass(frozen=True)
class Stream:
    """Operations between two anchors that an engine runs as one kernel, or as part of another."""

    role: str
    token_bytes: float
    """Bytes read and written for each token, in 16 bits."""
    count: float


@dataclass(frozen=True)
class Served:
    """One rank of a model as an engine runs it."""

    model: str
    ranks: int
    products: tuple[Product, ...]
    attentions: tuple[Attention, ...]
    experts: tuple[Experts, ...] = ()
    collectives: tuple[Collective, ...] = ()
    streams: tuple[Stream, ...] = ()
    unknown: Mapping[str, float] = field(default_factory=dict)
    """Kinds of operations that no kernel here stands for (state-space scans, convolutions), with their number: a
    prediction without them is too short."""


def served(fused: OpGraph, rank: OpGraph, layers: Mapping[int, float], ranks: int = 1) -> Served:
    """The kernels of one rank.

    Args:
        fused: the ideal graph of `rank`, a decode pass with one new token a sequence.
        rank: the executed graph of one rank, which tells the roles of streaming operations.
        layers: number of layers of the model for which a traced layer stands, by its index; 0 for those left out.
        ranks: degree of tensor parallelism.
    Raises: ValueError for a graph that is no decode pass.
    """
    if fused.workload.query_tokens != 1:
        raise ValueError("a serving graph is read from a decode pass: trace it with one new token a sequence")
    tokens = fused.workload.batch
    inputs: dict[tuple[object, ...], list[Op]] = defaultdict(list)
    grouped: dict[str, list[Op]] = defaultdict(list)
    attentions, collectives, unknown = [], [], dict[str, float]()
    for op in fused.ops:
        count = op.count * _layers_of(op.path, layers)
        if not count:
            continue
        if op.kind is Kind.MATMUL:
            inputs[_input(fused, op), op.path.rpartition(".")[0], op.dims["k"]].append(op)
        elif op.kind is Kind.GROUPED_MATMUL:
            grouped[op.path].append(op)
        elif op.kind is Kind.ATTENTION:
            attentions.append(_attention(fused, op, count))
        elif op.kind is Kind.COLLECTIVE:
            collectives.append(_collective(op, tokens, count))
        elif op.kind in UNSERVED:
            unknown[op.name] = unknown.get(op.name, 0.0) + count
    return Served(
        fused.model,
        ranks,
        products=_merged(_product(fused, members, layers) for members in inputs.values()),
        attentions=_merged(attentions),
        experts=_merged(_experts(ops, layers, rank) for ops in grouped.values()),
        collectives=_merged(collectives),
        streams=_merged(_streams(rank, layers, tokens)),
        unknown=unknown,
    )


def _layers_of(path: str, layers: Mapping[int, float]) -> float:
    place = layer_of(path)
    return 1.0 if place is None else layers.get(place.layer, 0.0)


def _input(graph: OpGraph, op: Op) -> int:
    """The first activation that an operation reads."""
    return next((a.tensor for a in op.reads if graph.tensors[a.tensor].role == "activation"), -1)


Counted = TypeVar("Counted", Product, Attention, Experts, Collective, Stream)


def _merged(kernels: Iterable[Counted]) -> tuple[Counted, ...]:
    """Equal kernels as one, in the order in which they first occur."""
    counts: dict[Counted, float] = {}
    for kernel in kernels:
        alike = replace(kernel, count=0.0)
        counts[alike] = counts.get(alike, 0.0) + kernel.count
    return tuple(replace(kernel, count=count) for kernel, count in counts.items())


def _product(graph: OpGraph, members: list[Op], layers: Mapping[int, float]) -> Product:
    """Products of one input within one module are one, as engines store their weights side by side."""
    first = members[0]
    in_layer = layer_of(first.path) is not None
    names = [re.sub(r"^.*\.", "", op.path) for op in members]
    where: Where = "layer" if in_layer else "head"
    if in_layer and any(word in first.path for word in ("shared_expert", "shared_mlp")):
        where = "shared"
    elif in_layer and _chooses(first):
        where = "router"
    name = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", first.path).rpartition(".")[0] + "." + "+".join(dict.fromkeys(names))
    return Product(
        name.removeprefix("."),
        where,
        n=sum(op.dims["n"] for op in members),
        k=first.dims["k"],
        count=first.count * _layers_of(first.path, layers),
    )


def _chooses(op: Op) -> bool:
    """True for a router: its product feeds a choice of experts, which the fused graph has joined to it."""
    return op.path.endswith((".gate", ".router", ".classifier")) or any(
        member.endswith(("topk", "router reduction", "gate reduction")) for member in op.also
    )


def _attention(graph: OpGraph, op: Op, count: float) -> Attention:
    window = next((m.window or 0 for m in graph.attention_modules if m.path == op.path), 0)
    heads, kv_heads = op.dims.get("heads", 1), op.dims.get("kv_heads")
    if kv_heads is None:  # joined from single products, whose heads are those of all sequences
        heads, kv_heads = graph.heads or (heads // graph.workload.batch, 1)
    head_dim, value_dim = op.dims["head_dim"], op.dims.get("value_dim", op.dims["head_dim"])
    latent = rope = 0
    cached = [a.bytes for a in op.reads if graph.tensors[a.tensor].role == "kv"]
    if value_dim != head_dim and len(cached) == 2:  # a latent vector and a key for the position, shared by all heads
        elements = graph.workload.batch * (graph.workload.context_tokens + 1) * ELEMENT
        latent, rope = (round(size / elements) for size in sorted(cached, reverse=True))
    return Attention(heads, kv_heads, head_dim, value_dim, window, latent, rope, count)


def _experts(ops: list[Op], layers: Mapping[int, float], rank: OpGraph) -> Experts:
    """The grouped products of a layer: gate and up first, down last."""
    first, last = ops[0], ops[-1]
    chosen = first.routing.per_token if first.routing else first.dims["m"] / rank.workload.batch
    experts = first.routing.experts if first.routing else first.dims["groups"]
    count = first.count * _layers_of(first.path, layers)
    return Experts(first.dims["k"], last.dims["k"], experts, round(chosen), count)


def _collective(op: Op, tokens: int, count: float) -> Collective:
    place: Literal["layer", "experts", "embedding", "head"] = "layer"
    if layer_of(op.path) is None:
        place = "head" if op.name.endswith("all_gather") else "embedding"
    elif op.path.rpartition(".")[2] in ("experts", "mlp", "block_sparse_moe", "feed_forward"):
        place = "experts"
    name: Literal["all_reduce", "all_gather"] = "all_gather" if op.name.endswith("all_gather") else "all_reduce"
    return Collective(name, place, op.dims["bytes"] / tokens, count)


def _streams(rank: OpGraph, layers: Mapping[int, float], tokens: int) -> Iterator[Stream]:
    """Streaming kernels by role, from the operations that tell them."""
    for op in rank.ops:
        count = op.count * _layers_of(op.path, layers)
        if not count:
            continue
        if op.name in NORM_OPS:
            yield from _norm(rank, op, tokens, count)
        elif op.name in ACTIVATION_OPS and not re.search(r"\bexperts\b|gate$|router$", op.path):
            # gate and up are read, their product is written
            yield Stream(ACTIVATION, 3 * ELEMENT * op.dims.get("elements", 0) / tokens, count)
        elif op.kind is Kind.GROUPED_MATMUL and op.dims.get("groups", 0) and "gate_up" in _weight(rank, op):
            yield Stream(ROUTE, ELEMENT * op.dims["groups"], count)


def _weight(graph: OpGraph, op: Op) -> str:
    return " ".join(graph.tensors[a.tensor].name or "" for a in op.reads if graph.tensors[a.tensor].role == "weight")


def _norm(rank: OpGraph, op: Op, tokens: int, count: float) -> Iterator[Stream]:
    """A norm by the widest operation of its module."""
    width = max(o.dims.get("elements", 0) for o in rank.ops if o.path == op.path) / tokens
    place = layer_of(op.path)
    inner = place is not None and "." in (place.inner or "")
    # hidden state, residual and the two results; within attention there is no residual
    yield Stream(INNER_NORM if inner else NORM, (2 if inner else 4) * ELEMENT * width, count)
