"""Laws of a device for one engine, from a folder of kernel tables of several engines and versions.

Kernels of the engine itself come first, of its newest version; a kind that it has no table of is taken from the other
engines. A law is fitted once, when a row first needs it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from calibrate.kernels.choose import design
from calibrate.kernels.correct import train_on
from calibrate.kernels.fit import Observations
from roofline.dtypes import BITS
from roofline.hardware.spec import HardwareSpec, facts_of
from roofline.laws.fitted import FittedLaw
from roofline.laws.kinds import OWN_ALL_REDUCE, law_for
from roofline.laws.law import Facts

POINTS = 600
"""Kernels that a law is fitted to."""
FOLDS = 3
ENOUGH_ROWS = 200
"""Kernels of a table that is preferred to larger ones, since newer or the engine's own; 200 determine any law."""
COLLECTIVES = ("collective", OWN_ALL_REDUCE)
"""Kinds whose kernels engines share."""
Key = tuple[str, str]
"""(kind, dtype)."""
Version = tuple[str, tuple[int, ...]]
"""(engine in lower case, version as numbers)."""
Source = tuple[Version, Key]
"""One table."""


@dataclass
class Tables:
    """Measured kernels of one device, by engine and version."""

    spec: HardwareSpec
    of: dict[Version, dict[Key, Observations]] = field(default_factory=dict)
    _fitted: dict[Source, FittedLaw | str] = field(default_factory=dict)

    def facts(self) -> Facts:
        """Return the figures of the device that laws need."""
        return facts_of(self.spec)

    def same_bits(self, kind: str, dtype: str) -> str:
        """The dtype in which these tables have weights of as many bits: a device multiplies MXFP4 weights with the
        activations that it is fast with (16 bits on Hopper, 8 on Blackwell). The dtype itself where there is none."""
        there = [key[1] for tables in self.of.values() for key in tables if key[0] == kind]
        alike = [name for name in there if BITS.get(name) == BITS.get(dtype)]
        return dtype if dtype in there or not alike else alike[0]

    def chosen(self, engine: str, wanted: Iterable[Key]) -> tuple[dict[Key, Observations], set[str], list[Source]]:
        """Tables for an engine, and the kinds of kernels that are another engine's."""
        ranked = sorted(self.of, key=lambda source: (source[0] == engine, source[1]), reverse=True)
        found: dict[Key, Observations] = {}
        sources = []
        foreign = set[str]()
        for kind, dtype in wanted:
            options = [(source, key) for source in ranked for key in self.of[source] if key[0] == kind]
            if not options:
                continue
            enough = min(ENOUGH_ROWS, max(len(self.of[source][key]) for source, key in options))
            options = [(source, key) for source, key in options if len(self.of[source][key]) >= enough]
            # the engine's own table of this dtype, another engine's of this dtype, then the nearest dtype
            source, key = min(
                options,
                key=lambda option: (
                    option[1][1] != dtype,
                    abs(BITS.get(option[1][1], 16) - BITS.get(dtype, 16)) if option[1][1] != dtype else 0,
                    ranked.index(option[0]),
                ),
            )
            found[key] = self.of[source][key]
            sources.append((source, key))
            if kind not in COLLECTIVES and source[0] != engine:
                foreign.add(kind)
        return found, foreign, sources

    def laws(self, sources: Iterable[Source], seed: int = 0) -> tuple[dict[Key, FittedLaw], list[str]]:
        """Fitted laws of chosen tables, and why some could not be fitted."""
        laws, notes = {}, []
        for source, key in sources:
            place = (source, key)
            if place not in self._fitted:
                self._fitted[place] = fitted_law(self.of[source][key], self.facts(), seed)
            law = self._fitted[place]
            if isinstance(law, str):
                notes.append(law)
            else:
                laws[key] = law
        return laws, notes


def fitted_law(table: Observations, facts: Facts, seed: int = 0) -> FittedLaw | str:
    """A law of a table, or in one line why there is none."""
    named = f"{table.kind} {table.dtype}"
    try:
        law, arithmetic = law_for(table.kind, table.dtype, facts)
        if lacking := [name for name in law.dims if name not in table.dims]:
            return f"{named}: its rows do not say {', '.join(lacking)}"
        constants = law.constants(facts, arithmetic)
        if len(table) < len(constants):
            return f"{named}: {len(table)} rows cannot determine {len(constants)} constants"
        rows = design(law, table.dims, facts, arithmetic, min(POINTS, len(table)), seed, table.group)
        seen = table.take(rows)
        seen = Observations(seen.kind, arithmetic, seen.dims, seen.time_s, seen.group)
        return train_on(law, seen, facts, seed, FOLDS).model_copy(update={"dtype": table.dtype})
    except (ValueError, KeyError) as error:
        return f"{named}: {error}"
