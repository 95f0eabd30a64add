"""`gate`: whether a kernel got slower between two versions of its code, measured here and now in turns. Wiring only."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from typer import Argument, Option

from profiler.cli import output
from profiler.cli.compare import Write, wanted_files, write_files
from profiler.cli.options import AsJson, finite
from profiler.gate.arms import TIMEOUT_S, Turns, sides
from profiler.record.run import MOST_SEED, RequestError

if TYPE_CHECKING:
    from calibrate.regression.compare import Comparison, Result
    from calibrate.regression.gate import Drawn, Outcome, Plan, SelfTest

EXAMPLE = """
Examples:\n
python -m profiler gate old.py new.py\n
python -m profiler gate main HEAD --kernels bench.py --write junit=gate.xml\n
python -m profiler gate envs/torch-2.11/bin/python envs/torch-2.13/bin/python --kernels bench.py\n
Exit codes:\n
0 nothing is slower\n
1 a kernel is slower, confirmed in fresh processes\n
2 the request is wrong\n
3 the machine is too noisy for the tolerance\n
4 a kernel fails or is missing
"""


def gate(
    base: Annotated[
        str, Argument(metavar="BASE", help="A file of kernels, an interpreter, a source tree, or a commit.")
    ],
    new: Annotated[str, Argument(metavar="NEW", help="The new side, given in the same way.")],
    kernels: Annotated[
        Path | None, Option(help="File of kernels that both sides run: functions kernel_NAME() without arguments.")
    ] = None,
    pairs: Annotated[int, Option(help="Pairs of fresh processes for each kernel.", min=4, max=1000)] = 10,
    tolerance: Annotated[
        float, Option(help="Slowdown that must be found, as 0.03 for 3 %.", min=0.001, max=1, callback=finite)
    ] = 0.03,
    ignore: Annotated[
        float, Option(help="Slowdown that does not matter, however certain.", min=0, max=1, callback=finite)
    ] = 0.005,
    seconds: Annotated[
        float, Option(help="Seconds for which a process times each kernel.", min=0.001, max=3600, callback=finite)
    ] = 0.2,
    timeout: Annotated[
        float, Option(help="Seconds that one process may take in all.", min=1, max=86400, callback=finite)
    ] = TIMEOUT_S,
    seed: Annotated[
        int | None, Option(help="Seed of the order of measuring. Default: a new one each time.", min=0, max=MOST_SEED)
    ] = None,
    write: Write = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a kernel got slower between two versions, which run in turns.

    The machine is tested against itself first. What looks slower is measured again in fresh processes before it counts.
    """
    from calibrate.regression.gate import Plan

    if ignore >= tolerance:
        raise RequestError(f"--ignore {ignore:g} has to be below --tolerance {tolerance:g}")
    files = wanted_files(write)
    plan = Plan(pairs=pairs, confirming=2 * pairs, tolerance=tolerance, least=ignore)
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    with sides(base, new, kernels) as (old, now):
        code = _gate(Turns(old, now, random.Random(seed), seconds, timeout), plan, seed, files, as_json)
    raise typer.Exit(code)


class _Sampler:
    """`Turns` as the rule of the gate asks for them."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def draw(self, kernels: Sequence[str], pairs: int, against_itself: bool = False, again: bool = False) -> "Drawn":
        from calibrate.regression.gate import Drawn

        return Drawn(*self._turns.draw(kernels, pairs, against_itself, again))


def measured(turns: Turns, plan: "Plan", seed: int) -> tuple["Result", "Outcome"]:
    """List the kernels of both sides, measure them in turns and judge them; what the gate says goes to stderr.

    Raises RequestError where the sides share no kernel, or none of the base runs.
    """
    from calibrate.regression.compare import VERDICTS, Comparison, Result, Side
    from calibrate.regression.gate import run_gate

    old, now = turns.list(turns.base), turns.list(turns.new)
    both = [name for name in old.found if name in now.found]
    if not both:
        raise RequestError(f"{turns.base.name} and {turns.new.name} share no kernel; name the functions alike")
    outcome = run_gate(_Sampler(turns), both, plan, np.random.default_rng(seed), output.remark)
    broken = [row for row in outcome.comparisons if row.verdict == "failed" and row.reason.startswith("base: ")]
    if len(broken) == len(both):
        raise RequestError(f"no kernel of the base runs, as {broken[0].name}: {broken[0].reason}; mend the base first")
    lone = [Comparison((("kernel", name),), "missing", "not in the new side") for name in old.found if name not in both]
    lone += [Comparison((("kernel", name),), "new", "not in the base") for name in now.found if name not in both]
    rows = sorted((*outcome.comparisons, *lone), key=lambda row: (VERDICTS.index(row.verdict), row.name))
    started = datetime.now(UTC).isoformat(timespec="seconds")
    base, new = (
        Side(arm.name, (), versions=listed.versions | ({"commit": arm.commit} if arm.commit else {}), started=started)
        for arm, listed in ((turns.base, old), (turns.new, now))
    )
    ratios = [row.ratio for row in rows if row.ratio is not None]
    return Result(base, new, tuple(rows), plan.tolerance, float(np.median(ratios)) if ratios else None), outcome


def _gate(turns: Turns, plan: "Plan", seed: int, files: dict[str, Path], as_json: bool) -> int:
    """Measure, judge and print; the exit code."""
    from calibrate.report.comparison import comparison_document, comparison_json

    result, outcome = measured(turns, plan, seed)
    write_files(files, result)
    test, code = outcome.self_test, _code(outcome.exit_code, result.comparisons)
    output.show(
        as_json,
        lambda: {
            **comparison_json(result),
            "exit_code": code,
            "seed": seed,
            "processes": turns.processes,
            "pairs": outcome.drawn,
            "drawn_again": list(outcome.candidates),
            "second_device": turns.second,
            "self_test": _self_test(test),
        },
        lambda: comparison_document(result, facts=_facts(test, turns, outcome.candidates)),
    )
    return code


def _code(code: int, rows: "Sequence[Comparison]") -> int:
    is_missing = any(row.verdict == "missing" for row in rows)
    return output.INVALID if is_missing and code in (output.GOOD, output.INCONCLUSIVE) else code


def _self_test(test: "SelfTest") -> dict[str, object]:
    return {
        "spread": test.spread,
        "detectable": dict(test.detectable),
        "pairs_needed": dict(test.needed),
        "resampled_gates": test.gates,
        "red": test.red,
        "red_rate_below": test.rate_below,
    }


def _facts(test: "SelfTest", turns: Turns, candidates: Sequence[str]) -> tuple[tuple[str, str], ...]:
    from roofline.units import percent

    sizes = sorted(test.detectable.values())
    found = f"{percent(sizes[0])} to {percent(sizes[-1])}" if sizes else "none"
    return (
        ("processes", str(turns.processes)),
        ("process to process", percent(test.spread)),
        ("smallest slowdown found", found),
        ("false alarms", f"{test.red} of {test.gates} resampled gates"),
        (
            "drawn again",
            (", ".join(candidates) or "none") + (" (on a second GPU)" if candidates and turns.second else ""),
        ),
    )
