"""Describes how a serving engine runs a model: a file per engine in `roofline/engines`, a row per range of versions.

A row says which kernels the engine joins, how it batches, and the priors of its own time: what the host and the launch
of kernels cost a step, which no kernel table holds. `calibrate.serving` fits these few constants to measured steps.

Example: ``engine_named("vllm", "0.18.0").mixes`` → True: prompts and decoding sequences share a step
"""

import re
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from roofline.reading import parse_json, read_bytes
from roofline.record import Record

UNKNOWN = "unknown"
"""Version of measurements that state none: they are taken for the oldest, since files have kept versions of late."""
FOLDER = Path(__file__).parent.parent / "engines"


class Prior(Record):
    """The expectation of one constant before anything is measured."""

    value: float = Field(gt=0)
    spread: float = Field(gt=0)
    """Standard deviation of its natural logarithm."""
    source: str


class Engine(Record):
    """One engine in one range of versions."""

    name: str
    since: str = ""
    """First version of the range; "" is any. The last row whose `since` is not above a version describes it."""
    mixes: bool
    """Chunks of prompts run in the same pass as decoding sequences; otherwise in passes of their own."""
    chunk_tokens: int = Field(gt=0)
    """Most new tokens of a pass."""
    streams: dict[str, float]
    """Streaming kernels that run for one of a role (`roofline.serving.shape`): 0 where another kernel does the work.
    "attention" are those beside each attention (rotary embedding, write of the cache), "latent" beside multi-head
    latent attention, "quantise" those that convert the input of a product in 8 bits or fewer by a kernel of their own,
    "experts" beside a layer's experts."""
    by_main_library: tuple[str, ...] = ()
    """dtypes of narrow products that the library of 16-bit products runs, cuBLASLt."""
    fuses_all_reduce: bool
    """An all-reduce does the residual and the norm behind it."""
    all_reduce_bytes: int = Field(ge=0)
    """Largest buffer that goes through the engine's own all-reduce; above it through the library of collectives."""
    one_shot_tokens: int = Field(default=0, ge=0)
    """Most tokens whose own all-reduce is one exchange, in which each rank sends its whole buffer to every other; of
    more tokens it is a scatter and a gather."""
    exchange: Literal["all_to_all", "all_gather"]
    """How tokens reach the ranks of their experts where each rank has sequences of its own."""
    captures_prompts: bool
    """Passes with prompts run as captured graphs too; otherwise the host launches each kernel of them (`launch`)."""
    balance_steps: int = Field(ge=0)
    """Steps for which prompts wait for those of other ranks, where each rank has sequences of its own: all ranks wait
    for the one that runs a prompt, so prompts together cost as much as one."""
    reserves_output: bool
    """A request is admitted where its whole output fits into the cache; otherwise where its prompt does."""
    cache_bits: dict[str, int]
    """Bits of a cached element where the layers' products have a dtype; 16 for others."""
    constants: dict[str, Prior]
    """By the names of `roofline.serving.surface.TERMS`: seconds of a step, a decoding sequence, a streaming kernel and
    an all-reduce; and of a kernel that the host launches."""
    factors: dict[str, Prior] = {}
    """By the parts of a step (`roofline.serving.step.PARTS`): time of the engine's kernels ÷ that by the device's laws,
    where it was fitted to a server's times (`calibrate --engine`); 1 for those left out."""
    compared: tuple[str, ...] = ()
    """Versions whose measured steps this row was compared with."""
    sources: tuple[str, ...]


def engine_names() -> tuple[str, ...]:
    """Names of the engines that are described."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def engine_named(name: str, version: str = "") -> Engine:
    """The row of an engine and version; the newest for an unknown version. Raises ValueError for an unknown engine."""
    rows = _rows(name.lower())
    known = _number(version)
    if known is None:
        return rows[0] if version == UNKNOWN else rows[-1]
    fitting = [row for row in rows if (_number(row.since) or ()) <= known]
    return fitting[-1] if fitting else rows[0]


def asked_engine(text: str) -> tuple[Engine, list[str]]:
    """An engine by NAME or NAME:VERSION or a file that `calibrate --engine` wrote, and doubts about its description for
    that version, a sentence each.

    Raises ValueError, one line: an unknown engine, a version that is no number, or a file that cannot be read.
    """
    if text.endswith(".json"):
        return _read(Path(text), "write it again: python -m profiler calibrate --engine")[-1], []
    name, colon, version = text.partition(":")
    engine = engine_named(name, version)
    since = [row.since or "any version" for row in _rows(name.lower())]
    if colon and _number(version) is None:
        raise ValueError(
            f"--engine {name}: a version is a number, as {name}:{engine.compared[0] if engine.compared else '1.0'}; "
            f"not {version!r:.40}; described since: {', '.join(since)}"
        )
    row = f"the description since {engine.since}" if engine.since else "its only description for that version"
    known = [number for other in engine.compared if (number := _number(other))]
    if not colon:
        return engine, [f"{name} without a version is priced by its newest description"]
    if not known or not min(known)[:2] <= (_number(version) or ())[:2] <= max(known)[:2]:
        those = ", ".join(engine.compared) or "none"
        return engine, [f"{name} {version:.40} is priced by {row}, compared with measured steps of {those} alone"]
    return engine, []


@cache
def _rows(name: str) -> tuple[Engine, ...]:
    if name not in engine_names():
        raise ValueError(f"no engine {name!r:.60}; known: {', '.join(engine_names())}")
    return _read(FOLDER / f"{name}.json", "install roofcal again")


def _read(path: Path, mend: str) -> tuple[Engine, ...]:
    """The rows of an engine's file. Raises ValueError, one line, where it is damaged."""
    content = read_bytes(path, mend=mend)
    try:
        rows = parse_json(content)
        read = tuple(Engine.model_validate(row) for row in rows) if isinstance(rows, list) else ()
    except ValidationError as error:
        raise ValueError(f"{path} is damaged ({error.error_count()} fields); {mend}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); {mend}") from error
    if not read:
        raise ValueError(f"{path} describes no engine; {mend}")
    return read


def _number(version: str) -> tuple[int, ...] | None:
    """The leading numbers of a version: "0.5.6.post2" → (0, 5, 6); None for a text without."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else None
