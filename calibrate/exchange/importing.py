"""Other tools' tables become a run's table of kernels: read, put into our words, cleaned, with their provenance.

Example: ``import_tables("aiconfigurator", [Path("gemm_perf.parquet")], Asked()).kernels``
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import pandas as pd
import pyarrow as pa

from calibrate.exchange import aiconfigurator, llmservingsim, vidur
from calibrate.exchange.cleaning import clean
from calibrate.exchange.columns import read_table, sha256
from calibrate.exchange.devices import Device, device_of
from calibrate.exchange.parsed import Parsed
from calibrate.exchange.physics import limits_of
from profiler.record.kernel_table import COLUMNS, Kernels, Source
from profiler.record.run import RequestError

MANY = 0.02
"""Share of a file's times that rules about truth may take out without a warning."""


@dataclass(frozen=True)
class Asked:
    """What files do not say themselves."""

    device: str | None = None
    """Name of a device file."""
    dtype: str | None = None
    """Torch's name, for formats that name none."""
    model: str | None = None
    """Hub name of the model whose modules are timed."""
    sizes: Mapping[str, float] = field(default_factory=dict)
    """Of that model."""


@dataclass(frozen=True, eq=False)
class Imported:
    """A table with what has to be said about it."""

    kernels: Kernels
    device: Device
    warnings: tuple[str, ...]


Parser = Callable[[pd.DataFrame, Path, Asked], Parsed]

FORMATS: dict[str, Parser] = {
    "aiconfigurator": lambda frame, path, asked: aiconfigurator.parse(frame, path),
    "vidur": lambda frame, path, asked: vidur.parse(frame, path, asked.dtype or "float16"),
    "llmservingsim": lambda frame, path, asked: llmservingsim.parse(
        frame, path, asked.dtype or "bfloat16", asked.model, asked.sizes
    ),
}
"""Format -> its importer."""


def require_format(name: str) -> str:
    """The format's name. Raises RequestError where there is none of that name."""
    if name in FORMATS:
        return name
    near = get_close_matches(name.lower(), FORMATS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FORMATS)}"
    raise RequestError(f"no format {name!r}; {hint}")


def import_tables(format_name: str, files: Sequence[Path], asked: Asked) -> Imported:
    """All files as one table; they are of one device.

    Raises RequestError, one line: which file, what is wrong with it, and what to do.
    """
    parser = FORMATS[require_format(format_name)]
    if len({path.resolve() for path in files}) < len(files):
        raise RequestError("a file is named twice; name each once")
    parsed = [(path, parser(read_table(path), path, asked)) for path in files]
    device = device_of([(path, one.device) for path, one in parsed], asked.device)
    limits = limits_of(device.spec)
    frames, sources, warnings = [], [], [*device.warnings]
    for place, (path, one) in enumerate(parsed):
        frame, cleaned = clean(one, str(path), limits)
        frames.append(frame.assign(source=place))
        sources.append(
            Source(
                file=str(path),
                sha256=sha256(path),
                format=format_name,
                unit=one.unit,
                device=one.device,
                model=one.model,
                versions=one.versions,
                rows=one.rows,
                timed=len(one.frame) + sum(one.dropped.values()),
                kept=len(frame),
                cleaned=cleaned,
            )
        )
        warnings += _warnings(sources[-1])
    table = pa.Table.from_pandas(pd.concat(frames, ignore_index=True)[COLUMNS.names], COLUMNS, preserve_index=False)
    return Imported(Kernels(table.replace_schema_metadata(None), tuple(sources)), device, tuple(warnings))


def _warnings(source: Source) -> list[str]:
    """What took out more of a file than chance would."""
    return [
        f"{source.file}: {count} of {source.timed} times taken out, {rule}; the rest of it may be no better"
        for rule, count in source.cleaned.items()
        if not rule.startswith(("repeat", "unknown")) and count > MANY * source.timed
    ]
