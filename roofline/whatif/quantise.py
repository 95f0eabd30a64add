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

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from roofline.dtypes import element_bits
from roofline.graph import linear as names
from roofline.graph.dataflow import Dataflow
from roofline.graph.edit import Edit, access, changed
from roofline.graph.linear import ROUTERS, Linear, described, linear_layers, linear_of, matrix_bytes, turned_back_flops
from roofline.graph.op import Access, Bytes, Kind, Op, OpGraph, holds_tokens, layer_of
from roofline.whatif.kv_cache import KV_BITS, QUANTISE_FLOPS, quantise_kv, quantising
from roofline.whatif.presets import PRESETS
from roofline.whatif.scheme import Choose, Role, Scheme, Weight

Format = Literal["int", "float"]

WEIGHT_BITS: dict[Format, tuple[int, ...]] = {"int": (2, 3, 4, 5, 6, 8, 16, 32), "float": (4, 6, 8, 16, 32)}
"""Bits of a stored weight; 16 and 32 are plain floating point, without scales."""

ROUND_FLOPS = 2
"""FLOPs for an element of an input whose scale is known before: division, rounding."""

ARITHMETIC: dict[tuple[Format, int, int], str] = {
    ("int", 8, 8): "int8",
    ("int", 4, 8): "int8",
    ("int", 4, 4): "int4",
    ("float", 8, 8): "float8_e4m3fn",
    ("float", 4, 8): "float8_e4m3fn",
    ("float", 4, 4): "float4_e2m1fn_x2",
}
"""Type of the product by format, bits of weights and bits of activations: the combinations that have kernels."""


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
    preset: str = "",
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
        preset: a named way to store all weights, instead of all above but kv: awq, fp8_block, Q4_K_M, others.
    Raises: ValueError for bits that are in no table, more than the graph's own, or quantised already.
    """
    if not preset and weights is None and activations is None and kv is None:
        raise ValueError("quantise changes nothing; give weights=4, activations=8 or kv=8")
    own = element_bits(graph.workload.dtype)
    if preset:
        if preset not in PRESETS:
            raise ValueError(f"quantise preset {preset!r} is unknown; use one of {', '.join(PRESETS)}")
        if weights is not None or activations is not None or where:
            raise ValueError(f"quantise preset {preset} says which weights have which bits; leave the others out")
        graph = as_stored(graph, PRESETS[preset](graph), {"weights": preset})
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
        scheme = Scheme(
            bits, group, scale_bits, zero_point_bits if bits < 16 else 0, activations=narrow, dtype=dtype,
            activation_scale_bits=scale_bits,
        )  # fmt: skip
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


def as_stored(
    graph: OpGraph, choose: Choose, said: Mapping[str, str], *, kv_bits: int | None = None, kv_scale_bits: int = 0
) -> OpGraph:
    """The same pass with each weight in its own scheme, as a checkpoint stores it.

    Args:
        choose: the scheme of a weight; None leaves it in the type of the model.
        said: what was done, for `OpGraph.options`.
        kv_bits: of keys and values, where the checkpoint has scales for them; a pass without any is left as it is.
    Raises: ValueError for weights that are quantised already.
    """
    roles: dict[int, Role] = {}
    lengths: dict[int, int] = {}
    for i, op in enumerate(graph.ops):
        linear = linear_of(graph, i)
        tensor = linear.matrix.tensor if linear else _table(graph, op)
        if tensor is not None:
            role = _role(op)
            lengths[tensor] = linear.op.dims["k"] if linear else op.dims.get("width", 0)
            roles[tensor] = "tied" if roles.get(tensor, role) != role else role
    own = element_bits(graph.workload.dtype)
    chosen = {
        tensor: choose(Weight(graph.tensors[tensor].name or "", role, lengths[tensor]))
        for tensor, role in roles.items()
    }
    schemes = {tensor: scheme for tensor, scheme in chosen.items() if scheme is not None and scheme.bits < own}
    graph = _stored(graph, schemes, said)
    if kv_bits is None or kv_bits >= element_bits(graph.workload.dtype) or not any(map(holds_tokens, graph.tensors)):
        return graph
    return quantise_kv(graph, kv_bits, kv_scale_bits)


def _table(graph: OpGraph, op: Op) -> int | None:
    """The weights that an embedding looks rows up in."""
    if op.kind is not Kind.EMBEDDING:
        return None
    weights = [a for a in op.reads if graph.tensors[a.tensor].role == "weight"]
    return weights[0].tensor if weights else None


def _role(op: Op) -> Role:
    if op.kind is Kind.EMBEDDING:
        return "embedding"
    if op.kind is Kind.GROUPED_MATMUL or ".experts" in op.path:
        return "experts"
    if op.path.rpartition(".")[2] in ROUTERS:
        return "router"
    return "linear" if layer_of(op.path) else "head"


def _linear_layers(graph: OpGraph, scheme: Scheme, where: Sequence[str], form: Format) -> OpGraph:
    chosen = {linear.matrix.tensor: scheme for linear in linear_layers(graph, where)}
    shared = any(op.kind is Kind.EMBEDDING and any(a.tensor in chosen for a in op.reads) for op in graph.ops)
    groups = "per column" if scheme.group == -1 else f"g{scheme.group}"
    zeros = f" zero points of {scheme.zero_point_bits} bit" if scheme.zero_point_bits else ""
    name = f"{form}{scheme.bits} {groups}{zeros}" if scheme.bits < 16 else f"{scheme.bits} bit"
    tied = " (with the embedding tied to them)" if shared else ""
    options = {"weights": f"{name}{described(where)}{tied}"}
    if scheme.activations:
        options["activations"] = f"{form}{scheme.activations} per token{described(where)}"
    return _stored(graph, chosen, options)


def _stored(graph: OpGraph, schemes: Mapping[int, Scheme], options: Mapping[str, str]) -> OpGraph:
    """The pass with the tensors of `schemes`, by number, stored so, and all that reads them changed with them."""
    rewriting = _Rewriting(graph)
    linears = {i: linear for i in range(len(graph.ops)) if (linear := linear_of(graph, i))}
    targets = {i: linear for i, linear in linears.items() if linear.matrix.tensor in schemes}
    for linear in targets.values():
        if "weight_bits" in linear.op.dims:
            raise ValueError(
                f"the weights of {linear.op.path} have {linear.bits:g} bits already; give them once, "
                "with --bits-of-checkpoint no if the checkpoint has them"
            )
        rewriting.store(linear.matrix.tensor, schemes[linear.matrix.tensor], linear.elements, linear.op.dims["k"],
                        linear.is_sparse)  # fmt: skip
    for i, op in enumerate(graph.ops):
        if i in targets:
            rewriting.linear(targets[i])
        elif any(a.tensor in schemes for a in op.reads):  # an embedding, or a copy
            table = _table(graph, op)
            if table is not None and table in schemes:
                elements = graph.tensors[table].storage_bytes * 8 / element_bits(op.dtype)
                rewriting.store(table, schemes[table], elements, op.dims["width"], is_sparse=False)
            reads, flops = rewriting.weight_reads(op)
            rewriting.edit.put(i, changed(op, reads=reads, vector_flops=op.vector_flops + flops))
    return rewriting.edit.done(options)


class _Weights(NamedTuple):
    """Weights that are stored in fewer bits, and the tensors beside them."""

    scheme: Scheme
    elements: float
    before: Bytes
    """Size of the tensor as it was."""
    is_sparse: bool
    beside: tuple[int, ...]


class _Rewriting:
    """Weights as they are stored now, and the operations that read them."""

    def __init__(self, graph: OpGraph) -> None:
        self.edit = Edit(graph)
        self._graph, self._flow = graph, Dataflow(graph)
        self._stored: dict[int, _Weights] = {}
        self._inputs: dict[tuple[int, int | None, float, Scheme], Access] = {}

    def store(self, tensor: int, scheme: Scheme, elements: float, k: int, is_sparse: bool) -> None:
        """Shrink a weight's tensor, and add those of its scales and zero points, once."""
        if tensor in self._stored:
            return
        before = self._graph.tensors[tensor].storage_bytes
        self.edit.resize(tensor, matrix_bytes(elements, scheme.bits, is_sparse))
        numbers = scheme.scales(elements, k)
        name = self._graph.tensors[tensor].name or ""
        per_group = [(names.SCALES, scheme.scale_bits), (names.ZEROS, scheme.zero_point_bits)]
        per_group = per_group if scheme.bits < 16 else []
        added = tuple(self.edit.tensor(numbers * bits / 8, "weight", f"{name}{end}") for end, bits in per_group if bits)
        self._stored[tensor] = _Weights(scheme, elements, before, is_sparse, added)

    def linear(self, linear: Linear) -> None:
        op, scheme = linear.op, self._stored[linear.matrix.tensor].scheme
        dims = op.dims | {"weight_bits": scheme.bits}
        reads, flops = self.weight_reads(op)
        if scheme.dtype is None or scheme.activations is None:
            self.edit.put(linear.index, changed(op, dims=dims, reads=reads, vector_flops=op.vector_flops + flops))
            return
        if scheme.bits == scheme.activations:
            flops = 0  # the product takes the weights as they are
        sums = 1 if scheme.unit_scales else scheme.groups(op.dims["k"])
        flops += 2 * sums * linear.rows * op.dims["n"]
        source = linear.input()
        before, narrow = self._quantised_input(linear, source, scheme)
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
            weights = self._stored[read.tensor]
            share = read.bytes / weights.before
            reads += [access(t, share * self.edit.storage_bytes(t)) for t in (read.tensor, *weights.beside)]
            flops += len(weights.beside) * share * weights.elements * (0.5 if weights.is_sparse else 1)
        return tuple(reads), flops

    def _quantised_input(self, linear: Linear, source: Access, scheme: Scheme) -> tuple[tuple[Op, ...], Access]:
        """The operation before the layer, and the layer's read of its result: made once for all that share it."""
        op = linear.op
        alike = Scheme(0, activations=scheme.activations, dtype=scheme.dtype, activation_group=scheme.activation_group)
        key = source.tensor, self._flow.producer(linear.index, source.tensor), source.bytes, alike
        if key in self._inputs:
            return (), self._inputs[key]
        rows, k, bits = linear.rows, op.dims["k"], scheme.activations or 0
        if self._graph.tensors[source.tensor].role == "activation":  # a fused gather has fewer rows than the product
            rows = round(source.bytes * 8 / element_bits(op.dtype) / k)
        scales = rows * scheme.input_scales(k)
        made = self._inputs[key] = self.edit.activation((rows * k * bits + scales * scheme.activation_scale_bits) / 8)
        an_element = QUANTISE_FLOPS if scales else ROUND_FLOPS
        flops = an_element * rows * k + scales + turned_back_flops(self._graph, op)
        return (quantising(op, source, made, rows * k, flops),), made
