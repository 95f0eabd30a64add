"""Keys and values in fewer bits: a cache, its reads and its appends, with a scale for each token and head.

As KIVI (arXiv 2402.02750) and the fp8 caches of serving engines: appended elements are quantised by an inserted
operation (4 FLOPs an element, and a division a scale: see `quantise`), and readers of the cache, other than copies,
multiply each element by its scale. States of recurrent layers are no keys and values and stay as they are.

The width of a head is known from the operation that attends over it; two tensors of one layer and name share it.
A latent cache (MLA) has one scale a token for the part that its expansion reads.
"""

from collections.abc import Iterator

from roofline.dtypes import element_bits
from roofline.graph.dataflow import Dataflow
from roofline.graph.edit import Edit, access, changed, inserted
from roofline.graph.linear import QUANTISE
from roofline.graph.op import KEYS, Access, Kind, Op, OpGraph, holds_tokens

KV_BITS = (2, 4, 8, 16, 32)
"""Bits of a stored key or value; 16 and 32 are plain floating point, without scales."""

DONE = "kv"
"""Key in `OpGraph.options`."""

QUANTISE_FLOPS = 4
"""FLOPs for an element: |x|, maximum, division, rounding."""


def quantise_kv(graph: OpGraph, bits: int, scale_bits: int) -> OpGraph:
    """The pass with keys and values of `bits`. Raises: ValueError without any, or for quantised ones."""
    if DONE in graph.options:
        raise ValueError(f"keys and values are quantised already ({graph.options[DONE]}); give their bits once")
    flow = Dataflow(graph)
    cache = _cache(flow)
    if not cache:
        raise ValueError("the pass keeps no keys and values, so kv bits change nothing; leave them out")
    edit, widths = Edit(graph), _widths(flow, cache)
    own = element_bits(graph.workload.dtype)
    scales = scale_bits if bits < 16 else 0
    ratio = {t: (bits * widths[t] + scales) / (own * widths[t]) for t in cache}
    for tensor in cache:
        edit.resize(tensor, graph.tensors[tensor].storage_bytes * ratio[tensor])
    for i, op in enumerate(graph.ops):
        if any(a.tensor in cache for a in (*op.reads, *op.writes)):
            edit.put(i, *_rewritten(edit, op, ratio, widths, own, is_plain=bits >= 16))
    return edit.done({DONE: f"{bits} bit, a scale per token and head" if scales else f"{bits} bit"})


def _cache(flow: Dataflow) -> list[int]:
    """Keys and values, and copies of them that are changed and copied back (a window that is rolled)."""
    graph = flow.graph
    held = {tensor.id for tensor in graph.tensors if holds_tokens(tensor)}

    def is_rolled(tensor: int) -> bool:
        writers, readers = ([graph.ops[i] for i in ops[tensor]] for ops in (flow.writers, flow.readers))
        copied = bool(writers) and all(op.kind is Kind.COPY for op in writers)
        back = (a for op in readers if op.kind is Kind.COPY for a in op.writes)
        return (
            copied and any(a.tensor in held for op in writers for a in op.reads) and any(a.tensor in held for a in back)
        )

    return sorted(held.union(t.id for t in graph.tensors if t.role == "activation" and is_rolled(t.id)))


def _widths(flow: Dataflow, cache: list[int]) -> dict[int, float]:
    """Elements that share a scale, by tensor."""
    graph = flow.graph
    named: dict[str, float] = {}
    for i, op in enumerate(graph.ops):
        if op.kind not in (Kind.ATTENTION, Kind.MATMUL):
            continue
        for read in op.reads:
            for tensor, moved in _sources(flow, i, read):
                name = graph.tensors[tensor].name
                if name and name not in named and (width := _width(graph, op, name, moved.bytes)):
                    named[name] = width
    widths: dict[int, float] = {}
    for tensor in cache:
        name = graph.tensors[tensor].name or ""
        if graph.tensors[tensor].role != "kv":  # a rolled copy has the name of its source
            sources = (graph.tensors[a.tensor] for i in flow.writers[tensor] for a in graph.ops[i].reads)
            name = next((source.name or "" for source in sources if source.role == "kv"), "")
        width = named.get(name) or _beside(flow, tensor, name)
        if not width:
            raise ValueError(f"no operation says how wide a head of {name or f'tensor {tensor}'} is")
        widths[tensor] = width
    return widths


