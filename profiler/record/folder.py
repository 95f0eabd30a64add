"""Reads, writes and finds the folder of a run, `results/<device>/<utc>-<name>/`.

    run.json              machine, cells, options; `finished` is null while the run goes on or was interrupted
    journal.jsonl         a line for each finished cell, only while measuring
    graphs/<cell>.json    the OpGraphs, written before the journal line that names them
    spec.json             the device's figures
    measurements.parquet  the journal's content once the run is finished
    kernels.parquet       kernels measured to calibrate the device, or imported
    hardware.jsonl        measurements of a characterisation; hardware.parquet once it is finished
    suite.jsonl           results of a suite of serving kernels; suite.parquet once it is finished
    report.md report.html the reports that were shown; steps.csv of a run with scenarios

The results are in one place at a time: in the journal while it exists, else in the parquet file. `finish` writes the
parquet file, marks the run finished and removes the journal, in this order; a kill between two steps loses nothing.

Example::

    with RunFolder.create(Path("results"), run) as folder:
        folder.append(CellResult(cell=cell, status="done", graph=folder.write_graph(cell, graph), ...))
        folder.finish()
    RunFolder.open(folder.path).results()
"""

import hashlib
import itertools
from contextlib import suppress
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import ValidationError

from profiler.record.files import (
    HARDWARE,
    HARDWARE_JOURNAL,
    KERNELS,
    KERNELS_MEND,
    MEASUREMENTS,
    RUN_FILE,
    SUITE,
    Journal,
    Lock,
    read_record,
    write_text,
)
from profiler.record.run import RUN_SCHEMA, Cell, CellResult, RequestError, Run
from roofline.graph.op import GRAPH_SCHEMA, OpGraph
from roofline.hardware.load import impossible
from roofline.hardware.spec import SPEC_SCHEMA, HardwareSpec
from roofline.reading import MOST_GRAPH_BYTES, entry, record_of
from roofline.record import Record

IMPORT_OPTION = "format"
"""Option of a run that imported a table of kernels: the tool that wrote the table."""
SUITE_OPTION = "selection"
"""Option of a run of serving kernels: which of them, as JSON."""
Content = Literal["passes", "hardware", "suite", "kernels"]
"""A run holds passes of models, or measurements of the device instead of cells, or serving kernels that were checked
and timed, or a table of kernels."""

LONGEST_NAME = 200
"""Characters of a file name made from a key; file systems allow 255 bytes with the suffix."""


