"""`export`: write a device's figures as the hardware files of other tools, or a run's passes as traces for viewers.

Wiring only; no torch, no device. A SPEC is a device's name, a JSON file, or a run, which also says how its figures were
measured.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Option

from calibrate.report.document import printable
from profiler.cli.options import AsJson, Results, find_hardware, one_line, words
from profiler.cli.output import print_json, say
from profiler.record.files import replacing, require_file_name, require_separate
from profiler.record.folder import find_run, slug
from profiler.record.run import RequestError, roofcal_version
from roofline.hardware.load import device_names
from roofline.hardware.spec import doubted
from roofline.reading import entry

if TYPE_CHECKING:
    from calibrate.exchange.figures import Export, Origin, Source, Taken
    from calibrate.exchange.formats import AnyFormat, Format, TraceFormat
    from calibrate.exchange.to_traces import Traced
    from roofline.hardware.spec import HardwareSpec

EXAMPLE = """
Examples:\n
python -m profiler export last --to genz\n
python -m profiler export nvidia-h200-sxm --to llm-viewer --peaks datasheet --out h200.py\n
python -m profiler export last --to all --out figures\n
python -m profiler export last --to chrome-trace --out pass.json\n
python -m profiler export --to list
"""


def export(
    spec: Annotated[
        str | None, Argument(metavar="SPEC", help="A device's name, its JSON file, a run's folder, or 'last'.")
    ] = None,
    to: Annotated[
        str | None,
        Option(help="Formats to write, as genz,vidur; 'list' lists them, 'all' writes all formats of a device."),
    ] = None,
    out: Annotated[
        Path | None,
        Option(help="File to write; a folder for several formats or files. Default: named after the device."),
    ] = None,
    peaks: Annotated[
        str | None,
        Option(
            help="Figures to write: datasheet, measured, or calibrated (default where laws price the format's times)."
        ),
    ] = None,
    force: Annotated[
        bool, Option("--force", help="Export figures even if they were measured beside other work.")
    ] = False,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Write figures for other tools, or passes for trace viewers."""
    from calibrate.exchange.formats import EXPORTS, TraceFormat, export_format, export_formats

    known = export_formats()
    if to == "list":
        if as_json:
            print_json({"formats": [{"name": form.name, "what": form.what} for form in known]})
        else:
            width = max(len(form.name) for form in known)
            print("\n".join(f"{form.name:{width}}  {form.what}" for form in known))
        return
    if to is None:
        raise RequestError(f"say which format with --to; known: {', '.join(form.name for form in known)}")
    forms: list[AnyFormat] = (
        [*EXPORTS] if to == "all" else [export_format(name.strip()) for name in dict.fromkeys(to.split(","))]
    )
    if spec is None:
        raise RequestError("name a SPEC: a device, its JSON file, or a run's folder")
    if peaks is not None and (trace := next((form.name for form in forms if isinstance(form, TraceFormat)), None)):
        raise RequestError(f"--peaks chooses figures of a device, and {trace} has none; leave it out")
    origin = (
        None if peaks is None else cast("Origin", words("--peaks", peaks, ("measured", "datasheet", "calibrated"))[0])
    )
    subject = _Subject(spec, results, origin, force)
    read = [Path(spec), *(Path(spec).iterdir() if entry(spec) == "folder" else ())]
    done: list[_Written] = []
    refused: dict[str, str] = {}
    for form in forms:
        try:
            with one_line():
                exported, name = subject.traces(form) if isinstance(form, TraceFormat) else subject.figures(form)
        except RequestError as error:
            if len(forms) == 1:
                raise
            refused[form.name] = str(error)  # a format that wants what the subject lacks; nothing of it is written
            continue
        to_files = out
        if len(forms) > 1:
            base = out or Path(f"{slug(subject.device)}-roofcal-export")
            to_files = base / form.name if form.folder else base / exported.files[0].path
        done.append(_write(form, exported, name, to_files, read))
    if not done:
        raise RequestError("; ".join(dict.fromkeys(refused.values())))
    if as_json:
        documents = [
            {
                "format": one.form.name,
                "device": subject.device,
                "peaks": subject.peaks(one.form),
                "files": one.files,
                "left_out": one.exported.left_out,
            }
            for one in done
        ]
        print_json(documents[0] if len(forms) == 1 else {"exports": documents, "refused": refused})
        return
    for one in done:
        prefix = "left out" if len(forms) == 1 else f"{one.form.name}: left out"
        for field, why in one.exported.left_out.items():
            say(f"{prefix}: {field}: {why}", sys.stderr)
        print(printable(f"{one.folder}: {len(one.files)} files" if one.form.folder else one.files[0]))
    for name, why in refused.items():
        say(f"{name}: not written: {why}", sys.stderr)


