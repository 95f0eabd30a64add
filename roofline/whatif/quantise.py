"""Passes in fewer bits: weights, the activations that go into linear layers, keys and values.

- Weights alone (GPTQ, arXiv 2210.17323; AWQ, arXiv 2306.00978): the matrix is stored and read at its bits, with a
  scale (and a zero point) for each `group` elements along k. The product runs in the type of the activations; turning
  each weight back is vector work of the matmul: one multiplication by its scale, one subtraction of its zero point.
- Weights and activations (SmoothQuant, arXiv 2211.10438, eq. 1): an inserted operation quantises each distinct input
  once, a scale a token: |x|, maximum, division, rounding are 4 FLOPs an element, and a division a token. The matmul
  runs in the narrow type; a partial sum of one group is multiplied by the weights' scale and added to the others, the
  total is multiplied by the token's: 2 FLOPs an output element and group. SmoothQuant's one scale a column is group −1.
  4-bit weights with 8-bit activations (QServe, arXiv 2405.04532) are turned into 8 bits first.
- Keys and values: `kv_cache`.

As in GPTQ and AWQ, by default the linear layers inside repeated layers are quantised, but not routers, norms,
embeddings and the head. A weight that is used twice (a head tied to the embedding) is quantised for both users.
Attention itself stays in the type of the model. Bits equal to the model's own change nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from roofline.dtypes import element_bits
from roofline.graph import linear as names
from roofline.graph.dataflow import Dataflow
from roofline.graph.edit import Edit, access, changed
from roofline.graph.linear import Linear, described, linear_layers, linear_of, matrix_bytes, turned_back_flops
from roofline.graph.op import Access, Kind, Op, OpGraph
from roofline.whatif.kv_cache import KV_BITS, QUANTISE_FLOPS, quantise_kv, quantising

Format = Literal["int", "float"]

WEIGHT_BITS: dict[Format, tuple[int, ...]] = {"int": (2, 3, 4, 5, 6, 8, 16, 32), "float": (4, 6, 8, 16, 32)}
"""Bits of a stored weight; 16 and 32 are plain floating point, without scales."""

ARITHMETIC: dict[tuple[Format, int, int], str] = {
    ("int", 8, 8): "int8",
    ("int", 4, 8): "int8",
    ("int", 4, 4): "int4",
    ("float", 8, 8): "float8_e4m3fn",
    ("float", 4, 8): "float8_e4m3fn",
    ("float", 4, 4): "float4_e2m1fn_x2",
}
"""Type of the product by format, bits of weights and bits of activations: the combinations that have kernels."""


@dataclass(frozen=True)
class _Scheme:
    bits: int
    group: int
    scale_bits: int
    zero_point_bits: int
    activations: int | None
    dtype: str | None
    """Type of the product; None is that of the model."""

    def groups(self, k: int) -> int:
        """Scales of one column."""
        return 1 if self.group == -1 else math.ceil(k / self.group)


def quantise(
    graph: OpGraph,
    *,
    weights: float | None = None,
    activations: float | None = None,
    kv: float | None = None,
    where: Sequence[str] = (),
    group: int = 128,
    scale_bits: int = 16,
    zero_point_bits: int = 0,
    weight_format: Format = "int",
) -> OpGraph:
    """Fewer bits for weights, activations, or cached keys and values; what is not given stays.

    Args:
        weights: bits of a weight of the linear layers: 2 to 6, or 8; of float 4, 6 or 8.
        activations: bits of their inputs, 4 or 8, one scale a token.
        kv: bits of a cached key or value, 2, 4 or 8, one scale a token and head.
        where: glob patterns of module paths; all linear layers inside repeated layers if not given.
        group: weights along k that share a scale; -1 is one scale a column.
        scale_bits: bits of each scale.
        zero_point_bits: bits of each zero point of weights; 0 is none.
        weight_format: int, or float for fp8 (e4m3) and fp4 (e2m1), of weights and activations.
    Raises: ValueError for bits that are in no table, more than the graph's own, or quantised already.
    """
    if weights is None and activations is None and kv is None:
        raise ValueError("quantise changes nothing; give weights=4, activations=8 or kv=8")
    own = element_bits(graph.workload.dtype)
    bits, narrow = _checked(own, weights, activations, weight_format)
    if group < 1 and group != -1:
        raise ValueError(f"a group of {group} weights: use 1 or more, or -1 for whole columns")
    if scale_bits < 1 or zero_point_bits < 0:
        raise ValueError(f"scales of {scale_bits} and zero points of {zero_point_bits} bits: use 1, and 0, or more")
    if kv is not None and kv not in KV_BITS:
        raise ValueError(f"keys and values of {kv:g} bits: use one of {', '.join(map(str, KV_BITS))}")
    if kv is not None and kv > own:
        raise ValueError(f"keys and values of {kv:g} bits are wider than the {own} of {graph.workload.dtype}")
    if bits is not None:
        dtype = ARITHMETIC[weight_format, bits, narrow] if narrow else None
        scheme = _Scheme(bits, group, scale_bits, zero_point_bits if bits < 16 else 0, narrow, dtype)
        graph = _linear_layers(graph, scheme, where, weight_format)
    return graph if kv is None or kv == own else quantise_kv(graph, int(kv), scale_bits)


def _checked(own: int, weights: float | None, activations: float | None, form: Format) -> tuple[int | None, int | None]:
    """Bits of weights and of activations, None where they stay the model's own."""
    if form not in WEIGHT_BITS:
        raise ValueError(f"weight format {form!r} is unknown; use int or float")
    for what, bits in (("weights", weights), ("activations", activations)):
        if bits is not None and bits not in WEIGHT_BITS[form]:
            known = ", ".join(map(str, WEIGHT_BITS[form]))
            raise ValueError(f"{form} {what} of {bits:g} bits: use one of {known}")
        if bits is not None and bits > own:
            raise ValueError(f"{what} of {bits:g} bits are wider than the model's {own}")
    stored = None if weights is None or weights == own else int(weights)
    narrow = None if activations is None or activations == own else int(activations)
    if narrow is not None and (form, stored, narrow) not in ARITHMETIC:
        pairs = ", ".join(f"{w}/{a}" for f, w, a in ARITHMETIC if f == form)
        raise ValueError(
            f"no kernel multiplies {form} weights of {stored or own} bits by activations of {narrow}: "
            f"use weights/activations of {pairs}, or leave activations at {own}"
        )
    return stored, narrow


