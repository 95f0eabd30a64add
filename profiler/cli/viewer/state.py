"""Holds what the viewer shows: one or two settings, to and from an address, and as commands of `predict`.

A setting is a question for `predict`, so its fields are options of that command and are checked as those are. The query
of an address has the fields of the first setting that are not at their defaults, and those of the second that differ
from the first, with "b." before their names.

Example: ``read("model=qwen3-8b&batch=16&b.batch=64")[1].batch == "64"``
"""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from calibrate.report.document import printable
from profiler.cli import options as option
from profiler.models.catalogue import catalogue
from profiler.record.run import RequestError
from roofline.dtypes import MODEL_DTYPES
from roofline.hardware.load import device_names
from roofline.reading import entry
from roofline.workload import Workload

SECOND = "b."
"""Begins the names of the second setting's fields in an address."""
LONGEST, LONGEST_QUERY, MOST_FIELDS = 400, 4000, 64
"""Characters of a value and of a whole query, and fields of a query: what-ifs and paths are shorter."""
WHAT_IF = "what-if"
CHOICES = {
    "peaks": ("auto", "datasheet", "measured", "calibrated"),
    "phase": ("decode", "prefill", "chunk"),
    "dtype": MODEL_DTYPES,
    "form": ("auto", "fused", "executed"),
}
"""The words that a field may be."""
SIZES = ("batch", "prompt", "context", "output")
"""Fields that are one whole number."""


@dataclass(frozen=True)
class Setting:
    """One question about one model on one device: options of `predict` with their texts."""

    model: str = "llama-3.1-8b"
    hardware: str = "nvidia-h100-sxm"
    peaks: str = "auto"
    phase: str = "decode"
    batch: str = "1"
    prompt: str = "2048"
    context: str = "2048"
    output: str = "256"
    dtype: str = "bfloat16"
    form: str = "auto"
    what_if: tuple[str, ...] = ()

    def check(self, runs: Collection[str]) -> "Setting":
        """The setting, if `predict` would take it. `runs` are the names of runs that have a spec.

        Raises RequestError, one line: also for a model of the hub, since the viewer fetches nothing.
        """
        if several := next((name for name in (*CHOICES, *SIZES) if "," in getattr(self, name)), None):
            raise RequestError(f"--{several}: the viewer shows one value at a time; name one")
        for name, words in CHOICES.items():
            option.words(f"--{name}", getattr(self, name), words)
        if self.model not in catalogue() and entry(Path(self.model).expanduser() / "config.json") != "file":
            raise RequestError(f"no model {self.model!r:.80} in the catalogue, and no folder with config.json")
        if self.hardware not in device_names() and self.hardware not in runs:
            raise RequestError(f"no device {self.hardware!r:.80} in the catalogue, and no such run with a spec here")
        self.asked()
        option.what_ifs(self.what_if)
        return self

    def asked(self) -> option.Asked:
        """The pass and the requests."""
        return option.Sizes(
            self.phase, self.prompt, self.context, self.batch, output=self.output
        ).asked(self.dtype)  # fmt: skip

    @property
    def workload(self) -> Workload:
        """The pass."""
        return self.asked().workloads[0]

    def arguments(self, results: Path) -> list[str]:
        """The arguments of roofcal that predict the same; `results` holds the runs."""
        options = {_name(field.name): getattr(self, field.name) for field in fields(self)}
        words = ["predict", options.pop("model")]
        for name, value in options.items():
            if name == WHAT_IF:
                words += [word for text in value for word in ("--what-if", text)]
            elif name not in ("peaks", "form") or value != "auto":
                words += [f"--{name}", value]
        return words if self.hardware in device_names() else [*words, "--results", str(results)]

    def command(self, results: Path) -> str:
        """The command line for a shell."""
        return shlex.join(["python", "-m", "profiler", *self.arguments(results)])


View = tuple[Setting, ...]
"""One setting, or two side by side."""


def read(query: str) -> View:
    """The settings of the query of an address, which are not checked yet.

    Raises RequestError, one line, for what no viewer wrote.
    """
    query = query.removeprefix("?")
    if len(query) > LONGEST_QUERY:
        raise RequestError(f"the address has {len(query)} characters after the ?, and none has above {LONGEST_QUERY}")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=MOST_FIELDS,
                          errors="strict")  # fmt: skip
    except ValueError as error:
        raise RequestError(f"the address cannot be read ({error}); copy the whole link") from error
    sides: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    known = {_name(field.name): field.name for field in fields(Setting)}
    for key, value in pairs:
        name = key.removeprefix(SECOND)
        if name not in known:
            raise RequestError(f"the address names {printable(key)!r:.60}, which is nothing that the viewer shows")
        if len(value) > LONGEST or printable(value) != value:
            raise RequestError(f"the address has a {name} that is no text of at most {LONGEST} characters")
        texts = sides[key.startswith(SECOND)].setdefault(known[name], [])
        if texts and name != WHAT_IF:
            raise RequestError(f"the address has {printable(key)} twice; name it once")
        texts.append(value)
    first = replace(Setting(), **_values(sides[0]))
    return (first, replace(first, **_values(sides[1]))) if sides[1] else (first,)


def _values(texts: dict[str, list[str]]) -> dict[str, Any]:
    return {name: tuple(filter(None, values)) if name == "what_if" else values[0] for name, values in texts.items()}


def query(view: Sequence[Setting]) -> str:
    """The query of an address that shows the same, with the ? before it; "" for the first look."""
    pairs = _differing(view[0], Setting())
    if len(view) > 1:
        pairs += [(SECOND + name, value) for name, value in _differing(view[1], view[0]) or [("batch", view[1].batch)]]
    return f"?{urlencode(pairs)}" if pairs else ""


def _differing(setting: Setting, other: Setting) -> list[tuple[str, str]]:
    mine, theirs = asdict(setting), asdict(other)
    pairs: list[tuple[str, str]] = []
    for name, value in mine.items():
        if value != theirs[name]:
            pairs += [(_name(name), text) for text in (value or ("",) if name == "what_if" else (value,))]
    return pairs


def _name(field: str) -> str:
    """The name of a field as an option."""
    return field.replace("_", "-")
