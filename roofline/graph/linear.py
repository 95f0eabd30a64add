"""Which operations of a graph are linear layers, and how their weights are stored: what several what-ifs must agree on.

A linear layer is a matmul, plain or grouped, that reads a weight. How its matrix is stored is kept in the operation's
dimensions, so that what-ifs compose: `weight_bits`, bits of a stored value (absent: those of the arithmetic's type),
and `nonzero_of_4`, 2 where a matrix is 2:4 sparse. Scales and zero points are tensors of their own, named after the
weight's. Adapters (LoRA) are not linear layers here: they stay as they are.

Example: ``[linear.index for linear in linear_layers(graph, where=("*.mlp.*",))]``
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from roofline.dtypes import element_bits
from roofline.graph.op import Access, Bytes, Kind, Op, OpGraph, layer_of

SCALES, ZEROS = ".scales", ".zeros"
"""Ends of the names of tensors that hold one number a group of weights."""

QUANTISE = "roofcal::quantise"
LOW_RANK_IN, LOW_RANK_OUT = "roofcal::low_rank_in", "roofcal::low_rank_out"
LORA_A, LORA_B, LORA_ADD = "roofcal::lora_a", "roofcal::lora_b", "roofcal::lora_add"
"""Names of operations that what-ifs insert."""

ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""Last names of modules that choose experts (Mixtral, Qwen, DeepSeek; gpt-oss): GPTQ and AWQ checkpoints leave them
as they are (`modules_to_not_convert` of their configs)."""

PLAIN_BITS = 16
"""Cached elements of fewer bits have scales, and whoever reads them multiplies by these."""

INDEX_BITS = 2
"""Bits that say which of four a kept value is (NVIDIA A100 Tensor Core GPU Architecture whitepaper, v1.0, 2020,
"Fine-grained structured sparsity")."""


@dataclass(frozen=True)
class Linear:
    """One linear layer of a graph."""

    index: int
    """Index of its operation."""
    op: Op
    matrix: Access
    """Its read of the weight matrix."""
    stored_bytes: Bytes
    """Size of the matrix's tensor."""

    @property
    def bits(self) -> float:
        return self.op.dims.get("weight_bits", element_bits(self.op.dtype))

    @property
    def is_sparse(self) -> bool:
        return "nonzero_of_4" in self.op.dims

    @property
    def is_quantised(self) -> bool:
        return "weight_bits" in self.op.dims

    @property
    def elements(self) -> float:
        """In the whole tensor, the zeros of a sparse one too."""
        return self.stored_bytes / matrix_bytes(1, self.bits, self.is_sparse)

    @property
    def share(self) -> float:
        """Share of the tensor that one execution reads."""
        return self.matrix.bytes / self.stored_bytes

    @property
    def rows(self) -> int:
        """Rows of the input, over a batch of products."""
        return self.op.dims.get("b", 1) * self.op.dims["m"]


def matrix_bytes(elements: float, bits: float, is_sparse: bool) -> float:
    """Stored size of a matrix; of a 2:4 sparse one the kept half with its indices."""
    kept = elements / 2 if is_sparse else elements
    return kept * (bits + (INDEX_BITS if is_sparse else 0)) / 8


def linear_layers(graph: OpGraph, where: Sequence[str] = ()) -> list[Linear]:
    """The linear layers that one of `where` matches, in order.

    Args:
        where: glob patterns of module paths ("*.self_attn.*", "lm_head"). None: as GPTQ and AWQ choose them, those in
            repeated layers (all, in a model without any) that are not routers; so neither the embedding nor the head.
    Raises: ValueError if a pattern matches no linear layer, or if there is none at all.
    """
    linears = [linear for i, op in enumerate(graph.ops) if (linear := linear_of(graph, i, op))]
    paths = list(dict.fromkeys(linear.op.path for linear in linears))
    for pattern in where:
        if not any(fnmatchcase(path, pattern) for path in paths):
            like = f"they are called like {paths[len(paths) // 2]}" if paths else "the graph has none"
            raise ValueError(f"no linear layer is called {pattern}; {like}")
    if where:
        return [linear for linear in linears if any(fnmatchcase(linear.op.path, pattern) for pattern in where)]
    has_layers = any(layer_of(path) for path in paths)
    chosen = [
        linear
        for linear in linears
        if (layer_of(linear.op.path) or not has_layers) and linear.op.path.rpartition(".")[2] not in ROUTERS
    ]
    if not chosen:
        raise ValueError("the graph has no linear layer that can be chosen by default; name some with where")
    return chosen


