"""Lists the runs under a results folder, and finds the run that a name stands for, such as "last"."""

from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from profiler.record.folder import Content, RunFolder
from profiler.record.run import RequestError
from roofline.record import Record


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
    """Measurements of a characterisation."""
    kernels: dict[str, int] = {}
    """Number of rows of each kind in a table of kernels: "matmul bfloat16" -> 7203."""


def list_runs(base: Path) -> list[RunSummary]:
    """Every run under ``base/<device>/``, the oldest first; none where `base` does not exist."""
    folders = [path for path in Path(base).glob("*/*/") if path.is_dir() and not path.name.startswith(".")]
    return [_summary(path) for path in sorted(folders, key=lambda path: (path.name, path.parent.name))]


def _summary(path: Path) -> RunSummary:
    measurements, kernels = 0, {}
    try:
        folder = RunFolder.open(path)
        folder.require_whole()
        content = folder.content
        if content == "hardware":
            from profiler.record.hardware_table import count_measurements  # Arrow takes long to load

            measurements = count_measurements(path)
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
    )


def find_run(name: str, base: Path) -> RunFolder:
    """Open the run that `name` stands for: a folder, "last" (the newest), or the end of one path under `base`.

    Raises RequestError where no run or more than one matches, or it cannot be read.
    """
    if (Path(name) / "run.json").exists() or Path(name).is_absolute():
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
    if Path(name).is_dir():
        return RunFolder.open(Path(name))
    words = {word: run.path.name for run in runs for word in (run.path.name, run.name)}
    near = dict.fromkeys(words[word] for word in get_close_matches(name, words, n=3, cutoff=0.5))
    hint = f"did you mean {' or '.join(near)}?" if near else "see: python -m profiler list"
    raise RequestError(f"no run {name!r} under {base}; {hint}")
