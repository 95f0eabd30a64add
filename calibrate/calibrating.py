"""Runs with measured kernels to a calibrated spec: which rows are fitted to, which are scored, and what is kept.

Example: ``calibrate_runs([folder], [], facts, kinds=(), points=200, seed=0).fitted[0].scores.mape``
"""

from collections.abc import Sequence
from dataclasses import dataclass

from calibrate.calibration import Calibrated, calibrate_kind, stored
from calibrate.exchange.observed import observations
from calibrate.observations import Observations, joined
from calibrate.split import halves
from profiler.record.errors import RequestError
from profiler.record.kernels import has_kernels, read
from profiler.record.store import RunFolder
from roofline.calibrated import CalibratedLaw, Provenance
from roofline.hardware.spec import SPEC_SCHEMA, HardwareSpec
from roofline.laws.law import Facts

Tables = dict[tuple[str, str], Observations]


@dataclass(frozen=True)
class Skipped:
    """A kind and dtype that was not calibrated."""

    kind: str
    dtype: str
    reason: str


@dataclass(frozen=True)
class Calibration:
    """All kinds of a device."""

    fitted: tuple[Calibrated, ...]
    skipped: tuple[Skipped, ...]


def tables(folders: Sequence[RunFolder]) -> Tables:
    """Kernels of all runs by (kind, dtype). Raises RequestError: a run without kernels."""
    found: dict[tuple[str, str], list[Observations]] = {}
    for folder in folders:
        if not has_kernels(folder.path):
            raise RequestError(
                f"{folder.path} holds no measured kernels; import a table first: python -m profiler import --help"
            )
        for key, one in observations(read(folder.path)).items():
            found.setdefault(key, []).append(one)
    return {key: joined(key[0], parts) for key, parts in found.items()}


def chosen(fitted: Tables, kinds: Sequence[str]) -> Tables:
    """Those of the kinds asked for; all if none is. Raises RequestError: a kind that the runs have not."""
    known = sorted({kind for kind, _ in fitted})
    if unknown := [kind for kind in kinds if kind not in known]:
        raise RequestError(f"--kind {unknown[0]}: the runs have no such kernels; they have {', '.join(known)}")
    return {key: one for key, one in fitted.items() if not kinds or key[0] in kinds}


def calibrate_tables(fitted: Tables, scored: Tables | None, facts: Facts, points: int | None, seed: int) -> Calibration:
    """Each kind and dtype: fitted to half of its groups and scored on the rest, or scored on `scored` where given.

    Raises RequestError, one line, where nothing could be calibrated.
    """
    done, skipped = [], []
    for (kind, dtype), table in fitted.items():
        try:
            if scored is None:
                seen, unseen = halves(table, seed)
            elif (kind, dtype) in scored:
                seen, unseen = table, scored[kind, dtype]
            else:
                raise ValueError(f"{kind} {dtype}: the scored runs have no such kernels")
            done.append(calibrate_kind(seen, unseen, facts, points, seed))
        except ValueError as error:
            skipped.append(Skipped(kind, dtype, str(error)))
    if not done:
        more = f" (and {len(skipped) - 1} more like it)" if len(skipped) > 1 else ""
        raise RequestError(f"nothing to calibrate: {skipped[0].reason if skipped else 'no kernels'}{more}")
    return Calibration(tuple(done), tuple(skipped))


def calibrated_spec(spec: HardwareSpec, calibration: Calibration, provenance: Provenance) -> HardwareSpec:
    """The spec with the new laws; an earlier one of the same kind and dtype is replaced, others stay."""
    laws: dict[tuple[str, str], CalibratedLaw] = {(law.kind, law.dtype): law for law in spec.calibrated}
    laws |= {(one.kind, one.dtype): stored(one, provenance) for one in calibration.fitted}
    return spec.model_copy(update={"schema_version": SPEC_SCHEMA, "calibrated": tuple(laws.values())})
