"""`export`: write a device's figures as the hardware files of other tools. Wiring only; no torch, no device.

A SPEC is a device's name, a JSON file, or a run, which also says how its figures were measured.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Option

from calibrate.report.document import printable
from profiler.cli.options import AsJson, Results, find_hardware, one_line, words
from profiler.cli.output import print_json, say
from profiler.record.files import replacing, require_file_name, require_separate
from profiler.record.run import RequestError, roofcal_version
from roofline.hardware.spec import doubted

if TYPE_CHECKING:
    from calibrate.exchange.figures import Export, Origin, Source
    from calibrate.exchange.formats import Format

EXAMPLE = """
Examples:\n
python -m profiler export last --to genz\n
python -m profiler export nvidia-h200-sxm --to llm-viewer --peaks datasheet --out h200.py\n
python -m profiler export last --to all --out figures\n
python -m profiler export --to list
"""


def export(
    spec: Annotated[
        str | None, Argument(metavar="SPEC", help="A device's name, its JSON file, a run's folder, or 'last'.")
    ] = None,
    to: Annotated[
        str | None, Option(help="Formats to write, as genz,vidur; 'list' lists them, 'all' writes all.")
    ] = None,
    out: Annotated[
        Path | None,
        Option(help="File to write; a folder for several formats or files. Default: named after the device."),
    ] = None,
    peaks: Annotated[
        str | None,
        Option(
            help="Figures to write: calibrated (the default where laws price the format's times), measured, datasheet."
        ),
    ] = None,
    force: Annotated[bool, Option("--force", help="Export figures that were measured beside other work too.")] = False,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Write a device's figures as another tool's hardware file."""
    from calibrate.exchange.figures import source_of, taken_of
    from calibrate.exchange.formats import EXPORTS, export_format

    if to == "list":
        if as_json:
            print_json({"formats": [{"name": form.name, "what": form.what} for form in EXPORTS]})
        else:
            width = max(len(form.name) for form in EXPORTS)
            print("\n".join(f"{form.name:{width}}  {form.what}" for form in EXPORTS))
        return
    if to is None:
        raise RequestError(f"say which format with --to; known: {', '.join(form.name for form in EXPORTS)}")
    forms = EXPORTS if to == "all" else [export_format(name.strip()) for name in dict.fromkeys(to.split(","))]
    if spec is None:
        raise RequestError("name a SPEC: a device, its JSON file, or a run's folder")
    origin = (
        None if peaks is None else cast("Origin", words("--peaks", peaks, ("measured", "datasheet", "calibrated"))[0])
    )
    device, run = find_hardware(spec, results)
    taken = None if run is None else taken_of(run)
    read = [Path(spec), *(Path(spec).iterdir() if Path(spec).is_dir() else ())]
    done: list[_Written] = []
    refused: dict[str, str] = {}
    for form in forms:
        try:
            with one_line():
                source = source_of(
                    device, origin, version=roofcal_version(), now=datetime.now(UTC), taken=taken, has_times=form.folder
                )
                if (doubts := doubted(source.peaks)) and not force:
                    name, why = next(iter(doubts.items()))
                    raise RequestError(
                        f"{len(doubts)} figures of {device.name} are doubted, as {name}: {why}; measure again on a "
                        "quiet machine, or add --force to export them with that note"
                    )
                exported = form.write(source)
        except RequestError as error:
            if len(forms) == 1:
                raise
            refused[form.name] = str(error)  # a format that wants what the device lacks; nothing of it is written
            continue
        to_files = out
        if len(forms) > 1:
            base = out or Path(f"{source.name.removesuffix(f'-{source.origin}')}-export")
            to_files = base / form.name if form.folder else base / exported.files[0].path
        done.append(_write(form, exported, source, to_files, read))
    if not done:
        raise RequestError("; ".join(dict.fromkeys(refused.values())))
    if as_json:
        documents = [
            {
                "format": one.form.name,
                "device": device.name,
                "peaks": one.origin,
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


@dataclass(frozen=True)
class _Written:
    """One format that has been written."""

    form: "Format"
    exported: "Export"
    origin: str
    folder: Path
    files: list[str]


def _write(form: "Format", exported: "Export", source: "Source", out: Path | None, read: Sequence[Path]) -> _Written:
    """Write the files of one format; `out` is a file, or a folder for a format of many files."""
    folder = (out or Path(f"{source.name}-{form.name}")) if form.folder else (out.parent if out else Path())
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
    return _Written(form, exported, source.origin, folder, [str(folder / name) for name in names])
