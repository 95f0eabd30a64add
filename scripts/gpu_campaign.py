"""Measures everything that needs a GPU, in one command and within a given time.

    python scripts/gpu_campaign.py --minutes 20 --out results/campaign
    python scripts/gpu_campaign.py --minutes 3 --out /tmp/try --device cpu

The campaign is a list of commands of `python -m profiler`, the most valuable first: what the device reaches, and its
laws; decode of Llama-3.1-8B from a CUDA graph; the same model eagerly and compiled; the laws on kernels that they were
not fitted to, and the spec for other tools; sustained load; the other models; the suites. A part that does not fit the
time left is skipped (exit code 3), and one that takes too long is interrupted. The same command continues a campaign,
each run by its own `--resume`. On a CPU the same parts run with small models, to try the campaign itself.

    journal.jsonl         a line for every beginning and every end of a part
    runs/ logs/ exports/  what the parts write
    keep/                 small enough to commit: README.md with the conditions and predicted against measured times,
                          summary.json, a report of each part, specs, exports

It needs only the standard library and no network; an error of one line says which packages are missing, and how to
carry them to the machine.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROFILER = (sys.executable, "-m", "profiler")
MODULE = {"nvidia-ml-py": "pynvml", "pyyaml": "yaml"}
"""Package -> its module, where that has another name."""

RESERVE_S = 15.0
"""Seconds kept to interrupt the last part and to write the summary."""
GRACE_S = 10.0
"""Seconds from an interruption, after which a part writes what it has, until it is killed."""
LONGEST_FACTOR = 3.0
"""A part may take this many times its estimate, so that it leaves time for the others."""
LARGEST_BYTES = 16 << 20
"""Largest file that is copied to keep/."""
STATUS: Mapping[int, str] = {0: "done", 3: "inconclusive", 4: "invalid", 2: "refused"}
"""The meanings of the exit codes of `python -m profiler`; any other code is "failed"."""
FINAL = ("done", "inconclusive", "refused")
"""Status of parts that do not run again: a busy host may be no quieter, and a wrong request stays wrong."""

START_S = 20.0
"""Seconds of a process: it loads torch and transformers, measures the device with `run --quick`, writes the reports."""
CELL_S = 6.0
"""Seconds of a cell besides its passes: trace, inputs, warm-up, sessions of the profiler."""
CALIBRATION_S = 150.0
"""Seconds of a calibration with --quick."""
COMPILE_S = 45.0
"""Seconds to compile the model of a cell."""
QUICK_LOOK = ("--only", "memory,matmul,vector,host", "--processes", "1")
"""Options of `hardware` in a trial on a CPU."""
FILES = {"llm-viewer": ".py", "genz": ".py", "llm-analysis": ".json", "blis": ".json"}
"""Formats of one file that the spec is exported to."""
FOLDERS = ("aiconfigurator", "infersim")
"""Formats of many files; Vidur's tables are of its own models, and large."""
NO_CUDA = "needs a CUDA device"


@dataclass(frozen=True)
class Part:
    """One command of `python -m profiler`."""

    name: str
    arguments: tuple[str, ...]
    """"{run}" stands for the run folder of the part `on`, "{out}" for the campaign's folder."""
    estimate_s: float
    """Seconds on a GPU; corrected by how long the parts before took."""
    keeps_run: bool = True
    """Whether it writes a run folder, of its own name, which `--resume` can continue."""
    unless: str | None = None
    """The reason why the part cannot run here; None where it can."""
    uses: str | None = None
    """Part whose spec.json it uses (`--hardware`), if there is one, instead of measuring the device."""
    on: str | None = None
    """Part whose run it reads; without that run it is skipped."""


@dataclass(frozen=True)
class Model:
    """One model, and the limits of its shapes."""

    name: str
    layers: int | None = None
    """Repeated layers that run; None for all of them."""
    longest: int = 16384
    """Most tokens of context and prompt."""
    load_s: float = 20.0
    """Seconds to make its weights on the device."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of the passes of every model, cut at the model's longest."""

    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    """Sequences of a decode step; a prefill has one."""
    seconds: float
    """Seconds of passes for each cell."""


