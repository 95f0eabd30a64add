"""How many distinct experts a step touches: the weights that a mixture of experts reads.

Example: ``Routing(experts=256, per_token=8, tokens=16).hit`` → expected distinct experts under uniform routing.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from roofline.record import Record


class Routing(Record):
    """The choice of experts in one grouped product, where no real routing is known."""

    experts: int = Field(gt=0)
    """Experts whose weights this product holds."""
    per_token: float = Field(gt=0)
    """Experts that a token chooses among them."""
    tokens: float = Field(ge=0)
    """Tokens that choose."""
    skew: float = Field(default=0, ge=0, allow_inf_nan=False)
    """Exponent s of Zipf's law: the i-th most popular expert is chosen ∝ i^-s; 0 is uniform."""

    @property
    def hit(self) -> float:
        """Expected number of distinct experts that at least one token chooses."""
        return float(experts_hit(self.experts, self.per_token, self.tokens, self.skew))


def popularity(experts: int, skew: float) -> NDArray[np.float64]:
    """Share of each expert in the choices, the most popular first; shape (experts,), sums to 1."""
    weights = np.arange(1, experts + 1, dtype=float) ** -skew
    return weights / weights.sum()


def chosen_by_a_token(experts: int, per_token: float, skew: float) -> NDArray[np.float64]:
    """Probability that one token chooses each expert; shape (experts,), sums to `per_token`, none above 1.

    Poisson sampling with a limit at certainty: a share that would exceed 1 is 1, the rest is shared by the others.
    """
    if per_token >= experts:
        return np.ones(experts)
    share = popularity(experts, skew)
    for certain in range(experts):
        rest = (per_token - certain) * share[certain:] / share[certain:].sum()
        if rest[0] <= 1:
            return np.concatenate([np.ones(certain), rest])
    return np.ones(experts)


def experts_hit(experts: int, per_token: float, tokens: ArrayLike, skew: float = 0) -> NDArray[np.float64]:
    """Expected distinct experts hit by `tokens` (any shape): Σ_e 1 − (1 − p_e)^T.

    Uniform routing gives E·(1 − (1 − k/E)^T).
    """
    count = np.asarray(tokens, dtype=float)
    if not skew:
        return experts * (1 - (1 - min(1.0, per_token / experts)) ** count)
    missed = 1 - chosen_by_a_token(experts, per_token, skew)
    return experts - (missed ** count[..., None]).sum(axis=-1)
