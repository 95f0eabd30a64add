"""The operations of one forward pass, in the order they run, and the tensors that connect them.

An `OpGraph` is what is priced, what is measured and what is joined: the same list on all sides.
FLOPs count a multiply-add as 2. Bytes are compulsory traffic: each distinct element an operation touches, once.
"""

import math
import re
from collections.abc import Hashable, Iterable, Sequence
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from roofline.record import Record
from roofline.workload import Workload


class Routing(Record):
    """The choice of experts in one grouped product, where no real routing is known."""

    experts: int = Field(gt=0)
    """Experts whose weights this product holds."""
    per_token: float = Field(gt=0)
    """Experts that a token chooses among them."""
    tokens: float = Field(ge=0)
    skew: float = Field(default=0, ge=0, allow_inf_nan=False)
    """Exponent s of Zipf's law: the i-th most popular expert is chosen ∝ i^-s; 0 is uniform."""

    @property
    def hit(self) -> float:
        """Expected number of distinct experts that at least one token chooses."""
        return float(experts_hit(self.experts, self.per_token, self.tokens, self.skew))


def chosen_by_a_token(experts: int, per_token: float, skew: float) -> NDArray[np.float64]:
    """Probability that one token chooses each expert; shape (experts,), sums to `per_token`, none above 1.

    The shares of Zipf's law, the most popular expert first. Poisson sampling with a limit at certainty: a share that
    would exceed 1 is 1, the rest is shared by the others.
    """
    weights = np.arange(1, experts + 1, dtype=float) ** -skew
    share = weights / weights.sum()
    for certain in range(experts if per_token < experts else 0):
        rest = (per_token - certain) * share[certain:] / share[certain:].sum()
        if rest[0] <= 1:
            return np.concatenate([np.ones(certain), rest])
    return np.ones(experts)


def experts_hit(experts: int, per_token: float, tokens: ArrayLike, skew: float = 0) -> NDArray[np.float64]:
    """Expected distinct experts hit by `tokens` (any shape): Σ_e 1 − (1 − p_e)^T, for uniform p_e = k/E."""
    count = np.asarray(tokens, dtype=float)
    if not skew:
        return experts * (1 - (1 - min(1.0, per_token / experts)) ** count)
    missed = 1 - chosen_by_a_token(experts, per_token, skew)
    return experts - (missed ** count[..., None]).sum(axis=-1)


GRAPH_SCHEMA = 2

EXPERT_PARALLEL = "expert_parallel"
"""Key of `OpGraph.options` whose text begins with the number of ranks that share the experts."""


class Kind(StrEnum):
    """The kind of work that an operation does; a law prices one kind."""

    MATMUL = "matmul"
    GROUPED_MATMUL = "grouped_matmul"
    CONV = "conv"
    ATTENTION = "attention"
    SOFTMAX = "softmax"
    NORM = "norm"
    POINTWISE = "pointwise"
    REDUCTION = "reduction"
    COPY = "copy"
    EMBEDDING = "embedding"
    SCAN = "scan"
    COLLECTIVE = "collective"
    TRANSFER = "transfer"
    OTHER = "other"


ANCHORS = frozenset({
    Kind.MATMUL, Kind.GROUPED_MATMUL, Kind.CONV, Kind.ATTENTION, Kind.EMBEDDING, Kind.SCAN, Kind.COLLECTIVE,
    Kind.TRANSFER, Kind.OTHER,
})  # fmt: skip
"""Kinds that stay kernels of their own in a fused graph; all others can run inside a neighbour."""

PRODUCTS = frozenset({Kind.MATMUL, Kind.GROUPED_MATMUL})

Role = Literal["weight", "activation", "kv"]

Bytes = int | float
"""Amount of bytes: whole as traced; not whole where it is an expectation or bits that do not fill a byte."""


class Tensor(Record):
    """One storage that operations read and write; views of it are the same tensor."""

    id: int
    storage_bytes: Bytes = Field(ge=0)
    role: Role
    """Weights are parameters and buffers; kv is the content of the cache before or after the pass."""
    name: str | None = None
    """Path of the parameter or buffer, or the layer of the cache."""
    held: tuple[int, int] | None = None
    """First and last operation of the traced pass during which Python held its memory; −1 and the number of operations
    stand for before and after the pass. None where it is not known."""
    on_host: float = Field(default=0, ge=0, le=1)
    """Share of the storage that lives in the memory of the host, not in the device's."""


