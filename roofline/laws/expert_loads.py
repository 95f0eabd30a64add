"""How many rows each expert of a grouped product gets: what its weights are read for and its tiles are filled with.

Two routings, by `skew`:
- 0: dealt in turn, as evenly as can be: min(E, T·k) experts are hit, each with its share of the T·k rows.
- s > 0: loads drawn from the density x^−s between `LEAST` and `MOST` (`MOST_PER_TOKEN`·T where rows outnumber
  experts), scaled to T·k rows: how NVIDIA AIConfigurator makes "power_law_s" (collector, `sample_power_law`). Its
  draws are replaced by their quantiles, and the rank is the busiest one, as there. (roofline.routing has the uniform
  random routing of a model whose routing is not known.)

Loads are kept as `QUANTILES` equal classes of experts, so that a kernel costs the same whatever its experts.

Example: ``expert_loads(tokens, topk, experts, ep, skew).hit`` → distinct experts whose weights this rank reads
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

QUANTILES = 64
"""Classes of experts by load."""
LEAST, MOST = 0.01, 2.0
"""Ends of the density where experts outnumber rows."""
TINY = 1e-300
MOST_PER_TOKEN = 0.8
"""Upper end of the density, in tokens, where rows outnumber experts (the lower end is 1)."""


@dataclass(frozen=True)
class ExpertLoads:
    """Of the busiest rank; … is the shape of the kernels' sizes."""

    rows: Floats
    """(…, classes): rows of one expert of the class; those below 1 are the chance of one row."""
    experts: Floats
    """(…, 1): experts of each class on this rank."""
    routed: Floats
    """(…): rows of all ranks, tokens × experts a token."""

    @property
    def hit(self) -> Floats:
        """(…): expected distinct experts with a row."""
        return np.asarray((np.minimum(self.rows, 1.0) * self.experts).sum(axis=-1))

    @property
    def local(self) -> Floats:
        """(…): rows of this rank."""
        return np.asarray((self.rows * self.experts).sum(axis=-1))

    def tiles(self, tile: Floats) -> Floats:
        """(…): tiles of `tile` rows, each of one expert; shape of `tile` (…)."""
        filled = np.where(self.rows < 1, self.rows, np.ceil(self.rows / tile[..., None] - 1e-9))
        return np.asarray((filled * self.experts).sum(axis=-1))


def expert_loads(
    tokens: Floats, topk: Floats, experts: Floats, ep: Floats, skew: Floats, crowding: float = 0.0
) -> ExpertLoads:
    """Loads under the routings above; all sizes have one shape; `ep` ranks share the experts.

    Few skewed rows (no more than experts) may not be spread as drawn: where all loads round to none, AIConfigurator's
    generator deals to the first experts, all of one rank. `crowding` says how far: 0 as drawn, 1 all on one rank.
    """
    routed = tokens * topk
    share, top = _shares(tokens, routed, experts, skew)
    rows = _capped(share, routed / experts, tokens)
    local = experts / ep
    kept = np.where(skew[..., None] > 0, np.round(rows), rows)
    mean = kept.mean(axis=-1)
    used = (kept > 0).mean(axis=-1)
    # The busiest of `ep` sums: nearly normal where a rank has many experts, its one heaviest expert where few.
    spread, top = kept.std(axis=-1) / np.maximum(mean, TINY), np.maximum(top, kept.max(axis=-1) / np.maximum(mean, TINY))
    normal = 1 + spread / np.sqrt(local) * _expected_maximum(ep)
    busiest = np.minimum(np.maximum(normal, np.where(ep > 1, (top + local - 1) / local, 1.0)), np.minimum(top, ep))
    busiest = np.where(mean > 0, busiest, 1.0)
    # What rounding left over is dealt to experts without a row, one each.
    left = np.maximum(routed - mean * experts, 0.0)
    even, first = np.minimum(left / ep, (1 - used) * local), np.minimum(left, (1 - used) * local)
    crowds = np.where(mean * local + first > mean * local * busiest + even, crowding, 0.0)
    busiest = busiest + crowds * (1 - busiest)
    dealt = even + crowds * (first - even)
    # A busier rank has more experts with rows, until all its experts have.
    more = np.minimum(busiest, 1 / np.maximum(used, TINY))
    on_used = local / QUANTILES * more
    idle = np.maximum(local * (1 - used * more), 0.0)
    on_idle = idle / np.maximum((1 - used) * QUANTILES, TINY)
    some = kept > 0
    count = np.where(some, on_used[..., None], on_idle[..., None])
    chance = np.minimum(dealt / np.maximum(idle, TINY), 1.0)
    target = np.where(ep > 1, mean * local * busiest + dealt, routed)
    heavy = np.where(some, kept * (busiest / more)[..., None], 0.0)
    # What is still over goes to the experts with rows.
    total = (heavy * count).sum(axis=-1)
    heavy = heavy * (np.maximum(target - chance * idle, 0.0) / np.maximum(total, TINY))[..., None]
    rows = np.minimum(np.where(some, heavy, chance[..., None]), tokens[..., None])
    return ExpertLoads(rows, count, routed)


def _capped(share: Floats, mean: Floats, most: Floats) -> Floats:
    """Rows of the classes in proportion to their shares, none above `most`: the excess goes to the others."""
    rows = share * mean[..., None]
    for _ in range(QUANTILES):
        open_ = rows < most[..., None]
        rows = np.where(open_, rows, most[..., None])
        missing = mean * QUANTILES - rows.sum(axis=-1)
        if not (missing > 1e-9 * mean).any():
            break
        room = np.maximum(np.where(open_, rows, 0.0).sum(axis=-1), 1e-300)
        rows = np.where(open_, rows * (1 + missing / room)[..., None], rows)
    return np.minimum(rows, most[..., None])


def _shares(tokens: Floats, routed: Floats, experts: Floats, skew: Floats) -> tuple[Floats, Floats]:
    """Loads over their mean: of each class, (…, QUANTILES), and of the most popular expert, (…)."""
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    many = routed > experts
    low = np.where(many, 1.0, LEAST)[..., None]
    high = np.where(many, np.maximum(MOST_PER_TOKEN * tokens, 1.0), MOST)[..., None]
    power = np.where(np.abs(1 - skew) < 1e-6, 1e-6, 1 - skew)[..., None]
    at = np.concatenate([np.broadcast_to(at, (*tokens.shape, QUANTILES)), (1 - 0.5 / experts)[..., None]], axis=-1)
    drawn = ((high**power - low**power) * at + low**power) ** (1 / power)
    drawn = np.where(skew[..., None] > 0, drawn / drawn[..., :-1].mean(axis=-1, keepdims=True), 1.0)
    return drawn[..., :-1], np.maximum(drawn[..., -1], 1.0)


def _expected_maximum(count: Floats) -> Floats:
    """Of `count` standard normals, 0 for one: √(2 ln n) − 0.6, within 0.1 for 2 to 1,000."""
    return np.where(count > 1, np.sqrt(2 * np.log(np.maximum(count, 1.0))) - 0.6, 0.0)
