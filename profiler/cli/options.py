"""Turns the texts of options into numbers, words, workloads, devices and what-ifs; an error is one line.

Example: ``Lengths(prompts=(128,), contexts=(1024,), batches=(1,), dtype="bfloat16").workloads("decode")``
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, get_args

import typer
from typer import Argument, Option

from profiler.cli.help import hardware_names, model_names
from profiler.record.files import RUN_FILE
from profiler.record.folder import RunFolder, find_run
from profiler.record.run import MOST_THREADS, MOST_VISITS, Environment, RequestError
from roofline.dtypes import MODEL_DTYPES, dtype_named
from roofline.hardware.load import device_names, implausible, load_device
from roofline.hardware.spec import Figure, HardwareSpec, Link, Peaks, doubted, far_below
from roofline.reading import entry
from roofline.workload import Logits, Workload

if TYPE_CHECKING:  # `predict` alone uses these
    from roofline.predict.question import Device
    from roofline.whatif.registry import WhatIf

Phases = Annotated[str, Option(help="Phases: prefill, decode, chunk (a prompt after a filled KV cache).")]
Prompts = Annotated[str, Option(help="New tokens of each sequence in prefill and chunk, as 128,2048.")]
Contexts = Annotated[str, Option(help="Tokens in the KV cache before decode and chunk, as 1024,16384.")]
Batches = Annotated[str, Option(help="Sequences in a batch, as 1,8,64.")]
Attention = Annotated[str, Option(help="Attention implementation of transformers, as sdpa or eager.")]
Experts = Annotated[str, Option(help="Experts implementation of transformers, as grouped_mm or eager.")]
Cache = Annotated[str, Option(help="Kind of KV cache: dynamic or static.")]
TrustRemoteCode = Annotated[bool, Option("--trust-remote-code", help="Run code that comes with a model.")]
DeviceName = Annotated[str, Option(help="Device to measure: cpu, cuda, cuda:1, or auto (a GPU where there is one).")]
Threads = Annotated[
    int | None, Option(help="CPU threads of an operation. Default: torch's choice.", min=1, max=MOST_THREADS)
]
Out = Annotated[Path, Option(help="Folder in which the run's folder is made.")]
Name = Annotated[str, Option(help="Name of the run, as `list` shows it.")]
Visits = Annotated[
    int, Option(help="How often calibration measures each kernel; use more on a busy machine.", min=1, max=MOST_VISITS)
]
WaitQuiet = Annotated[
    float,
    Option(
        help="Before measuring, wait at most this long for other work on this machine to end.",
        metavar="SECONDS",
        min=0,
        max=86400,
    ),
]
Hardware = Annotated[
    str | None,
    Option(
        help="A device's name ('list' lists them), its JSON file, a run's folder or name, or 'last'.",
        autocompletion=hardware_names,
    ),
]
HardwareList = Annotated[
    str | None,
    Option(
        help="A device's name ('list' lists them), its JSON file, a run's folder or name, or 'last'; several with "
        "commas are shown side by side.",
        autocompletion=hardware_names,
    ),
]
Results = Annotated[Path, Option(help="Folder that holds the runs.")]
Csv = Annotated[Path | None, Option(help="Also write CSV: a row for each layer, figure or kernel.")]
Html = Annotated[Path | None, Option(help="Also write the report as an HTML page that opens offline.")]
AsJson = Annotated[bool, Option("--json", help="Print one JSON document on stdout, everything else on stderr.")]
"""Options that several verbs have."""

MODEL = Argument(
    metavar="MODEL", help="Name in the catalogue, folder with config.json, or hub id.", autocompletion=model_names
)
"""The argument that names a model."""

MOST_TOKENS = 2**40
"""Batch × tokens must be below, so that sizes in bytes stay within the 64-bit integers that torch counts in."""

MOST_VALUES = 10_000
"""Most values of one option: a sweep of all pairs of two such options has 10⁸ workloads."""

MOST_OUTPUT = 2**24
"""Most output tokens of a request: more than any context, and each of them is priced."""

PART = re.compile(r"^([0-9]{1,13})x([0-9]{1,13})(?:@([0-9]{1,13}))?$")
"""A part of a mixed batch: sequences x new tokens @ cached tokens."""

SIZES = frozenset({"--phase", "--prompt", "--context", "--batch", "--logits"})
"""Options that choose the passes."""

SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?$", re.IGNORECASE)
"""A size with its unit: 2GiB is 2 × 2³⁰ bytes, 2GB 2 × 10⁹."""


def finite(value: float | None) -> float | None:
    """The value of an option with bounds, which NaN passes."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value:g} is no finite number")
    return value


