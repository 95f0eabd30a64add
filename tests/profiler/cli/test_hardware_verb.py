"""`hardware` as a user calls it: what it refuses in one line, what it plans, what a short real run leaves behind."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended import Quiet
from waiting import LAST_RESORT_S, until

from profiler.cli.app import main
from profiler.cli.hardware import DTYPES
from profiler.devices.backend import Cpu
from profiler.microbench import processes, suite
from profiler.microbench.bench import Bench
from profiler.microbench.matmul import PRODUCTS
from profiler.microbench.processes import Plan, Task, work
from profiler.record.files import HARDWARE_JOURNAL
from profiler.record.folder import RunFolder
from profiler.record.hardware_table import read_measurements
from profiler.record.measurement import Measurement
from profiler.timing.engine import Case
from roofline.hardware.load import load_device

SHORT = ("hardware", "--quick", "--device", "cpu", "--dtype", "float32", "--memory", "0.2")

HELD = """
import sys, time
from profiler.cli.app import main
from profiler.record.hardware_table import HardwareLog
closed, close = [], HardwareLog.close_part
def held(log, *part):
    while closed:
        time.sleep(1)
    close(log, *part)
    closed.append(part)
HardwareLog.close_part = held
sys.exit(main(sys.argv[1:]))
"""
"""The command line, which closes one part and never a second one: a signal that comes after the first is closed
always finds the run at work, whenever it comes."""


BAD = (
    (["--dtype", "fp6"], "--dtype fp6: products are not measured in it; use float64, float32"),
    (["--only", "memry"], "--only memry is not measured on cpu; use memory, caches"),
    (["--only", "transfer"], "--only transfer is not measured on cpu"),
    (["--memory", "-1"], "--memory takes a size in GiB above 0, as 4; not -1"),
    (["--memory", "nan"], "nan is no finite number"),
    (["--processes", "0"], "Invalid value for '--processes'"),
    (["--threads", "0"], "Invalid value for '--threads'"),
    (["--device", "cuda:99"], "--device cuda:99"),
    (["--device", "tpu"], "--device tpu is unknown"),
    (["--resume", "nowhere"], "no run folder at nowhere"),
    (["--unknown"], "No such option: --unknown"),
    (["--out", "/proc/nothing"], "cannot write results under /proc/nothing"),
)
"""Options that are refused, and the words of the line that says so."""


def test_bad_requests_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for options, line in BAD:
        assert main(["hardware", "--device", "cpu", "--only", "launch", *options]) == 2, options
        out, err = capsys.readouterr()
        assert out == "" and err.splitlines()[-1].startswith("error: ") and line in err.splitlines()[-1], options
        assert sum(text.startswith("error") for text in err.splitlines()) == 1, options


def test_the_plan_is_shown_with_its_time_and_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hardware", "--device", "cpu", "--plan"]) == 0
    out, _ = capsys.readouterr()
    for part in suite.parts("cpu"):
        assert part.name in out and part.what in out
    assert "4 fresh processes, about" in out.splitlines()[-1]
    assert main(["hardware", "--device", "cpu", "--plan", "--only", "memory"]) == 0
    out, _ = capsys.readouterr()
    assert "memory, one core" in out and "matmul" not in out


def test_a_new_microbenchmark_is_a_function_and_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the plan to the reports, nothing else knows of it."""

    def gathers(bench: Bench) -> Iterator[Measurement]:
        rows = Case(lambda: torch.randn(64, 64), lambda x: x[[3, 1]], 64 * 64 * 4)
        yield bench.time("gather", "two rows", lambda: rows, unit="B/s", work=512, dtype="float32")

    part = suite.Part("gather", "rows gathered by number", gathers, (1, 1))
    monkeypatch.setattr(suite, "PARTS", (*suite.PARTS, part))
    assert main(["hardware", "--device", "cpu", "--plan", "--only", "gather"]) == 0
    planned = capsys.readouterr().out
    assert "rows gathered by number" in planned and "3 fresh processes" in planned

    def in_this_process(plan: Plan, process: int, parts: tuple[str, ...], *_: object) -> Iterator[tuple[str, Any]]:
        messages: list[dict[str, Any]] = []
        task = Task(device=plan.device, process=process, parts=parts, dtypes=plan.dtypes, quick=plan.quick)
        work(task, messages.append)
        yield from (item for message in messages for item in message.items())

    monkeypatch.setattr(processes, "_messages", in_this_process)
    monkeypatch.setattr(Cpu, "watch", lambda backend, device: Quiet())  # a busy machine would cost a process's figure
    assert main([*SHORT, "--only", "gather", "--out", str(tmp_path)]) in (0, 3)
    shown = capsys.readouterr().out
    (folder,) = tmp_path.glob("*/*")
    spec = RunFolder.open(folder).read_spec()
    assert spec is not None
    (figure,) = spec.characteristics
    assert (figure.name, figure.unit, figure.replicates) == ("gather.two rows", "B/s", 3) and figure.low is not None
    for report in (shown, (folder / "report.md").read_text(), (folder / "report.html").read_text()):
        assert "two rows" in report


