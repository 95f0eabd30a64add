"""Rows of stored runs, and where the difference of a pass went."""

from collections.abc import Callable
from pathlib import Path

import hardware_samples
import pyarrow as pa
import pytest
import report_samples

from calibrate.passes.pass_report import PassReport, Rungs, waterfall
from calibrate.regression.compare import Side, compare
from calibrate.regression.sources import SOURCES, find_side, moved, side_of
from profiler.record.folder import RunFolder
from profiler.record.hardware_table import HardwareLog
from profiler.record.kernel_table import COLUMNS, Kernels, Source, write_kernels
from profiler.record.run import Cell, CellResult, RequestError, Run
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec

Make = Callable[..., RunFolder]
OLD = Path(__file__).parents[2] / "data" / "runs"


@pytest.fixture
def make(tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, decode_cell: Cell) -> Make:
    def made(name: str, slower: float = 1.0, device: str | None = None, fails: bool = False) -> RunFolder:
        machine = run.environment.model_copy(update={"device": device or run.environment.device})
        with RunFolder.create(tmp_path, run.model_copy(update={"name": name, "environment": machine})) as folder:
            scaled = {
                "graph": folder.write_graph(result.cell, graph),
                "wall_s": tuple(slower * x for x in result.wall_s),
                "ops": tuple(
                    op.model_copy(update={"device_s": tuple(slower * x for x in op.device_s)}) for op in result.ops
                ),
            }
            lost = {"status": "failed", "reason": "out of memory"}
            folder.append(result.model_copy(update=lost if fails else scaled))
            folder.append(CellResult(cell=decode_cell, status="failed", reason="out of memory: 3 GB wanted"))
            folder.write_spec(HardwareSpec(name="example", kind="cpu"))
            folder.finish()
        return RunFolder.open(folder.path)

    return made


def test_runs_of_passes_have_a_row_for_each_pass_and_layer(make: Make) -> None:
    base = side_of([make(f"a{i}", 1 + i / 1000) for i in range(5)])
    new = side_of([make(f"b{i}", 1.1 + i / 1000) for i in range(5)])
    result = compare(base.side, new.side)
    names = [dict(row.key) for row in result.slower]
    assert {"pass"} in [set(name) for name in names], "the pass itself"
    assert any("layer" in name for name in names)
    assert [row.reason for row in result.of("failed")] == ["base: out of memory: 3 GB wanted"]
    whole = next(row for row in result.slower if len(row.key) == 1)
    assert whole.ratio == pytest.approx(1.1, rel=0.01) and whole.replicates == (5, 5)
    grown = moved(base.passes, new.passes)[whole.key]
    assert whole.base_s is not None and whole.new_s is not None
    assert sum(grown.values()) == pytest.approx(whole.new_s - whole.base_s, rel=0.02)


def test_one_run_of_each_side_is_shown_and_not_judged(make: Make) -> None:
    result = compare(side_of([make("a")]).side, side_of([make("b", 1.5)]).side)
    assert set(result.counts) == {"ambiguous", "failed"}


def test_a_run_of_other_machines_is_refused(make: Make) -> None:
    with pytest.raises(RequestError, match="GHz and another cpu"):
        compare(side_of([make("a")]).side, side_of([make("b", device="another cpu")]).side)
    with pytest.raises(RequestError, match="no one side"):
        side_of([make("c"), make("d", device="another cpu")])


def test_sides_are_found_by_name_list_and_folder(make: Make, tmp_path: Path) -> None:
    paths = [make(f"a{i}").path for i in range(3)]
    assert len(find_side(str(paths[0]), tmp_path).side.rows[0].seconds) == 1
    assert len(find_side(f"{paths[0]},{paths[1]}", tmp_path).side.rows[0].seconds) == 2
    assert len(find_side(str(tmp_path), Path("nowhere")).side.rows[0].seconds) == 3
    with pytest.raises(RequestError, match="named twice"):
        find_side(f"{paths[0]},{paths[0]}", tmp_path)
    with pytest.raises(RequestError, match="no run"):
        find_side("nothing", tmp_path)


