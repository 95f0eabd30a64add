"""The law of grouped experts: two products over the rows of each expert, the activation between them, and routing.

A rank reads the weights of the experts that are hit, in tiles of rows of one expert each. A product waits for its
matrix units or for its weights: ``max_soft(waves·tile·columns·depth·2 / P(tile), weights / B) + waves·block``. A tile
of r rows runs at P·r/(r + 16), blocks start and end in `block` seconds, few blocks cannot draw the whole bandwidth, and
weights that fit in the last-level cache come from there (in tables that are measured warm). Rows are gathered,
activated and summed at a bandwidth of their own; rows of other ranks are masked, which is not free.

The rows of each expert decide its weights' traffic and its tiles. The dim `skew` chooses one of two routings:
- 0: rows are dealt in turn, as evenly as can be: min(E, T·k) experts are hit, each with its share of the T·k rows.
- s > 0: loads are drawn from the density x^−s between `LEAST` and `MOST` (`MOST_PER_TOKEN`·T where rows outnumber
  experts), scaled to T·k rows and rounded, and rows lost by rounding go to idle experts: NVIDIA AIConfigurator's
  "power_law_s" (collector, `power_law_logits_v3`; the idle experts are seen in its tables' times). Draws are replaced
  by their quantiles, and the rank is the busiest one, as there.
(`roofline.graph.op` has the uniform random routing of a model whose routing is unknown.) Loads are `QUANTILES` equal
classes of experts, so that a kernel costs the same to price whatever its experts.
"""

from dataclasses import dataclass

import numpy as np

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
QUANTILES = 64
"""Number of classes of experts by load."""
LEAST, MOST = 0.01, 2.0
"""Ends of the density where experts outnumber rows."""
MOST_PER_TOKEN = 0.8
"""Upper end of the density, in tokens, where rows outnumber experts (the lower end is 1)."""
TINY = 1e-300
"""Least divisor, which keeps 0 ÷ 0 finite."""


@dataclass(frozen=True)
class ExpertLoads:
    """Loads of the busiest rank; … stands for the shape of the kernels' sizes."""

    rows: Floats
    """(…, classes): rows of one expert of the class; a value below 1 is the probability of one row."""
    experts: Floats
    """(…, classes): experts of each class on this rank."""
    routed: Floats
    """(…): rows of all ranks: tokens × experts per token."""

    @property
    def hit(self) -> Floats:
        """(…): expected number of distinct experts with a row, whose weights the rank reads."""
        return np.asarray((np.minimum(self.rows, 1.0) * self.experts).sum(axis=-1))

    @property
    def local(self) -> Floats:
        """(…): rows of this rank."""
        return np.asarray((self.rows * self.experts).sum(axis=-1))

    def tiles(self, tile: Floats) -> Floats:
        """(…): number of tiles of `tile` rows (shape …), each of one expert."""
        filled = np.where(self.rows < 1, self.rows, np.ceil(self.rows / tile[..., None] - 1e-9))
        return np.asarray((filled * self.experts).sum(axis=-1))


