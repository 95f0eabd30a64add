"""The gate through which whatever comes from outside is read: bytes of files, JSON, and records in JSON.

Nothing passes that cannot end or cannot be meant: a pipe, a device or a folder in place of a file, more bytes than such
a file ever has, JSON nested without end, numbers that no machine word holds, NaN and infinities, a key that stands
twice, `true` in place of a number. `Unreadable` is the only error, one line that names the file and says what to do.

Example: ``read_record(Path("spec.json"), HardwareSpec, SPEC_SCHEMA)``
"""

import json
import math
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from roofline.record import Record

R = TypeVar("R", bound=Record)

MOST_BYTES = 64 << 20
"""Bytes of a JSON file: laws with all their corrections are some megabytes, and 64 MiB of JSON need 2 GB of memory."""
MOST_GRAPH_BYTES = 256 << 20
"""Bytes of a graph file: DeepSeek-V3, whose experts run one by one, has 94,000 operations of about 700 bytes."""
MOST_DEPTH = 64
"""Levels of lists and objects within each other; the records here have at most nine."""
BEYOND = 1 << 63
"""The least whole number that is refused: the arrays that figures end in hold 64 bits with a sign."""
MOST_DIGITS = 40
"""Digits of a whole number that other tools write: "no limit" is 10^30 in some configs."""
LONGEST_REASON = 200
"""Characters of a library's message that an error repeats."""

DAMAGED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors of Python where content is not of the form that the code which takes it apart expects."""

_CONSPICUOUS = re.compile(r"[0-9]{19}|[eE]\+?[0-9]{3}")
"""Digits of a number that may lie beyond `BEYOND` or the range of floats; texts may have them too."""
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class Unreadable(ValueError):
    """A file or text that is refused; the message is one line with the problem and its remedy."""


Entry = Literal["file", "folder", "special"]


def entry(path: str | Path) -> Entry | None:
    """The kind of thing at a path, links followed; None where there is nothing, or nothing can be.

    Unlike `Path.exists` it raises nothing for names that are too long, loops of links, and folders that are closed.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a null byte, or half of a surrogate pair
        return None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "special"


def read_bytes(path: str | Path, most: int = MOST_BYTES, mend: str = "restore the file") -> bytes:
    """The bytes of a regular file. `mend` is the advice where it cannot be read.

    Raises Unreadable for anything else: nothing is waited for, and no more than `most` bytes are read.
    """
    try:
        # A pipe that nobody writes to would block both the opening and the reading.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Unreadable(f"cannot read {path}: {error.strerror}; {mend}") from error
    except ValueError as error:
        raise Unreadable(f"cannot read {path}: no file has such a name; {mend}") from error
    try:
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            raise Unreadable(f"cannot read {path}: Is a directory; name a file in it")
        if not stat.S_ISREG(about.st_mode):
            raise Unreadable(f"cannot read {path}: it is a pipe or a device, which may never end; name a file")
        if about.st_size > most:
            raise Unreadable(f"{path} has {about.st_size:,} bytes, and no such file has above {most:,}; {mend}")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise Unreadable(f"cannot read {path}: {error.strerror}; {mend}") from error
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise Unreadable(f"{path} grows beyond {most:,} bytes while it is read; {mend}")
    return content