def _beside(flow: Dataflow, tensor: int, name: str) -> float | None:
    """The width by the attention in the module that writes the cache, where it reads something else (a prefill)."""
    paths = {flow.graph.ops[i].path for i in flow.writers[tensor]}
    attending = [op for op in flow.graph.ops if op.path in paths]
    for op in attending:
        if op.kind is Kind.ATTENTION:
            return op.dims.get("head_dim" if name.endswith(KEYS) else "value_dim")
    products = [op for op in attending if op.kind is Kind.MATMUL]
    if not products:
        return None
    return products[0].dims.get("k") if name.endswith(KEYS) else products[-1].dims.get("n")


def _sources(flow: Dataflow, index: int, read: Access) -> Iterator[tuple[int, Access]]:
    """Cache tensors that a read takes its elements from, through copies and quantising, with the read of each."""
    todo, seen = [(index, read)], {read.tensor}
    while todo:
        i, source = todo.pop()
        if flow.graph.tensors[source.tensor].role == "kv":
            yield source.tensor, source
            continue
        for writer in flow.writers[source.tensor]:
            if writer < i and (flow.graph.ops[writer].kind is Kind.COPY or flow.graph.ops[writer].name == QUANTISE):
                fresh = [a for a in flow.graph.ops[writer].reads if a.tensor not in seen]
                seen.update(a.tensor for a in fresh)
                todo += [(writer, a) for a in fresh]


def _width(graph: OpGraph, op: Op, name: str, moved_bytes: float) -> float | None:
    """Elements of one head of one token: the operation's width of a head, or all of a token if that is less."""
    is_key, dims = name.endswith(KEYS), op.dims
    if op.kind is Kind.ATTENTION:
        width, tokens = dims.get("head_dim" if is_key else "value_dim"), dims.get("kv")
    elif graph.has_weight(op):
        width, tokens = dims.get("k"), None
    else:
        width, tokens = (dims.get("k"), dims.get("n")) if is_key else (dims.get("n"), dims.get("k"))
    if not width:
        return None
    if not tokens:
        return width
    elements = moved_bytes * 8 / element_bits(graph.workload.dtype)
    return min(width, elements / (graph.workload.batch * tokens))


def _rewritten(
    edit: Edit, op: Op, ratio: dict[int, float], widths: dict[int, float], own: int, is_plain: bool
) -> tuple[Op, ...]:
    """The operation on the narrow cache, behind those that quantise what it appends."""
    graph = edit.graph
    reads, writes = (
        [access(a.tensor, a.bytes * ratio[a.tensor]) if a.tensor in ratio else a for a in accesses]
        for accesses in (op.reads, op.writes)
    )
    to_cache = [a for a in op.writes if a.tensor in ratio]

    def quantise_flops(access: Access, width: float) -> float:
        elements = access.bytes * 8 / own
        return 0 if is_plain else QUANTISE_FLOPS * elements + elements / width

    before: list[Op] = []
    flops = 0.0
    if op.kind is Kind.COPY and len(to_cache) == len(op.writes) == 1:  # it appends
        cached = to_cache[0].tensor
        for position in _appended(graph, op, ratio):
            new = op.reads[position]
            reads[position] = edit.activation(new.bytes * ratio[cached])
            flops_before = quantise_flops(new, widths[cached])
            before.append(quantising(op, new, reads[position], round(new.bytes * 8 / own), flops_before))
    elif not is_plain:
        flops += sum(a.bytes for a in op.reads if a.tensor in ratio) * 8 / own
        flops += sum(quantise_flops(a, widths[a.tensor]) for a in to_cache)
    return *before, changed(op, reads=tuple(reads), writes=tuple(writes), vector_flops=op.vector_flops + flops)


def _appended(graph: OpGraph, op: Op, cache: dict[int, float]) -> list[int]:
    """Positions of the reads whose elements a copy adds to the cache: all others are row numbers, or cached already."""
    fresh = [i for i, a in enumerate(op.reads) if graph.tensors[a.tensor].role != "weight" and a.tensor not in cache]
    moved = sum(a.bytes for a in op.reads if a.tensor in cache)
    written = sum(a.bytes for a in op.writes)
    if moved + sum(op.reads[i].bytes for i in fresh) == written:
        return fresh
    rows = [i for i in fresh if op.reads[i].bytes == written][-1:]
    if fresh and not rows and not moved:
        raise ValueError(f"what {op.path} {op.name} adds to the cache cannot be told; kv bits need another cache")
    return rows


def quantising(op: Op, source: Access, made: Access, elements: int, flops: float) -> Op:
    """The operation, before `op`, that turns its operand into one of fewer bits."""
    return inserted(op, QUANTISE, Kind.POINTWISE, {"elements": elements}, (source,), (made,), vector_flops=float(flops))
