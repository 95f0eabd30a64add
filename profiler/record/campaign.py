"""A campaign on disk: which shards there are, which of its parts each has ended, and the shards merged. Torch-free.

    shards/1-of-3/shard.json     plan, versions, device and host of a shard
    shards/1-of-3/journal.jsonl  a line for every beginning and every end of a part
    shards/1-of-3/logs/          the stderr and the JSON of each part
    runs/<device>/<utc>-<name>/  the runs of all shards, as `list`, `compare` and `history` read them

A shard writes its own folder alone, so that shards on several hosts share a disk without waiting for each other; a
reader needs the folder and nothing else. Example: ``merged(read_shards([Path("campaign")])).cells``
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from profiler.record.files import RUN_FILE, Journal, read_record, replacing
from profiler.record.run import METHOD_VERSION, RequestError, roofcal_version
from roofline.reading import DAMAGED, MOST_BYTES, Unreadable, entry, parse_json, read_bytes, record_of
from roofline.record import Record

SHARD_SCHEMA = 1
SHARDS, SHARD_FILE, JOURNAL, LOGS, RUNS = "shards", "shard.json", "journal.jsonl", "logs", "runs"

Status = Literal["done", "inconclusive", "invalid", "refused", "failed", "cut off", "skipped"]
FINAL: tuple[Status, ...] = ("done", "inconclusive", "refused")
"""Status of parts that do not run again: a busy host may be no quieter, and a wrong request stays wrong."""
DISK_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
"""Words of a part that a full disk has stopped: it runs again once there is room."""
GRACE_S = 60.0
"""Seconds after the limit of a part until its shard counts as lost: the part is interrupted, and writes what it has."""


class PartLine(Record):
    """A line of a shard's journal."""

    part: str
    status: Status
    """The status of a part that has ended; "cut off" from its beginning on, until it ends."""
    at: str
    """UTC, ISO 8601."""
    seconds: float = 0.0
    estimate_s: float
    limit_s: float | None = None
    """Most seconds that the part was given; only of a beginning."""
    code: int | None = None
    """Exit code of its command."""
    run: str | None = None
    """Its run folder, relative to the campaign's folder."""
    why: str | None = None
    """The reason of any status but "done", in one line."""

    @property
    def is_open(self) -> bool:
        """Whether the line is a beginning."""
        return self.limit_s is not None


class PlannedPart(Record):
    """A part of the plan, and the shard that it belongs to."""

    name: str
    shard: int | None
    """From 1; None where every device measures it."""


class ShardRecord(Record):
    """shard.json: what a shard is a part of, and where it ran."""

    schema_version: int = SHARD_SCHEMA
    plan: str
    """Name of the plan."""
    plan_sha256: str
    """SHA-256 of the plan's content, in hexadecimal."""
    shard: int = Field(ge=1)
    shards: int = Field(ge=1)
    parts: tuple[PlannedPart, ...]
    started: str
    """UTC, ISO 8601, of its latest start."""
    hostname: str
    unit: str
    """The device: the UUID of a GPU, or the name of the host whose processors are measured."""
    roofcal: str = Field(default_factory=roofcal_version)
    method_version: int = METHOD_VERSION

    @property
    def name(self) -> str:
        """Return it as people write it: "1/3"."""
        return f"{self.shard}/{self.shards}"

    @property
    def is_of(self) -> tuple[str, int, str, int]:
        """Return what all shards of a campaign have in common."""
        return (self.plan_sha256, self.shards, self.roofcal, self.method_version)

    def differs(self, other: "ShardRecord") -> str | None:
        """Return how another shard is not of the same campaign, in a few words; None where it is."""
        if self.plan_sha256 != other.plan_sha256:
            return (
                f"of another plan ({other.plan})" if other.plan != self.plan else f"of another version of {self.plan}"
            )
        pairs = [("shards", self.shards, other.shards), ("roofcal", self.roofcal, other.roofcal)]
        pairs.append(("method version", self.method_version, other.method_version))
        return next((f"of {name} {theirs}, not {own}" for name, own, theirs in pairs if own != theirs), None)


State = Literal["finished", "running", "stopped", "lost", "not begun"]


