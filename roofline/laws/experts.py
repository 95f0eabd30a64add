"""Grouped experts: two products over the rows of each expert, the activation between them, and what goes around.

A rank reads the weights of the experts that are hit, in tiles of rows that belong to one expert each (`tile_rows`).
Each of the two products waits for its matrix units or for its weights:
``product = ((tiles·tile·columns·depth·2 / P(tile))^p + (weights / B(blocks))^p)^(1/p)``
where a tile of r rows runs at P·r/(r + half) and few blocks cannot draw the whole bandwidth. Rows are gathered, acted
upon and summed at the activation bandwidth. Experts that this rank holds cost their share of sorting.

Example: ``EXPERTS.time_s({"tokens": t, "hidden": h, …}, facts, "bfloat16", values)``
"""

from collections.abc import Mapping

import numpy as np

from roofline.laws.expert_loads import expert_loads
from roofline.laws.law import Constant, Dims, Facts, Floats, Values

TILE_COLUMNS = 128.0
"""Columns of a block of output."""
ELEMENT_BYTES = 2.0
"""Of an activation."""


def tile_rows(tokens: Floats) -> Floats:
    """Rows of a tile, by tokens, as grouped kernels choose them: 16 to 128, powers of two (vLLM, `fused_moe.py`)."""
    return np.select([tokens <= 32, tokens <= 96, tokens <= 512], [16.0, 32.0, 64.0], 128.0)


class Experts:
    """The law; see the module."""

    kind = "experts"
    dims = ("tokens", "hidden", "inner", "topk", "experts", "tp", "ep", "skew", "weight_bits")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        peak = facts.matrix_flops_per_s[dtype]
        memory = facts.bandwidth_bytes_per_s
        return (
            Constant("fixed", "s", 1e-6, 1e-3, 20e-6, 0.7, "launches of all its kernels on one rank"),
            Constant("parallel", "s", 1e-8, 1e-3, 5e-6, 1.0, "launches more where experts are spread over ranks"),
            Constant("expert", "s", 1e-10, 1e-4, 1e-8, 2.0, "sorting and starting, for each expert that is hit"),
            Constant("peak", "FLOP/s", 0.02 * peak, 1.1 * peak, 0.65 * peak, 0.4, "of full tiles"),
            Constant("half", "rows", 0.1, 1000.0, 16.0, 1.0, "rows of a tile at which it runs at half its peak"),
            Constant("bandwidth", "B/s", 0.02 * memory, 1.2 * memory, 0.85 * memory, 0.4, "at which weights are read"),
            Constant("blocks", "blocks/unit", 0.05, 8.0, 1.0, 0.7, "blocks a unit needs to draw its whole bandwidth"),
            Constant("rows", "B/s", 0.02 * memory, 8 * memory, 0.7 * memory, 0.6, "at which rows are moved"),
            Constant("masked", "1", 1e-3, 1.5, 0.5, 1.0, "cost of a row of another rank, over that of an own row"),
            Constant("sharpness", "1", 1.0, 12.0, 3.0, 0.5, "how sharply the two roofs blend"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        tokens, hidden, inner = dims["tokens"], dims["hidden"], dims["inner"] / dims["tp"]
        loads = expert_loads(tokens, dims["topk"], dims["experts"], dims["ep"], dims["skew"])
        rows = tile_rows(tokens)
        tiles = loads.tiles(rows)
        weight = dims["weight_bits"] / 8
        first = self._product(tiles, rows, 2 * inner, hidden, loads.hit * weight, facts, values)
        second = self._product(tiles, rows, hidden, inner, loads.hit * weight, facts, values)
        moved = loads.local + values["masked"] * (loads.routed - loads.local)
        moving = moved * (5 * inner + 2 * hidden) * ELEMENT_BYTES / values["rows"]
        around = values["fixed"] + values["parallel"] * (dims["ep"] > 1) + values["expert"] * loads.hit
        return np.asarray(around + first + second + moving)

    @staticmethod
    def _product(
        tiles: Floats, rows: Floats, columns: Floats, depth: Floats, read: Floats, facts: Facts, values: Values
    ) -> Floats:
        blocks = tiles * np.ceil(columns / TILE_COLUMNS)
        full = values["blocks"] * facts.units
        reach = values["bandwidth"] * blocks / (blocks**4 + full**4) ** 0.25
        memory = read * columns * depth / reach
        peak = values["peak"] * rows / (rows + values["half"])
        waves = (blocks**4 + facts.units**4) ** 0.25
        compute = 2 * rows * TILE_COLUMNS * depth * waves / peak
        p = values["sharpness"]
        longest = np.maximum(memory, compute)
        return np.asarray(longest * ((memory / longest) ** p + (compute / longest) ** p) ** (1 / p))


def experts_work(dims: Dims) -> Mapping[str, Floats]:
    """FLOPs and compulsory bytes of a rank, for rooflines: columns "flops", "bytes"."""
    inner = dims["inner"] / dims["tp"]
    loads = expert_loads(dims["tokens"], dims["topk"], dims["experts"], dims["ep"], dims["skew"])
    weights = loads.hit * 3 * dims["hidden"] * inner * dims["weight_bits"] / 8
    around = ELEMENT_BYTES * 2 * dims["tokens"] * dims["hidden"]
    return {"flops": 6 * loads.local * dims["hidden"] * inner, "bytes": weights + around}


EXPERTS = Experts()
