"""Runs one shard of a campaign: its parts in their order, each in a process of its own, within the time of its device.

The same command goes on where a shard was interrupted: what has ended is not run again, and what was cut off goes on by
its own `--resume`. A part that does not fit the time that is left is skipped, and one that takes too long is
interrupted. Parts that every device measures are measured once for each device, also where shards share one: a lock
lets one part at a time have it.
"""

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from profiler.campaign.execute import Outcome, execute
from profiler.campaign.plan import CampaignPlan, Part, assigned
from profiler.record.campaign import (
    DISK_FULL,
    FINAL,
    JOURNAL,
    LOGS,
    RUNS,
    SHARD_FILE,
    SHARDS,
    PartLine,
    PlannedPart,
    Shard,
    ShardRecord,
    Status,
    now_utc,
    read_shard,
    read_shards,
    shard_folder,
)
from profiler.record.files import Journal, Lock, LockHeld, make_folder, write_text
from profiler.record.folder import slug
from profiler.record.run import RequestError
from roofline.reading import DAMAGED

PROFILER = (sys.executable, "-m", "profiler")

RESERVE_S = 15.0
"""Seconds kept to interrupt the last part and to write its line."""
SHOW_S = 10.0
"""Seconds to show what a part that ran out of time has measured."""
LONGEST_FACTOR = 3.0
"""A part may take this many times its estimate, so that it leaves time for the others."""
WAIT_S = 1.0
"""Seconds between two looks at a device that another shard holds."""
CODES: Mapping[int, Status] = {0: "done", 3: "inconclusive", 4: "invalid", 2: "refused"}
"""The meanings of the exit codes of `python -m profiler`; any other code is "failed"."""


