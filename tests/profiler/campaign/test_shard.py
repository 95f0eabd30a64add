"""One shard with a clock and commands that are only pretended: what runs, what is skipped, what a cut-off leaves."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from campaigns import Machine, plan, suite
from waiting import LAST_RESORT_S, until

from profiler.campaign import execute as executing
from profiler.campaign import shard as sharding
from profiler.campaign.execute import Outcome, execute
from profiler.campaign.shard import LONGEST_FACTOR, RESERVE_S, SHOW_S, chosen_gpu
from profiler.record.campaign import PartLine, read_shard
from profiler.record.run import RequestError


def lines(out: Path, shard: str = "1-of-1") -> list[PartLine]:
    text = (out / "shards" / shard / "journal.jsonl").read_text()
    return [PartLine.model_validate_json(line) for line in text.splitlines()]


def test_parts_run_in_order_within_the_time(tmp_path: Path) -> None:
    machine = Machine(tmp_path, takes_s={"a": 10, "b": 10})
    assert machine.run(plan(suite("a"), suite("b")), 1) == [("a", "done"), ("b", "done")]
    assert [command[1] for command in machine.asked] == ["a", "b"]
    assert all(["--out", str(tmp_path / "runs"), "--name", c[1], "--json"] == c[-5:] for c in machine.asked)


def test_what_does_not_fit_is_skipped_and_smaller_parts_still_run(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    done = machine.run(plan(suite("a", 5), suite("large", 600), suite("b", 5)), 1)
    assert done == [("a", "done"), ("large", "skipped"), ("b", "done")]
    (skipped,) = (line for line in lines(tmp_path) if line.part == "large")
    assert skipped.why == "needs some 600 s, 40 s are left"


def test_estimates_follow_what_parts_have_taken(tmp_path: Path) -> None:
    machine = Machine(tmp_path, takes_s={"a": 20})
    done = machine.run(plan(suite("a", 10), suite("b", 20)), (20 + 39 + RESERVE_S) / 60)
    assert done == [("a", "done"), ("b", "skipped")], "20 s are 40 s on this machine, and 39 s are left"


def test_a_part_that_takes_too_long_is_cut_off_and_resumed(tmp_path: Path) -> None:
    machine, asked = Machine(tmp_path, takes_s={"slow": 1000}), plan(suite("slow"), suite("b"))
    assert machine.run(asked) == [("slow", "cut off"), ("b", "done")]
    assert machine.at_s == 1000 + LONGEST_FACTOR * 10 + SHOW_S / 2 + 5, "the limit, a look at it, and the next part"
    assert machine.asked[1][0] == "show" and machine.asked[1][1].endswith("Z-slow")
    kept = json.loads((tmp_path / "shards" / "1-of-1" / "logs" / "slow.json").read_text())
    assert kept["passes"][0]["model"] == "show"
    machine.takes_s = {}
    assert machine.run(asked) == [("slow", "done"), ("b", "done")]
    assert machine.asked[3][:2] == ["run", "--resume"] and machine.asked[3][2].endswith("Z-slow")
    assert len(machine.asked) == 4, "what was done is not done again"


def test_a_shard_that_is_killed_goes_on(tmp_path: Path) -> None:
    machine, asked = Machine(tmp_path, interrupt_in="b"), plan(suite("a"), suite("b"), suite("c"))
    with pytest.raises(KeyboardInterrupt):
        machine.run(asked)
    assert [(line.part, line.status) for line in lines(tmp_path)] == [("a", "cut off"), ("a", "done"), ("b", "cut off")]
    machine.interrupt_in = None
    journal = tmp_path / "shards" / "1-of-1" / "journal.jsonl"
    with journal.open("a") as file:
        file.write('{"part": "c", "stat')  # as a full disk leaves it
    assert machine.run(asked) == [("a", "done"), ("b", "done"), ("c", "done")]
    assert "--resume" in machine.asked[2]


@pytest.mark.parametrize(
    ("code", "status", "again"),
    [(0, "done", False), (3, "inconclusive", False), (4, "invalid", True), (2, "refused", False), (1, "failed", True)],
)
def test_exit_codes_are_told_and_only_some_run_again(tmp_path: Path, code: int, status: str, again: bool) -> None:
    machine = Machine(tmp_path, codes={"a": [code]})
    assert machine.run(plan(suite("a")), 1) == [("a", status)]
    begin, end = lines(tmp_path)
    assert begin.status == "cut off", "until it ends"
    assert end.why == (None if code == 0 else "last line of a")
    machine.run(plan(suite("a")), 1)
    assert len(machine.asked) == (2 if again else 1)


def test_a_full_disk_costs_its_part_alone_which_runs_again_once_there_is_room(tmp_path: Path) -> None:
    full = f"error: cannot write runs/x: {os.strerror(28)}; free some space"
    machine = Machine(tmp_path, codes={"a": [2]}, says={"a": full})
    asked = plan(suite("a"), suite("b"))
    assert machine.run(asked) == [("a", "cut off"), ("b", "done")]
    assert lines(tmp_path)[1].why == full
    assert machine.run(asked) == [("a", "done"), ("b", "done")]


def test_a_journal_that_cannot_be_written_ends_the_shard_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, asked = Machine(tmp_path), plan(suite("a"), suite("b"))
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 5:
            raise OSError(28, os.strerror(28))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RequestError, match=r"cannot write .*; what came before it is kept|free some space"):
        machine.run(asked)
    monkeypatch.setattr(os, "fsync", real)
    assert machine.run(asked) == [("a", "done"), ("b", "done")]


def test_a_verdict_has_the_reason_that_the_part_gives(tmp_path: Path) -> None:
    told = {"passes": [{"status": "done"}, {"status": "inconclusive", "reason": "single passes vary by ± 40%"}]}
    found = {
        "findings": [{"severity": "warns", "what": "load"}, {"severity": "invalidates", "what": "a foreign process"}]
    }
    for document, why in ((told, "single passes vary by ± 40%"), (found, "a foreign process"), ({}, "last line")):
        (tmp_path / "log").write_text("first line\nlast line\n")
        assert sharding._why(json.dumps(document), tmp_path / "log") == why
    assert sharding._why("[3]", tmp_path / "nothing") is None


def test_a_run_of_another_machine_is_begun_anew(tmp_path: Path) -> None:
    machine = Machine(tmp_path, codes={"a": [4, 2, 0]})
    machine.run(plan(suite("a")), 1)
    assert machine.run(plan(suite("a")), 1) == [("a", "done")]
    assert ["--resume" in command for command in machine.asked] == [False, True, False]


MODELS = {"models": ["m"]}
PASSES = {"phase": "decode", "context": 64}


def test_models_use_the_figures_of_an_earlier_part_where_it_has_left_any(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    asked = plan(suite("hardware"), PASSES, {**PASSES, "mode": "compile"}, **MODELS)
    assert machine.run(asked, (5 + 30 + RESERVE_S) / 60)[1:] == [
        ("m-decode-eager", "done"),
        ("m-decode-compile", "done"),
    ]
    assert not any("--hardware" in command for command in machine.asked), "it left none"
    machine = Machine(tmp_path / "b")
    machine.run(asked, (5 + 12 + RESERVE_S) / 60)
    (spec,) = (folder / "spec.json" for folder in (tmp_path / "b" / "runs").glob("*/*Z-hardware"))
    spec.write_text("{}")
    machine.run(asked, 10)
    for command in machine.asked[1:]:
        assert command[command.index("--hardware") + 1] == str(spec)
    assert len(machine.asked) == 3


def test_a_part_works_on_the_run_of_another_or_is_skipped(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    held = suite("held", 1.0, "calibrate {run} --out {out}/s.json", keeps_run=False)
    assert machine.run(plan(held)) == [("held", "skipped")]
    machine = Machine(tmp_path / "b")
    machine.run(plan(suite("hardware"), held))
    (run,) = (tmp_path / "b" / "runs").glob("*/*Z-hardware")
    shard = tmp_path / "b" / "shards" / "1-of-1"
    assert machine.asked[-1] == ["calibrate", str(run), "--out", f"{shard}/s.json", "--json"]


def test_a_device_is_measured_once_although_shards_share_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    asked = plan(suite("doctor", each=True), suite("a"), suite("b"), suite("c"))
    for shard in (1, 2, 3):
        machine.run(asked, shard=shard, shards=3, uuid="GPU-1")
    assert sorted(command[1] for command in machine.asked) == ["a", "b", "c", "doctor"]
    assert {tuple(variables.items()) for variables in machine.variables} == {(("CUDA_VISIBLE_DEVICES", "GPU-1"),)}
    machine.run(asked, shard=3, shards=3, uuid="GPU-2")
    assert len(machine.asked) == 4, "the shard has its own already"
    machine = Machine(tmp_path / "two")
    for shard in (1, 2):
        machine.run(asked, shard=shard, shards=2, uuid=f"GPU-{shard}")
    assert [command[1] for command in machine.asked].count("doctor") == 2, "each of two devices"


def test_a_device_that_another_shard_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from profiler.record.files import Lock

    machine = Machine(tmp_path)
    held = machine.shard(plan(suite("a")), uuid="GPU-1", minutes=1)
    folder = tmp_path / "shards" / ".device-gpu-1"
    folder.mkdir(parents=True)
    (folder / ".lock").write_text("99999")  # of a process that was killed
    lock = Lock(folder / ".lock")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            lock.release()

    monkeypatch.setattr(sharding.time, "sleep", sleep)
    assert held.run().ended["a"].status == "done" and len(waits) == 3
    assert machine.said[0] == "another shard measures on this device; this one waits"


def test_a_shard_runs_once_at_a_time_and_a_stale_lock_holds_nothing(tmp_path: Path) -> None:
    machine, asked = Machine(tmp_path), plan(suite("a"))
    first = machine.shard(asked)
    first.path.mkdir(parents=True)
    (first.path / ".lock").write_text("4711")
    assert first.run().ended["a"].status == "done"
    from profiler.record.files import Lock

    lock = Lock(first.path / ".lock")
    with pytest.raises(RequestError, match=r"1-of-1 is being written by process \d+; wait until it ends"):
        machine.run(asked)
    lock.release()


def test_another_plan_version_or_number_of_shards_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    machine, asked = Machine(tmp_path), plan(suite("a"), suite("b"))
    machine.run(asked, shard=1, shards=2)
    with pytest.raises(RequestError, match=r"holds a shard of another version of trial; use another --out"):
        machine.run(plan(suite("a")), shard=2, shards=2)
    with pytest.raises(RequestError, match="of shards 2, not 3"):
        machine.run(asked, shard=3, shards=3)
    path = tmp_path / "shards" / "1-of-2" / "shard.json"
    path.write_text(path.read_text().replace('"method_version": ', '"method_version": 9'))
    with pytest.raises(RequestError, match="of method version 9"):
        machine.run(asked, shard=2, shards=2)
    assert len(machine.asked) == 1
    assert read_shard(path.parent).ended["b" if machine.asked[0][1] == "b" else "a"].status == "done"


def test_a_gpu_is_the_one_that_is_named_or_the_next_in_turn() -> None:
    here = ["GPU-aa", "GPU-ab", "GPU-b"]
    assert [chosen_gpu(None, shard, here) for shard in (1, 2, 3, 4)] == ["GPU-aa", "GPU-ab", "GPU-b", "GPU-aa"]
    assert chosen_gpu("GPU-b", 1, here) == chosen_gpu("2", 1, here) == chosen_gpu("0", 1, here, "2") == "GPU-b"
    assert chosen_gpu("GPU-b", 1, here, "") == "GPU-b", "submitit hides them all, and we know which"
    assert [chosen_gpu(None, shard, here, "2,0") for shard in (1, 2, 3)] == ["GPU-b", "GPU-aa", "GPU-b"]
    assert chosen_gpu(None, 1, here, "GPU-b") == chosen_gpu(None, 1, here, "GPU-b,7") == "GPU-b"
    assert chosen_gpu(None, 1, here, "MIG-x") == "MIG-x"
    with pytest.raises(RequestError, match="GPU GPU-c is not here; this host has GPU-aa, GPU-ab, GPU-b"):
        chosen_gpu("GPU-c", 1, here)
    for visible in ("", "7", "GPU-a", "-1"):  # two GPUs begin with GPU-a
        with pytest.raises(RequestError, match="may use none"):
            chosen_gpu(None, 1, here, visible)


@pytest.fixture
def codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes of commands whose time is up as soon as they have written "ready" to their log."""
    found: list[int] = []

    class UpOnceReady(subprocess.Popen):  # type: ignore[type-arg]
        is_up = False

        def communicate(self, input: object = None, timeout: float | None = None) -> tuple[object, object]:
            if not self.is_up:
                self.is_up = True
                until(lambda: "ready" in (tmp_path / "log").read_text(), self)
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            written = super().communicate(timeout=timeout)
            found.append(self.returncode)
            return written

    monkeypatch.setattr(executing.subprocess, "Popen", UpOnceReady)
    return found