def test_default_types_are_products() -> None:
    assert all(dtype in PRODUCTS for full, quick in DTYPES.values() for dtype in (*full, *quick))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hardware")


@pytest.fixture(scope="module")
def document(results: Path) -> dict[str, Any]:
    """A real run of some parts, in processes of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "profiler", *SHORT, "--only", "memory,launch,matmul,vector", "--threads", "2",
         "--processes", "1", "--json", "--out", str(results)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    assert "fresh processes, about" in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.starts_product
def test_the_json_of_a_run(document: dict[str, Any]) -> None:
    figures = {(one["name"], one["dtype"]): one for one in document["figures"]}
    assert len(figures) == len(document["figures"])
    for name in ("memory.triad", "memory.triad.one core", "matmul.burst", "matmul.burst.one core"):
        one = figures[name, "float32"]
        assert one["value"] > 0 and one["unit"] in ("B/s", "FLOP/s") and one["datasheet"] is None
        assert (one["replicates"], one["low"], one["high"]) == (1, None, None)
    assert figures["launch.graph", None]["reason"] == "CUDA graphs need a GPU"


@pytest.mark.starts_product
def test_what_a_run_leaves_behind(document: dict[str, Any], results: Path) -> None:
    (folder,) = results.glob("*/*")
    assert Path(document["spec"]) == folder / "spec.json"
    names = {path.name for path in folder.iterdir()}
    assert {
        "run.json",
        "spec.json",
        "hardware.parquet",
        "report.md",
        "report.html",
    } <= names and HARDWARE_JOURNAL not in names
    spec = load_device(folder / "spec.json")
    assert spec.measured is not None and spec.measured.matrix.keys() == {"float32"}
    found = read_measurements(folder)
    assert {one.process for one in found} == {1} and all(one.windows for one in found if one.has_value)
    run = RunFolder.open(folder).run
    assert run.finished and run.cells == ()


@pytest.mark.starts_product
def test_the_spec_prices_a_model(document: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "smollm2-135m", "--hardware", document["spec"], "--dtype", "float32", "--json"]
    assert main([*arguments, "--phase", "decode", "--context", "16"]) == 0
    (step,) = json.loads(capsys.readouterr().out)["workloads"]
    assert step["total"]["time_s"] > 0


def test_list_and_show_know_it(document: dict[str, Any], results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--results", str(results)]) == 0
    assert "hardware" in capsys.readouterr().out
    assert main(["show", "last", "--results", str(results), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"] == document["figures"]


def test_a_finished_run_is_not_gone_on_with(
    document: dict[str, Any], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = results.glob("*/*")
    assert main(["hardware", "--resume", str(folder)]) == 2
    assert "is finished; look at it with" in capsys.readouterr().err


@pytest.mark.starts_product
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, *SHORT, "--only", "launch,host", "--processes", "1", "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: any('"done"' in path.read_text() for path in tmp_path.glob("*/*/*.jsonl")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LAST_RESORT_S)
    (folder,) = tmp_path.glob("*/*")
    assert process.returncode == 130 and f"python -m profiler hardware --resume {folder}" in err
    had = read_measurements(folder)
    assert had
    done = subprocess.run(
        [sys.executable, "-m", "profiler", "hardware", "--resume", str(folder), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    assert json.loads(done.stdout)["missing"]["peaks"].startswith("main memory could not be measured")
    assert read_measurements(folder)[: len(had)] == had