def _linear_layers(graph: OpGraph, scheme: _Scheme, where: Sequence[str], form: Format) -> OpGraph:
    tensors = {linear.matrix.tensor for linear in linear_layers(graph, where)}
    every = [linear for i in range(len(graph.ops)) if (linear := linear_of(graph, i))]
    targets = {linear.index: linear for linear in every if linear.matrix.tensor in tensors}
    rewriting = _Rewriting(graph, scheme)
    for linear in targets.values():
        if "weight_bits" in linear.op.dims:
            raise ValueError(f"the weights of {linear.op.path} have {linear.bits:g} bits already; give them once")
        rewriting.store(linear)
    shared = False
    for i, op in enumerate(graph.ops):
        if i in targets:
            rewriting.linear(targets[i])
        elif any(a.tensor in tensors for a in op.reads):  # an embedding, or a copy
            shared |= op.kind is Kind.EMBEDDING
            reads, flops = rewriting.weight_reads(op)
            rewriting.edit.put(i, changed(op, reads=reads, vector_flops=op.vector_flops + flops))
    groups = "per column" if scheme.group == -1 else f"g{scheme.group}"
    zeros = f" zero points of {scheme.zero_point_bits} bit" if scheme.zero_point_bits else ""
    name = f"{form}{scheme.bits} {groups}{zeros}" if scheme.bits < 16 else f"{scheme.bits} bit"
    tied = " (with the embedding tied to them)" if shared else ""
    options = {"weights": f"{name}{described(where)}{tied}"}
    if scheme.activations:
        options["activations"] = f"{form}{scheme.activations} per token{described(where)}"
    return rewriting.edit.done(options)


