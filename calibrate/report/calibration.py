"""How well laws predict kernels that they were not fitted to: JSON as DESIGN.md gives it, and a table to read.

Errors are of held-out kernels only; what a fit leaves on its own points is nowhere in here.

Example: ``document(path, calibration)["kinds"][0]["mape"]``
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibrate.kernels.score import DECODING, FEW_ROWS, LONG_KEYS, Calibrated, Calibration, Score

HEAD = ("kind", "dtype", "points", "scored", "mean", "median", "p90", "weighted", "bias", "in 90 %", "datasheet",
        "4-constant", "noise")  # fmt: skip
NOTE = (
    "errors of held-out kernels, %: mean, median and 90th percentile of |predicted − measured| ÷ measured; "
    "weighted: by seconds"
)


def document(spec: Path, calibration: Calibration) -> dict[str, Any]:
    """Percentages as fractions."""
    return {
        "spec": str(spec),
        "kinds": [_kind(one) for one in calibration.fitted],
        "skipped": [asdict(one) for one in calibration.skipped],
    }


def lines(calibration: Calibration) -> Iterator[str]:
    """The same as columns, then the scores of decoding alone, each kind's doubts, and what was skipped."""
    rows = [HEAD, *(_row(one) for one in calibration.fitted)]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        words = (f"{word:{'<' if i < 2 else '>'}{wide[i]}}" for i, word in enumerate(row))
        yield "  ".join(words).rstrip()
    yield NOTE
    for one in calibration.fitted:
        if (decoding := one.regions.get(DECODING)) is not None:
            yield (
                f"{one.kind} {one.dtype}, as in decode ({_decoding(one)}): {decoding.rows} scored, "
                f"mean {percent(decoding.mape)}, weighted {percent(decoding.time_weighted)}, "
                f"bias {100 * decoding.bias:+.1f}"
            )
    for one in calibration.fitted:
        for doubt in one.law.doubts:
            yield f"{one.kind} {one.dtype}: doubtful: {doubt}"
        if one.law.undetermined:
            names = ", ".join(one.law.undetermined)
            yield f"{one.kind} {one.dtype}: kept near their priors, the points do not tell them: {names}"
    for skipped in calibration.skipped:
        yield f"not calibrated: {skipped.reason}"


def _kind(one: Calibrated) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "dtype": one.dtype,
        "points": one.points,
        **_scores(one.scores),
        "datasheet_mape": one.datasheet.mape,
        "four_constant_mape": one.four_constant.mape,
        "noise": one.noise,
        "datasheet": _scores(one.datasheet),
        "four_constant": _scores(one.four_constant),
        "regions": {name: _scores(each) for name, each in one.regions.items()},
        "undetermined": list(one.law.undetermined),
        "doubts": list(one.law.doubts),
    }


def _decoding(one: Calibrated) -> str:
    """What kernels of a kind the region of decoding has."""
    if one.kind.endswith("attention"):
        return f"at least {LONG_KEYS:.0f} keys"
    return f"at most {FEW_ROWS:.0f} rows, weights that no cache holds"


def _scores(one: Score) -> dict[str, Any]:
    content = asdict(one)
    return {"scored": content.pop("rows"), **content}


def _row(one: Calibrated) -> tuple[str, ...]:
    each = one.scores
    return (
        one.kind,
        one.dtype,
        str(one.points),
        str(each.rows),
        *(percent(value) for value in (each.mape, each.median, each.p90, each.time_weighted)),
        f"{100 * each.bias:+.1f}",
        percent(each.coverage),
        percent(one.datasheet.mape),
        percent(one.four_constant.mape),
        percent(one.noise),
    )


def percent(fraction: float | None) -> str:
    """ "4.7", or a dash where it is not known."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"
