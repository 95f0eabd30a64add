"""The campaign with a clock and commands that are only pretended: what runs, what is skipped, what a cut-off leaves."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from each import each
from waiting import LAST_RESORT_S, until

from calibrate.exchange import formats
from scripts import gpu_campaign
from scripts.gpu_campaign import LONGEST_FACTOR, RESERVE_S, Campaign, Outcome, Part, execute, keep, read_journal

RUN = {
    "started": "2026-11-26T10:00:00+00:00",
    "finished": "2026-11-26T10:01:00+00:00",
    "environment": {
        "device": "NVIDIA H200", "device_uuid": "GPU-1", "cores": 16, "threads": 16, "os": "Linux", "python": "3.12.3",
        "versions": {"torch": "2.11.0", "driver": "580.1"}, "notes": ["power cap of 600 W"],
    },
}  # fmt: skip
PASS = {
    "model": "llama", "mode": "cuda-graph", "phase": "decode", "batch": 1, "query_tokens": 1, "context_tokens": 1024,
    "wall_s": 0.004, "noise": 0.01, "busy_s": 0.0038, "predicted_busy_s": 0.0036, "predicted_wall_s": 0.0036,
    "prediction": "executed", "attributed": 0.995, "status": "done",
}  # fmt: skip


@dataclass
class Machine:
    """Commands take the time that a test says, write a run folder as `run` does, and end with a code."""

    out: Path
    takes_s: dict[str, float] = field(default_factory=dict)
    codes: dict[str, list[int]] = field(default_factory=dict)
    at_s: float = 1000.0
    asked: list[list[str]] = field(default_factory=list)
    interrupt_in: str | None = None

    def now(self) -> float:
        return self.at_s

    def execute(self, command: Sequence[str], log: Path, limit_s: float) -> Outcome:
        arguments = list(command[3:])
        self.asked.append(arguments)
        if "--resume" in arguments:
            name = Path(arguments[arguments.index("--resume") + 1]).name.split("Z-", 1)[1]
        else:
            name = arguments[arguments.index("--name") + 1] if "--name" in arguments else arguments[0]
            if "--name" in arguments:
                folder = self.out / "runs" / "gpu" / f"20261126T{len(self.asked):06}Z-{name}"
                folder.mkdir(parents=True)
                (folder / "run.json").write_text(json.dumps(RUN))
                (folder / "report.md").write_text(f"# {name}")
        if name == self.interrupt_in:
            raise KeyboardInterrupt
        log.write_text(f"measuring {name}\nlast line of {name}\n")
        needs_s = self.takes_s.get(name, 5.0)
        self.at_s += min(needs_s, limit_s)
        if needs_s > limit_s:
            return Outcome(None, "")
        code = self.codes[name].pop(0) if self.codes.get(name) else 0
        return Outcome(code, json.dumps({"passes": [PASS]}) if arguments[0] in ("run", "show") else "{}")


def part(name: str, estimate_s: float = 10.0, **fields: object) -> Part:
    return Part(name, ("run", name), estimate_s, **fields)  # type: ignore[arg-type]


def start(machine: Machine, parts: Sequence[Part], minutes: float) -> list[tuple[str, str]]:
    said: list[str] = []
    made = Campaign(parts, machine.out, minutes, machine.execute, machine.now, said.append)
    return [(line["part"], line["status"]) for line in made.run()]


def test_parts_run_in_order_within_the_time(tmp_path: Path) -> None:
    machine = Machine(tmp_path, takes_s={"a": 10, "b": 10})
    assert start(machine, [part("a"), part("b")], 1) == [("a", "done"), ("b", "done")]
    assert [command[1] for command in machine.asked] == ["a", "b"]
    assert all(["--out", str(tmp_path / "runs"), "--name", c[1], "--json"] == c[-5:] for c in machine.asked)


def test_what_does_not_fit_is_skipped_and_smaller_parts_still_run(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert start(machine, [part("a", 5), part("large", 600), part("b", 5)], 1) == [
        ("a", "done"), ("large", "skipped"), ("b", "done"),
    ]  # fmt: skip
    lines = {line["part"]: line for line in read_journal(tmp_path / "journal.jsonl")}
    assert lines["large"]["why"] == "needs some 600 s, 40 s are left"


def test_estimates_follow_what_parts_have_taken(tmp_path: Path) -> None:
    machine = Machine(tmp_path, takes_s={"a": 20})
    done = start(machine, [part("a", 10), part("b", 20)], (20 + 39 + RESERVE_S) / 60)
    assert done == [("a", "done"), ("b", "skipped")], "20 s are 40 s on this machine, and 39 s are left"


def test_a_part_that_takes_too_long_is_cut_off_and_resumed(tmp_path: Path) -> None:
    machine = Machine(tmp_path, takes_s={"slow": 1000})
    assert start(machine, [part("slow"), part("b")], 10) == [("slow", "cut off"), ("b", "done")]
    assert machine.at_s == 1000 + LONGEST_FACTOR * 10 + 5 + 5, "the limit, a look at what there is, and the next part"
    assert machine.asked[1][0] == "show" and machine.asked[1][1].endswith("Z-slow")
    assert json.loads((tmp_path / "logs" / "slow.json").read_text())["passes"] == [PASS]
    machine.takes_s = {}
    assert start(machine, [part("slow"), part("b")], 10) == [("slow", "done"), ("b", "done")]
    assert machine.asked[3][:2] == ["run", "--resume"] and machine.asked[3][2].endswith("Z-slow")
    assert len(machine.asked) == 4, "what was done is not done again"


def test_a_campaign_that_is_killed_goes_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path, interrupt_in="b")
    with pytest.raises(KeyboardInterrupt):
        start(machine, [part("a"), part("b"), part("c")], 10)
    assert [(line["part"], line["status"]) for line in read_journal(tmp_path / "journal.jsonl")] == [
        ("a", "cut off"), ("a", "done"), ("b", "cut off"),
    ]  # fmt: skip
    machine.interrupt_in = None
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"part": "c", "stat')  # as a full disk leaves it
    assert start(machine, [part("a"), part("b"), part("c")], 10) == [("a", "done"), ("b", "done"), ("c", "done")]
    assert "--resume" in machine.asked[2]


@pytest.mark.parametrize(
    ("code", "status", "again"),
    [(0, "done", False), (3, "inconclusive", False), (4, "invalid", True), (2, "refused", False), (1, "failed", True)],
)
def test_exit_codes_are_told_and_only_some_run_again(tmp_path: Path, code: int, status: str, again: bool) -> None:
    machine = Machine(tmp_path, codes={"a": [code]})
    assert start(machine, [part("a")], 1) == [("a", status)]
    begin, end = read_journal(tmp_path / "journal.jsonl")
    assert begin["status"] == "cut off", "until it ends"
    assert end.get("why") == (None if code == 0 else "last line of a")
    start(machine, [part("a")], 1)
    assert len(machine.asked) == (2 if again else 1)


def test_a_verdict_has_the_reason_that_the_part_gives(tmp_path: Path) -> None:
    told = {"passes": [PASS, PASS | {"status": "inconclusive", "reason": "single passes vary by ± 40%"}]}
    found = {
        "findings": [{"severity": "warns", "what": "load"}, {"severity": "invalidates", "what": "a foreign process"}]
    }
    for document, why in ((told, "single passes vary by ± 40%"), (found, "a foreign process"), ({}, "last line")):
        (tmp_path / "log").write_text("first line\nlast line\n")
        assert gpu_campaign._why(json.dumps(document), tmp_path / "log") == why


def test_a_run_of_another_machine_is_begun_anew(tmp_path: Path) -> None:
    machine = Machine(tmp_path, codes={"a": [4, 2, 0]})
    start(machine, [part("a")], 1)
    assert start(machine, [part("a")], 1) == [("a", "done")]
    assert ["--resume" in command for command in machine.asked] == [False, True, False]


def test_models_use_the_figures_of_an_earlier_part_where_it_has_left_any(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    parts = [part("hardware"), part("a", uses="hardware"), part("b", uses="hardware")]
    start(machine, parts[:2], 10)
    assert "--hardware" not in machine.asked[1], "it found none"
    (spec,) = (folder / "spec.json" for folder in (tmp_path / "runs").glob("*/*Z-hardware"))
    spec.write_text("{}")
    start(machine, parts, 10)
    asked = machine.asked[2]
    assert asked[asked.index("--hardware") + 1] == str(spec)


def test_a_part_works_on_the_run_of_another_or_is_skipped(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    held = Part("held-out", ("calibrate", "{run}", "--out", "{out}/s.json"), 1.0, keeps_run=False, on="hardware")
    hardware = part("hardware", unless="needs a CUDA device")
    assert start(machine, [hardware, held], 10) == [("hardware", "skipped"), ("held-out", "skipped")]
    start(machine, [part("hardware"), held], 10)
    (run,) = (tmp_path / "runs").glob("*/*Z-hardware")
    assert machine.asked[-1] == ["calibrate", str(run), "--out", f"{tmp_path}/s.json", "--json"]


def test_the_laws_on_unseen_kernels_and_the_exports_are_kept(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    kind = {"kind": "matmul", "dtype": "bfloat16", "points": 20, "scored": 30, "mape": 0.0512, "noise": None}
    (tmp_path / "logs" / "held-out.json").write_text(json.dumps({"kinds": [kind]}))
    (tmp_path / "exports" / "aiconfigurator").mkdir(parents=True)
    (tmp_path / "exports" / "aiconfigurator" / "a.yaml").write_text("a: 1")
    keep(tmp_path, [part("a")], {})
    assert "| matmul | bfloat16 | 20 | 30 | 5.1 | – |" in (tmp_path / "keep" / "README.md").read_text()
    assert (tmp_path / "keep" / "exports" / "aiconfigurator" / "a.yaml").read_text() == "a: 1"


def test_the_spec_is_exported_to_formats_that_there_are() -> None:
    known = {form.name: form.folder for form in formats.EXPORTS}
    assert {form: form in gpu_campaign.FOLDERS for form in (*gpu_campaign.FILES, *gpu_campaign.FOLDERS)} == {
        name: folder for name, folder in known.items() if name != "vidur"
    }


def test_what_cannot_run_here_says_why(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert start(machine, [part("a", unless="needs a CUDA device")], 1) == [("a", "skipped")]
    assert not machine.asked
    assert next(read_journal(tmp_path / "journal.jsonl"))["why"] == "needs a CUDA device"


def test_what_is_kept_is_small_and_says_its_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, codes={"b": [1]})
    parts = [part("a"), part("b"), part("c", 6000), part("doctor", keeps_run=False)]
    made = Campaign(parts, tmp_path, 1, machine.execute, machine.now, lambda line: None)
    made.run()
    keep(tmp_path, parts, made.ended())
    text = (tmp_path / "keep" / "README.md").read_text()
    assert (
        "- device: NVIDIA H200" in text and "torch 2.11.0, driver 580.1" in text and "cap of 600 W (in 2 parts)" in text
    )
    assert "| a | done | 5 | 10 |  |" in text and "| c | skipped | 0 | 6000 | needs some" in text
    assert "| b | failed | 5 | 10 | last line of b |" in text
    assert "| llama | cuda-graph | decode | 1 | 1 | 1024 | 4 | 1.0 % | 3.8 | 3.6 | -5.3 % |" in text
    summary = json.loads((tmp_path / "keep" / "summary.json").read_text())
    assert [one["part"] for one in summary["passes"]] == ["a", "b", "doctor"]
    assert summary["runs"]["a"] == RUN
    assert (tmp_path / "keep" / "a.md").read_text() == "# a"
    monkeypatch.setattr("scripts.gpu_campaign.LARGEST_BYTES", 2)
    keep(tmp_path, parts, made.ended())
    assert not (tmp_path / "keep" / "a.md").exists()
    assert "above 0 MiB: a.md" in (tmp_path / "keep" / "README.md").read_text()


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    keep(tmp_path, [part("a")], {})
    text = (tmp_path / "keep" / "README.md").read_text()
    assert "No part has come far enough" in text and "| a | not begun |" in text and "No pass has been" in text


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

    monkeypatch.setattr(gpu_campaign.subprocess, "Popen", UpOnceReady)
    return found


@pytest.mark.starts_product
def test_a_command_is_interrupted_before_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int]
) -> None:
    monkeypatch.setattr(gpu_campaign, "GRACE_S", LAST_RESORT_S)
    script = (
        "import sys, time\ntry:\n print('ready', file=sys.stderr, flush=True)\n time.sleep(3600)\n"
        "except KeyboardInterrupt:\n print('kept', file=sys.stderr)"
    )
    assert execute([sys.executable, "-c", script], tmp_path / "log", 2.0) == Outcome(None, "")
    assert codes == [0] and "kept" in (tmp_path / "log").read_text()


def test_a_command_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int]
) -> None:
    monkeypatch.setattr(gpu_campaign, "GRACE_S", 0.2)
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
def test_a_campaign_that_is_ended_ends_its_part_and_keeps_what_there_is(tmp_path: Path) -> None:
    works = tmp_path / "works"
    script = (
        "import sys\nfrom scripts import gpu_campaign as g\n"
        "g.parts = lambda *_: [g.Part('slow', (), 5.0, keeps_run=False)]\n"
        "g.PROFILER = (sys.executable, '-c', sys.argv[1])\n"
        f"g.main(['--minutes', '5', '--out', {str(tmp_path)!r}, '--device', 'cpu'])"
    )
    part = f"import time; open({str(works)!r}, 'w').close(); time.sleep(3600)"
    process = subprocess.Popen(
        [sys.executable, "-c", script, part], cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as in the background of a shell
    )  # fmt: skip
    until(works.exists, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LAST_RESORT_S) != 0
    assert [line["status"] for line in read_journal(tmp_path / "journal.jsonl")] == ["cut off"]
    assert "| slow | cut off |" in (tmp_path / "keep" / "README.md").read_text()


def names(device: str) -> list[str]:
    models = gpu_campaign.CPU_MODELS if device == "cpu" else gpu_campaign.GPU_MODELS
    shapes = gpu_campaign.CPU_SHAPES if device == "cpu" else gpu_campaign.GPU_SHAPES
    return [one.name for one in gpu_campaign.parts(device, models, shapes)]


def test_the_headline_comes_first_and_names_are_unique() -> None:
    found = names("cuda")
    assert found[:3] == ["doctor", "hardware", "llama-3.1-8b-decode-cuda-graph"]
    assert len(set(found)) == len(found) and {one.name for one in gpu_campaign.SUITES} <= set(found)


def test_ten_minutes_hold_the_device_and_the_first_model() -> None:
    todo = list(gpu_campaign.parts("cuda", gpu_campaign.GPU_MODELS, gpu_campaign.GPU_SHAPES))
    first = [one for one in todo if one.name in ("doctor", "hardware") or "8b-decode-cuda" in one.name]
    assert sum(one.estimate_s for one in first) < 10 * 60 - RESERVE_S


def test_every_model_is_in_the_catalogue_and_no_length_is_beyond_it() -> None:
    from profiler.models.build import context_limit
    from profiler.models.catalogue import config_of

    for model in (*gpu_campaign.GPU_MODELS, *gpu_campaign.CPU_MODELS):
        limit = context_limit(config_of(model.name))
        assert limit is None or model.longest < limit or model.longest <= limit - 1, model.name


@each("device", ["cuda", "cpu"])
def test_every_command_is_one_that_the_cli_has(device: str) -> None:
    import typer

    from profiler.cli.app import build
    from profiler.microbench import suite

    group = typer.main.get_command(build())
    models = gpu_campaign.CPU_MODELS if device == "cpu" else gpu_campaign.GPU_MODELS
    shapes = gpu_campaign.CPU_SHAPES if device == "cpu" else gpu_campaign.GPU_SHAPES
    for one in gpu_campaign.parts(device, models, shapes):
        command = group.commands[one.arguments[0]]  # type: ignore[attr-defined]
        kept = ["--out", "x", "--name", one.name] if one.keeps_run else []
        if "--only" in one.arguments:
            only = one.arguments[one.arguments.index("--only") + 1].split(",")
            assert set(only) <= {found.name for found in suite.parts("cuda")}
        given = [argument.format(run="a-run", out="an-out") for argument in one.arguments[1:]]
        command.make_context(one.arguments[0], [*given, *kept, "--json"])


def test_a_suite_joins_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_campaign, "SUITES", (*gpu_campaign.SUITES, Part("kernels", ("kernels", "--quick"), 60.0)))
    assert names("cuda")[-1] == "kernels"


def test_what_a_machine_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real: Callable[[str], object] = gpu_campaign.find_spec
    monkeypatch.setattr(gpu_campaign, "find_spec", lambda name: None if name in ("pydantic", "plotly") else real(name))
    assert gpu_campaign.main(["--minutes", "1", "--out", "nowhere", "--device", "cpu"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "pip install --no-index --find-links wheels pydantic plotly" in shown


def test_the_campaign_starts_without_any_package(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "scripts" / "gpu_campaign.py"
    done = subprocess.run(
        [sys.executable, "-S", "-I", str(script), "--minutes", "1", "--out", str(tmp_path / "x")],
        capture_output=True, text=True, timeout=LAST_RESORT_S,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: this machine lacks torch, transformers")
    assert not (tmp_path / "x").exists()


@each("arguments", [["--minutes", "0"], ["--minutes", "-1"]])
def test_no_time_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_campaign.main([*arguments, "--out", "nowhere", "--device", "cpu"]) == 2
    assert "give more than 0" in capsys.readouterr().err
