"""What `list` says of finished runs, kept so that thousands are listed without opening each.

    results/.runs.json    {"schema_version", "runs": {"<device>/<run>": [stamp, summary without its path]}}

A stamp is the times of the last changes of the run's folder and of its run.json, and the size of the latter: a run that
changed, or lost a file, is read again. The file can be deleted at any time. It is written where many runs are not in it
and the folder can be written; nothing depends on it.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from profiler.record.files import RUN_FILE, write_text
from profiler.record.run import RequestError
from roofline.reading import parse_json, read_bytes

INDEX, INDEX_SCHEMA = ".runs.json", 1
MOST_BYTES = 64 << 20
WORTH_KEEPING = 200
"""Runs that the index lacks from which on it is written: to open so many takes a quarter of a second."""


class Index:
    """Knowledge of the runs under a folder of results."""

    def __init__(self, base: Path) -> None:
        """Read the index; one that is missing, damaged or newer knows nothing."""
        self._base, self._fresh = base, 0
        self._known: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._kept: dict[str, tuple[str, Mapping[str, Any]]] = {}
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            document = parse_json(read_bytes(base / INDEX, MOST_BYTES))
            if document["schema_version"] == INDEX_SCHEMA:
                self._known = {name: (stamp, dict(about)) for name, (stamp, about) in document["runs"].items()}

    def find(self, run: Path) -> Mapping[str, Any] | None:
        """Return what is known of a run, None where it is not or has changed since."""
        stamp, about = self._known.get(_name(run), ("", {}))
        if not stamp or stamp != _stamp(run):
            return None
        self._kept[_name(run)] = stamp, about
        return about

    def keep(self, run: Path, about: Mapping[str, Any]) -> None:
        """Know this of a run from now on."""
        self._fresh += 1
        self._kept[_name(run)] = _stamp(run), about

    def write(self) -> None:
        """Write what was found and kept, if that is worth it; where the folder cannot be written, do nothing."""
        if self._fresh >= WORTH_KEEPING:
            with suppress(RequestError, OSError):
                content = {"schema_version": INDEX_SCHEMA, "runs": self._kept}
                write_text(self._base / INDEX, json.dumps(content))


def folders_in(base: str | Path) -> list[str]:
    """Names of the folders in a folder, without hidden ones."""
    with os.scandir(base) as entries:
        return [item.name for item in entries if item.is_dir() and not item.name.startswith(".")]


def _name(run: Path) -> str:
    return f"{run.parent.name}/{run.name}"


def _stamp(run: Path) -> str:
    """Return what changes when a run does; "" where it cannot be told."""
    try:
        folder, file = run.stat(), (run / RUN_FILE).stat()
    except OSError:
        return ""
    return f"{folder.st_mtime_ns} {file.st_mtime_ns} {file.st_size}"