def visible_gpus(uuids: Sequence[str], visible: str | None) -> list[str]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves of a host's, in its order; all of them where it is not set.

    As CUDA reads it, it holds numbers or beginnings of UUIDs, and what stands behind an unknown one is not seen. A MIG
    slice keeps its name, which NVML's list of GPUs does not have.
    """
    if visible is None:
        return list(uuids)
    found: list[str] = []
    for word in map(str.strip, visible.split(",")):
        if word.isdigit():
            alike = list(uuids[int(word) : int(word) + 1])
        else:
            alike = [word] if word.startswith("MIG-") else [uuid for uuid in uuids if word and uuid.startswith(word)]
        if len(alike) != 1:
            break
        found += alike
    return found


def chosen_gpu(wanted: str | None, shard: int, uuids: Sequence[str], visible: str | None = None) -> str:
    """Return the UUID of a shard's GPU: the named one, by its UUID or its number, or one of the visible ones in turn.

    Args: `uuids` of this host's GPUs in the order of the driver; `visible`, CUDA_VISIBLE_DEVICES.
    Raises RequestError where there is no GPU, or not that one.
    """
    usable = visible_gpus(uuids, visible)
    if wanted is None:
        if not usable:
            raise RequestError("the plan measures a GPU, and this process may use none; see nvidia-smi -L")
        return usable[(shard - 1) % len(usable)]
    if wanted.startswith("MIG-") or wanted in uuids:
        return wanted
    if wanted.isdigit() and int(wanted) < len(usable):
        return usable[int(wanted)]
    raise RequestError(f"GPU {wanted:.80} is not here; this host has {', '.join(uuids) or 'none'}")


@dataclass
class ShardRun:
    """Runs the parts of one shard; `open` makes it."""

    path: Path
    record: ShardRecord
    parts: Sequence[Part]
    """Those that the shard has to measure, in order."""
    minutes: float
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the parts: the GPU."""
    execute: Callable[[Sequence[str], Path, float, Mapping[str, str], Sequence[int]], Outcome] = field(
        default_factory=lambda: execute
    )
    _held: tuple[int, ...] = field(default=(), init=False)
    """Descriptor of the device's lock, which parts inherit."""
    now: Callable[[], float] = time.monotonic
    say: Callable[[str], object] = lambda line: sys.stderr.write(f"{line}\n")

    @classmethod
    def open(
        cls,
        base: Path,
        name: str,
        plan: CampaignPlan,
        shard: int = 1,
        shards: int = 1,
        *,
        uuid: str | None = None,
        minutes: float | None = None,
        **how: Any,
    ) -> Self:
        """Make or continue a shard in the campaign's folder, on the GPU of that UUID, or on the host's processors.

        Raises RequestError where the folder holds shards of another plan or version, or another number of them.
        """
        parts = plan.measured()
        owners = assigned(parts, shards)
        record = ShardRecord(
            plan=name,
            plan_sha256=plan.sha256,
            shard=shard,
            shards=shards,
            started=now_utc(),
            parts=tuple(PlannedPart(name=part.name, shard=at) for part, at in zip(parts, owners, strict=True)),
            hostname=socket.gethostname(),
            unit=uuid or socket.gethostname(),
        )
        for other in read_shards([base])[0] if any((base / SHARDS).glob(f"*/{SHARD_FILE}")) else ():
            if why := record.differs(other.record):
                raise RequestError(f"{base} holds a shard {why}; use another --out")
        own = [part for part, at in zip(parts, owners, strict=True) if at in (None, shard)]
        variables = {} if uuid is None else {"CUDA_VISIBLE_DEVICES": uuid}
        return cls(shard_folder(base, shard, shards), record, own, minutes or plan.minutes, variables, **how)

    @property
    def base(self) -> Path:
        """The campaign's folder."""
        return self.path.parents[1]

    def run(self) -> Shard:
        """Run the parts that fit, and return the shard as it is then on the disk.

        Raises RequestError where another process runs this shard, or the disk refuses; what was measured is kept.
        """
        make_folder(self.path / LOGS)
        lock = Lock(self.path / ".lock")
        try:
            self._journal.drop_torn_line()
            write_text(self.path / SHARD_FILE, self.record.model_dump_json(indent=1) + "\n")
            deadline = self.now() + 60 * self.minutes - RESERVE_S
            for part in self.parts:
                if not self._has_ended(part):
                    self._consider(part, deadline)
        finally:
            lock.release()
        return read_shard(self.path)

    def _consider(self, part: Part, deadline: float) -> None:
        """Run a part, unless it ends elsewhere while the device is waited for, or does not fit."""
        with self._device(deadline) as has_it:
            if part.each and self._has_ended(part):
                return
            left_s, needed_s = deadline - self.now(), part.estimate_s * self._factor()
            why = None if has_it else f"another shard holds the device {self.record.unit}"
            if why is None and part.on is not None and self._run_of(part.on) is None:
                why = f"{part.on} has left no run to work on"
            if why is None and needed_s > left_s:
                why = f"needs some {needed_s:.0f} s, {max(0.0, left_s):.0f} s are left"
            if why is None:
                self._measure(part, min(left_s, LONGEST_FACTOR * max(needed_s, part.estimate_s)))
            else:
                self._write(part, "skipped", why=why)
                self.say(f"{part.name}: skipped: {why}")

    @contextmanager
    def _device(self, deadline: float) -> Iterator[bool]:
        """Hold the device within the block; False where other shards hold it until the time is over.

        The lock is the kernel's: it is held while this process or the part that it has started lives, and the file that
        a killed one leaves holds nothing.
        """
        folder = self.base / SHARDS / f".device-{slug(self.record.unit)}"
        make_folder(folder)
        lock, is_told = None, False
        while lock is None and self.now() <= deadline:
            try:
                lock = Lock(folder / ".lock")
            except LockHeld:
                if not is_told:
                    self.say("another shard measures on this device; this one waits")
                is_told = True
                time.sleep(WAIT_S)
        self._held = () if lock is None else (lock.descriptor,)
        try:
            yield lock is not None
        finally:
            self._held = ()
            if lock is not None:
                lock.release()

    def _has_ended(self, part: Part) -> bool:
        """Whether the part needs no run: it has ended before, or a sister shard has measured it on this device."""
        line = self._ended().get(part.name)
        if line is not None and line.status in FINAL:
            self.say(f"{part.name}: {line.status} before")
            return True
        for sister in self._sisters() if part.each else ():
            line = sister.ended.get(part.name)
            if line is not None and line.status in FINAL:
                self._append(line)
                self.say(f"{part.name}: {line.status} in shard {sister.record.name}, on the same device")
                return True
        return False

    def _ended(self) -> Mapping[str, PartLine]:
        """The last line of each part; a part that began and did not end was cut off."""
        return read_shard(self.path).ended

    def _sisters(self) -> list[Shard]:
        """Other shards that measure the same device."""
        shards = read_shards([self.base])[0]
        return [s for s in shards if s.path != self.path and s.record.unit == self.record.unit]

    def _factor(self) -> float:
        """Time of the finished parts ÷ their estimates; 1 while no part is finished."""
        finished = [line for line in self._ended().values() if line.status in ("done", "inconclusive")]
        estimated = sum(line.estimate_s for line in finished)
        return sum(line.seconds for line in finished) / estimated if estimated else 1.0

    def _name(self, part: str) -> str:
        """The name of a part's run; shards share the folder of runs."""
        return part if self.record.shards == 1 else f"{part}-{self.record.shard}of{self.record.shards}"

    def _own_run(self, part: str) -> Path | None:
        """The newest run folder of a part of this shard."""
        return max((self.base / RUNS).glob(f"*/*Z-{slug(self._name(part))}"), default=None)

    def _run_of(self, part: str) -> Path | None:
        """The run folder of a part: this shard's, or that of a sister on the same device."""
        line = self._ended().get(part)
        return self._own_run(part) or (self.base / line.run if line is not None and line.run else None)

    def _measure(self, part: Part, limit_s: float) -> None:
        began, resumed = self.now(), self._own_run(part.name) if part.keeps_run else None
        self.say(f"{part.name}: up to {limit_s:.0f} s" + (f", continues {resumed}" if resumed else ""))
        self._write(part, "cut off", limit_s=limit_s)
        log = self.path / LOGS / f"{part.name}.txt"
        outcome = self._execute(self._command(part, resumed), log, limit_s)
        if resumed and outcome.code == 2:  # begun on another machine, or with other software
            outcome = self._execute(self._command(part, None), log, limit_s - (self.now() - began))
        status: Status = "cut off" if outcome.code is None else CODES.get(outcome.code, "failed")
        run, stdout = self._own_run(part.name) if part.keeps_run else None, outcome.stdout
        if outcome.code is None and run is not None:  # what it had measured is kept all the same
            stdout = self._execute([*PROFILER, "show", str(run), "--json"], log, SHOW_S).stdout
        why = None if status == "done" else _why(stdout, log)
        if status == "refused" and why is not None and any(words in why for words in DISK_FULL):
            status = "cut off"  # it runs again once there is room
        seconds = self.now() - began
        if stdout.strip():
            write_text(self.path / LOGS / f"{part.name}.json", stdout)
        place = str(run.relative_to(self.base)) if run else None
        self._write(part, status, seconds, code=outcome.code, run=place, why=why)
        self.say(f"{part.name}: {status} after {seconds:.0f} s" + (f": {why}" if why else ""))

    def _execute(self, command: Sequence[str], log: Path, limit_s: float) -> Outcome:
        return self.execute(command, log, limit_s, self.variables, self._held)

    def _command(self, part: Part, resumed: Path | None) -> list[str]:
        if resumed is not None:
            return [*PROFILER, part.arguments[0], "--resume", str(resumed), "--json"]
        named = ["--out", str(self.base / RUNS), "--name", self._name(part.name)] if part.keeps_run else []
        run = self._run_of(part.on) if part.on else None
        arguments = [word.replace("{run}", str(run)).replace("{out}", str(self.path)) for word in part.arguments]
        figures = self._run_of(part.uses) if part.uses else None
        if figures is not None and (figures / "spec.json").exists():
            arguments += ["--hardware", str(figures / "spec.json")]
        return [*PROFILER, *arguments, *named, "--json"]

    @property
    def _journal(self) -> Journal:
        return Journal(self.path / JOURNAL)

    def _write(self, part: Part, status: Status, seconds: float = 0.0, **facts: Any) -> None:
        about = {"part": part.name, "status": status, "at": now_utc(), "estimate_s": part.estimate_s}
        self._append(PartLine.model_validate({**about, "seconds": round(seconds, 1), **facts}))

    def _append(self, line: PartLine) -> None:
        self._journal.append(line.model_dump(mode="json", exclude_none=True), line.part)


def _why(stdout: str, log: Path) -> str | None:
    """The first reason that a part's JSON gives for its verdict, else the last line of its log."""
    reasons: list[Any] = []
    with suppress(*DAMAGED):
        document = json.loads(stdout)
        reasons = [cell.get("reason") for name in ("failed", "passes") for cell in document.get(name, ())]
        reasons += [found["what"] for found in document.get("findings", ()) if found.get("severity") == "invalidates"]
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    known = [str(reason) for reason in reasons if reason] or lines[-1:]
    return " ".join(known[0].split())[:300] if known else None