KEYS, VALUES = "keys", "values"
"""Ends of the names of the cache's tensors that grow with the tokens: the attributes of the cache's layers, of which
those of an index are `indexer_keys` or `idx_keys`."""

COMPRESSED = "compressed_kv"
"""Attribute of cache layers that hold an entry for several tokens each (DeepSeek-V4)."""


def holds_tokens(tensor: Tensor) -> bool:
    """Return whether a tensor is keys or values of tokens, not another state of the cache."""
    is_keys = (tensor.name or "").endswith((f".{KEYS}", f".{VALUES}", f"_{KEYS}"))
    return tensor.role == "kv" and (is_keys or is_compressed(tensor))


def is_compressed(tensor: Tensor) -> bool:
    """Return whether a tensor is cached entries that stand for several tokens each."""
    return tensor.role == "kv" and f".{COMPRESSED}." in (tensor.name or "")


class Access(Record):
    """The part of a tensor that one operation reads or writes."""

    tensor: int = Field(ge=0)
    """Number of the tensor (`Tensor.id`)."""
    bytes: Bytes = Field(ge=0)
    """Distinct elements × element size; an expanded dimension counts once."""


class Traffic(Record):
    """Bytes of memory traffic by class."""

    weight_read: float = 0
    activation_read: float = 0
    activation_write: float = 0
    kv_read: float = 0
    kv_write: float = 0

    @property
    def total(self) -> float:
        return self.weight_read + self.activation_read + self.activation_write + self.kv_read + self.kv_write


class Op(Record):
    """One operation that becomes device work; its figures are those of one execution."""

    path: str
    """Path of the module that ran it; "" is the model itself."""
    name: str
    """The operator, as the profiler names it: "aten::mm"."""
    kind: Kind
    dims: dict[str, Annotated[int, Field(ge=0)]]
    """Matmul: b, m, n, k; row_major 1 where weights lie k × n. Attention: batch, heads, kv_heads, query, kv, head_dim,
    value_dim, causal, window, pairs. Collective and transfer: bytes, ranks."""
    dtype: str
    """Type of the arithmetic's inputs, by torch's name: it chooses the peak."""
    matrix_flops: float = Field(ge=0)
    """Work that a matrix unit can do."""
    vector_flops: float = Field(ge=0)
    """Work for the vector units: norms, softmax, activations, additions."""
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    count: float = Field(default=1, gt=0)
    """Executions in the whole model that this one stands for: above 1 where repeated layers or steps are folded."""
    routing: Routing | None = None
    """Choice of experts in a grouped product whose weight reads are an expectation: all experts × hit ÷ experts."""
    link: str | None = None
    """Link of the device that `link_bytes` cross: a key of `Peaks.links`."""
    link_bytes: Bytes = Field(default=0, ge=0)
    """Bytes that this device sends, or receives if that is more, over the link."""
    messages: float = Field(default=0, ge=0)
    """Steps over the link, one after another, that each cost its latency."""
    beside: Literal["in", "out"] | None = None
    """Direction of a transfer that overlaps with all operations of its layer; None: with this operation alone."""
    also: tuple[str, ...] = ()
    """Further members of a fused operation, each once, in order, as "path kind"."""
    counted: bool = True
    """False where arithmetic of it, or of a member, is in no table: it has the price of its bytes alone."""


class AttentionModule(Record):
    """Mask of an attention module by its config, which tells whether unfused attention is causal or windowed."""

    path: str
    causal: bool
    window: int | None = None
    """Sliding window in tokens, the query's own included; None is no window."""


