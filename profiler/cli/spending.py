"""How long a run will take, said before it begins, and how long its parts took.

The estimate is the plan's own budgets and what a model's size adds: weights that are drawn, passes that are traced.
Every second that is not a budget is in `Costs`, with where it comes from.

Example: ``estimate(run, 1.0e9, device=True, calibrate=True).values()`` → seconds of each part; ``sum`` of them in all
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from calibrate.report.units import duration
from profiler.record.run import Cell, Run

PARTS = ("device", "calibration", "passes", "report")


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that no budget names, as runs of the default models on two cores of a shared EPYC took them."""

    device: float = 1.45
    """Times the budget of the device's figures: operands are made, and the last case ends after the budget."""
    start_s: float = 9.0
    """Of the first visit to the kernels of one dtype: operands, first calls, the trace."""
    visit_s: float = 6.5
    """Of another visit to all kernels of one dtype."""
    quick: float = 0.5
    """Kernels with --quick ÷ all."""
    laws_s: float = 6.0
    """The fit of the laws of one dtype."""
    weights_s_per_byte: float = 1 / 1.5e9
    """Random weights, written once."""
    model_s: float = 1.0
    """A model is built twice, with weights and without."""
    cell_s: float = 3.0
    """A pass is traced, checked, warmed up, and its last round of passes ends after the budget."""
    fewest_passes: float = 8.0
    """Of a pass that is long: one to warm up, one that is checked, three rounds of one plain and one profiled."""
    report_s: float = 2.0
    """Reports are written: most of it is loading what draws pictures."""


COSTS = Costs()


def estimate(
    run: Run,
    weight_bytes: Mapping[Cell, float],
    *,
    device_s: float,
    calibrate: bool,
    pass_s: Mapping[Cell, float] = MappingProxyType({}),
    costs: Costs = COSTS,
) -> dict[str, float]:
    """Seconds of each part that there is to do.

    Args: `weight_bytes`, of the model of each cell that is to be measured; `device_s`, the budget of the device's
    figures, 0 where they are known; `calibrate`, whether laws are to be fitted; `pass_s`, about how long a pass takes.
    """
    options = run.options
    visits, budget_s = int(options.get("visits") or 1), float(options.get("seconds") or 0)
    dtypes = {cell.workload.dtype for cell in run.cells}
    part = costs.quick if options.get("quick") else 1.0
    kernels_s = part * (costs.start_s + (visits - 1) * costs.visit_s)
    models = {(cell.model, cell.workload.dtype): size for cell, size in weight_bytes.items()}
    passes_s = sum(costs.model_s + size * costs.weights_s_per_byte for size in models.values())
    fewest_s = [costs.fewest_passes * pass_s.get(cell, 0.0) for cell in weight_bytes]
    passes_s += sum(max(budget_s, needed_s) + costs.cell_s for needed_s in fewest_s)
    parts = {
        "device": device_s * costs.device,
        "calibration": len(dtypes) * (kernels_s + costs.laws_s) if calibrate else 0.0,
        "passes": passes_s,
        "report": costs.report_s,
    }
    return {name: seconds for name, seconds in parts.items() if seconds > 0}


def told(parts: Mapping[str, float], passes: int) -> str:
    """ "2 min 20 s: device 15 s, calibration 75 s, 4 passes 45 s, report 3 s"."""
    names = {"passes": f"{passes} {'pass' if passes == 1 else 'passes'}"}
    each = ", ".join(f"{names.get(name, name)} {duration(seconds)}" for name, seconds in parts.items())
    return f"{duration(sum(parts.values()))}: {each}"


class Spent:
    """Seconds of each part so far; a part that is entered again is added to."""

    def __init__(self, before: Mapping[str, float] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`before`: what a run that is resumed had spent."""
        self.parts = dict(before or {})
        self._clock = clock

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Within it, time is spent on a part, also where it ends in an error."""
        begin = self._clock()
        try:
            yield
        finally:
            self.parts[part] = self.parts.get(part, 0.0) + self._clock() - begin
