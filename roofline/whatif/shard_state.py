"""What one rank of tensor parallelism has of tensors and operations: the words of `shard_plan`.

Example: ``State(share=1 / 8, origins=frozenset({20}), tokens=24)`` is an eighth of what operation 20 made for 24 tokens
"""

from dataclasses import dataclass, field

from roofline.graph.op import Kind

PRODUCTS = frozenset({Kind.MATMUL, Kind.GROUPED_MATMUL})


@dataclass(frozen=True)
class State:
    """What one rank has of a tensor."""

    share: float = 1.0
    """Of its bytes."""
    origins: frozenset[int] = frozenset()
    """Operations that divided it."""
    sums: tuple[tuple[int, int], ...] = ()
    """Partial: (operation, tensor) after which to sum which tensors."""
    tokens: int = 0
    """Of a divided tensor: rows whose features, or heads, are divided."""
    is_product: bool = False
    """A product made it, and nothing has worked on it since."""
    is_scores: bool = False
    """Made by a product of activations: heads are a batch, so the last dimension is whole."""
    is_mixed: bool = False
    """Queries, keys and values in one, of which each has a share of its own."""


WHOLE = State()


@dataclass
class Shares:
    """What one rank has and does of one operation, as shares of the whole."""

    reads: list[float]
    writes: list[float]
    matrix: float = 1.0
    vector: float = 1.0


@dataclass
class Plan:
    """One rank's part in a graph."""

    shares: list[Shares]
    """By operation."""
    split: dict[int, str] = field(default_factory=dict)
    """"column", "row", "heads" or "rows" (of an embedding), by operation; all others follow from these."""
    padded: frozenset[int] = frozenset()
    """Of these, columns that nobody reads, such as a vocabulary: a width that does not divide is padded."""
    whole: list[int] = field(default_factory=list)
    """Products with weights that every rank does in full."""
    summed: dict[int, list[int]] = field(default_factory=dict)
    """Tensors to sum over the ranks after an operation."""
    gathered: dict[int, list[int]] = field(default_factory=dict)
    """Tensors to put together after an operation."""