class OpGraph(Record):
    """A traced forward pass."""

    schema_version: int = GRAPH_SCHEMA
    model: str
    """Catalogue name, folder or hub id."""
    workload: Workload
    ops: tuple[Op, ...]
    """Operations in the order they run."""
    tensors: tuple[Tensor, ...]
    """`tensors[i].id == i`."""
    attention_modules: tuple[AttentionModule, ...] = ()
    inactive: tuple[str, ...] = ()
    """Parameters that no operation of this pass reads."""
    parameters: int = Field(default=0, ge=0)
    """Elements in all parameters of the whole model, tied ones once."""
    uncounted: tuple[str, ...] = ()
    """Operators whose arithmetic is in no table: priced by their bytes alone."""
    traced_on: str = "meta"
    """"meta", or the device, where routing or strides are only known from real data."""
    options: dict[str, str] = {}
    """Attention, experts and cache implementations of the trace, and changes made since."""
    layers: tuple[int, int] | None = None
    """(traced, whole model) number of repeated layers where they differ."""
    weight_bytes: Bytes | None = None
    """All weights of the whole model where folding has left some out of `tensors`; None: those in `tensors`."""
    heads: tuple[int, int] | None = None
    """(query, key-value) heads of the config; None where it names none."""
    lead: float | None = None
    """Matrix FLOPs by which the closest choice between two forms of an ideal graph was decided, below 0 where
    latents stay expanded (`roofline.fusion.absorb_mla`); None without such a choice."""

    @model_validator(mode="after")
    def _tensors_exist(self) -> "OpGraph":
        if any(tensor.id != i for i, tensor in enumerate(self.tensors)):
            raise ValueError("tensors must be numbered 0, 1, 2, … in order")
        for op in self.ops:
            for access in (*op.reads, *op.writes):
                if access.tensor >= len(self.tensors):
                    raise ValueError(f"{op.path} {op.name} touches tensor {access.tensor}, which is not in the graph")
        return self

    @cached_property
    def traffic(self) -> tuple[Traffic, ...]:
        """Traffic of each operation, one execution."""
        return tuple(traffic(self.tensors, op.reads, op.writes) for op in self.ops)

    def has_weight(self, op: Op) -> bool:
        """Return whether an operation reads a weight."""
        return any(self.tensors[access.tensor].role == "weight" for access in op.reads)


def traffic(tensors: tuple[Tensor, ...], reads: Iterable[Access], writes: Iterable[Access]) -> Traffic:
    """Split accesses into the five classes by the role of the tensor; a written weight counts as an activation."""
    total: dict[str, Bytes] = dict.fromkeys(Traffic.model_fields, 0)
    for access in reads:
        total[f"{tensors[access.tensor].role}_read"] += access.bytes
    for access in writes:
        role = "kv" if tensors[access.tensor].role == "kv" else "activation"
        total[f"{role}_write"] += access.bytes
    return Traffic(**total)


def uncounted_share(graph: OpGraph) -> float:
    """Share of all bytes moved that operations without a FLOP count move."""
    moved = [(op.counted, traffic.total * op.count) for op, traffic in zip(graph.ops, graph.traffic, strict=True)]
    whole = sum(size for _, size in moved)
    return sum(size for counted, size in moved if not counted) / whole if whole else 0.0


def sizes_by_tensor(accesses: Sequence[Access]) -> dict[int, Any]:
    """Bytes by tensor, views of one tensor added up."""
    sizes: dict[int, Any] = {}
    for access in accesses:
        sizes[access.tensor] = sizes.get(access.tensor, 0) + access.bytes
    return sizes


def routed_reads(op: Op, graph: OpGraph) -> frozenset[int]:
    """Positions of the reads of a grouped product that are weights of the experts hit, not of all experts."""
    if op.routing is None or not op.routing.tokens:
        return frozenset()
    share = op.routing.hit / op.routing.experts
    return frozenset(
        i
        for i, access in enumerate(op.reads)
        if (tensor := graph.tensors[access.tensor]).role == "weight"
        and math.isclose(access.bytes, tensor.storage_bytes * share, rel_tol=1e-9)  # products and quotients of floats
    )


def attention_pairs(query: int, context: int, causal: bool, window: int | None) -> int:
    """Unmasked (query, key) pairs of one head of one sequence.

    Causal: query i of `query` sees ``context + i + 1`` keys, at most `window`; not causal: all ``context + query``.
    """
    if not causal:
        return query * (context + query)
    limit = window if window else context + query
    growing = max(0, min(query, limit - context))  # queries that see fewer keys than the limit, or just it
    return growing * context + growing * (growing + 1) // 2 + (query - growing) * min(limit, context + query)


_LAYER = re.compile(r"^(.*?)\.(\d+)(?:\.(.*))?$")
"""Path up to the first repeated module, its index, and the path inside it."""


class Place(NamedTuple):
    """The place of a module among repeated layers."""

    prefix: str
    layer: int
    inner: str | None
    """Path inside the layer; None for the layer itself."""


def layer_of(path: str) -> Place | None:
    """The repeated layer that holds a module; None outside of all."""
    match = _LAYER.match(path)
    return Place(match[1], int(match[2]), match[3]) if match else None


def layer_key(path: str) -> Hashable:
    """The same for all modules of one repeated layer; a module outside of all is a layer of its own."""
    place = layer_of(path)
    return (place.prefix, place.layer) if place else path
