"""`history`: when kernels of a device changed over all its runs, and by what. Wiring only; no torch, no device."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from profiler.cli import output
from profiler.cli.compare import Tolerance
from profiler.cli.gate import measured
from profiler.cli.options import AsJson, Html, Results
from profiler.gate.arms import Turns, sides
from profiler.record.folder import RunFolder
from profiler.record.run import RequestError

if TYPE_CHECKING:
    from calibrate.regression.compare import Side
    from calibrate.regression.history import Change, Night

EXAMPLE = """
Examples:\n
python -m profiler history --results nights\n
python -m profiler history attention --device h200 --tolerance 0.02 --json\n
python -m profiler history --results nights --confirm bench.py\n
Exit codes with --confirm:\n
0 no slowdown is confirmed\n
1 a slowdown is confirmed\n
2 the request is wrong\n
3 a change could not be decided
"""


def history(
    kernel: Annotated[str, Argument(metavar="KERNEL", help="Only rows whose name has this text.")] = "",
    device: Annotated[
        str | None, Option(help="Part of the device's name, if there are runs of several devices.")
    ] = None,
    tolerance: Tolerance = 0.01,
    confirm: Annotated[
        Path | None,
        Option(
            metavar="KERNELS",
            help="File of kernels, as for gate: run gate between the versions before and after each change.",
        ),
    ] = None,
    between: Annotated[
        str | None,
        Option(
            metavar="BASE,NEW",
            help="The two versions for --confirm, as gate takes them. Default: the commits that the runs state.",
        ),
    ] = None,
    html: Html = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """List when kernels changed, over all runs of a device.

    A change that all rows share is attributed to the machine. With --confirm, the versions before and after each change
    run in turns on this machine, as gate does, which confirms or refutes it.
    """
    import numpy as np

    pair = _pair(between, confirm)

    from calibrate.regression.history import LEAST_NIGHTS, changes, common
    from calibrate.regression.store import read, refresh
    from calibrate.report.comparison import history_document, history_json

    with output.stdout_to_stderr_if(as_json):
        if (store := _object_store(results)) is None:
            added = refresh(results, _rows, lambda line: output.say(line, sys.stderr))
            if added > 1:
                output.remark(f"{added} runs are new")
        stored = read(store or results, device)
        wanted = {key: row for key, row in stored.series.items() if kernel in " ".join(value for _, value in key)}
        if not wanted:
            raise RequestError(f"no row has {kernel!r:.60} in its name; leave it out to see all {len(stored.series)}")
        shared = common(np.array(list(stored.series.values())))
        found = changes(stored.nights, wanted, shared, tolerance) if len(stored.nights) >= LEAST_NIGHTS else []
        if confirm is not None:
            found = _gated(found, stored.nights, confirm, pair, tolerance)
    output.show(
        as_json,
        lambda: history_json(stored.nights, wanted, shared, found, tolerance),
        lambda: history_document(stored.nights, wanted, found, tolerance),
        html=html,
    )
    if confirm is not None and any(change.gated == "confirmed" and change.ratio > 1 for change in found):
        raise typer.Exit(output.SLOWER)
    if confirm is not None and any(change.gated in (None, "undecided") for change in found):
        raise typer.Exit(output.INCONCLUSIVE)


def _object_store(results: Path) -> str | None:
    """The address of an object store, as s3://bucket/results, whose double slash a path has lost; None for a folder."""
    scheme, colon, rest = str(results).partition(":/")
    slashes = "///" if scheme == "file" else "//"  # a file has no host
    return f"{scheme}:{slashes}{rest.lstrip('/')}" if colon and scheme.isalnum() and len(scheme) > 1 else None


def _rows(folder: RunFolder) -> "Side":
    from calibrate.regression.sources import side_of

    return side_of([folder]).side


def _pair(between: str | None, confirm: Path | None) -> tuple[str, str] | None:
    """The two versions of --between. Raises RequestError for a file of kernels that is not there."""
    if confirm is not None and not confirm.exists():
        raise RequestError(f"there is no {confirm}; name a file of kernels with --confirm, as for gate")
    if between is None:
        return None
    if confirm is None:
        raise RequestError("--between is for --confirm; name a file of kernels with --confirm")
    base, comma, new = between.partition(",")
    if not (base and comma and new):
        raise RequestError(f"--between takes BASE,NEW, two versions as gate takes them; not {between!r:.60}")
    return base, new


def _gated(
    found: "list[Change]", nights: "Sequence[Night]", kernels: Path, pair: tuple[str, str] | None, tolerance: float
) -> "list[Change]":
    """The changes with what gates say of them, one gate for each pair of versions."""
    from calibrate.regression.gate import Plan
    from calibrate.regression.history import gated, versions_of

    sides_of = [pair or versions_of(change, nights) for change in found]
    plan = Plan(tolerance=max(tolerance, Plan.least * 2))
    results = {}
    for base, new in dict.fromkeys(one for one in sides_of if one):
        output.say(f"gate {base} {new}", sys.stderr)
        seed = random.SystemRandom().randrange(1 << 32)
        try:
            with sides(base, new, kernels) as (old, now):
                results[base, new] = measured(Turns(old, now, random.Random(seed)), plan, seed)[0].comparisons
        except RequestError as error:
            output.say(f"gate {base} {new} is left out: {error}", sys.stderr)
    if found and not results:
        raise RequestError(
            "nothing could be confirmed: no run states its commit; name the versions with --between"
            if not any(sides_of) else "nothing could be confirmed; see the reasons above"
        )  # fmt: skip
    return [gated(change, results[one], tolerance) if one in results else change
            for change, one in zip(found, sides_of, strict=True)]  # fmt: skip
