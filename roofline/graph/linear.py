"""Which operations of a graph are linear layers, and how their weights are stored: what several what-ifs must agree on.

A linear layer is a matmul, plain or grouped, that reads a weight. How its matrix is stored is kept in the operation's
dimensions, so that what-ifs compose: `weight_bits`, bits of a stored value (absent: those of the arithmetic's type),
and `nonzero_of_4`, 2 where a matrix is 2:4 sparse. Scales and zero points are tensors of their own, named after the
weight's. Adapters (LoRA) are not linear layers here: they stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from roofline.dtypes import element_bits
from roofline.graph.op import PRODUCTS, Access, Bytes, Kind, Op, OpGraph, layer_of

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
"""Cached elements of fewer bits have scales, by which their readers multiply."""
INDEX_BITS = 2
"""Bits that say which of four a kept value is (NVIDIA A100 whitepaper, v1.0, 2020, "Fine-grained structured
sparsity")."""


@dataclass(frozen=True)
class Linear:
    """One linear layer of a graph."""

    graph: OpGraph
    index: int
    matrix: Access
    """The operation's read of the weight matrix."""

    @property
    def op(self) -> Op:
        return self.graph.ops[self.index]

    @property
    def stored_bytes(self) -> Bytes:
        """Size of the matrix's tensor."""
        return self.graph.tensors[self.matrix.tensor].storage_bytes

    @property
    def bits(self) -> float:
        return self.op.dims.get("weight_bits", element_bits(self.op.dtype))

    @property
    def is_sparse(self) -> bool:
        return "nonzero_of_4" in self.op.dims

    @property
    def elements(self) -> float:
        """Elements of the whole tensor, with the zeros of a sparse one."""
        return self.stored_bytes / matrix_bytes(1, self.bits, self.is_sparse)

    @property
    def share(self) -> float:
        """Share of the tensor that one execution reads."""
        return self.matrix.bytes / self.stored_bytes

    @property
    def rows(self) -> int:
        """Rows of the input, over a batch of products."""
        return self.op.dims.get("b", 1) * self.op.dims["m"]

    @property
    def sides(self) -> tuple[Access, ...]:
        """Reads of scales and zero points."""
        return tuple(access for access in self.op.reads if is_side(self.graph, access))

    @property
    def dequantise_flops(self) -> float:
        """Vector FLOPs of one execution to turn stored weights into the arithmetic's type: those in `op.vector_flops`.

        A multiplication by the scale for each kept weight, and before it the subtraction of the zero point if there is
        one (GPTQ, arXiv 2210.17323; AWQ, arXiv 2306.00978: w = s (q − z)). Once a weight, as compulsory as its read.
        """
        if not self.sides or self.bits >= element_bits(self.op.dtype):
            return 0
        per_weight = 1 + any((self.graph.tensors[a.tensor].name or "").endswith(ZEROS) for a in self.sides)
        return per_weight * self.elements * self.share * (0.5 if self.is_sparse else 1)

    def input(self) -> Access:
        """The read of the layer's input; a quantised one has its scales with it.

        Raises: ValueError if it cannot be told from other reads.
        """
        roles, bits = [tensor.role for tensor in self.graph.tensors], element_bits(self.op.dtype)
        size = self.rows * self.op.dims["k"] * bits / 8
        others = [a for a in self.op.reads if roles[a.tensor] != "weight"]
        fitting = [a for a in others if a.bytes == size or roles[a.tensor] == "kv" or (bits < 16 and a.bytes > size)]
        if not fitting and self.op.kind is Kind.GROUPED_MATMUL:  # a fused gather: one read of a row for all its experts
            fitting = sorted((a for a in others if size % a.bytes == 0), key=lambda a: -a.bytes)
        if not fitting:
            raise ValueError(
                f"{self.op.path} has no input of {size:g} bytes to tell from others; do this before fusing"
            )
        return fitting[0]


def matrix_bytes(elements: float, bits: float, is_sparse: bool) -> float:
    """Stored size of a matrix; a 2:4 sparse one keeps half of the elements, with their indices."""
    return elements / 2 * (bits + INDEX_BITS) / 8 if is_sparse else elements * bits / 8


def linear_layers(graph: OpGraph, where: Sequence[str] = ()) -> list[Linear]:
    """The linear layers that one of the glob patterns `where` of module paths matches, in order.

    Without patterns, as GPTQ and AWQ choose them: those in repeated layers (all, in a model without any) that are not
    routers; so neither the embedding nor the head.
    Raises: ValueError if a pattern matches no linear layer, or if there is none at all.
    """
    linears = [linear for i in range(len(graph.ops)) if (linear := linear_of(graph, i))]
    paths = list(dict.fromkeys(linear.op.path for linear in linears))
    for pattern in where:
        if not any(fnmatchcase(path, pattern) for path in paths):
            like = f"they are called like {paths[len(paths) // 2]}" if paths else "the graph has none"
            raise ValueError(f"no linear layer is called {pattern}; {like}")
    if where:
        return [linear for linear in linears if any(fnmatchcase(linear.op.path, pattern) for pattern in where)]
    layered = [linear for linear in linears if layer_of(linear.op.path)] or linears
    chosen = [linear for linear in layered if linear.op.path.rpartition(".")[2] not in ROUTERS]
    if not chosen:
        raise ValueError("the graph has no linear layer that can be chosen by default; name some with where")
    return chosen


def linear_of(graph: OpGraph, index: int) -> Linear | None:
    """An operation as a linear layer; None if it is none."""
    op = graph.ops[index]
    weights = [a for a in op.reads if graph.tensors[a.tensor].role == "weight" and not is_side(graph, a)]
    if op.kind not in PRODUCTS or op.name in (LORA_A, LORA_B) or not weights:
        return None
    return Linear(graph, index, max(weights, key=lambda a: a.bytes))


def is_side(graph: OpGraph, access: Access) -> bool:
    """Return whether an access is to scales or zero points."""
    return (graph.tensors[access.tensor].name or "").endswith((SCALES, ZEROS))


def turned_back_flops(graph: OpGraph, op: Op) -> float:
    """Vector FLOPs of a product, or of quantising its input, that turn quantised cached elements into its type."""
    elements = op.dims.get("elements", op.dims.get("b", 1) * op.dims.get("m", 0) * op.dims.get("k", 0))
    cached = sum(a.bytes for a in op.reads if graph.tensors[a.tensor].role == "kv")
    return elements if 0 < cached * 8 < PLAIN_BITS * elements else 0


def described(where: Sequence[str]) -> str:
    """The end of an option in `OpGraph.options`: " of PATTERN, PATTERN", or "" for the default."""
    return f" of {', '.join(where)}" if where else ""
