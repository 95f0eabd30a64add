"""Real ranks on this CPU under the real launcher: results, failures on some ranks, deaths, and no rank left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pynvml
import pytest
import torch
from waiting import LAST_RESORT_S, until

from profiler.devices.backend import CUDA
from profiler.microbench.bench import Bench
from profiler.microbench.collectives import launch as collective
from profiler.microbench.collectives.cases import CASES, repeats_limit, whole
from profiler.microbench.collectives.launch import LaunchFailed, collectives, environment, last_words, lines, ranks
from profiler.microbench.collectives.worker import link_name, sizes
from profiler.record.measurement import UNKNOWN_LINK as UNKNOWN
from profiler.record.measurement import Measurement
from roofline.laws.work import RINGS, factor

ROOT = Path(__file__).parents[4]
FAULTY = "collective_ranks"
"""tests/collective_ranks.py."""


@pytest.fixture
def bench() -> Bench:
    return Bench(torch.device("cpu"), budget_s=0.02, quick=True, process=3)


@pytest.fixture
def with_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collective, "WORKER", FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))


def worker_processes() -> list[psutil.Process]:
    """Launchers and ranks that this test run has started, whoever their parent is by now."""
    return [one for one in psutil.process_iter() if {collective.WORKER, FAULTY} & set(ours(one))]


def ours(one: psutil.Process) -> list[str]:
    """Command line of a process that inherited this run's mark; empty for any other, and for one that has ended."""
    try:
        return one.cmdline() if one.environ().get("ROOFCAL_TEST") == str(os.getpid()) else []
    except psutil.Error:
        return []