class RunFolder:
    """A run on disk. `create` and `open_for_resume` allow writing, `open` only reading."""

    def __init__(self, path: Path, run: Run, lock: Lock | None = None) -> None:
        self.path = path
        self.run = run
        self._lock = lock

    @classmethod
    def create(cls, base: Path, run: Run) -> Self:
        """Make the folder of a new run under `base`. Raises RequestError where that cannot be written."""
        started = datetime.fromisoformat(run.started)
        stamp = (started if started.tzinfo else started.replace(tzinfo=UTC)).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        parent = Path(base) / slug(run.environment.device)
        path = _new_folder(parent, f"{stamp}-{slug(run.name)}"[:LONGEST_NAME])
        folder = cls(path, run, Lock(path / ".lock"))
        folder._write_run(run)
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open to read. Raises RequestError if it is missing, not a run, half-written, or from a newer roofcal."""
        path = Path(path)
        if entry(path) != "folder":
            raise RequestError(f"no run folder at {path}; see: python -m profiler list")
        if entry(path / RUN_FILE) is None:
            raise RequestError(f"{path} is not a run folder: it has no run.json; see: python -m profiler list")
        mend = "restore it from a copy; the run's other files can stay"
        return cls(path, read_record(path / RUN_FILE, Run, RUN_SCHEMA, mend))

    @classmethod
    def open_for_resume(cls, path: Path) -> tuple[Self, frozenset[str]]:
        """Open to go on measuring; also return the keys of the cells that are done, neither failed nor invalid.

        Raises RequestError as `open`, `results` and `read_spec` do, and where another process is writing the folder;
        nothing is changed then. A missing spec.json is accepted: it can be measured again.
        """
        seen = cls.open(path)
        lock = Lock(seen.path / ".lock")
        try:
            folder = cls(seen.path, cls.open(path).run, lock)
            results = folder.results()
            if folder._spec.exists():
                folder.read_spec()
            folder._journal.drop_torn_line()
            if not folder._journal.path.exists():
                folder._journal.rewrite(map(_line, results))
            folder._write_run(
                folder.run.model_copy(
                    update={"schema_version": RUN_SCHEMA, "finished": None, "tables": {}, "verdicts": {}}
                )
            )
        except BaseException:
            lock.release()
            raise
        return folder, frozenset(result.cell.key for result in results if result.status == "done")

    def append(self, result: CellResult) -> None:
        """Keep a result; it is on the disk when this returns. A later one of the same cell replaces it.

        Raises InvalidMeasurement where a figure is not finite, RequestError where the disk refuses.
        """
        self._require_lock()
        self._journal.append(*_line(result))

    def results(self) -> list[CellResult]:
        """The latest result of each cell, in the order in which the cells were first measured.

        Raises RequestError where the journal or the table is damaged, or a finished run has neither.
        """
        self._require_results()
        if self._journal.path.exists() or not self._table.exists():
            results = self._journal.read(partial(record_of, CellResult))
            return list({result.cell.key: result for result in results}.values())
        from profiler.record.pass_table import read_results  # Arrow takes long to load; `list` does without it

        return read_results(self.path)

    def write_graph(self, cell: Cell, graph: OpGraph) -> str:
        """Keep the graph of a cell; return its name for `CellResult.graph`."""
        self._require_lock()
        name = cell.key
        if len(name) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        write_text(self.path / "graphs" / f"{name}.json", graph.model_dump_json())
        return f"graphs/{name}.json"

    def read_graph(self, name: str) -> OpGraph:
        """The graph that a `CellResult.graph` names. Raises RequestError if it is missing, damaged, or newer."""
        mend = f"restore it, or measure its cell again: python -m profiler run --resume {self.path}"
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise RequestError(f"{name} does not lie in the folder of its run; {mend}")
        return read_record(self.path / name, OpGraph, GRAPH_SCHEMA, mend, MOST_GRAPH_BYTES)

    def write_spec(self, spec: HardwareSpec) -> None:
        """Keep the device's figures, replacing earlier ones."""
        self._require_lock()
        write_text(self._spec, spec.model_dump_json(indent=1) + "\n")

    def read_spec(self) -> HardwareSpec | None:
        """The device's figures; None where an unfinished run has none yet.

        Raises RequestError if they are damaged, newer, or missing from a finished run.
        """
        resume = f"python -m profiler run --resume {self.path} measures the device again"
        if self._spec.exists():
            mend = f"restore it, or delete it and {resume}"
            spec = read_record(self._spec, HardwareSpec, SPEC_SCHEMA, mend)
            if problem := next(iter(impossible(spec)), None):
                raise RequestError(f"{self._spec}: {problem.field}: {problem.what}; {mend}")
            return spec
        if self.run.finished:
            raise RequestError(f"{self._spec} is missing from a finished run; restore it, or {resume}")
        return None

    def require_whole(self) -> None:
        """Raise RequestError where a finished run has lost its results or the device's figures. Reads neither."""
        self._require_results()
        if not self._spec.exists():
            self.read_spec()

    def write_report(self, name: str, text: str) -> Path:
        """Keep a rendered report, such as "report.md"; returns its path."""
        self._require_lock()
        write_text(self.path / name, text)
        return self.path / name

    def finish(self) -> None:
        """Turn the journal into measurements.parquet and mark the run finished."""
        self._require_lock()
        from profiler.record.parquet import sum_of
        from profiler.record.pass_table import write_results

        results = self.results()
        timed = (result.graph for result in results if result.graph and (result.ops or result.kernels))
        write_results(self.path, self.run, results, {name: self.read_graph(name) for name in timed})
        tables = [self.path / name for name in (MEASUREMENTS, HARDWARE, SUITE, KERNELS)]
        sums = {path.name: sum_of(path) for path in tables if path.exists()}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._write_run(self.run.model_copy(update={"finished": now, "tables": sums}))
        self._journal.path.unlink(missing_ok=True)

    def note(self, **changes: object) -> None:
        """Change fields of run.json."""
        self._require_lock()
        self._write_run(self.run.model_copy(update=changes))

    def close(self) -> None:
        """Let another process write the folder; reading still works. Further calls do nothing."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def content(self) -> Content:
        """The kind of the run's results. Raises RequestError where its imported table of kernels is missing."""
        if self.run.cells:
            return "passes"
        if (self.path / HARDWARE_JOURNAL).exists() or (self.path / HARDWARE).exists():
            return "hardware"
        if SUITE_OPTION in self.run.options:
            return "suite"
        if (self.path / KERNELS).exists():
            return "kernels"
        if IMPORT_OPTION in self.run.options:
            raise RequestError(f"{self.path / KERNELS} is missing; {KERNELS_MEND}")
        return "passes"

    @property
    def _journal(self) -> Journal:
        return Journal(self.path / "journal.jsonl")

    @property
    def _table(self) -> Path:
        return self.path / MEASUREMENTS

    @property
    def _spec(self) -> Path:
        return self.path / "spec.json"

    def _require_results(self) -> None:
        if self.run.finished and not self._journal.path.exists() and not self._table.exists():
            raise RequestError(f"{self._table} is missing from a finished run; restore it, or measure in a new run")
        if lost := [self.path / name for name in self.run.tables if entry(self.path / name) is None]:
            raise RequestError(f"{lost[0]} is missing, which run.json counts the rows of; restore it from a copy")

    def _write_run(self, run: Run) -> None:
        write_text(self.path / RUN_FILE, run.model_dump_json(indent=1) + "\n")
        self.run = run

    def _require_lock(self) -> None:
        if self._lock is None:
            raise RuntimeError(f"{self.path} was opened to read, or closed; use create or open_for_resume to write")


