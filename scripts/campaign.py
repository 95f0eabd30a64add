"""Runs a list of parts, each a process of its own, within a given time, and loses nothing when it is cut off.

Parts come most valuable first. One that does not fit what is left of the time is skipped, said so, and the next is
looked at; one that takes too long is interrupted, which keeps what it had measured. The journal has a line, on disk,
for every beginning and every end; a campaign that is started again in the same folder goes on: what came to its end
stays, what was cut off is resumed. Estimates are corrected by what the parts before took.

Only the standard library: it runs before anything is known to be installed.

Example: ``Campaign(parts, Path("out"), minutes=20).run()``
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROFILER = (sys.executable, "-m", "profiler")
RESERVE_S = 15.0
"""Kept for the last part to be interrupted and for the summary."""
GRACE_S = 10.0
"""From an interruption, which lets a part write what it has, to its end by force."""
LONGEST_FACTOR = 3.0
"""Times its estimate, the most that a part may take: the time of the others is worth more then."""
LONGEST_REASON = 300
"""Characters of a reason in the journal."""
STATUS: Mapping[int, str] = {0: "done", 3: "inconclusive", 4: "invalid", 2: "refused"}
"""Of the exit codes of `python -m profiler`; any other is "failed"."""
FINAL = ("done", "inconclusive", "refused")
"""What is not run again: a busy host may be no quieter, and a wrong request no better."""


@dataclass(frozen=True)
class Part:
    """One command of `python -m profiler`."""

    name: str
    arguments: tuple[str, ...]
    """"{run}" in them is the run folder of the part `on`, "{out}" the campaign's own."""
    estimate_s: float
    """On the device that the campaign is for."""
    keeps_run: bool = True
    """Whether it writes a run folder, that `--resume` goes on with; its name is then the part's."""
    unless: str | None = None
    """Why it cannot run here; None where it can."""
    uses: str | None = None
    """Part whose spec.json, where there is one, stands for measuring the device again (`--hardware`)."""
    on: str | None = None
    """Part whose run it works on; without that run it is skipped."""


@dataclass(frozen=True)
class Outcome:
    """How a process ended; `code` is None where its time was up."""

    code: int | None
    stdout: str


Execute = Callable[[Sequence[str], Path, float], Outcome]
"""Runs a command with its stderr in a file, for at most so many seconds."""