class _Rewriting:
    """Weights as they are stored now, and the operations that read them."""

    def __init__(self, graph: OpGraph, scheme: _Scheme) -> None:
        self.edit = Edit(graph)
        self._graph, self._scheme, self._flow = graph, scheme, Dataflow(graph)
        self._stored: dict[int, tuple[Linear, tuple[int, ...]]] = {}
        self._inputs: dict[tuple[int, int | None, float], Access] = {}

    def store(self, linear: Linear) -> None:
        """Shrink a weight's tensor, and add those of its scales and zero points, once."""
        tensor, scheme, k = linear.matrix.tensor, self._scheme, linear.op.dims["k"]
        if tensor in self._stored:
            return
        self.edit.resize(tensor, matrix_bytes(linear.elements, scheme.bits, linear.is_sparse))
        numbers = linear.elements / k * scheme.groups(k)
        name = self._graph.tensors[tensor].name or ""
        per_group = [(names.SCALES, scheme.scale_bits), (names.ZEROS, scheme.zero_point_bits)]
        per_group = per_group if scheme.bits < 16 else []
        added = tuple(self.edit.tensor(numbers * bits / 8, "weight", f"{name}{end}") for end, bits in per_group if bits)
        self._stored[tensor] = linear, added

    def linear(self, linear: Linear) -> None:
        op, scheme = linear.op, self._scheme
        dims = op.dims | {"weight_bits": scheme.bits}
        reads, flops = self.weight_reads(op)
        if scheme.dtype is None or scheme.activations is None:
            self.edit.put(linear.index, changed(op, dims=dims, reads=reads, vector_flops=op.vector_flops + flops))
            return
        if scheme.bits == scheme.activations:
            flops = 0  # the product takes the weights as they are
        flops += 2 * scheme.groups(op.dims["k"]) * linear.rows * op.dims["n"]
        source = linear.input()
        before, narrow = self._quantised_input(linear, source, scheme.activations)
        reads = tuple(narrow if a is source else a for a in reads)
        flops += op.vector_flops - turned_back_flops(self._graph, op)
        narrowed = changed(op, dims=dims, dtype=scheme.dtype, reads=reads, vector_flops=flops)
        self.edit.put(linear.index, *before, narrowed)

    def weight_reads(self, op: Op) -> tuple[tuple[Access, ...], float]:
        """Reads at the new sizes, scales behind the matrix; FLOPs to turn the weights read into the model's type."""
        reads: list[Access] = []
        flops = 0.0
        for read in op.reads:
            if read.tensor not in self._stored:
                reads.append(read)
                continue
            linear, added = self._stored[read.tensor]
            share = read.bytes / linear.stored_bytes
            reads += [access(t, share * self.edit.storage_bytes(t)) for t in (read.tensor, *added)]
            flops += len(added) * share * linear.elements * (0.5 if linear.is_sparse else 1)
        return tuple(reads), flops

    def _quantised_input(self, linear: Linear, source: Access, bits: int) -> tuple[tuple[Op, ...], Access]:
        """The operation before the layer, and the layer's read of its result: made once for all that share it."""
        op = linear.op
        key = source.tensor, self._flow.producer(linear.index, source.tensor), source.bytes
        if key in self._inputs:
            return (), self._inputs[key]
        rows, k = linear.rows, op.dims["k"]
        if self._graph.tensors[source.tensor].role == "activation":  # a fused gather has fewer rows than the product
            rows = round(source.bytes * 8 / element_bits(op.dtype) / k)
        made = self._inputs[key] = self.edit.activation((rows * k * bits + rows * self._scheme.scale_bits) / 8)
        flops = QUANTISE_FLOPS * rows * k + rows + turned_back_flops(self._graph, op)
        return (quantising(op, source, made, rows * k, flops),), made
