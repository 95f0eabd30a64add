"""A table of kernels for people and as the one JSON document of ``import --json`` and ``show --json``.

Keys are only ever added; times in seconds; what is not known is null.

Example: ``document(folder, kernels)["kinds"][0]["rows"]``
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from profiler.record.folder import RunFolder
from profiler.record.kernel_table import Kernels, Source


def document(folder: RunFolder, kernels: Kernels) -> dict[str, Any]:
    """What was kept by kind and dtype, and each file with what every rule took out of it."""
    environment, spec = folder.run.environment, folder.read_spec()
    return {
        "run": str(folder.path),
        "device": environment.device,
        "datasheet": spec.name if spec is not None and spec.datasheet is not None else None,
        "started": folder.run.started,
        "finished": folder.run.finished,
        "versions": dict(environment.versions),
        "warnings": list(environment.notes),
        "rows": sum(source.rows for source in kernels.sources),
        "timed": sum(source.timed for source in kernels.sources),
        "kept": len(kernels),
        "kinds": _kinds(kernels),
        "sources": [source.model_dump(mode="json") for source in kernels.sources],
    }


def lines(folder: RunFolder, kernels: Kernels) -> Iterator[str]:
    """The same as text."""
    content = document(folder, kernels)
    yield f"{content['device']}, datasheet {content['datasheet'] or 'not known'}"
    for source in kernels.sources:
        yield f"{source.file}: {_fate(source)}"
        for rule, count in source.cleaned.items():
            yield f"  {count:>8}  {rule}"
    rows = [("kind", "dtype", "rows", "groups", "from", "median", "to")]
    for kind in content["kinds"]:
        times = (f"{kind[name] * 1e6:.4g} µs" for name in ("least_s", "median_s", "most_s"))
        rows.append((kind["kind"], kind["dtype"], str(kind["rows"]), str(kind["groups"]), *times))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        texts, figures = row[:2], row[2:]
        left = "  ".join(f"{cell:{width}}" for cell, width in zip(texts, wide[:2], strict=True))
        yield left + "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(figures, wide[2:], strict=True))
    for warning in content["warnings"]:
        yield f"note: {warning}"


def _fate(source: Source) -> str:
    timed = "" if source.timed == source.rows else f" with {source.timed} times"
    tool = ", ".join(f"{name} {version}" for name, version in source.versions.items()) or source.format
    return f"{source.rows} rows{timed} ({tool}), {source.kept} kept"


def _kinds(kernels: Kernels) -> list[dict[str, Any]]:
    columns = {name: kernels.table[name].to_numpy() for name in ("kind", "dtype", "group", "time_s")}
    found = []
    for (kind, dtype), count in kernels.counts().items():
        rows = (columns["kind"] == kind) & (columns["dtype"] == dtype)
        times = columns["time_s"][rows]
        found.append(
            {
                "kind": kind,
                "dtype": dtype,
                "rows": count,
                "groups": len(set(columns["group"][rows])),
                "least_s": float(times.min()),
                "median_s": float(np.median(times)),
                "most_s": float(times.max()),
            }
        )
    return found
