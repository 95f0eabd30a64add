"""The runs under a results folder, and the one that a word means.

Example: ``find_run("last", Path("results"))``, ``find_run("20260509T101112Z-main", Path("results"))``
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from profiler.record.folder import Content, RunFolder
from profiler.record.run import RequestError
from roofline.record import Record


class RunSummary(Record):
    """One folder under results; an unreadable one is listed with the reason, never left out."""

    path: Path
    state: Literal["finished", "unfinished", "unreadable"]
    why: str | None = None
    """Why it cannot be read, in one line."""
    name: str = ""
    device: str = ""
    started: str = ""
    """UTC, ISO 8601."""
    cells: int = 0
    """Cells that were asked for."""
    models: tuple[str, ...] = ()
    kind: Content = "passes"
    measurements: int = 0
    """Measurements of a characterisation."""
    kernels: dict[str, int] = {}
    """Rows of a table of kernels: "matmul bfloat16" -> how many."""


def list_runs(base: Path) -> list[RunSummary]:
    """Every run under ``base/<device>/``, the oldest first; a base that does not exist has none."""
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
    """Open the run that `name` means: a folder, "last" (the newest), or the end of one path under `base`.

    Raises RequestError where none or more than one is meant, or it cannot be read.
    """
    if (Path(name) / "run.json").exists() or Path(name).is_absolute():
        return RunFolder.open(Path(name))
    runs = list_runs(base)
    if name == "last":
        readable = [run for run in runs if run.state != "unreadable"]
        if not readable:
            raise RequestError(f"no readable runs under {base}; make one with: python -m profiler run")
        return RunFolder.open(readable[-1].path)
    meant = [run for run in runs if run.path.as_posix().endswith(name.rstrip("/"))]
    if len(meant) == 1:
        return RunFolder.open(meant[0].path)
    if meant:
        raise RequestError(f"{name!r} means {len(meant)} runs: {', '.join(str(run.path) for run in meant)}; say which")
    if Path(name).is_dir():
        return RunFolder.open(Path(name))
    words = {word: run.path.name for run in runs for word in (run.path.name, run.name)}
    near = dict.fromkeys(words[word] for word in get_close_matches(name, words, n=3, cutoff=0.5))
    hint = f"did you mean {' or '.join(near)}?" if near else "see: python -m profiler list"
    raise RequestError(f"no run {name!r} under {base}; {hint}")