GPU_MODELS: tuple[Model, ...] = (
    Model("llama-3.1-8b"),
    Model("qwen2.5-7b"),
    Model("gemma-2-9b", longest=8191),
    Model("mixtral-8x7b", layers=4),
    Model("llama-3.1-70b", layers=4),
    Model("gpt2", longest=1023, load_s=5.0),
    Model("deepseek-v2-lite", load_s=30.0),
)
CPU_MODELS: tuple[Model, ...] = (
    Model("gpt2", layers=1, longest=32, load_s=2.0),
    Model("smollm2-135m", layers=1, longest=32, load_s=2.0),
)
GPU_SHAPES = Shapes((128, 2048, 8192), (1024, 16384), (1, 16, 64), 2.0)
CPU_SHAPES = Shapes((32,), (32,), (1,), 0.2)
SUITES = (
    Part("transfers", ("hardware", "--quick", "--only", "transfer"), 60.0),
    Part("hardware-in-full", ("hardware",), 600.0),
)
"""Measurements besides models; a new suite is a line."""


def parts(device: str, models: Sequence[Model], shapes: Shapes) -> Iterator[Part]:
    """All parts, the most valuable first. Models run with the figures and the laws of the part `hardware`."""
    unless = NO_CUDA if device == "cpu" else None
    options, estimate_s = (QUICK_LOOK, 40.0) if unless else (("--calibrate",), 150.0 + CALIBRATION_S)
    yield Part("doctor", ("doctor", "--device", device), 10.0, keeps_run=False)
    yield Part("hardware", ("hardware", "--quick", "--device", device, *options), estimate_s)
    first, *others = models
    yield from passes(device, [first], shapes, "cuda-graph")
    yield from passes(device, [first], shapes, "cuda-graph", cache="static")
    for mode in ("eager", "compile"):
        yield from passes(device, [first], shapes, mode)
    # Half of the kernels are fitted to and the others scored; the spec of that half has a file of its own.
    arguments: tuple[str, ...] = ("calibrate", "{run}", "--out", "{out}/held-out.spec.json")
    calibrated = "the trial on a CPU is not calibrated" if unless else None
    yield Part("held-out", arguments, 40.0, keeps_run=False, unless=calibrated, on="hardware")
    for form in (*FILES, *FOLDERS):
        target = f"{{out}}/exports/{form}" + ("" if form in FOLDERS else f"/{form}{FILES[form]}")
        arguments = ("export", "{run}", "--to", form, "--out", target)
        yield Part(f"export-{form}", arguments, 5.0, keeps_run=False, on="hardware")
    yield Part("sustained", ("hardware", "--device", device, "--only", "sustained,energy"), 120.0, unless=unless)
    for mode in ("eager", "cuda-graph", "compile"):
        yield from passes(device, others, shapes, mode)
    for suite in SUITES:
        yield Part(suite.name, suite.arguments, suite.estimate_s, unless=unless)


def passes(device: str, models: Sequence[Model], shapes: Shapes, mode: str, cache: str = "dynamic") -> Iterator[Part]:
    """Decode and prefill of models in one mode; CUDA graphs take decode alone, where the host is most of the time.

    Compiled models take only the first two lengths, of one sequence: each needs a compilation.
    """
    flags = {"eager": [], "cuda-graph": ["--cuda-graph"], "compile": ["--compile"]}[mode]
    flags = [*([] if cache == "dynamic" else ["--cache", cache]), *flags]
    suffix = "" if cache == "dynamic" else f"-{cache}"
    for model in models:
        for phase in ("decode",) if mode == "cuda-graph" else ("decode", "prefill"):
            option, lengths = ("--context", shapes.contexts) if phase == "decode" else ("--prompt", shapes.prompts)
            fitting = sorted({min(length, model.longest) for length in lengths})
            batches = shapes.batches if phase == "decode" else (1,)
            if mode == "compile":
                fitting, batches = fitting[:2], batches[:1]
            layers = ["--layers", str(model.layers)] if model.layers else []
            each_s = CELL_S + shapes.seconds + (COMPILE_S if mode == "compile" else 0.0)
            yield Part(
                f"{Path(model.name).name}-{phase}-{mode}{suffix}",
                (
                    "run", model.name, "--device", device, "--quick", "--no-calibrate",
                    "--seconds", str(shapes.seconds), "--phase", phase,
                    "--dtype", "float32" if device == "cpu" else "bfloat16",
                    option, ",".join(map(str, fitting)), "--batch", ",".join(map(str, batches)), *layers, *flags,
                ),
                START_S + model.load_s + each_s * len(fitting) * len(batches),
                unless=NO_CUDA if device == "cpu" and mode == "cuda-graph" else None,
                uses="hardware",
            )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """The end of a process; `code` is None where the process ran out of time."""

    code: int | None
    stdout: str


def execute(command: Sequence[str], log: Path, limit_s: float) -> Outcome:
    """Run a command for at most `limit_s`; then interrupt it as Ctrl-C does, and kill it if it does not end."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("a", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment, start_new_session=True
        )
        try:
            stdout, _ = process.communicate(timeout=limit_s)
            return Outcome(process.returncode, stdout)
        except subprocess.TimeoutExpired:
            return Outcome(None, "")
        finally:
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    """Interrupt the process and all that it started, and kill them after a while."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE_S)