def expert_loads(
    tokens: Floats, topk: Floats, experts: Floats, ep: Floats, skew: Floats, crowding: float = 0.0
) -> ExpertLoads:
    """Loads under the routings above; all sizes have one shape, and `ep` ranks share the experts. `crowding` says how
    rows lost by rounding are dealt to idle experts: 0 equally over ranks, 1 to one rank's first (AIConfigurator's
    generator sorts equal loads, and their order is undefined)."""
    routed, local = tokens * topk, experts / ep
    share, top = _shares(tokens, routed, experts, skew)
    drawn = _filled(share, (experts / QUANTILES)[..., None], routed, tokens)
    kept = np.where(skew[..., None] > 0, np.round(drawn), drawn)
    mean, used = kept.mean(axis=-1), (kept > 0).mean(axis=-1)
    busiest = _busiest(kept, top, local, ep)
    idle = (1 - used) * local
    left = np.maximum(routed - mean * experts, 0.0)
    even, first = np.minimum(left / ep, idle), np.minimum(left, idle)
    # The rank with what is left over is the busiest one where that outweighs what was drawn.
    crowds = np.where(mean * local + first > mean * local * busiest + even, crowding, 0.0)
    busiest = busiest + crowds * (1 - busiest)
    dealt = even + crowds * (first - even)
    # A busier rank has more experts with rows, and when all of its have some, more rows each.
    more = np.minimum(busiest, 1 / np.maximum(used, TINY))
    idle = np.maximum(local * (1 - used * more), 0.0)
    chance = np.minimum(dealt / np.maximum(idle, TINY), 1.0)
    some = kept > 0
    count = np.where(
        some, (local / QUANTILES * more)[..., None], (idle / np.maximum((1 - used) * QUANTILES, TINY))[..., None]
    )
    # All rows of a single rank are there; of several, what an expert cannot take is another rank's.
    alone = _filled(np.where(some, kept, 0.0), count, routed - chance * idle, tokens)
    apart = np.minimum(kept * (busiest / more)[..., None], tokens[..., None])
    rows = np.where((ep > 1)[..., None], apart, alone)
    return ExpertLoads(np.where(some, rows, chance[..., None]), count, routed)


def _busiest(kept: Floats, top: Floats, local: Floats, ep: Floats) -> Floats:
    """Rows of the busiest of `ep` ranks ÷ their mean; `top` is the most popular expert's load ÷ the mean. The largest
    of `ep` sums is nearly normal where a rank has many experts, and its heaviest expert where it has few."""
    mean = np.maximum(kept.mean(axis=-1), TINY)
    top = np.maximum(top, kept.max(axis=-1) / mean)
    # Expected maximum of n standard normals, 0 for one: √(2 ln n) − 0.6, within 0.1 for 2 to 1,000.
    maximum = np.where(ep > 1, np.sqrt(2 * np.log(np.maximum(ep, 1.0))) - 0.6, 0.0)
    normal = 1 + kept.std(axis=-1) / mean / np.sqrt(local) * maximum
    heaviest = np.where(ep > 1, (top + local - 1) / local, 1.0)
    return np.where((kept > 0).any(axis=-1), np.minimum(np.maximum(normal, heaviest), np.minimum(top, ep)), 1.0)


def _filled(share: Floats, count: Floats, total: Floats, most: Floats) -> Floats:
    """Rows in proportion to `share` that sum to `total` over `count` experts a class, at most `most` an expert."""
    scale = np.maximum(total, 0.0) / np.maximum((share * count).sum(axis=-1), TINY)
    rows = share * scale[..., None]
    for _ in range(QUANTILES):
        open_ = rows < most[..., None]
        rows = np.where(open_, rows, most[..., None])
        missing = total - (rows * count).sum(axis=-1)
        room = (np.where(open_, rows, 0.0) * count).sum(axis=-1)
        if not ((missing > 1e-9 * total) & (room > 0)).any():
            break
        more = np.maximum(missing, 0.0) / np.where(room > 0, room, np.inf)
        rows = np.where(open_, rows * (1 + more)[..., None], rows)
    return np.minimum(rows, most[..., None])


def _shares(tokens: Floats, routed: Floats, experts: Floats, skew: Floats) -> tuple[Floats, Floats]:
    """Loads ÷ their mean: of each class, (…, QUANTILES), and of the most popular expert, (…)."""
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    many = routed > experts
    low = np.where(many, 1.0, LEAST)[..., None]
    high = np.where(many, np.maximum(MOST_PER_TOKEN * tokens, 1.0), MOST)[..., None]
    power = np.where(np.abs(1 - skew) < 1e-6, 1e-6, 1 - skew)[..., None]
    at = np.concatenate([np.broadcast_to(at, (*tokens.shape, QUANTILES)), (1 - 0.5 / experts)[..., None]], axis=-1)
    drawn = ((high**power - low**power) * at + low**power) ** (1 / power)
    drawn = np.where(skew[..., None] > 0, drawn / drawn[..., :-1].mean(axis=-1, keepdims=True), 1.0)
    return drawn[..., :-1], np.maximum(drawn[..., -1], 1.0)


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