class _Subject:
    """Source of an export: a device's figures and a run's passes; each is read once, when a format wants it."""

    def __init__(self, name: str, results: Path, origin: "Origin | None", force: bool) -> None:
        self._name, self._results, self._origin, self._force = name, results, origin, force
        self._now = datetime.now(UTC)

    def figures(self, form: "Format") -> "tuple[Export, str]":
        """A device's figures in a format, and the name of the entry. Raises RequestError or ValueError, one line."""
        source = self._source(form)
        if (doubts := doubted(source.peaks)) and not self._force:
            name, why = next(iter(doubts.items()))
            raise RequestError(
                f"{len(doubts)} figures of {source.spec.name} are doubted, as {name}: {why}; measure again on a quiet "
                "machine, or add --force to export them with that note"
            )
        return form.write(source), source.name

    def traces(self, form: "TraceFormat") -> "tuple[Export, str]":
        """As `figures`, but the passes of the run."""
        return form.write(self._traced), self._traced.folder.path.name

    def peaks(self, form: "AnyFormat") -> "Origin | None":
        """The origin of the figures that a format has; None for passes, which have none."""
        from calibrate.exchange.formats import Format

        return self._source(form).origin if isinstance(form, Format) else None

    @property
    def device(self) -> str:
        """Name of the device; that of its driver where passes alone are exported."""
        return self._device[0].name if "_device" in vars(self) else self._traced.folder.run.environment.device

    def _source(self, form: "Format") -> "Source":
        from calibrate.exchange.figures import source_of

        device, taken = self._device
        version = roofcal_version()
        return source_of(device, self._origin, version=version, now=self._now, taken=taken, has_times=form.folder)

    @cached_property
    def _device(self) -> "tuple[HardwareSpec, Taken | None]":
        from calibrate.exchange.figures import taken_of

        device, run = find_hardware(self._name, self._results)
        return device, None if run is None else taken_of(run)

    @cached_property
    def _traced(self) -> "Traced":
        from calibrate.exchange.to_traces import traced_of

        if self._name in device_names():
            raise RequestError(
                f"{self._name} is a device, and traces show passes of a run; name a run's folder or 'last'"
            )
        return traced_of(find_run(self._name, self._results), version=roofcal_version(), now=self._now)


@dataclass(frozen=True)
class _Written:
    """One format that has been written."""

    form: "AnyFormat"
    exported: "Export"
    folder: Path
    files: list[str]


def _write(form: "AnyFormat", exported: "Export", name: str, out: Path | None, read: Sequence[Path]) -> _Written:
    """Write the files of one format; `out` is a file, or a folder for a format of many files."""
    folder = (out or Path(f"{name}-{form.name}")) if form.folder else (out.parent if out else Path())
    main = exported.files[0].path
    if out is not None:
        require_file_name(out)
    if form.folder and folder.exists() and not folder.is_dir():
        raise RequestError(f"--out {folder} is a file, and --to {form.name} writes a folder; name a folder")
    names = [f.path if form.folder or out is None else f.path.replace(main, out.name, 1) for f in exported.files]
    require_separate({f"--out ({name})": folder / name for name in names}, read)
    for name, file in zip(names, exported.files, strict=True):
        with replacing(folder / name) as partial:
            partial.write_bytes(file.content)
    return _Written(form, exported, folder, [str(folder / name) for name in names])