@dataclass
class Campaign:
    """Runs parts in their order, in a folder, for a number of minutes."""

    parts: Sequence[Part]
    out: Path
    minutes: float
    execute: Callable[[Sequence[str], Path, float], Outcome] = field(default_factory=lambda: execute)
    """Runs a command with its stderr in a file, for at most a number of seconds."""
    now: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    def run(self) -> list[dict[str, Any]]:
        """Run the parts that fit, and return the last journal line of each part, in order."""
        (self.out / "logs").mkdir(parents=True, exist_ok=True)
        deadline = self.now() + 60 * self.minutes - RESERVE_S
        for part in self.parts:
            before = self.ended().get(part.name)
            if before is not None and before["status"] in FINAL:
                self.say(f"{part.name}: {before['status']} before")
                continue
            left_s, needed_s = deadline - self.now(), part.estimate_s * self._factor()
            why = part.unless
            if why is None and part.on is not None and self._folder(part.on) is None:
                why = f"{part.on} has left no run to work on"
            if why is None and needed_s > left_s:
                why = f"needs some {needed_s:.0f} s, {max(0.0, left_s):.0f} s are left"
            if why is None:
                self._run(part, min(left_s, LONGEST_FACTOR * max(needed_s, part.estimate_s)))
            else:
                self._write(part, "skipped", why=why)
                self.say(f"{part.name}: skipped: {why}")
        ended = self.ended()
        return [ended[part.name] for part in self.parts if part.name in ended]

    def ended(self) -> dict[str, dict[str, Any]]:
        """The last journal line of each part, by its name; a part that began and did not end was cut off."""
        lines = read_journal(self.out / "journal.jsonl")
        return {line["part"]: {"status": "cut off", "seconds": 0.0, **line} for line in lines}

    def _factor(self) -> float:
        """Time of the finished parts ÷ their estimates; 1 while no part is finished."""
        finished = [line for line in self.ended().values() if line["status"] in ("done", "inconclusive")]
        estimated = sum(line["estimate_s"] for line in finished)
        return sum(line["seconds"] for line in finished) / estimated if estimated else 1.0

    def _folder(self, name: str) -> Path | None:
        """The newest run folder of a part."""
        return max((self.out / "runs").glob(f"*/*Z-{name}"), default=None)

    def _run(self, part: Part, limit_s: float) -> None:
        began, resumed = self.now(), self._folder(part.name) if part.keeps_run else None
        self.say(f"{part.name}: up to {limit_s:.0f} s" + (f", continues {resumed}" if resumed else ""))
        self._write(part, "cut off", resumed=str(resumed) if resumed else None)
        log = self.out / "logs" / f"{part.name}.txt"
        outcome = self.execute(self._command(part, resumed), log, limit_s)
        if resumed and outcome.code == 2:  # begun on another machine, or with other software
            outcome = self.execute(self._command(part, None), log, limit_s - (self.now() - began))
        status = "cut off" if outcome.code is None else STATUS.get(outcome.code, "failed")
        run, stdout = self._folder(part.name) if part.keeps_run else None, outcome.stdout
        if outcome.code is None and run is not None:  # what it had measured is kept all the same
            stdout = self.execute([*PROFILER, "show", str(run), "--json"], log, GRACE_S).stdout
        if stdout.strip():
            (self.out / "logs" / f"{part.name}.json").write_text(stdout, encoding="utf-8")
        seconds = self.now() - began
        self._write(
            part, status, seconds, code=outcome.code, run=str(run.relative_to(self.out)) if run else None,
            why=None if status == "done" else _why(stdout, log),
        )  # fmt: skip
        self.say(f"{part.name}: {status} after {seconds:.0f} s")

    def _command(self, part: Part, resumed: Path | None) -> list[str]:
        if resumed is not None:
            return [*PROFILER, part.arguments[0], "--resume", str(resumed), "--json"]
        named = ["--out", str(self.out / "runs"), "--name", part.name] if part.keeps_run else []
        places = {"out": self.out, "run": self._folder(part.on) if part.on else None}
        arguments = [argument.format(**places) for argument in part.arguments]
        figures = self._folder(part.uses) if part.uses else None
        if figures is not None and (figures / "spec.json").exists():
            arguments += ["--hardware", str(figures / "spec.json")]
        return [*PROFILER, *arguments, *named, "--json"]

    def _write(self, part: Part, status: str, seconds: float = 0.0, **facts: Any) -> None:
        line = {
            "part": part.name, "status": status, "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1), "estimate_s": part.estimate_s,
            **{name: value for name, value in facts.items() if value is not None},
        }  # fmt: skip
        with (self.out / "journal.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """All whole lines; the last one may have been cut off."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError):
            yield json.loads(line)


def _why(stdout: str, log: Path) -> str | None:
    """The first reason that a part's JSON gives for its verdict, else the last line of its log."""
    try:
        document = json.loads(stdout)
    except ValueError:
        document = {}
    reasons = [cell.get("reason") for name in ("failed", "passes") for cell in document.get(name, ())]
    reasons += [finding["what"] for finding in document.get("findings", ()) if finding.get("severity") == "invalidates"]
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    known = [reason for reason in reasons if reason] or lines[-1:]
    return known[0][:300] if known else None


def keep(out: Path, parts: Sequence[Part], ended: Mapping[str, dict[str, Any]]) -> None:
    """Write `keep/` anew from the files of the parts."""
    kept = out / "keep"
    shutil.rmtree(kept, ignore_errors=True)
    files = {file: file.relative_to(out) for file in sorted((out / "exports").rglob("*")) if file.is_file()}
    measured: list[dict[str, Any]] = []
    runs: dict[str, dict[str, Any]] = {}
    for part in parts:
        if folder := ended.get(part.name, {}).get("run"):
            runs[part.name] = _json(out / folder / "run.json")
            files[out / folder / "report.md"] = Path(f"{part.name}.md")
            if part.arguments[0] == "hardware":  # a run of models measures the device only briefly
                files[out / folder / "spec.json"] = Path(f"{part.name}.spec.json")
        document = _json(out / "logs" / f"{part.name}.json")
        measured += [{"part": part.name, **cell} for cell in document.get("passes", ())]
    too_large = []
    kept.mkdir(parents=True)
    for source, target in files.items():
        if source.exists() and source.stat().st_size > LARGEST_BYTES:
            too_large.append(str(target))
        elif source.exists():
            (kept / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, kept / target)
    lines = [ended[part.name] for part in parts if part.name in ended]
    summary = json.dumps({"parts": lines, "runs": runs, "passes": measured}, separators=(",", ":"))
    (kept / "summary.json").write_text(summary + "\n", encoding="utf-8")
    text = ["# Campaign", "", "## Conditions", "", *_conditions([run for run in runs.values() if run])]
    text += ["", "## Parts", "", *_parts(parts, ended)]
    if kinds := _json(out / "logs" / "held-out.json").get("kinds"):
        text += ["", "## Kernels that a fit of the other half had not seen", "", *_kinds(kinds)]
    text += ["", "## Predicted against measured", "", *_passes(measured)]
    if too_large:
        text += ["", f"Left out, above {LARGEST_BYTES >> 20} MiB: {', '.join(too_large)}."]
    (kept / "README.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def _table(header: str, rows: Sequence[Sequence[object]]) -> list[str]:
    """A table in Markdown; the columns whose names end with ":" are aligned to the right."""
    names = header.split(", ")
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in rows]
    ruler = ["---:" if name.endswith(":") else "---" for name in names]
    return [f"| {' | '.join(row)} |" for row in ([name.rstrip(":") for name in names], ruler, *cells)]


def _conditions(machines: Sequence[dict[str, Any]]) -> list[str]:
    if not machines:
        return ["No part has come far enough to describe the machine."]
    first = machines[0]["environment"]
    rows = {
        "device": first["device"],
        "unit": first.get("device_uuid") or "–",
        "host": f"{first['cores']} cores, {first['threads']} threads, {first['os']}, Python {first['python']}",
        "versions": ", ".join(f"{name} {version}" for name, version in first["versions"].items()),
        "from": min(machine["started"] for machine in machines),
        "to": max(machine.get("finished") or machine["started"] for machine in machines),
    }
    others = {machine["environment"]["device_uuid"] or machine["environment"]["device"] for machine in machines}
    if len(others) > 1:
        rows["warning"] = f"the parts ran on {len(others)} devices: {', '.join(sorted(others))}"
    notes: dict[str, list[str]] = {}
    for note in (note for machine in machines for note in machine["environment"]["notes"]):
        notes.setdefault(re.split(r"\d", note)[0], []).append(note)  # alike but for their figures
    warnings = [same[0] + (f" (in {len(same)} parts)" if len(same) > 1 else "") for same in notes.values()]
    return [*(f"- {name}: {value}" for name, value in rows.items()), *(f"- warning: {warning}" for warning in warnings)]


def _parts(parts: Sequence[Part], ended: Mapping[str, dict[str, Any]]) -> list[str]:
    rows = []
    for part in parts:
        line = ended.get(part.name, {"status": "not begun"})
        seconds = f"{line['seconds']:.0f}" if "seconds" in line else ""
        rows.append((part.name, line["status"], seconds, f"{part.estimate_s:.0f}", line.get("why", "")))
    return _table("part, status, s:, estimate:, why", rows)


def _kinds(kinds: Sequence[dict[str, Any]]) -> list[str]:
    """Scores as `calibrate --json` prints them, in per cent."""
    names = ("mape", "median", "p90", "time_weighted", "bias", "coverage", "datasheet_mape", "noise")
    rows = [
        [kind["kind"], kind["dtype"], kind["points"], kind["scored"]]
        + ["–" if kind.get(name) is None else f"{100 * kind[name]:.1f}" for name in names]
        for kind in kinds
    ]
    return _table(f"kind, dtype, points:, scored:, {':, '.join(names)}:", rows)


def _passes(passes: Sequence[dict[str, Any]]) -> list[str]:
    """Measured and predicted times in ms; errors are predicted ÷ measured − 1."""
    if not passes:
        return ["No pass has been measured."]
    rows = [
        (
            cell["model"], cell.get("mode", "eager"), cell["phase"], cell["batch"], cell["query_tokens"],
            cell["context_tokens"], _ms(cell["wall_s"]), f"{100 * cell['noise']:.1f} %", _ms(cell["busy_s"]),
            _ms(cell["predicted_busy_s"]), _error(cell["predicted_busy_s"], cell["busy_s"]),
            _ms(cell["predicted_wall_s"]), _error(cell["predicted_wall_s"], cell["wall_s"]),
            cell["prediction"] or "–", f"{100 * cell['attributed']:.1f} %", cell["status"],
        )
        for cell in passes
    ]  # fmt: skip
    header = "model, mode, phase, batch:, new:, cached:, wall:, ±:, busy:, predicted busy:, error:, "
    header += "predicted wall:, error:, by, attributed:, status"
    text = "Predictions come from the device's figures and laws alone; no model was used to fit them. Times in ms."
    return [text, "", *_table(header, rows)]


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.4g}"


