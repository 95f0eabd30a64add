"""Calibrated laws whose constants are their priors: for what reads laws, not for what fits them."""

from roofline.calibrated import CalibratedLaw, Estimate, Extent, Provenance
from roofline.laws.law import Facts
from roofline.laws.registry import subject


def at_priors(kind: str, dtype: str, facts: Facts, **domain: tuple[float, float]) -> CalibratedLaw:
    """The law of a kind and dtype; `domain`: least and largest of sizes that it is said to be fitted on."""
    law, arithmetic = subject(kind, dtype, facts)
    return CalibratedLaw(
        kind=kind,
        dtype=dtype,
        law=law.kind,
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
