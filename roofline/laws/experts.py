"""The law of grouped experts: two products over the rows of each expert, the activation between them, and routing.

A rank reads the weights of the experts that are hit, in tiles of rows of one expert each. A product waits for its
matrix units or for its weights: ``max_soft(waves·tile·columns·depth·2 / P(tile), weights / B) + waves·block``. A tile
of r rows runs at P·r/(r + 16), blocks start and end in `block` seconds, few blocks cannot draw the whole bandwidth, and
weights that fit in the last-level cache come from there (in tables that are measured warm). Rows are gathered,
activated and summed at a bandwidth of their own; rows of other ranks are masked, which is not free.
"""

import numpy as np

from roofline.laws.expert_loads import expert_loads
from roofline.laws.law import Constant, Dims, Facts, Floats, Values, blend

DEPTH_STEP = 64.0
"""Step along the depth of a block: depths are rounded up to it."""
CACHE_OVER_MEMORY = 4.0
"""Bandwidth of the last-level cache ÷ main memory's; held, since short kernels do not determine it."""
ELEMENT_BYTES = 2.0
"""Bytes of an element of an activation."""
DIVISIBLE, SCALAR = 16, 8.0
"""A depth that is no multiple of 16 elements is read element by element, not 8 at once (Triton's specialisation)."""
DIVISIBLE_BITS = 16.0
"""Bits of the weights to which that applies: those in 8 bits go to other kernels (FlashInfer's in vLLM on an H200)."""
HALF_ROWS = 16.0
"""Rows of a tile that runs at half of its peak: the rows of one matrix instruction."""
SHARPNESS = 3.0
"""Power of the blend of matrix units and weights."""
KNEE = 4.0
"""Power with which a cache is outgrown and units are filled."""


def tiles_by_tokens(tokens: Floats) -> tuple[Floats, Floats]:
    """Rows and columns of a block: 16 × 64 to 128 × 128 as tokens grow (vLLM, `get_default_config`, 2025 on)."""
    rows = np.select([tokens <= 32, tokens <= 96, tokens <= 512], [16.0, 32.0, 64.0], 128.0)
    return rows, np.where(tokens <= 64, 64.0, 128.0)


def tiles_by_experts(tokens: Floats, local: Floats) -> tuple[Floats, Floats]:
    """16 × 32 while tokens do not outnumber the rank's experts, then 64 × 64 (the same function, before)."""
    few = tokens <= local
    return np.where(few, 16.0, 64.0), np.where(few, 32.0, 64.0)


class Experts:
    name = "experts"
    dims = ("tokens", "hidden", "inner", "topk", "experts", "tp", "ep", "skew", "weight_bits")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        peak = facts.matrix_flops_per_s[dtype]
        memory = facts.bandwidth_bytes_per_s
        return (
            Constant("fixed", "s", 1e-6, 1e-3, 20e-6, 0.7, "launches of all its kernels on one rank"),
            Constant("parallel", "s", 1e-8, 1e-3, 8e-6, 0.7, "additional launches where experts are spread over ranks"),
            Constant("block", "s", 1e-8, 1e-4, 5e-7, 1.0, "start and end of a block of output on its unit"),
            Constant("peak", "FLOP/s", 0.02 * peak, 1.1 * peak, 0.7 * peak, 0.3, "arithmetic of tall tiles"),
            Constant("by_tokens", "1", 0.0, 1.0, 0.5, 0.5, "how tiles are chosen: 0 by experts, 1 by tokens", False),
            Constant("bandwidth", "B/s", 0.02 * memory, 1.1 * memory, 0.9 * memory, 0.2, "weights from main memory"),
            Constant("resident", "1", 0.05, 2.0, 0.8, 0.4, "part of the cache that still holds weights"),
            Constant("fill", "blocks/unit", 0.05, 8.0, 1.0, 0.7, "blocks a unit needs to draw its whole bandwidth"),
            Constant("rows", "B/s", 0.02 * memory, 8 * memory, 0.8 * memory, 0.6, "movement of rows"),
            Constant("masked", "1", 0.0, 1.5, 0.5, 0.5, "cost of another rank's row ÷ an own row's", False),
            Constant("crowding", "1", 0.0, 1.0, 0.0, 0.3, "how far rows left over by rounding go to one rank", False),
            Constant("passes", "1", 0.2, 50.0, 3.0, 0.7, "additional moves of each token's hidden row"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        tokens, hidden, inner = dims["tokens"], dims["hidden"], dims["inner"] / dims["tp"]
        loads = expert_loads(tokens, dims["topk"], dims["experts"], dims["ep"], dims["skew"], values["crowding"])
        weights = loads.hit * hidden * inner * dims["weight_bits"] / 8
        outgrown = (3 * weights / (values["resident"] * facts.cache_bytes)) ** KNEE
        missed = outgrown / (outgrown + 1)
        memory_s = weights * (missed + (1 - missed) / CACHE_OVER_MEMORY) / values["bandwidth"]
        uneven = (np.mod(inner, DIVISIBLE) > 0) & (dims["weight_bits"] == DIVISIBLE_BITS)
        scalar = np.where(uneven, SCALAR, 1.0)

        def products(rows: Floats, side: Floats) -> Floats:
            tiles = loads.tiles(rows)
            first = _product(tiles, rows, side, 2 * inner, hidden, 2 * memory_s, facts, values)
            return first + _product(tiles, rows, side, hidden, inner, memory_s, facts, values) * scalar

        by_experts_s = products(*tiles_by_experts(tokens, dims["experts"] / dims["ep"]))
        by_tokens_s = products(*tiles_by_tokens(tokens))
        products_s = by_experts_s ** (1 - values["by_tokens"]) * by_tokens_s ** values["by_tokens"]
        moved = (loads.local + values["masked"] * (loads.routed - loads.local)) * (5 * inner + hidden)
        moved = moved + values["passes"] * tokens * hidden
        fixed = values["fixed"] + values["parallel"] * (dims["ep"] > 1)
        return np.asarray(fixed + products_s + moved * ELEMENT_BYTES / values["rows"])


def _product(
    tiles: Floats,
    rows: Floats,
    side: Floats,
    columns: Floats,
    depth: Floats,
    memory_s: Floats,
    facts: Facts,
    values: Values,
) -> Floats:
    """Seconds of one product; `memory_s` is the time to read its weights where blocks fill the device."""
    blocks = tiles * np.ceil(columns / side)
    short = blend(values["fill"] * facts.units / blocks, 1.0, KNEE)
    waves = blend(blocks / facts.units, 1.0, KNEE)
    filled = np.ceil(depth / DEPTH_STEP) * DEPTH_STEP
    block_s = 2 * side * filled * facts.units * (rows + HALF_ROWS) / values["peak"]
    return blend(memory_s * short, waves * block_s, SHARPNESS) + waves * values["block"]