@pytest.mark.starts_product
def test_a_command_is_interrupted_before_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int]
) -> None:
    monkeypatch.setattr(executing, "GRACE_S", LAST_RESORT_S)
    script = (
        "import sys, time\ntry:\n print('ready', file=sys.stderr, flush=True)\n time.sleep(3600)\n"
        "except KeyboardInterrupt:\n print('kept', file=sys.stderr)"
    )
    assert execute([sys.executable, "-c", script], tmp_path / "log", 2.0) == Outcome(None, "")
    assert codes == [0] and "kept" in (tmp_path / "log").read_text()


def test_a_command_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int]
) -> None:
    monkeypatch.setattr(executing, "GRACE_S", 0.2)
    script = (
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print('ready', file=sys.stderr, flush=True)\ntime.sleep(3600)"
    )
    assert execute([sys.executable, "-c", script], tmp_path / "log", 2.0).code is None
    assert codes == [-signal.SIGKILL]


def test_a_command_s_output_and_code_come_back(tmp_path: Path) -> None:
    found = execute([sys.executable, "-c", "import sys; print('{}'); sys.exit(3)"], tmp_path / "log", LAST_RESORT_S)
    assert (found.code, found.stdout) == (3, "{}\n")


@pytest.mark.starts_product
def test_a_part_ends_with_its_shard_even_by_kill_9_and_holds_the_device_until_then(tmp_path: Path) -> None:
    from profiler.record.files import Lock, LockHeld

    works, ended = tmp_path / "works", tmp_path / "ended"
    part = (
        "import signal, sys, time\n"
        "from profiler.campaign.execute import end_with_parent\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})\n"
        "end_with_parent()\n"
        f"def end(*_):\n while open({str(works)!r}).read() != 'go': time.sleep(0.02)\n"
        f" open({str(ended)!r}, 'w').close()\n sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"open({str(works)!r}, 'w').close()\ntime.sleep(3600)"
    )
    script = (
        "import sys\nfrom pathlib import Path\nfrom profiler.campaign.execute import execute\n"
        "from profiler.record.files import Lock\n"
        f"lock = Lock(Path({str(tmp_path)!r}) / '.lock')\n"
        f"execute([sys.executable, '-c', sys.argv[1]], Path({str(tmp_path / 'log')!r}), 3600.0, {{}}, "
        "[lock.descriptor])"
    )
    process = subprocess.Popen([sys.executable, "-c", script, part])
    until(works.exists, process)
    process.kill()
    process.wait(LAST_RESORT_S)
    with pytest.raises(LockHeld):
        Lock(tmp_path / ".lock")
    works.write_text("go")
    until(ended.exists)
    until(lambda: _is_free(tmp_path / ".lock"))


def _is_free(path: Path) -> bool:
    from profiler.record.files import Lock, LockHeld

    try:
        Lock(path).release()
    except LockHeld:
        return False
    return True