def _error(predicted: float | None, measured: float) -> str:
    return "–" if predicted is None or measured <= 0 else f"{100 * (predicted / measured - 1):+.1f} %"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def missing() -> str | None:
    """One line with the packages that this machine lacks and how to carry them here; None where it has all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = [line.split(">")[0] for line in project["dependencies"]]
    lacking = [name for name in packages if name != "duckdb" and find_spec(MODULE.get(name, name)) is None]
    if not lacking:
        return None
    version, names = f"{sys.version_info[0]}.{sys.version_info[1]}", " ".join(lacking)
    return (
        f"this machine lacks {', '.join(lacking)}; with a network: pip download --only-binary :all: --python-version "
        f"{version} -d wheels {names}; then here: pip install --no-index --find-links wheels {names}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; the exit code is 0 if everything ran, 2 for a wrong request, 3 if parts were left out."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, required=True, help="Time for the campaign.")
    options.add_argument("--out", type=Path, required=True, help="Folder of the campaign, new or to continue.")
    options.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu (small models).")
    options.add_argument("--models", help="Only these of the list, or other names and folders, separated by commas.")
    given = options.parse_args(arguments)
    error = missing() or (f"--minutes {given.minutes:g}: give more than 0" if given.minutes <= 0 else None)
    if error is None and given.device != "cpu":
        from profiler.devices.backend import backend_of

        if not backend_of(given.device).count():
            error = f"--device {given.device}: torch sees no GPU; try the campaign with --device cpu"
    if error is not None:
        print(f"error: {error}", file=sys.stderr)
        return 2
    models, shapes = (CPU_MODELS, CPU_SHAPES) if given.device == "cpu" else (GPU_MODELS, GPU_SHAPES)
    if given.models:
        known, usual = {model.name: model for model in models}, models[0]
        names = given.models.split(",")
        models = tuple(known.get(name, Model(name, usual.layers, usual.longest)) for name in names)
    todo = list(parts(given.device, models, shapes))
    campaign = Campaign(todo, given.out, given.minutes)
    # A background job ignores Ctrl-C, and its parts would too; any signal ends the campaign together with its part.
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.default_int_handler)
    try:
        ended = campaign.run()
    finally:
        keep(given.out, todo, campaign.ended())
    print(f"kept in {given.out / 'keep'}", file=sys.stderr)
    return 0 if all(line["status"] in ("done", "inconclusive") for line in ended) else 3


if __name__ == "__main__":
    raise SystemExit(main())
