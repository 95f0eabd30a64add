"""Fresh processes, one after another: what each says is kept, and what dies or hangs costs one part."""

import json
import os
import selectors
import sys
from pathlib import Path

import pytest
import torch
from waiting import until

from profiler.microbench import suite
from profiler.microbench.processes import WORKER, Plan, Task, characterise, make_plan, work
from profiler.record.hardware_table import HardwareLog

FAKE = """
import json, os, sys, time
task = json.loads(sys.stdin.read())
def tell(**message):
    print(json.dumps(message), flush=True)
for part in task["parts"]:
    tell(part=part)
    one = dict(benchmark=part, case="c", process=task["process"], unit="s", work=1.0, status="done", samples=[1.0, 2.0])
    tell(measurement=one)
    {body}
    tell(done=part)
"""


def worker(tmp_path: Path, body: str) -> list[str]:
    """A process that measures every part at once, and then does what `body` says."""
    path = tmp_path / "worker.py"
    path.write_text(FAKE.replace("{body}", body))
    return [sys.executable, str(path)]


def plan(*only: str, replicates: int = 3) -> Plan:
    return make_plan("cpu", ("float32",), replicates=replicates, quick=True, only=frozenset(only))


def test_every_part_of_every_process_is_kept(tmp_path: Path) -> None:
    log, told = HardwareLog(tmp_path), list[tuple[str, float]]()
    todo = plan("memory", "launch", "curve")
    characterise(todo, log, lambda text, done: told.append((text, done)), worker=worker(tmp_path, "pass"))
    assert [(one.process, one.benchmark) for one in log.measurements] == [
        (0, "curve"),
        *((process, part) for process in (1, 2, 3) for part in ("memory", "launch")),
    ]
    assert len(log.done) == todo.total and [done for _, done in told] == list(range(todo.total))


def test_a_process_that_dies_costs_the_part_it_was_in(tmp_path: Path) -> None:
    log = HardwareLog(tmp_path)
    dies = 'os.kill(os.getpid(), 9) if part == "memory" and task["process"] == 2 else None'
    characterise(plan("memory", "launch"), log, worker=worker(tmp_path, dies))
    failed = [one for one in log.measurements if one.status == "failed"]
    assert [(one.process, one.benchmark, one.case) for one in failed] == [(2, "memory", "all")]
    assert "SIGKILL" in (failed[0].reason or "") and "out of memory?" in (failed[0].reason or "")
    assert [one.process for one in log.measurements if one.benchmark == "launch"] == [1, 2, 3]


def test_an_error_is_told_by_its_last_line(tmp_path: Path) -> None:
    log = HardwareLog(tmp_path)
    raises = 'sys.exit("first\\nthe device is gone") if task["process"] == 1 else None'
    characterise(plan("launch"), log, worker=worker(tmp_path, raises))
    failed = [one for one in log.measurements if one.status == "failed"]
    assert [one.reason for one in failed] == ["the process ended with code 1: the device is gone"]


def test_a_process_that_cannot_start_costs_all_its_parts(tmp_path: Path) -> None:
    log = HardwareLog(tmp_path)
    characterise(plan("launch", "memory", replicates=1), log, worker=[sys.executable, "-c", "import nowhere"])
    assert [one.status for one in log.measurements] == ["failed", "failed"]
    assert all("No module named 'nowhere'" in (one.reason or "") for one in log.measurements)