def hardware(base: Path, name: str, factor: float) -> RunFolder:
    _, measurements, run = hardware_samples.cpu()
    with RunFolder.create(base, run.model_copy(update={"name": name, "finished": None, "cells": ()})) as folder:
        log = HardwareLog(folder.path)
        for one in measurements:
            log.append(one.model_copy(update={"samples": tuple(factor * x for x in one.samples)}))
    return RunFolder.open(folder.path)


def test_a_device_that_is_the_same_and_one_that_is_not(tmp_path: Path) -> None:
    base, same, other = (hardware(tmp_path, name, factor) for name, factor in (("a", 1), ("b", 1), ("c", 1.3)))
    assert set(compare(side_of([base]).side, side_of([same]).side, tolerance=0.1).counts) <= {
        "same", "ambiguous", "failed",
    }  # fmt: skip
    slower = compare(side_of([base]).side, side_of([other]).side, tolerance=0.1).slower
    rates = [row for row in slower if row.unit == "s/B"]
    assert rates and all(row.ratio == pytest.approx(1.3, rel=0.01) for row in rates)


@pytest.mark.parametrize("name", ["schema1", "schema4", "schema6", "hardware-schema1"])
def test_runs_of_every_age_are_read(name: str) -> None:
    loaded = side_of([RunFolder.open(OLD / name / "finished")])
    assert loaded.side.rows and {"passes", "hardware", "kernels"} == set(SOURCES)


def test_terms_that_one_side_knows_are_one_term() -> None:
    def report(idle: float, **rungs: float) -> PassReport:
        sample = report_samples.gpu()
        return sample.model_copy(update={"waterfall": waterfall(Rungs(**rungs), idle)})

    key = (("pass", "p"),)
    known = [(key, report(0.5, ideal=1.0, achieved=1.5, executed=2.0, calibrated=2.5, measured=3.0))]
    more = [(key, report(0.75, ideal=1.0, achieved=1.5, executed=2.5, calibrated=3.0, measured=4.0))]
    less = [(key, report(0.5, executed=2.0, measured=3.5))]
    assert moved(known, more)[key] == pytest.approx(
        {"ideal": 0, "peak_derate": 0, "extra_work": 0.5, "shape_loss": 0, "level+residual": 0.5, "idle": 0.25}
    )
    grown = moved(known, less)[key]
    assert "other terms" in grown and sum(grown.values()) == pytest.approx(0.5)


def test_a_kernel_keeps_its_row_when_a_release_runs_another(tmp_path: Path, run: Run) -> None:
    """A table of one release names flash_attn, the next flash_attn_3: the same rows; two in one table are two rows."""

    def side(name: str, *rows: tuple[float, str, float]) -> Side:
        same = {"kind": "prefill_attention", "dtype": "bfloat16", "op": "attention", "source": 0}
        lines = [
            {**same, "query": size, "kernel": kernel, "time_s": time_s, "row": i}
            for i, (size, kernel, time_s) in enumerate(rows)
        ]
        count = len(rows)
        source = Source(file="t", sha256="", format="vidur", unit="ms", rows=count, timed=count, kept=count)
        options = {"format": "vidur"}
        named = run.model_copy(update={"name": name, "cells": (), "options": options})
        with RunFolder.create(tmp_path, named) as folder:
            columns = {field.name: [line.get(field.name) for line in lines] for field in COLUMNS}
            write_kernels(folder.path, Kernels(pa.table(columns, schema=COLUMNS), (source,)))
        return side_of([RunFolder.open(folder.path)]).side

    base = side("a", (128, "flash_attn", 1.0), (256, "flash_attn", 2.0))
    new = side("b", (128, "flash_attn_3", 0.5), (256, "flash_attn_3", 1.5), (256, "flash_attn_4", 1.0))
    result = compare(base, new, spread=0.01)
    assert result.counts == {"missing": 1, "faster": 1, "new": 2}
    assert result.of("faster")[0].ratio == pytest.approx(0.5)