def linear_of(graph: OpGraph, index: int, op: Op) -> Linear | None:
    """The operation as a linear layer; None if it is none."""
    if op.kind not in (Kind.MATMUL, Kind.GROUPED_MATMUL) or op.name in (LORA_A, LORA_B):
        return None
    weights = [a for a in op.reads if graph.tensors[a.tensor].role == "weight" and not is_side(graph, a)]
    if not weights:
        return None
    matrix = max(weights, key=lambda a: a.bytes)
    return Linear(index, op, matrix, graph.tensors[matrix.tensor].storage_bytes)


def is_side(graph: OpGraph, access: Access) -> bool:
    """Whether an access is to scales or zero points."""
    return (graph.tensors[access.tensor].name or "").endswith((SCALES, ZEROS))


def sides(graph: OpGraph, op: Op) -> tuple[Access, ...]:
    """Reads of scales and zero points."""
    return tuple(access for access in op.reads if is_side(graph, access))


def dequantise_flops(graph: OpGraph, linear: Linear) -> float:
    """Vector FLOPs of one execution to turn stored weights into the arithmetic's type: those in `op.vector_flops`.

    A multiplication by the scale for each kept weight, and before it the subtraction of the zero point if there is
    one (GPTQ, arXiv 2210.17323; AWQ, arXiv 2306.00978: w = s (q − z)). Once a weight, as compulsory as its read.
    """
    each = 1 + any((graph.tensors[a.tensor].name or "").endswith(ZEROS) for a in sides(graph, linear.op))
    if not sides(graph, linear.op) or linear.bits >= element_bits(linear.op.dtype):
        return 0
    return each * linear.elements * linear.share * (0.5 if linear.is_sparse else 1)


def turned_back_flops(graph: OpGraph, op: Op) -> float:
    """Vector FLOPs of a product, or of quantising its input, that turn cached elements of few bits back (`kv_bits`)."""
    elements = op.dims.get("elements", op.dims.get("b", 1) * op.dims.get("m", 0) * op.dims.get("k", 0))
    cached = sum(a.bytes for a in op.reads if graph.tensors[a.tensor].role == "kv")
    return elements if 0 < cached * 8 < PLAIN_BITS * elements else 0


def input_of(graph: OpGraph, linear: Linear) -> Access:
    """The read of the layer's input; a quantised one has its scales with it.

    Raises: ValueError if it cannot be told from other reads.
    """
    bits = element_bits(linear.op.dtype)
    size = linear.rows * linear.op.dims["k"] * bits / 8
    others = [a for a in linear.op.reads if graph.tensors[a.tensor].role != "weight"]
    fitting = [
        a for a in others if a.bytes == size or graph.tensors[a.tensor].role == "kv" or (bits < 16 and a.bytes > size)
    ]
    if not fitting and linear.op.kind is Kind.GROUPED_MATMUL:  # a fused gather: each row is read once for its experts
        fitting = sorted((a for a in others if size % a.bytes == 0), key=lambda a: -a.bytes)
    if not fitting:
        raise ValueError(f"{linear.op.path} has no input of {size:g} bytes to tell from others; do this before fusing")
    return fitting[0]


def described(where: Sequence[str]) -> str:
    """For `OpGraph.options`: " of PATTERN, PATTERN", or "" for the default."""
    return f" of {', '.join(where)}" if where else ""