@dataclass(frozen=True)
class Shard:
    """A shard's folder as it was read."""

    path: Path
    record: ShardRecord
    ended: Mapping[str, PartLine]
    """The last line of each part that has begun."""

    @property
    def base(self) -> Path:
        """The campaign's folder."""
        return self.path.parents[1]

    @property
    def own(self) -> tuple[PlannedPart, ...]:
        """The parts that it has to measure."""
        return tuple(part for part in self.record.parts if part.shard in (None, self.record.shard))

    def state(self, now: datetime) -> State:
        """Whether it is at work, has ended, or was lost: a part that began has a limit, after which it must have ended.

        Clocks of hosts are compared, so that they have to agree to some seconds.
        """
        if all(part.name in self.ended and self.ended[part.name].status in FINAL for part in self.own):
            return "finished"
        for line in self.ended.values():
            if line.limit_s is not None:
                age_s = (now - datetime.fromisoformat(line.at)).total_seconds()
                return "lost" if age_s > line.limit_s + GRACE_S else "running"
        return "stopped"

    def document(self, part: str) -> dict[str, Any]:
        """The JSON that a part printed; empty where there is none that can be read."""
        path = self.path / LOGS / f"{part}.json"
        try:
            content = parse_json(read_bytes(path, MOST_BYTES, "measure the part again"))
        except (Unreadable, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def shard_folder(base: Path, shard: int, shards: int) -> Path:
    """The folder of a shard in that of its campaign."""
    return base / SHARDS / f"{shard}-of-{shards}"


def read_shard(path: Path) -> Shard:
    """Read a shard's folder. Raises RequestError where it is damaged or from a newer roofcal."""
    record = read_record(path / SHARD_FILE, ShardRecord, SHARD_SCHEMA, "delete the shard's folder, and run it again")
    lines = Journal(path / JOURNAL).read(partial(record_of, PartLine))
    return Shard(path, record, {line.part: line for line in lines})


def read_shards(folders: Sequence[Path]) -> tuple[list[Shard], list[str]]:
    """Read the shards of campaign folders, or of shards' own folders, and say in a line each which cannot be read.

    Raises RequestError for a folder that holds no shard.
    """
    shards: list[Shard] = []
    refused: list[str] = []
    for folder in folders:
        if entry(folder) != "folder":
            raise RequestError(f"no folder {folder}; name the folder that `campaign PLAN --out` wrote")
        paths = [folder] if entry(folder / SHARD_FILE) else sorted((folder / SHARDS).glob("*-of-*"))
        if not paths:
            raise RequestError(f"{folder} holds no campaign; name the folder that `campaign PLAN --out` wrote")
        for path in paths:
            try:
                shards.append(read_shard(path))
            except RequestError as error:
                refused.append(str(error))
    return shards, refused


@dataclass(frozen=True)
class Found:
    """A part that has been measured, or was tried."""

    part: PlannedPart
    unit: str | None
    """The device, where every device measures the part."""
    line: PartLine | None
    """None where no shard has begun it."""
    shard: Shard | None


@dataclass
class Merged:
    """Shards of one campaign as one."""

    shards: list[Shard]
    left_out: list[str]
    """Shards of other plans or versions, and files that cannot be read, a line each."""
    absent: list[str]
    """Names of the shards that have not begun: "2/3"."""
    parts: list[Found] = field(default_factory=list)
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Each pass by its key, as `run --json` has it, with `part`, `shard`, `unit` and `run` added."""
    repeated: list[str] = field(default_factory=list)
    """Cells that were measured more than once, since a part was begun again on another device; the newest counts."""

    @property
    def is_whole(self) -> bool:
        """Whether every part of the plan has a result."""
        return not self.absent and all(found.line is not None and found.line.status in FINAL for found in self.parts)


def merged(shards: Sequence[Shard], refused: Sequence[str] = ()) -> Merged:
    """Merge shards of one plan, roofcal and method; those that differ from most others are left out, and named."""
    kinds = [shard.record.is_of for shard in shards]
    usual = max(kinds, key=kinds.count, default=None)  # of equally many, the first
    own = [shard for shard in shards if shard.record.is_of == usual]
    if not own:
        return Merged([], list(refused), [])
    first = own[0].record
    left_out = [f"{s.path} is {first.differs(s.record)}; it is left out" for s in shards if s.record.is_of != usual]
    here = {shard.record.shard for shard in own}
    absent = [f"{i}/{first.shards}" for i in range(1, first.shards + 1) if i not in here]
    result = Merged(own, [*refused, *left_out], absent)
    for part in first.parts:
        result.parts += _found(part, own)
    for found in sorted((f for f in result.parts if f.line), key=lambda f: f.line.at if f.line else ""):
        for key, row in _cells(found):
            if key in result.cells:
                result.repeated.append(f"{key} in {result.cells[key]['part']} and {row['part']}")
            result.cells[key] = row
    return result


def _found(part: PlannedPart, shards: Sequence[Shard]) -> Iterator[Found]:
    """The results of a part: one, or one for each device."""
    units = sorted({shard.record.unit for shard in shards}) if part.shard is None else [None]
    for unit in units:
        tried = [
            (shard.ended[part.name].status in FINAL, shard.ended[part.name].at, index, shard)
            for index, shard in enumerate(shards)
            if part.name in shard.ended and unit in (None, shard.record.unit)
        ]
        best = max(tried, default=None)
        shard = best[-1] if best else None
        yield Found(part, unit, shard.ended[part.name] if shard else None, shard)


def _cells(found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    """The passes of a part, each with its key."""
    if found.shard is None or found.line is None:
        return
    about = {"part": found.part.name, "shard": found.shard.record.name, "unit": found.shard.record.unit,
             "run": found.line.run}  # fmt: skip
    document = found.shard.document(found.part.name)
    for row in (*document.get("passes", ()), *document.get("failed", ())):
        if isinstance(row, dict) and "model" in row:
            yield cell_key(row), {**row, **about}


KEY = ("model", "dtype", "mode", "phase", "batch", "query_tokens", "context_tokens")


def cell_key(row: Mapping[str, Any]) -> str:
    """A name of a pass that is the same on every device."""
    ran = row.get("ran")
    cache = str(ran.get("cache", "")).partition(" ")[0] if isinstance(ran, dict) else ""
    return " ".join([*(str(row[name]) for name in KEY if row.get(name) is not None), *([cache] if cache else [])])


def now_utc() -> str:
    """The time for a journal's line."""
    return datetime.now(UTC).isoformat(timespec="seconds")


LARGEST_BYTES = 16 << 20
"""Largest file that is kept beside the summary."""


def run_files(merged: Merged) -> dict[str, Mapping[str, Any]]:
    """run.json of each part that has one, by the part's name, with the shard behind it where several have the part."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, path in _run_folders(merged).items():
        with suppress(Unreadable, *DAMAGED):
            content = parse_json(read_bytes(path / RUN_FILE, MOST_BYTES, ""))
            if isinstance(content, dict):
                found[name] = content
    return found


def keep_files(merged: Merged, out: Path) -> list[str]:
    """Copy the report of each part, the specs of the devices and the exports to `out`; return what is too large.

    Raises RequestError where `out` cannot be written.
    """
    files: dict[str, Path] = {}
    for name, path in _run_folders(merged).items():
        files[f"{name}.md"] = path / "report.md"
        if name.partition(" ")[0].startswith("hardware"):  # a run of models measures the device only briefly
            files[f"{name}.spec.json"] = path / "spec.json"
    for shard in merged.shards:
        place = "" if shard.record.shards == 1 else f"{shard.path.name}/"
        made = [shard.path / "held-out.spec.json", *sorted((shard.path / "exports").rglob("*"))]
        files |= {f"{place}{file.relative_to(shard.path)}": file for file in made}
    too_large = []
    for name, source in files.items():
        if entry(source) != "file":
            continue
        if source.stat().st_size > LARGEST_BYTES:
            too_large.append(name)
            continue
        with replacing(out / name.replace(" ", "-")) as partial_file:
            shutil.copyfile(source, partial_file)
    return too_large


def _run_folders(merged: Merged) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for found in merged.parts:
        if found.line is not None and found.line.run is not None and found.shard is not None:
            many = found.part.shard is None and found.shard.record.shards > 1
            name = f"{found.part.name} {found.shard.path.name}" if many else found.part.name
            folders[name] = found.shard.base / found.line.run
    return folders