def test_a_silent_process_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, pid = HardwareLog(tmp_path), tmp_path / "pid"

    class UpOnceSilent(selectors.DefaultSelector):
        """The time without a line is up as soon as the process has said all that it says, and not before."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            assert timeout == 0.5
            until(lambda: pid.exists() or super(UpOnceSilent, self).select(0))
            return super().select(0)

    monkeypatch.setattr(selectors, "DefaultSelector", UpOnceSilent)
    hangs = f'open("{pid}.part", "w").write(str(os.getpid())); os.rename("{pid}.part", "{pid}"); time.sleep(3600)'
    characterise(plan("launch", replicates=1), log, worker=worker(tmp_path, hangs), silent_s=0.5)
    assert [one.reason for one in log.measurements if one.status == "failed"] == ["the process said nothing for 0.5 s"]
    assert not Path(f"/proc/{pid.read_text()}").exists()


def test_an_interruption_ends_the_process_and_keeps_what_there_is(tmp_path: Path) -> None:
    log = HardwareLog(tmp_path)

    def step(text: str, done: float) -> None:
        if done == 1:
            raise KeyboardInterrupt

    todo = plan("launch", "memory", replicates=1)
    with pytest.raises(KeyboardInterrupt):
        characterise(todo, log, step, worker=worker(tmp_path, "pass"))
    assert HardwareLog(tmp_path).done == {(1, "memory")}
    again = HardwareLog(tmp_path)
    characterise(todo, again, worker=worker(tmp_path, "pass"))
    assert again.done == {(1, "memory"), (1, "launch")} and len(again.measurements) == 2


def test_what_runs_once_and_what_is_replicated() -> None:
    todo = make_plan("cpu", ("float32", "bfloat16"), replicates=4)
    first, *others = todo.stages
    assert first.parts[0] == suite.SEARCH and len(others) == 4
    assert {part.name for part in suite.parts("cpu") if not part.replicated} == set(first.parts[1:])
    assert all(stage.parts == others[0].parts for stage in others)
    assert todo.total_s > make_plan("cpu", ("float32",), replicates=3, quick=True).total_s > 0
    assert suite.SEARCH not in plan("memory").stages[0].parts
    assert plan("matmul").stages[0].parts == (suite.SEARCH,)
    assert {part.name for part in suite.parts("cuda")} >= {"energy", "transfer"}


def test_names_of_parts_are_distinct() -> None:
    names = [part.name for part in suite.PARTS]
    assert len(set(names)) == len(names) and all(suite.named(name).name == name for name in names)


@pytest.fixture(scope="module")
def told() -> list[dict[str, object]]:
    """What a real worker says of three short parts, in this process."""
    messages: list[dict[str, object]] = []
    threads = torch.get_num_threads()
    task = Task(
        device="cpu", process=2, parts=(suite.SEARCH, "matmul", "matmul, one core", "launch"), dtypes=("float32",
        "tfloat32"), quick=True, limit_bytes=24 * 384 * 384, threads=2,
    )  # fmt: skip
    try:
        work(task, messages.append)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    return messages


def test_a_real_worker_searches_measures_and_marks_its_parts(told: list[dict[str, object]]) -> None:
    assert [message["done"] for message in told if "done" in message] == [
        suite.SEARCH, "matmul", "matmul, one core", "launch",
    ]  # fmt: skip
    ((dtype, shape, layout),) = (message["shape"] for message in told if "shape" in message)  # type: ignore[misc]
    assert dtype == "float32" and len(shape) == 3 and max(shape) <= 384 and layout in ("k×n", "n×k")
    found = [message["measurement"] for message in told if "measurement" in message]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    bursts = [(one["dtype"], one["status"], one["threads"]) for one in found if one["benchmark"] == "matmul"]  # type: ignore[index, call-overload]
    assert bursts[0] == ("tfloat32", "failed", 2) and [threads for _, _, threads in bursts[1:]] == [2, 1]
    assert {one["process"] for one in found} == {2}  # type: ignore[index, call-overload]


def test_a_part_that_raises_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: object) -> None:
        raise RuntimeError("the driver is gone")

    part = suite.Part("broken", "", broken, (1, 1))  # type: ignore[arg-type]
    monkeypatch.setattr(suite, "PARTS", (part, *suite.PARTS))
    messages: list[dict[str, object]] = []
    work(Task(device="cpu", process=1, parts=("broken",), dtypes=("float32",)), messages.append)
    (one,) = (message["measurement"] for message in messages if "measurement" in message)
    assert one["reason"] == "RuntimeError: the driver is gone" and messages[-1] == {"done": "broken"}  # type: ignore[index]


@pytest.mark.starts_product
def test_the_real_worker_is_a_fresh_process_whose_stdout_is_its_own(tmp_path: Path) -> None:
    log = HardwareLog(tmp_path)
    characterise(plan("launch", replicates=1), log, worker=WORKER)
    assert {one.case for one in log.measurements} == {"call", "graph"} and log.done == {(1, "launch")}
    assert os.getpid() not in {one.process for one in log.measurements}
