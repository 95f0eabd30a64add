"""Calibrated laws whose constants are their priors: for what reads laws, not for what fits them."""

from roofline.laws.fitted import Estimate, Extent, FittedLaw, Provenance
from roofline.laws.kinds import law_for
from roofline.laws.law import Facts


def at_priors(kind: str, dtype: str, facts: Facts, **domain: tuple[float, float]) -> FittedLaw:
    """The law of a kind and dtype; `domain`: least and largest of sizes that it is said to be fitted on."""
    law, arithmetic = law_for(kind, dtype, facts)
    return FittedLaw(
        kind=kind,
        dtype=dtype,
        law=law.name,
        arithmetic=arithmetic,
        constants=tuple(
            Estimate(name=c.name, unit=c.unit, value=c.prior, low=c.prior, high=c.prior, determined=True)
            for c in law.constants(facts, arithmetic)
        ),
        domain={name: Extent(low=low, high=high) for name, (low, high) in domain.items()},
        points=3,
        scale=0.1,
        width=0.1,
        provenance=Provenance(runs=("a run",), date="2026-01-01", seed=0),
    )
