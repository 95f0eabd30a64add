"""The journal: one line a finished cell, on disk before the next cell starts, so that a killed run keeps its cells.

A line is a `CellResult` in JSON and ends with a newline. `kill -9` can leave one unterminated last line: it counts as
not written. Anything else that does not parse was not written by us and is refused.

Example: ``append(folder / "journal.jsonl", result); read(folder / "journal.jsonl")[-1] == result``
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from profiler.record.errors import InvalidMeasurement, RequestError
from profiler.record.files import append_line, first_problem, replacing
from profiler.record.run import CellResult


def encode(result: CellResult) -> bytes:
    """One journal line. Raises InvalidMeasurement where a figure is not finite: JSON has no such number."""
    try:
        text = json.dumps(result.model_dump(mode="json"), allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise InvalidMeasurement(f"{result.cell.key}: a measured figure is not a finite number") from error
    return text.encode() + b"\n"


def append(path: Path, result: CellResult) -> None:
    """Add one result and return once it is on the disk. Raises RequestError where it cannot be written."""
    line = encode(result)
    try:
        append_line(path, line)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}; the cells before this one are kept") from error


def read(path: Path) -> list[CellResult]:
    """All results in the order they were written, without an unterminated last line. No file is no results."""
    if not path.exists():
        return []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
    return [_decode(path, number, line) for number, line in enumerate(content.split(b"\n")[:-1], start=1)]


def _decode(path: Path, number: int, line: bytes) -> CellResult:
    try:
        return CellResult.model_validate_json(line)
    except ValidationError as error:
        raise RequestError(
            f"{path} line {number} is damaged ({first_problem(error)}); delete the line to go on without its cell"
        ) from error


def drop_torn_line(path: Path) -> None:
    """Cut an unterminated last line off, so that the next append starts on a line of its own.

    Raises RequestError where it cannot be written.
    """
    if not path.exists():
        return
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            with path.open("rb+") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}") from error


def rewrite(path: Path, results: Iterable[CellResult]) -> None:
    """Replace the journal by exactly these results, whole or not at all."""
    lines = b"".join(encode(result) for result in results)
    with replacing(path) as partial:
        partial.write_bytes(lines)


def latest(results: Iterable[CellResult]) -> list[CellResult]:
    """One result a cell, the last one written, in the order in which the cells were first measured."""
    by_key: dict[str, CellResult] = {}
    for result in results:
        by_key[result.cell.key] = result
    return list(by_key.values())