@contextmanager
def one_line() -> Iterator[None]:
    """Within it, a ValueError of the analytical side becomes a RequestError."""
    try:
        yield
    except ValueError as error:
        raise RequestError(str(error)) from error


def numbers(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    """Whole numbers separated by commas, as they were written."""
    parts = text.split(",")
    if len(parts) > MOST_VALUES:
        raise RequestError(f"{option} has {len(parts)} values; use at most {MOST_VALUES}")
    try:
        values = tuple(int(part) for part in parts)
    except ValueError:  # more than 4,300 digits as well
        raise RequestError(f"{option} takes whole numbers separated by commas, as 128,2048; not {text!r:.60}") from None
    if min(values) < least:
        raise RequestError(f"{option} takes whole numbers from {least}; not {text!r:.60}")
    if max(values) >= MOST_TOKENS:
        raise RequestError(f"{option} {max(values)!s:.60} is beyond any memory; use less than {MOST_TOKENS}")
    return values


def shard_of(text: str) -> tuple[int, int]:
    """(1, 2) of "1/2". Raises RequestError for anything that is no part of a whole."""
    number, slash, count = text.partition("/")
    if not (slash and number.isascii() and count.isascii() and number.isdigit() and count.isdigit()):
        raise RequestError(f"--shard takes a number of how many, as 1/4; not {text!r:.40}")
    if len(count) > 6 or not 1 <= int(number) <= int(count):
        raise RequestError(f"--shard {text:.40}: the number goes from 1 to the number of shards, as 1/4")
    return int(number), int(count)


def words(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Known words separated by commas, each kept once."""
    parts = [word.strip() for word in text.split(",")]
    for word in parts:
        if word not in known:
            near = get_close_matches(word, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RequestError(f"{option} takes {', '.join(known)}; not {word!r:.60}{hint}")
    return tuple(dict.fromkeys(parts))


def listed_apart(texts: Iterable[str]) -> list[str]:
    """The words of an option that may be repeated, each of which may be a list with commas; each word once."""
    return list(dict.fromkeys(word.strip() for text in texts for word in text.split(",")))


def distinct(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas, each kept once."""
    return tuple(dict.fromkeys(numbers(option, text)))


def dtype(name: str) -> str:
    """The long name of a dtype: "bfloat16" for bf16; an unknown name as it is, for the option's own refusal."""
    return dtype_named(name) or name


def dtypes(names: str) -> tuple[str, ...]:
    """The long names of dtypes separated by commas, each kept once."""
    return tuple(dict.fromkeys(map(dtype, names.split(","))))


def size_bytes(option: str, text: str) -> float:
    """Bytes of a size, as 2GiB, 500MB or 2e9. Raises RequestError for anything else."""
    if match := SIZE.match(text.strip()):
        number, prefix, binary = match.groups()
        return float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " ")
    raise RequestError(f"{option} takes a size, as 2GiB or 500MB; not {text!r}")


@dataclass(frozen=True)
class Lengths:
    """Sizes of the options; every combination is one workload."""

    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    dtype: str
    logits: Logits = "last"

    def workloads(self, phases: Sequence[str]) -> tuple[Workload, ...]:
        shapes: list[tuple[int, int]] = []
        for phase in phases:
            queries = (1,) if phase == "decode" else self.prompts
            contexts = (0,) if phase == "prefill" else self.contexts
            shapes += itertools.product(queries, contexts)
        return tuple(
            workload(batch, query, context, self.dtype, self.logits if query > 1 else "last")
            for query, context in dict.fromkeys(shapes)
            for batch in self.batches
        )

    def requests(self, outputs: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
        """(batch, prompt, output) of whole requests."""
        if max(outputs) > MOST_OUTPUT:
            raise RequestError(f"--output {max(outputs)} is beyond any request; use at most {MOST_OUTPUT}")
        for batch, prompt, output in itertools.product(self.batches, self.prompts, outputs):
            workload(batch, prompt + output, 0, self.dtype)
        return tuple(itertools.product(self.batches, self.prompts, outputs))


@dataclass(frozen=True)
class Asked:
    """The passes and requests that are asked of a model."""

    LISTS: ClassVar = ("workloads", "mixes", "requests")
    dtype: str
    workloads: tuple[Workload, ...]
    mixes: tuple[tuple[Workload, ...], ...] = ()
    requests: tuple[tuple[int, int, int], ...] = ()
    """(batch, prompt tokens, output tokens)."""


@dataclass(frozen=True)
class Sizes:
    """The texts of the options that choose passes and requests."""

    phase: str = "prefill,decode"
    prompt: str = "2048"
    context: str = "2048"
    batch: str = "1"
    logits: str = "last"
    mix: tuple[str, ...] = ()
    output: str | None = None

    def lengths(self, dtype: str) -> Lengths:
        """The sizes as numbers. Raises RequestError for an option that is none."""
        scope: Logits = "all" if words("--logits", self.logits, get_args(Logits))[0] == "all" else "last"
        texts = {"--prompt": self.prompt, "--context": self.context, "--batch": self.batch}
        prompts, contexts, batches = (distinct(name, text) for name, text in texts.items())
        return Lengths(prompts, contexts, batches, dtype, scope)

    def asked(self, dtype: str) -> Asked:
        """Return all passes and requests. Raises RequestError as `lengths` does."""
        lengths = self.lengths(dtype)
        workloads = lengths.workloads(words("--phase", self.phase, ("prefill", "decode", "chunk")))
        mixes = tuple(mixed(text, dtype) for text in self.mix)
        requests = lengths.requests(distinct("--output", self.output)) if self.output is not None else ()
        return Asked(dtype, workloads, mixes, requests)


def workload(batch: int, query: int, context: int, dtype: str, logits: Logits = "last") -> Workload:
    """A workload. Raises RequestError for a size that no memory holds, or a dtype that no model is built in."""
    if batch * (query + context) >= MOST_TOKENS:
        raise RequestError(f"{batch} sequences of {query + context} tokens are beyond any memory; ask for fewer")
    if dtype not in MODEL_DTYPES:
        raise RequestError(f"--dtype {dtype}: no model can be built in it; use {', '.join(MODEL_DTYPES)}")
    return Workload(batch=batch, query_tokens=query, context_tokens=context, dtype=dtype, logits=logits)


def mixed(text: str, dtype: str) -> tuple[Workload, ...]:
    """The parts of one step of a mixed batch, from "1x512@0,32x1@1024"."""
    parts = [PART.match(part) for part in text.split(",")]
    if not all(parts) or any(int(part[1]) * int(part[2]) == 0 for part in parts if part):
        raise RequestError(f"--mix takes SEQUENCESxNEW@CACHED,…, as 1x512@0,32x1@1024; not {text!r:.60}")
    return tuple(workload(int(p[1]), int(p[2]), int(p[3] or 0), dtype) for p in parts if p)


def what_ifs(texts: Sequence[str]) -> "list[WhatIf]":
    """Changes of the graph, in the order in which they are applied."""
    from roofline.whatif.registry import ordered, parse

    with one_line():
        return ordered([parse(text) for text in texts])


def hardware_list(text: str | None) -> list[str]:
    """The devices of --hardware, each once; a file whose name has a comma is one device."""
    if text is None:
        return []
    parts = [text] if entry(text) is not None else [part.strip() for part in text.split(",")]
    if "" in parts:
        raise RequestError(
            f"--hardware takes devices separated by commas, as nvidia-h100-sxm,amd-mi300x; not {text!r:.60}"
        )
    return list(dict.fromkeys(parts))


def link(text: str) -> tuple[str, float, float | None]:
    """The name, bytes/s and latency in seconds of a link, from "network=50e9,5e-6"; without a latency, None."""
    name, _, figures = text.partition("=")
    parts = figures.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if not name or len(numbers) not in (1, 2):
        raise RequestError(f"--link takes NAME=BYTES_PER_S,SECONDS, as network=50e9,5e-6; not {text!r}")
    problems = [*implausible("bandwidth", "link_bandwidth", numbers[0])]
    problems += (problem for latency_s in numbers[1:] for problem in implausible("latency", "time_s", latency_s))
    if problems:
        raise RequestError(f"--link {text}: {problems[0].field}: {problems[0].what}")
    return name, numbers[0], numbers[1] if len(numbers) > 1 else None


def with_links(peaks: Peaks, texts: Sequence[str]) -> Peaks:
    """Peaks with the links of --link; of a link that the device has, how its devices are joined stays as it is."""
    links = dict(peaks.links)
    for name, bytes_per_s, latency_s in map(link, texts):
        source = "given with --link"
        figures: dict[str, Figure] = {"bandwidth": Figure(value=bytes_per_s, source=source)}
        if latency_s is not None:
            figures["latency_s"] = Figure(value=latency_s, source=source)
        known = links.get(name) or Link(bandwidth=figures["bandwidth"], direct=True)
        links[name] = known.model_copy(update=figures)
    return peaks.model_copy(update={"links": links})


def linked(changes: "Sequence[WhatIf]", on: "Device") -> "list[WhatIf]":
    """The changes with the links of a device."""
    from roofline.whatif.registry import linked as with_own_links

    with one_line():
        return with_own_links(changes, on.peaks, on.spec.name)


def find_hardware(name: str, results: Path) -> tuple[HardwareSpec, RunFolder | None]:
    """The spec that `name` stands for, and the run that it lies in, if any.

    A name is a device's, a JSON file, a run's folder, the end of its name, or "last", in this order. Raises
    RequestError, one line, where it is none of them, or a run has no spec yet.
    """
    path, run = Path(name), None
    if name not in device_names():
        folders = Path(results).glob("*/*/") if entry(Path(results)) == "folder" else ()
        is_end = any(folder.as_posix().endswith(name.rstrip("/")) for folder in folders)
        if name == "last" or entry(path) == "folder" or (path.suffix != ".json" and is_end):
            run = find_run(str(path), results)
        elif path.name == "spec.json" and entry(path.parent / RUN_FILE) is not None:
            run = RunFolder.open(path.parent)
    if run is None:
        with one_line():
            return load_device(path if path.suffix == ".json" else name), None
    if (spec := run.read_spec()) is None:
        raise RequestError(f"{run.path} has no spec yet; finish it: python -m profiler hardware --resume {run.path}")
    return spec, run


def device(name: str, peaks: str, results: Path, links: Sequence[str] = ()) -> "Device":
    """A device, its peaks or laws, and links by hand; "auto" takes laws, else measured peaks, else the datasheet."""
    spec, _ = find_hardware(name, results)
    return device_of(spec, name, peaks, links)


def device_of(spec: HardwareSpec, name: str, peaks: str, links: Sequence[str] = ()) -> "Device":
    """As `device`, but of a spec; `name` is that of errors."""
    from roofline.predict.question import CALIBRATED, Device

    wanted = words("--peaks", peaks, ("auto", "datasheet", "measured", CALIBRATED))[0]
    if wanted == CALIBRATED and not spec.calibrated:
        raise RequestError(f"{name} has no calibrated laws; calibrate it, or use --peaks auto")
    if wanted == "auto" and spec.calibrated:
        wanted = CALIBRATED
    known = {"measured": spec.measured, "datasheet": spec.datasheet}
    for origin in (wanted,) if wanted in known else known:
        if (peaks_of := known[origin]) is not None:
            priced_by = CALIBRATED if wanted == CALIBRATED else origin
            notes = tuple(device_notes(spec, peaks_of))
            return Device(spec, with_links(peaks_of, links), priced_by, notes)
    raise RequestError(f"{name} has no {wanted} peaks; use --peaks auto or another device")


def device_notes(spec: HardwareSpec, peaks: Peaks) -> list[str]:
    """Limits of the worth of the figures that price, a sentence each."""
    doubts = doubted(peaks) | far_below(peaks)
    return [f"{spec.name}: the figure of {name} is doubted: {why}" for name, why in doubts.items()]


def measured_figures(name: str, results: Path) -> HardwareSpec:
    """The figures and laws of --hardware. Raises RequestError, one line, where nothing in them is measured."""
    spec, _ = find_hardware(name, results)
    if spec.measured is None:
        raise RequestError(f"--hardware: {name} holds nothing measured; leave it out, or name the spec.json of a run")
    return spec


def measured_spec(name: str, environment: Environment, results: Path) -> HardwareSpec:
    """The figures of --hardware, if they are this device's. Raises RequestError, one line, where they are not."""
    spec = measured_figures(name, results)
    if environment.device not in (spec.name, *spec.matches):
        raise RequestError(
            f"--hardware: {name} describes {spec.name}, but this device is {environment.device}; leave it out"
        )
    return spec