@pytest.fixture(autouse=True)
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ranks inherit it, so that one of them is known without its parent; a test that fails leaves none to the next."""
    monkeypatch.setenv("ROOFCAL_TEST", str(os.getpid()))
    yield
    for left in worker_processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()


def gone() -> None:
    """Wait until all of them have ended."""
    until(lambda: not worker_processes())


def test_every_operation_on_two_ranks(bench: Bench) -> None:
    found = list(collectives(bench, largest=1 << 18))
    assert [one.case for one in found] == [f"{name} {size}" for name in CASES for size in (1 << 10, 1 << 14, 1 << 18)]
    for one in found:
        assert (one.status, one.unit, one.process, one.benchmark) == ("done", "B/s", 3, "collective"), one.reason
        count = int(one.parameters["ranks"])
        assert one.work == int(one.parameters["bytes"]) * factor(str(one.parameters["operation"]), count)
        assert (one.parameters["backend"], one.parameters["link"]) == ("gloo", "loopback")
        assert len(one.samples) >= 5 and one.warm_up is not None and one.threads == 1
    assert count == ranks(bench) >= 2
    assert worker_processes() == []


def test_what_every_rank_holds_is_checked() -> None:
    paths = {"PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    assert list(lines(FAULTY, ["--verdicts"], ranks=3, timeout_s=LAST_RESORT_S, environment=paths)) == ["[0, 1, 2]\n"]


@pytest.mark.usefixtures("with_faults")
def test_a_case_that_fails_on_some_ranks_fails_on_all_and_the_next_one_is_had(bench: Bench) -> None:
    names = ("lacking", "alone", "left_waiting", "wrong", "all_reduce")
    found = {one.case.split()[0]: one for one in collectives(bench, operations=names, largest=1 << 10)}
    assert {name: one.status for name, one in found.items()} == {
        **dict.fromkeys(names, "failed"),
        "all_reduce": "done",
    }
    assert found["lacking"].reason == "NotImplementedError: no such operation here"
    assert found["alone"].reason == "rank 1: MemoryError: full"
    assert "rank 1: RuntimeError: rank 1 stays away" in str(found["left_waiting"].reason)
    assert found["wrong"].reason == "rank 1: ArithmeticError: 1 of 256 elements are wrong"


@pytest.mark.usefixtures("with_faults")
def test_a_rank_that_dies_leaves_what_was_had_and_the_reason(bench: Bench) -> None:
    first, last = list(collectives(bench, operations=("broadcast", "dying", "all_reduce"), largest=1 << 10))
    assert (first.case, first.status) == ("broadcast 1024", "done")
    assert (last.case, last.status, last.process) == ("remaining", "failed", 3)
    assert "after 1 of 3 cases" in str(last.reason) and "SIGKILL" in str(last.reason)
    gone()


@pytest.mark.usefixtures("with_faults")
def test_ranks_that_never_end_are_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Timer] = []

    class Told(threading.Timer):
        """Its time is up when the test says so."""

        def start(self) -> None:
            started.append(self)

    monkeypatch.setattr("profiler.microbench.collectives.launch.threading.Timer", Told)
    found = collectives(bench, operations=("all_reduce", "endless"), largest=1 << 10, timeout_s=15)
    assert next(found).case == "all_reduce 1024"
    (timer,) = started
    assert timer.interval == 15
    timer.function()
    (last,) = found
    assert last.status == "failed" and "had not ended after 15 s" in str(last.reason)
    gone()


def test_leaving_ends_all_ranks(bench: Bench) -> None:
    found = collectives(bench, largest=1 << 14)
    next(found)
    assert len(worker_processes()) >= 3  # the launcher and two ranks
    found.close()  # type: ignore[attr-defined]
    gone()


@pytest.mark.usefixtures("with_faults")
@pytest.mark.starts_product
def test_kill_9_of_the_reader_ends_ranks_that_would_never_end() -> None:
    program = (
        "import torch\n"
        "from profiler.microbench.collectives import launch\n"
        "from profiler.microbench.bench import Bench\n"
        f"launch.WORKER = {FAULTY!r}\n"
        "bench = Bench(torch.device('cpu'), budget_s=0.02)\n"
        "for one in launch.collectives(bench, operations=('all_reduce', 'endless'), largest=1024):\n"
        "    print(one.case, flush=True)\n"
    )
    reader = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    with reader.stdout:
        assert reader.stdout.readline() == "all_reduce 1024\n"
        assert len(worker_processes()) >= 3
        reader.send_signal(signal.SIGKILL)
        reader.wait()
    gone()


def test_a_module_that_is_not_there_is_said() -> None:
    with pytest.raises(LaunchFailed, match="no_such_module"):
        list(lines("no_such_module", [], ranks=2, timeout_s=LAST_RESORT_S))


def test_one_gpu_is_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CUDA, "count", lambda: 1)
    bench = cast(Bench, SimpleNamespace(backend=CUDA, device=torch.device("cuda"), process=0))
    (only,) = collectives(bench)
    assert (only.status, only.reason) == ("failed", "one GPU: collectives need two or more")
    assert "OMP_NUM_THREADS" not in environment(bench)


def test_sizes() -> None:
    assert sizes("cpu", quick=False) == tuple(4**i << 10 for i in range(8))
    assert sizes("cuda", quick=False)[-1] == 256 << 20
    assert sizes("cuda", quick=True) == (1 << 10, 1 << 14, 1 << 18, 1 << 22, 1 << 26)
    assert (whole(1024, 3), whole(1024, 8)) == (1020, 1024)
    with pytest.raises(ValueError, match="1024 or more"):
        whole(1000, 256)


def test_sums_stay_within_float32() -> None:
    for count in (2, 3, 8, 64, 1024):
        repeats = repeats_limit("all_reduce", count) or 0
        largest = 6 * 2.0**-100 * count * (count + 1) / 2 * float(count) ** (repeats - 1)
        assert repeats >= 1 and largest < torch.finfo(torch.float32).max, count
        assert repeats_limit("all_gather", count) is None


def test_cases_and_rings_have_the_same_names() -> None:
    assert list(CASES) == list(RINGS)


def test_the_link_has_the_name_of_what_lies_between() -> None:
    for expected, hosts, backend, rocm, nvlinked in (
        ("network", 2, "nccl", False, True),
        ("network", 2, "gloo", False, False),
        ("loopback", 1, "gloo", False, False),
        ("infinity-fabric", 1, "nccl", True, False),
        ("nvlink", 1, "nccl", False, True),
        ("pcie", 1, "nccl", False, False),
    ):
        said = link_name(backend=backend, hosts=hosts, rocm=rocm, nvlinked=lambda nvlinked=nvlinked: nvlinked)  # type: ignore[misc]
        assert said == expected


def test_a_driver_that_cannot_be_asked_leaves_the_link_unknown() -> None:
    def nvlinked() -> bool:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    assert link_name(backend="nccl", hosts=1, rocm=False, nvlinked=nvlinked) == UNKNOWN


LOGS = (
    ("python: no x\nW1130 04:00:18.2 7 torch/distributed/api.py:1028] closing signal SIGTERM\n", "python: no x"),
    ("[rank1]: Traceback\n[rank1]: ValueError: odd\nE: x\nChildFailedError: \n=====\n", "ValueError: odd"),
    ("  traceback : Signal 9 (SIGKILL) by PID 12\nRuntimeError: closed", "Signal 9 (SIGKILL) by PID 12"),
    ("python: no x\nE1126 10:1 7 torch/distributed] x\n traceback : Signal 15 (SIGTERM) by 3", "python: no x"),
    ("python: no 'x'\nE1126 10:11:12.1 7 torch/distributed] failed\n  d : 1", "python: no 'x'"),
    ("torch.distributed.DistStoreError: late\n", "torch.distributed.DistStoreError: late"),
    ("python: no module\n-----\n", "python: no module"),
    ("\n====\n", None),
)  # fmt: skip


def test_last_words() -> None:
    for log, expected in LOGS:
        assert last_words(log) == expected


@pytest.mark.gpu
def test_nccl_among_the_gpus_of_this_machine() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    found: list[Measurement] = list(collectives(Bench(torch.device("cuda"), budget_s=0.05, quick=True)))
    assert [(one.case, one.reason) for one in found if one.status != "done"] == []
    assert {one.parameters["backend"] for one in found} == {"nccl"}
    assert {one.parameters["link"] for one in found} <= {"nvlink", "pcie", "infinity-fabric"}
