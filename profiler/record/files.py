"""Files that are either whole or not there, and records that are read strictly.

A file is written beside its place and renamed into it, so that a reader (or a resumed run) never sees half of one.
A record from a newer roofcal is refused by its `schema_version` before its unknown fields are complained about.

Example: ``read_record(folder / "run.json", Run, RUN_SCHEMA)``
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from profiler.record.errors import RequestError
from roofline.record import Record

R = TypeVar("R", bound=Record)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; when the block ends well, it becomes `path`, durably, in one step.

    Raises RequestError where the place cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise RequestError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):  # the folder itself may be what could not be made
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path`, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def append_line(path: Path, line: bytes) -> None:
    """Add a whole line and return once it is on the disk. Raises OSError; the file is then as it was before."""
    with path.open("ab", buffering=0) as file:  # unbuffered: closing must not write what was taken back
        start = file.tell()
        try:
            rest = line
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), start)  # half a line in the middle would spoil the whole file
            raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; a file's own fsync does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_record(path: Path, record: type[R], newest: int, mend: str = "restore the file") -> R:
    """Read one versioned JSON record. `mend`: what to do where the file is missing or damaged.

    Raises RequestError: missing, half-written, newer than `newest`, or not one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}; {mend}") from error
    except ValueError as error:
        raise RequestError(f"{path} is half-written or damaged ({error}); {mend}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise RequestError(f"{path} is not a roofcal {record.__name__}: it has no schema_version; {mend}")
    if version > newest:
        raise RequestError(
            f"{path} is from a newer roofcal (schema {version}, this one reads {newest}): update roofcal"
        )
    try:
        return record.model_validate(content)
    except ValidationError as error:
        raise RequestError(f"{path} is not a valid {record.__name__}: {first_problem(error)}; {mend}") from error


def first_problem(error: ValidationError) -> str:
    """The first field that is wrong, in one line."""
    problem = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