def parse_json(text: str | bytes, *, finite: bool = True, foreign: bool = False) -> Any:
    """The content of a JSON text.

    Args: `finite` refuses NaN and infinities; `foreign` lets what roofcal never writes pass, but others do: numbers
    beyond 64 bits, and a key that stands twice in an object, where the last one counts.
    Raises ValueError, one line without the name of the file.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    is_conspicuous = _CONSPICUOUS.search(text) is not None
    whole, real = (_short, None) if foreign else (_whole, _real)
    try:
        content = json.loads(
            text,
            parse_constant=_not_finite if finite else None,
            object_pairs_hook=None if foreign else _without_twins,
            parse_int=whole if is_conspicuous else None,
            parse_float=real if is_conspicuous else None,
        )
    except RecursionError:
        raise ValueError(f"nested more than {MOST_DEPTH} levels deep") from None
    level = [content]
    for _ in range(MOST_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            break
    else:
        raise ValueError(f"nested more than {MOST_DEPTH} levels deep")
    if _HALF_PAIR.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half of a surrogate pair") from None
    return content


def _short(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"the whole number {digits[:12]}… has {len(digits)} digits")
    return int(digits)


def _whole(digits: str) -> int:
    if not -BEYOND < (value := _short(digits)) < BEYOND:
        raise ValueError(f"the whole number {digits} is beyond 64 bits")
    return value


def _real(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:24]} is beyond any float")
    return value


def _not_finite(constant: str) -> float:
    raise ValueError(f"{constant} is no finite number")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which no key stands twice: of two figures the reader would keep the last in silence."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice in one object")
    return content


def schema_version(content: Any, path: str | Path, newest: int, what: str, mend: str) -> int:
    """The version that a record states. Raises Unreadable where it states none, or one that is newer than `newest`."""
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version is None:
        raise Unreadable(f"{path} is not a roofcal {what}: it has no schema_version; {mend}")
    if type(version) is not int or version < 1:
        raise Unreadable(f"{path}: schema_version is {version!r:.60}, not a whole number from 1; {mend}")
    if version > newest:
        raise Unreadable(f"{path} is from a newer roofcal (schema {version}, this one reads {newest}): update roofcal")
    return version


def record_of(record: type[R], text: str | bytes) -> R:
    """The record in a JSON text, each field of just its type: `true` is no number, and 2.5 or "2" no whole one.

    Raises ValueError, pydantic's ValidationError among them.
    """
    parse_json(text, finite=False)  # the record names the field of NaN
    return record.model_validate_json(text, strict=True)


def record_from(record: type[R], content: Any) -> R:
    """The record of content that has been parsed already, as strict as `record_of`, and with the same errors."""
    return record.model_validate_json(json.dumps(content), strict=True)


def read_record(path: Path, record: type[R], newest: int, mend: str = "restore the file", most: int = MOST_BYTES) -> R:
    """Read a versioned JSON record; `mend` is the advice where the file is missing or damaged.

    Raises Unreadable if it is missing, half-written, newer than schema `newest`, or not such a record.
    """
    text = read_bytes(path, most, mend)
    try:
        content = parse_json(text, finite=False)  # the record names the field of NaN
    except ValueError as error:
        raise Unreadable(f"{path} is half-written or damaged ({one_line(error)}); {mend}") from error
    schema_version(content, path, newest, record.__name__, mend)
    try:
        return record.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise Unreadable(f"{path} is not a valid {record.__name__}: {one_line(error)}; {mend}") from error


def one_line(error: BaseException) -> str:
    """The reason of an error in one short line; of a ValidationError the first wrong field, and why it is wrong."""
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False)[0]
        message = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    else:
        message = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return " ".join(message.split())[:LONGEST_REASON]


MOST_PROBLEMS = 20
"""Problems of one file that an error names."""


def own_errors(error: ValidationError) -> list[dict[str, Any]]:
    """Return its errors without those that follow from others: a list is too short where an element of it is wrong."""
    errors: list[dict[str, Any]] = [dict(problem) for problem in error.errors(include_url=False)]
    places = [problem["loc"] for problem in errors]

    def follows(problem: dict[str, Any]) -> bool:
        place = problem["loc"]
        return problem["type"] == "too_short" and any(
            other != place and other[: len(place)] == place for other in places
        )

    return [problem for problem in errors if not follows(problem)]


def problems_in(error: ValidationError) -> list[str]:
    """Every wrong field of a record and why it is wrong."""
    problems = []
    for problem in own_errors(error):
        place = ".".join(map(str, problem["loc"])) or "the whole"
        words = " ".join(problem["msg"].removeprefix("Value error, ").split())
        value = problem["input"]
        if problem["type"] == "extra_forbidden":
            words = "unknown field; leave it out or correct its name"
        shown = f" (it is {value!r:.60})" if isinstance(value, str | int | float | bool | None) else ""
        problems.append(f"{place}: {words[:LONGEST_REASON]}{'' if problem['type'] == 'value_error' else shown}")
    return problems


def together(problems: Sequence[str]) -> str:
    """Problems in one line, numbered where there are several."""
    if len(problems) == 1:
        return problems[0]
    listed = "; ".join(f"({i}) {problem}" for i, problem in enumerate(problems[:MOST_PROBLEMS], start=1))
    more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
    return f"{len(problems)} problems: {listed}{more}"
