"""The estimate of a run, and what its parts took by a clock that the test moves."""

from pathlib import Path
from typing import Any

import pytest

from profiler.cli.measuring import Costs, Spent, describe_times, estimate, look_before
from profiler.devices.conditions import Finding, finding
from profiler.record.run import Cell, Run
from roofline.workload import Workload

COSTS = Costs(
    device=1.0,
    start_s=12,
    visit_s=8,
    quick=0.5,
    laws_s=5,
    weights_s_per_byte=1e-9,
    model_s=2,
    cell_s=3,
    fewest_passes=8,
    report_s=4,
)


def cell(dtype: str, query: int) -> Cell:
    workload = Workload(batch=1, query_tokens=query, context_tokens=8, dtype=dtype)
    return Cell(model="small", workload=workload, attn="sdpa", experts="default", cache="dynamic")


CELLS = tuple(cell(dtype, query) for dtype in ("bfloat16", "float32") for query in (1, 128))


def planned(run: Run, **options: Any) -> Run:
    return run.model_copy(update={"cells": CELLS, "options": {"seconds": 10.0, "visits": 2, "quick": False} | options})


def test_every_part_by_hand(run: Run) -> None:
    sizes = {one: 1e9 if one.workload.dtype == "bfloat16" else 2e9 for one in CELLS}
    found = estimate(planned(run), sizes, device_s=15, calibrate=True, costs=COSTS)
    weights_s = (2 + 1) + (2 + 2)  # a model serves the cells of its dtype
    assert found == {"device": 15, "calibration": 2 * (12 + 8 + 5), "passes": weights_s + 4 * (10 + 3), "report": 4}
    quick = estimate(planned(run, quick=True, visits=1), sizes, device_s=5, calibrate=True, costs=COSTS)
    assert quick["calibration"] == 2 * (6 + 5)


def test_a_pass_that_is_longer_than_its_budget_takes_as_many_as_it_needs(run: Run) -> None:
    passes = {CELLS[0]: 5.0, CELLS[1]: 0.1}
    sizes = dict.fromkeys(passes, 0.0)
    found = estimate(planned(run), sizes, device_s=0, calibrate=False, pass_s=passes, costs=COSTS)
    assert found["passes"] == 2 + (8 * 5.0 + 3) + (10 + 3)


def test_what_is_done_already_costs_nothing(run: Run) -> None:
    found = estimate(planned(run), {CELLS[0]: 0.0}, device_s=0, calibrate=False, costs=COSTS)
    assert found == {"passes": 2 + 10 + 3, "report": 4}


def test_it_is_told_in_one_line() -> None:
    parts = {"device": 15.2, "calibration": 75.0, "passes": 45.0, "report": 3.4}
    assert describe_times(parts, 4) == "2 min 19 s: device 15 s, calibration 75 s, 4 passes 45 s, report 3 s"
    assert describe_times({"passes": 12.0}, 1) == "12 s: 1 pass 12 s"


def test_time_goes_to_the_part_that_is_on_also_where_it_fails() -> None:
    now = [100.0]
    spent = Spent({"passes": 7.0}, clock=lambda: now[0])
    with spent.on("device"):
        now[0] += 3
    now[0] += 50  # nobody's
    with pytest.raises(RuntimeError), spent.on("passes"):
        now[0] += 5
        raise RuntimeError
    with spent.on("device"):
        now[0] += 1
    assert spent.parts == {"passes": 12.0, "device": 4.0}


def test_what_spoils_a_measurement_is_said_before_it_and_waited_for_so_long(capsys: pytest.CaptureFixture[str]) -> None:
    busy = finding("other work", "other work takes 1.50 of 2 cores", "invalidates")
    governor, note = finding("governor", "the governor is powersave"), finding("boost", "boost is on")

    def looked(quiet_at_s: float, wait_s: float) -> tuple[float, str]:
        clock = [0.0]

        def look(device: str, results: Path) -> tuple[Finding, ...]:
            return (governor, note) if clock[0] >= quiet_at_s else (busy, governor, note)

        def sleep(seconds: float) -> None:
            clock[0] += seconds

        look_before("cpu", Path(), wait_s, look=look, now=lambda: clock[0], sleep=sleep)
        return clock[0], capsys.readouterr().err

    waited, said = looked(quiet_at_s=12, wait_s=60)
    assert waited == 15 and "waiting up to 60 s until this machine is quiet: other work takes 1.50" in said
    assert "waited 15 s: it is quiet\nwarns: the governor is powersave; " in said and "boost" not in said
    waited, said = looked(quiet_at_s=1e9, wait_s=12)
    assert (
        waited == 12 and "it is still busy" in said and "\ninvalidates: other work takes 1.50 of 2 cores; stop" in said
    )
    waited, said = looked(quiet_at_s=1e9, wait_s=0)
    assert waited == 0 and said.startswith("invalidates: other work takes") and "wait" not in said.split("\n")[1]
    assert looked(quiet_at_s=0, wait_s=60)[0] == 0
