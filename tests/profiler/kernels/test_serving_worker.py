"""Kernels in processes of their own: one that crashes, hangs or exits costs itself alone; nothing is left behind."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import until

from profiler.kernels.serving.registry import Registry
from profiler.kernels.serving.timing import Task, run_kernel
from profiler.kernels.serving.worker import Lost, Nursery, how_it_ended, run_tasks
from profiler.record.suite_table import KernelId, KernelResult, SuiteLog, read_suite_results

FILE = str(Path(__file__).parents[2] / "data" / "failing_kernels.py")
DECEIVE = ("makes_its_clock_slow", "stops_working")
LONG_S, SHORT_S = 300.0, 2.0
"""Limits of kernels that end by themselves, and of those that never do."""


def task(name: str, **more: object) -> Task:
    kernel = KernelId(family="rms_norm", provider=name, dtype="float32", dims={"rows": 4, "width": 64})
    about: dict[str, object] = {"kernel": kernel, "process": 1, "device": "cpu", "limit_bytes": 1 << 26}
    about |= {"cache_bytes": 1 << 20, "files": (FILE,), "seconds": 0.02, "draws": 1, "threads": 1}
    return Task.model_validate(about | more)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuiteLog]:
    """All failing kernels and the right one, twice, in two nurseries."""
    log = SuiteLog(tmp_path_factory.mktemp("suite"))
    for names, limit_s in ((("crashes", "exits", "asks", *DECEIVE, "works"), LONG_S), (("hangs", "starts"), SHORT_S)):
        run_tasks([task(f"failing_kernels:{name}") for name in names], log, processes=2, limit_s=limit_s)
    yield log


def of(log: SuiteLog, name: str) -> list[KernelResult]:
    return [result for result in log.results if result.kernel.provider == f"failing_kernels:{name}"]


def test_a_failing_kernel_costs_itself_alone(log: SuiteLog) -> None:
    statuses = {name: [result.check.status for result in of(log, name)] for name in ("crashes", "exits", "asks")}
    assert statuses == {name: ["runtime error"] for name in statuses}
    assert "SIGSEGV" in (of(log, "crashes")[0].check.reason or "")
    assert of(log, "exits")[0].check.reason == "its process ended with code 3: goodbye"
    assert "EOF" in (of(log, "asks")[0].check.reason or "")
    for name in ("hangs", "starts"):
        assert [result.check.status for result in of(log, name)] == ["timeout"]
        assert "no result within 2 s" in (of(log, name)[0].check.reason or "")


def test_a_kernel_that_deceives_its_process_is_caught(log: SuiteLog) -> None:
    slow, stopped = (of(log, name)[0].check for name in DECEIVE)
    assert slow.status == "runtime error" and "replaced time.perf_counter_ns" in (slow.reason or "")
    assert stopped.status == "wrong numbers" and (stopped.reason or "").startswith("after timing: ")


def test_the_others_are_checked_and_timed(log: SuiteLog) -> None:
    works = of(log, "works")
    assert [(result.process, result.check.status) for result in works] == [(1, "passed"), (2, "passed")]
    assert works[0].check.compared > 0
    for result in works:
        assert result.measurement is not None and result.measurement.samples
        assert result.flops is not None and result.bytes and result.versions["torch"]
        assert result.measurement.cache is not None and result.measurement.cache.declared == "cold"
        assert result.measurement.cache.holds


def test_results_are_on_disk_at_once_and_never_measured_again(log: SuiteLog, tmp_path: Path) -> None:
    assert read_suite_results(log._folder) == log.results

    def unwanted() -> Nursery:
        raise AssertionError("a process was started for kernels that are done")

    tasks = [task(f"failing_kernels:{name}") for name in ("crashes", "works")]
    run_tasks(tasks, SuiteLog(log._folder), processes=2, limit_s=LONG_S, nursery=unwanted)


def test_a_lost_nursery_is_no_fault_of_the_kernel(log: SuiteLog, tmp_path: Path) -> None:
    good = next(result for result in log.results if result.check.status == "passed")

    class Lossy(Nursery):
        def __init__(self, losses: list[bool]) -> None:
            super().__init__(command=(sys.executable, "-c", "input()"))
            self._losses = losses

        def run(self, task: Task, limit_s: float) -> KernelResult:
            if self._losses.pop(0):
                raise Lost("it is gone")
            return good.model_copy(update={"kernel": task.kernel})

    once, twice = ([True, False, False], ["passed", "passed"]), ([True, True, False], ["runtime error", "passed"])
    for losses, statuses in (once, twice):
        kept = SuiteLog(tmp_path / str(len(statuses[0])))
        kept._folder.mkdir()
        tasks = [task("failing_kernels:works"), task("failing_kernels:works", process=2)]
        tasks[1] = tasks[1].model_copy(update={"kernel": task("torch").kernel})
        run_tasks(tasks, kept, processes=1, limit_s=LONG_S, nursery=lambda left=losses: Lossy(left))  # type: ignore[misc]
        assert [result.check.status for result in kept.results] == statuses and not losses


def test_a_kernel_of_a_suite_that_does_not_fit_is_unsupported() -> None:
    result = run_kernel(task("torch", limit_bytes=1000, files=()), Registry.of(()))
    assert result.check.status == "unsupported" and result.measurement is None
    assert result.check.reason == "its operands are 2.25 KiB, and 1000 B may be used; see --memory"


def test_kernels_that_touch_a_small_part_of_a_large_table_are_timed_warm() -> None:
    kernel = KernelId(
        family="embedding", provider="torch", dtype="float32", dims={"rows": 64, "width": 64, "vocabulary": 4096}
    )
    few = task("torch", kernel=kernel, files=(), draws=0, limit_bytes=8 << 20)
    for limit_bytes, state in ((8 << 20, "warm"), (256 << 20, "cold")):
        result = run_kernel(few.model_copy(update={"limit_bytes": limit_bytes}), Registry.of(()))
        assert result.measurement is not None and result.measurement.cache is not None, result.check.reason
        assert result.measurement.cache.declared == state


def test_a_file_that_cannot_be_imported_is_one_line(tmp_path: Path) -> None:
    dies, bad = tmp_path / "dies.py", tmp_path / "bad.py"
    dies.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    bad.write_text("import no_such_module\n")
    with Nursery() as nursery:
        assert nursery.listed(FILE) is None
        assert "SIGKILL" in (nursery.listed(str(dies)) or "")
        why = nursery.listed(str(bad)) or ""
        assert "does not import (ModuleNotFoundError" in why and "\n" not in why


def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from profiler.kernels.serving.timing import Task
        from profiler.kernels.serving.worker import Nursery
        with Nursery() as nursery:
            nursery.run(Task.model_validate_json(sys.stdin.read()), 600)
    """)
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        assert parent.stdin is not None
        parent.stdin.write(task("failing_kernels:starts").model_dump_json().encode())
        parent.stdin.close()
        family = psutil.Process(parent.pid)
        # the nursery, the kernel's process, and the one that this has started
        until(lambda: len(family.children(recursive=True)) >= 3)
        started = family.children(recursive=True)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    until(lambda: not any(_lives(process) for process in started))


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_how_a_process_ended_is_one_line() -> None:
    assert how_it_ended(-signal.SIGKILL, b"") == "its process was ended by SIGKILL (out of memory?)"
    assert how_it_ended(2, b"a\nlast words\n") == "its process ended with code 2: last words"
