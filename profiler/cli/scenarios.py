"""`run --scenario`: which scenarios are asked for, their cells, and what is shown of them. Wiring only."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from profiler.cli import output
from profiler.cli.vain import listed
from profiler.record.run import Cell, PlannedScenario, RequestError

if TYPE_CHECKING:
    import torch

    from calibrate.scenarios.scenario import Scenario
    from profiler.passes.job import Choices

EVERY, LIST = "all", "list"
CHOSEN = frozenset({"--phase", "--prompt", "--context", "--batch", "--layers", "--compile"})
"""Options that choose passes or how they run, which a scenario does itself."""


def named(texts: Sequence[str], written: frozenset[str]) -> "list[tuple[str, Scenario]]":
    """Return the scenarios that are asked for. Raises RequestError, one line, for what is unknown or contradicts them.

    Args: `written` are the options on the command line.
    """
    from calibrate.scenarios.registry import SCENARIOS, parse

    if vain := written & CHOSEN:
        raise RequestError(f"{listed(vain)}: a scenario chooses its own passes; write its sizes as NAME:option=value")
    words = [part for text in texts for part in (text.split(",") if ":" not in text else [text])]
    words = [name for word in words for name in (SCENARIOS if word.strip() == EVERY else [word.strip()])]
    try:
        found = [parse(word) for word in dict.fromkeys(words)]
    except ValueError as error:
        raise RequestError(str(error)) from None
    if twice := next((name for name, _ in found if [other for other, _ in found].count(name) > 1), None):
        raise RequestError(f"scenario {twice} is given twice; give it once, with lists of values")
    return found


def print_list(as_json: bool) -> None:
    """Print every scenario with its options."""
    from calibrate.scenarios.registry import SCENARIOS, WRITTEN, question

    if as_json:
        rows = [{"name": name, "answers": question(name), "usage": WRITTEN.usage(name)} for name in SCENARIOS]
        output.print_json({"scenarios": rows})
    else:
        output.print_wrapped("\n\n".join(WRITTEN.help_text(name) for name in SCENARIOS))


def plan_scenarios(
    models: Sequence[str],
    device: "torch.device",
    dtypes: Sequence[str],
    choices: "Choices",
    scenarios: "Sequence[tuple[str, Scenario]]",
) -> tuple[tuple[Cell, ...], tuple[PlannedScenario, ...]]:
    """Return the cells of all scenarios and what was planned; one that a model cannot do is said on stderr.

    Raises RequestError where none can be done.
    """
    from calibrate.scenarios.registry import steps_of
    from calibrate.scenarios.scenario import options_of
    from profiler.models.resolve import resolve
    from profiler.passes.job import DEFAULT_DTYPES, DEFAULT_MODEL, CellCheck, check_mode, in_groups

    check_mode(choices.mode, device)
    cells: list[Cell] = []
    planned: list[PlannedScenario] = []
    for name in models or [DEFAULT_MODEL.of(device)]:
        resolved = resolve(name, trust_remote_code=choices.trust_remote_code)
        for dtype in dtypes or DEFAULT_DTYPES.of(device)[:1]:
            check: CellCheck | None = None
            for scenario_name, scenario in scenarios:
                about = {"name": scenario_name, "model": resolved.name, "dtype": dtype, "options": options_of(scenario)}
                try:
                    check = check or CellCheck(resolved, dtype, device, choices)
                    own = [step.cell(check.like) for step in steps_of(scenario, check.facts)]
                    for cell in own:
                        check.check(cell)
                except ValueError as error:
                    planned.append(PlannedScenario(**about, refused=str(error)))
                    continue
                cells += own
                planned.append(PlannedScenario(**about, facts=check.facts, cells=tuple(cell.key for cell in own)))
    refused = [f"scenario {one.name} of {one.model}: {one.refused}" for one in planned if one.refused is not None]
    if not cells:
        raise RequestError(refused[0] if len(refused) == 1 else f"no scenario can be done; {'; '.join(refused)}")
    for line in refused:
        output.say(f"error: {line}", sys.stderr)
    return in_groups(cells), tuple(planned)