@dataclass
class Campaign:
    """Parts in the order of their value, in a folder, for so many minutes."""

    parts: Sequence[Part]
    out: Path
    minutes: float
    execute: Execute = field(default_factory=lambda: execute)
    now: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    def run(self) -> list[dict[str, Any]]:
        """Run what fits; the last journal line of each part, in order."""
        (self.out / "logs").mkdir(parents=True, exist_ok=True)
        deadline = self.now() + 60 * self.minutes - RESERVE_S
        for part in self.parts:
            before = self.ended().get(part.name)
            if before is not None and before["status"] in FINAL:
                self.say(f"{part.name}: {before['status']} before")
                continue
            left_s = deadline - self.now()
            needed_s = part.estimate_s * self.factor()
            if part.unless is not None:
                self._skip(part, part.unless)
            elif part.on is not None and self._run_of(part.on) is None:
                self._skip(part, f"{part.on} has left no run to work on")
            elif needed_s > left_s:
                self._skip(part, f"needs some {needed_s:.0f} s, {max(0.0, left_s):.0f} s are left")
            else:
                self._run(part, min(left_s, LONGEST_FACTOR * max(needed_s, part.estimate_s)))
        ended = self.ended()
        return [ended[part.name] for part in self.parts if part.name in ended]

    def factor(self) -> float:
        """What the parts that came to their end took ÷ what was estimated; 1 while there is none."""
        finished = [line for line in self.ended().values() if line["status"] in ("done", "inconclusive")]
        estimated = sum(line["estimate_s"] for line in finished)
        return sum(line["seconds"] for line in finished) / estimated if estimated else 1.0

    def ended(self) -> dict[str, dict[str, Any]]:
        """The last end of each part, by name; a part that began and did not end was cut off."""
        found: dict[str, dict[str, Any]] = {}
        for line in read_journal(self.out / "journal.jsonl"):
            found[line["part"]] = line if line["event"] == "end" else {**line, "status": "cut off", "seconds": 0.0}
        return found

    def folder(self, part: Part) -> Path | None:
        """The newest run folder of a part."""
        found = sorted((self.out / "runs").glob(f"*/*Z-{part.name}")) if part.keeps_run else []
        return found[-1] if found else None

    def _run(self, part: Part, limit_s: float) -> None:
        began, resumed = self.now(), self.folder(part)
        self.say(f"{part.name}: up to {limit_s:.0f} s" + (f", going on with {resumed}" if resumed else ""))
        self._write(part, "start", resumed=str(resumed) if resumed else None)
        log = self.out / "logs" / f"{part.name}.txt"
        outcome = self.execute(self._command(part, resumed), log, limit_s)
        if resumed and outcome.code == 2:  # begun on another machine, or with other software
            outcome = self.execute(self._command(part, None), log, limit_s - (self.now() - began))
        status = "cut off" if outcome.code is None else STATUS.get(outcome.code, "failed")
        run, stdout = self.folder(part), outcome.stdout
        if outcome.code is None and run is not None:  # what it had measured is told all the same
            stdout = self.execute([*PROFILER, "show", str(run), "--json"], log, GRACE_S).stdout
        if stdout.strip():
            (self.out / "logs" / f"{part.name}.json").write_text(stdout, encoding="utf-8")
        seconds = self.now() - began
        self._write(
            part, "end", status=status, code=outcome.code, seconds=round(seconds, 1),
            run=str(run.relative_to(self.out)) if run else None, why=None if status == "done" else _why(stdout, log),
        )  # fmt: skip
        self.say(f"{part.name}: {status} after {seconds:.0f} s")

    def _command(self, part: Part, resumed: Path | None) -> list[str]:
        if resumed is not None:
            return [*PROFILER, part.arguments[0], "--resume", str(resumed), "--json"]
        named = ["--out", str(self.out / "runs"), "--name", part.name] if part.keeps_run else []
        spec = self._spec(part.uses) if part.uses else None
        places = {"out": self.out, "run": self._run_of(part.on) if part.on else None}
        arguments = [argument.format(**places) for argument in part.arguments]
        return [*PROFILER, *arguments, *(["--hardware", str(spec)] if spec else []), *named, "--json"]

    def _spec(self, name: str) -> Path | None:
        run = self._run_of(name)
        return run / "spec.json" if run is not None and (run / "spec.json").exists() else None

    def _run_of(self, name: str) -> Path | None:
        return self.folder(next(part for part in self.parts if part.name == name))

    def _skip(self, part: Part, why: str) -> None:
        self._write(part, "end", status="skipped", seconds=0.0, why=why)
        self.say(f"{part.name}: skipped: {why}")

    def _write(self, part: Part, event: str, **facts: Any) -> None:
        line = {
            "part": part.name, "event": event, "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "estimate_s": part.estimate_s, **{name: value for name, value in facts.items() if value is not None},
        }  # fmt: skip
        with (self.out / "journal.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """All whole lines; the last one may have been cut off."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def execute(command: Sequence[str], log: Path, limit_s: float) -> Outcome:
    """Run a command; when its time is up it is interrupted as by Ctrl-C, and killed if it does not end."""
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
            return _wait(process, limit_s)
        except BaseException:
            _end(process)
            raise


def _wait(process: "subprocess.Popen[str]", limit_s: float) -> Outcome:
    try:
        stdout, _ = process.communicate(timeout=limit_s)
        return Outcome(process.returncode, stdout)
    except subprocess.TimeoutExpired:
        _end(process)
        return Outcome(None, "")


def _end(process: "subprocess.Popen[str]") -> None:
    """Interrupt the process and all that it started; by force after a while."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE_S)


def _why(stdout: str, log: Path) -> str | None:
    """The first reason that a part's JSON gives for its verdict, else the last line it said."""
    try:
        document = json.loads(stdout)
    except ValueError:
        document = {}
    told = [one.get("reason") for name in ("failed", "passes") for one in document.get(name, ())]
    told += [one["what"] for one in document.get("findings", ()) if one.get("severity") == "invalidates"]
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    reasons = [reason for reason in told if reason] or lines[-1:]
    return reasons[0][:LONGEST_REASON] if reasons else None
