"""A device's own kernels to the laws of its spec: fitted to all of them, judged by folds of whole groups.

Besides each operator's own law there is one of all operators of its kind of streaming, for those not measured.

Example: ``fit_measured(observations(kernels), facts, seed=0)[0].model.unseen_error``
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from calibrate.calibration import stored_model
from calibrate.model import Model, train_on
from calibrate.observations import Observations, joined
from roofline.calibrated import CalibratedLaw, Provenance
from roofline.laws.law import Facts
from roofline.laws.registry import OPERATOR, subject

POOLS: Mapping[str, tuple[str, ...]] = {
    "norm": ("aten::mean", "aten::_softmax", "aten::native_layer_norm"),
    "embedding": ("aten::embedding",),
}
"""Law of a kind of streaming -> the operators that it is fitted to; all others are pointwise."""

FOLDS = 3
"""Of groups, for intervals and for whether a correction helps: a run fits some hundred laws while its user waits."""
FEWEST = 6
"""Kernels from which a law is fitted."""


@dataclass(frozen=True, eq=False)
class FittedLaw:
    """One law of the device."""

    kind: str
    dtype: str
    model: Model

    @property
    def points(self) -> int:
        """Kernels that it was fitted to."""
        return len(self.model.points)


def fit_measured(tables: Mapping[tuple[str, str], Observations], facts: Facts, seed: int = 0) -> list[FittedLaw]:
    """A law for each kind and dtype that has at least `FEWEST` rows; priors say what few rows cannot."""
    found = []
    for (kind, dtype), table in {**tables, **_pooled(tables)}.items():
        law, arithmetic = subject(kind, dtype, facts)
        if len(table) >= FEWEST:
            found.append(FittedLaw(kind, dtype, train_on(law, replace(table, dtype=arithmetic), facts, seed, FOLDS)))
    return found


def stored_laws(laws: Sequence[FittedLaw], provenance: Provenance) -> tuple[CalibratedLaw, ...]:
    """As a spec keeps them."""
    return tuple(stored_model(law.kind, law.dtype, law.model, provenance) for law in laws)


def _pooled(tables: Mapping[tuple[str, str], Observations]) -> dict[tuple[str, str], Observations]:
    parts: dict[tuple[str, str], list[Observations]] = {}
    for (kind, dtype), table in tables.items():
        if kind.startswith(OPERATOR):
            pool = next((name for name, operators in POOLS.items() if kind in operators), "pointwise")
            parts.setdefault((pool, dtype), []).append(table)
    return {key: joined(key[0], tables) for key, tables in parts.items()}
