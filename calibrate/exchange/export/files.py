"""The files of an export, in memory, and the ways to carry provenance: comments, or a JSON file beside.

Example: ``Export((File("genz.py", commented(provenance) + body),), left_out={})``
"""

import json
from dataclasses import dataclass
from typing import Any

SIDECAR = ".provenance.json"


@dataclass(frozen=True, slots=True)
class File:
    """One file, not yet written."""

    path: str
    """Relative to where the export goes."""
    content: bytes

    @classmethod
    def text(cls, path: str, content: str) -> "File":
        return cls(path, content.encode("utf-8"))


@dataclass(frozen=True, slots=True)
class Export:
    """All files of one export, the main one first."""

    files: tuple[File, ...]
    left_out: dict[str, str]
    """Field of the other tool -> why it is not there, and what that tool does then."""


def json_text(content: Any) -> str:
    """JSON as it is written to files. Raises ValueError where a number is not finite."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def sidecar(path: str, provenance: dict[str, Any]) -> File:
    """Provenance beside a file that has no room for it."""
    return File.text(path + SIDECAR, json_text(provenance))


def commented(provenance: dict[str, Any]) -> str:
    """Provenance as comment lines of Python or YAML."""
    return "".join(f"# {line}\n" for line in json_text(provenance).splitlines())


def uncommented(text: str) -> dict[str, Any]:
    """The provenance that `commented` put at the head of a file."""
    head = []
    for line in text.splitlines():
        if not line.startswith("# "):
            break
        head.append(line.removeprefix("# "))
    found: dict[str, Any] = json.loads("\n".join(head))
    return found