def _line(result: CellResult) -> tuple[dict[str, Any], str]:
    """A line of the journal, and its name in an error message."""
    return result.model_dump(mode="json"), result.cell.key


def slug(text: str) -> str:
    """A readable file name of lower-case letters, digits, dots and dashes: "nvidia-h200-sxm"."""
    words = "".join(c if c.isascii() and (c.isalnum() or c == ".") else " " for c in text.lower()).split()
    return "-".join(words).strip(".-") or "unnamed"


def _new_folder(parent: Path, name: str) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for path in itertools.chain([parent / name], (parent / f"{name}-{i}" for i in itertools.count(2))):
            with suppress(FileExistsError):
                path.mkdir()
                break
        return path
    except OSError as error:
        why = f"cannot write results under {parent}: {error.strerror}"
        raise RequestError(f"{why}; choose another folder with --out") from error


class RunSummary(Record):
    """A folder under results; an unreadable one is listed with the reason."""

    path: Path
    state: Literal["finished", "unfinished", "unreadable"]
    why: str | None = None
    """The reason why the folder cannot be read, in one line."""
    name: str = ""
    device: str = ""
    started: str = ""
    """UTC, ISO 8601."""
    cells: int = 0
    """Number of cells of the request."""
    models: tuple[str, ...] = ()
    kind: Content = "passes"
    measurements: int = 0
    """Measurements of a characterisation, or results of a suite: a kernel in a process each."""
    kernels: dict[str, int] = {}
    """Number of rows of each kind in a table of kernels: "matmul bfloat16" -> 7203."""
    verdicts: dict[str, int] = {}
    """Number of cells of each verdict; empty where none was noted."""


def run_paths(base: Path) -> list[Path]:
    """The folders ``base/<device>/<run>``, the oldest first; none where `base` does not exist."""
    if entry(base) != "folder":
        return []
    from profiler.record.index import folders_in

    paths = [Path(base, device, run) for device in folders_in(base) for run in folders_in(f"{base}/{device}")]
    return sorted(paths, key=lambda path: (path.name, path.parent.name))


def list_runs(base: Path) -> list[RunSummary]:
    """Every run under ``base/<device>/``, the oldest first; none where `base` does not exist."""
    paths = run_paths(base)
    if not paths:
        return []
    from profiler.record.index import Index

    index, runs = Index(Path(base)), list[RunSummary]()
    for path in paths:
        try:
            summary = RunSummary.model_validate({**(index.find(path) or {}), "path": path})
        except ValidationError:  # it is not known
            summary = _summary(path)
            if summary.state == "finished":
                index.keep(path, summary.model_dump(mode="json", exclude={"path"}))
        runs.append(summary)
    index.write()
    return runs


def _summary(path: Path) -> RunSummary:
    measurements, kernels = 0, {}
    try:
        folder = RunFolder.open(path)
        folder.require_whole()
        content = folder.content
        if content == "hardware":
            from profiler.record.hardware_table import count_measurements  # Arrow takes long to load

            measurements = count_measurements(path)
        elif content == "suite":
            from profiler.record.suite_table import count_suite_results

            measurements = count_suite_results(path)
        elif content == "kernels":
            from profiler.record.kernel_table import count_kernels

            kernels = {f"{kind} {dtype}": rows for (kind, dtype), rows in count_kernels(path).items()}
    except RequestError as error:
        return RunSummary(path=path, state="unreadable", why=str(error))
    run = folder.run
    return RunSummary(
        path=path,
        state="finished" if run.finished else "unfinished",
        name=run.name,
        device=run.environment.device,
        started=run.started,
        cells=len(run.cells),
        models=tuple(dict.fromkeys(cell.model for cell in run.cells)),
        kind=content,
        measurements=measurements,
        kernels=kernels,
        verdicts=run.verdicts,
    )


def find_run(name: str, base: Path) -> RunFolder:
    """Open the run that `name` stands for: a folder, "last" (the newest), or the end of one path under `base`.

    Raises RequestError where no run or more than one matches, or it cannot be read.
    """
    if entry(Path(name) / RUN_FILE) is not None or Path(name).is_absolute():
        return RunFolder.open(Path(name))
    runs = list_runs(base)
    if name == "last":
        readable = [run for run in runs if run.state != "unreadable"]
        if not readable:
            raise RequestError(f"no readable runs under {base}; make one with: python -m profiler run")
        return RunFolder.open(readable[-1].path)
    matches = [run.path for run in runs if run.path.as_posix().endswith(name.rstrip("/"))]
    if len(matches) == 1:
        return RunFolder.open(matches[0])
    if matches:
        raise RequestError(f"{name!r} matches {len(matches)} runs: {', '.join(map(str, matches))}; name one of them")
    if entry(name) == "folder":
        return RunFolder.open(Path(name))
    words = {word: run.path.name for run in runs for word in (run.path.name, run.name)}
    near = dict.fromkeys(words[word] for word in get_close_matches(name, words, n=3, cutoff=0.5))
    hint = f"did you mean {' or '.join(near)}?" if near else "see: python -m profiler list"
    raise RequestError(f"no run {name!r:.60} under {base}; {hint}")
