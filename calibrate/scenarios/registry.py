"""Every scenario by name, how one is written down, and the answers of the scenarios of a run.

A new scenario is a class in this folder and a row of `SCENARIOS`. It is written as what-ifs are:
``verify:tokens=1|2|4,context=1024``.

Example: ``answers(folder, *load(folder), load_spec(folder))``
"""

from collections.abc import Callable, Sequence
from typing import Any

from calibrate.passes.pass_report import PassReport
from calibrate.scenarios.decode import EarlyExit, Experts, Length, Verify
from calibrate.scenarios.model import Adapters, Attention, ColdStart, Energy, Offload
from calibrate.scenarios.prefill import Chunked, Disaggregate, Mixed, Prefix
from calibrate.scenarios.scenario import Answer, Curve, Measured, Pass, Scenario, Step
from profiler.record.folder import RunFolder
from profiler.record.run import CellResult, ModelFacts, PlannedScenario
from roofline.hardware.spec import HardwareSpec
from roofline.written import Written

SCENARIOS: dict[str, Callable[..., Scenario]] = {
    "mixed": Mixed,
    "chunked": Chunked,
    "prefix": Prefix,
    "disaggregate": Disaggregate,
    "attention": Attention,
    "length": Length,
    "verify": Verify,
    "early_exit": EarlyExit,
    "experts": Experts,
    "offload": Offload,
    "adapters": Adapters,
    "cold_start": ColdStart,
    "energy": Energy,
}
WRITTEN = Written("scenario", SCENARIOS, first=0)


def parse(text: str) -> tuple[str, Scenario]:
    """Read one scenario. Raises ValueError, one line, as `Written.parse` does, and for numbers that are not above 0."""
    name, options = WRITTEN.parse(text)
    for option, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        if any(isinstance(each, int | float) and not each > 0 for each in values):
            raise ValueError(f"scenario {name}: {option} has to be above 0; write {WRITTEN.usage(name)}")
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ValueError(f"scenario {name}: {option} names a value twice; name each once")
    return name, SCENARIOS[name](**options)


def question(name: str) -> str:
    """Return what a scenario answers: the first line of its docstring."""
    return (SCENARIOS[name].__doc__ or "").partition("\n")[0]


def steps_of(scenario: Scenario, facts: ModelFacts) -> list[Step]:
    """Return the passes of a scenario, each once. Raises ValueError where the model cannot do it."""
    return list(dict.fromkeys(scenario.steps(facts)))


def answers(
    folder: RunFolder, reports: Sequence[PassReport], failed: Sequence[CellResult], spec: HardwareSpec
) -> list[Answer]:
    """Return the answer of each scenario of a run, from whichever of its passes have a result."""
    if not folder.run.scenarios:
        return []
    results = {result.cell.key: result for result in folder.results()}
    passes = {report.cell: Pass(report, results[report.cell], folder) for report in reports}
    lost = {result.cell.key: result.reason or "it has no result" for result in failed}
    return [_answer(planned, passes, lost, spec) for planned in folder.run.scenarios]


def _answer(planned: PlannedScenario, passes: dict[str, Pass], lost: dict[str, str], spec: HardwareSpec) -> Answer:
    about: dict[str, Any] = {
        "name": planned.name,
        "model": planned.model,
        "dtype": planned.dtype,
        "question": question(planned.name) if planned.name in SCENARIOS else "",
        "options": planned.options,
    }
    if planned.refused is not None or planned.facts is None:
        return Answer(**about, refused=planned.refused or "its run.json lacks the facts of the model")
    try:
        scenario = SCENARIOS[planned.name](**planned.options)
        steps = steps_of(scenario, planned.facts)
    except (KeyError, TypeError, ValueError):
        return Answer(**about, refused="this roofcal does not know it with these options; use the one that measured it")
    cells = dict(zip(steps, planned.cells, strict=False))
    measured = Measured(planned.facts, {step: passes[key] for step, key in cells.items() if key in passes}, spec)
    found = list(scenario.results(measured))
    return Answer(
        **about,
        curves=[curve for curve in found if isinstance(curve, Curve) and curve.rows],
        findings=[line for line in found if isinstance(line, str)],
        lost=[f"{key}: {lost[key]}" for key in cells.values() if key in lost],
    )
