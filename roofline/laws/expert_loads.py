"""The number of rows that each expert of a grouped product gets, which decides its weights' traffic and its tiles.

The dim `skew` chooses one of two routings:
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

from roofline.laws.law import Floats

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
