"""The formats that can be imported and exported; a new format is a file and a row of one of three lists.

An imported table is read, translated to roofcal's names and units, cleaned, and kept with its provenance as a run's
table of kernels.

Example: ``import_tables("aiconfigurator", [Path("gemm_perf.parquet")], ImportOptions()).kernels``,
``export_format("genz").write(source).files[0].content``
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa

from calibrate.exchange import (
    from_aiconfigurator,
    from_llmservingsim,
    from_vidur,
    to_aiconfigurator,
    to_infersim,
    to_small,
    to_traces,
    to_vidur,
)
from calibrate.exchange.clean import clean, limits_of
from calibrate.exchange.figures import Export
from calibrate.exchange.figures import Source as Exported
from calibrate.exchange.tables import Device, ImportOptions, Parsed, device_of, read_table
from calibrate.exchange.to_traces import Traced
from profiler.record.kernel_table import COLUMNS, Kernels, Source
from profiler.record.run import RequestError

MANY = 0.02
"""Share of a file's times that the cleaning may drop without a warning."""


@dataclass(frozen=True)
class Importer:
    """A tool whose tables are imported."""

    name: str
    """The name that `import` takes."""
    parse: Callable[[pd.DataFrame, Path, ImportOptions], Parsed]
    """Reads the rows of one file. Raises RequestError, one line, that says what is wrong with it."""
    refuses: Mapping[str, str] = field(default_factory=dict)
    """Maps an option that would change nothing to the reason."""
    model_of: Callable[[Path], str | None] | None = None
    """Finds in a file's path the model whose modules its rows are; None for tables that hold their shapes."""


@dataclass(frozen=True, slots=True)
class Format:
    """A tool whose description of a device is exported."""

    name: str
    """The name that --to takes."""
    what: str
    """Name of the tool and of its file, in one line."""
    write: Callable[[Exported], Export]
    """Makes the files. Raises ValueError, one line, for a missing figure that the format cannot do without."""
    folder: bool = False
    """Whether the export is several files and its provenance, so that --out is a folder."""


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """A viewer of timelines, to which the passes of a run are exported."""

    name: str
    """The name that --to takes."""
    what: str
    """Name of the viewers and of the file, in one line."""
    write: Callable[[Traced], Export]
    """Makes the files. Raises ValueError, one line, where no pass of the run can be shown."""
    folder: bool = False
    """As `Format.folder`."""


IMPORTS: list[Importer] = [
    Importer(
        "aiconfigurator",
        from_aiconfigurator.parse,
        {"--dtype": "AIConfigurator's tables name their own", "--model": "AIConfigurator's tables hold their shapes"},
    ),
    Importer("vidur", from_vidur.parse, {"--model": "Vidur's tables hold their shapes"}),
    Importer("llmservingsim", from_llmservingsim.parse, model_of=from_llmservingsim.model_of),
]

EXPORTS: list[Format] = [
    Format("llm-viewer", "LLM-Viewer: entry of hardware_params (Python)", to_small.LLM_VIEWER.write),
    Format("genz", "GenZ: entry of system_configs (Python)", to_small.GENZ.write),
    Format("llm-analysis", "llm-analysis: file of gpu_configs (JSON)", to_small.LLM_ANALYSIS.write),
    Format("aiconfigurator", "AIConfigurator: system yaml and op tables (parquet)", to_aiconfigurator.write, True),
    Format("vidur", "Vidur: mlp.csv and attention.csv of its models", to_vidur.write, folder=True),
    Format("infersim", "InferSim: GPU entry (Python) and tables of MFU (CSV)", to_infersim.write, folder=True),
    Format("blis", "BLIS inference-sim: hardware_config.json", to_small.BLIS.write),
    Format("tracelens-arch", "TraceLens: file of --gpu_arch_json_path (JSON)", to_small.TRACELENS.write),
]

TRACES: list[TraceFormat] = [
    TraceFormat("chrome-trace", "Perfetto, chrome://tracing: passes of a run (JSON)", to_traces.chrome_trace),
    TraceFormat("speedscope", "speedscope: passes of a run as flame graphs (JSON)", to_traces.speedscope),
]


AnyFormat = Format | TraceFormat
Entry = TypeVar("Entry", Importer, AnyFormat)


def import_format(name: str) -> Importer:
    """The importer of that name. Raises RequestError, one line with the nearest names."""
    return _named(name, IMPORTS, "import")


def export_formats() -> list[AnyFormat]:
    """Return all formats that can be exported to, those of devices first."""
    return [*EXPORTS, *TRACES]


def export_format(name: str) -> AnyFormat:
    """The export format of that name. Raises RequestError, one line with the nearest names."""
    return _named(name, export_formats(), "export to")


def _named(name: str, entries: Sequence[Entry], purpose: str) -> Entry:
    for entry in entries:
        if entry.name == name:
            return entry
    plain = {entry.name.replace("-", ""): entry.name for entry in entries}
    word = "".join(character for character in name.lower() if character.isalnum())
    near = [plain[match] for match in get_close_matches(word, plain, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(plain.values())}"
    raise RequestError(f"no format {name!r} to {purpose}; {hint}")


@dataclass(frozen=True, eq=False)
class Imported:
    """A table of kernels, its device, and warnings about the files."""

    kernels: Kernels
    device: Device
    warnings: tuple[str, ...]


def import_tables(
    format_name: str, files: Sequence[Path], options: ImportOptions, found: Collection[Path] = ()
) -> Imported:
    """Read files of one device into one table; those of `found`, in a folder, may be other ones, which is a warning.

    Raises RequestError, one line, that names the file, what is wrong with it, and what to do.
    """
    importer = import_format(format_name)
    if len({os.path.realpath(path) for path in files}) < len(files):
        raise RequestError("a file is named twice; name each once")
    read: list[tuple[Path, str]] = []
    tables: list[tuple[Path, Parsed]] = []
    others: dict[Path, str] = {}
    for path in files:
        try:
            frame, sha256 = read_table(path)
            tables.append((path, importer.parse(frame, path, options)))
            read.append((path, sha256))
        except RequestError as error:
            if path not in found:
                raise
            others[path] = str(error)
    if not tables:
        raise RequestError(
            f"none of {len(others)} files is a table of {format_name}, the first: {next(iter(others.values()))}"
        )
    device = device_of([(path, parsed.device) for path, parsed in tables], options.device)
    limits = limits_of(device.spec)
    frames, sources = [], []
    warnings = [*device.warnings, *(f"left out, no table of {format_name}: {why}" for why in others.values())]
    for place, (path, parsed) in enumerate(tables):
        frame, cleaned = clean(parsed, str(path), limits)
        frames.append(frame.assign(source=place))
        sources.append(
            Source(
                file=str(path),
                sha256=read[place][1],
                format=format_name,
                unit=parsed.unit,
                device=parsed.device,
                model=parsed.model,
                versions=parsed.versions,
                rows=parsed.rows,
                timed=len(parsed.frame) + sum(parsed.dropped.values()),
                kept=len(frame),
                cleaned=cleaned,
            )
        )
        timed = sources[-1].timed
        warnings += [
            f"{path}: {count} of {timed} times were dropped ({rule}); check the rest of the file too"
            for rule, count in cleaned.items()
            if not rule.startswith(("repeat", "unknown")) and count > MANY * timed
        ]
    table = pa.Table.from_pandas(pd.concat(frames, ignore_index=True)[COLUMNS.names], COLUMNS, preserve_index=False)
    return Imported(Kernels(table.replace_schema_metadata(None), tuple(sources)), device, tuple(warnings))
