"""`predict --find`: the configurations that serve the most tokens within a target. Wiring only.

Options become devices, degrees and a target, which `roofline.serving.find` searches and `calibrate.report.found`
reports.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.cli import options as option
from profiler.cli.output import show, stdout_to_stderr_if
from profiler.cli.vain import listed
from profiler.record.files import replacing, require_separate
from profiler.record.run import RequestError
from roofline.dtypes import BITS
from roofline.hardware.spec import OUTWARD, facts_of
from roofline.serving.engine import Engine, asked_engine
from roofline.serving.find import Degrees, Seller, Target, search
from roofline.serving.predict import MOST_SEQUENCES
from roofline.serving.step import Pricer, Scheme

TAKEN = frozenset({
    "--model", "--find", "--over", "--cost", "--engine", "--hardware", "--prompt", "--output", "--peaks",
    "--bits-of-checkpoint", "--results", "--html", "--csv", "--as-json",
})  # fmt: skip
"""Options of `predict` that a search answers to."""
ENGINE = "vllm"
OUTPUT_TOKENS = 256
CHECKPOINT = "checkpoint"
"""Name of the dtypes of a quantised checkpoint."""
DTYPES = ("bfloat16", "float8_e4m3fn")
TIME = re.compile(r"(\d+(?:\.\d+)?(?:e-?\d+)?)(ms|s|)")
AXES = {"tp": "tensor", "pp": "stages", "ep": "experts", "batch": "batch"}
"""Name of an axis of --over -> the degree."""
MOST = 50_000
"""Most configurations of a search; 2,000 take about two seconds."""


@dataclass(frozen=True)
class Question:
    """The options, as `predict` was given them."""

    find: str
    over: Sequence[str]
    cost: Sequence[str]
    engine: str | None
    model: str | None
    hardware: Sequence[str]
    prompt: str
    output: str | None
    peaks: str
    stored_bits: bool
    results: Path
    html: Path | None
    csv: Path | None


def predict_found(asked: Question, written: frozenset[str], as_json: bool) -> None:
    """Search, print, and write what is asked for. Raises RequestError, one line, for what cannot be searched."""
    from calibrate.report.found import found_csv, found_document, found_json
    from profiler.models.catalogue import silence
    from profiler.models.resolve import layer_count, resolve
    from profiler.models.served import native_dtypes, served_model, served_name

    if vain := written - TAKEN:
        raise RequestError(f"{listed(vain)} means nothing to --find; leave it out, or leave --find out")
    if asked.model is None:
        raise RequestError("--find searches for a model; name one")
    if not asked.hardware:
        raise RequestError("name the devices to search with --hardware, as nvidia-h100-sxm,amd-mi300x")
    require_separate({"--csv": asked.csv, "--html": asked.html}, [])
    target, axes = _target(asked), _axes(asked.over)
    with option.one_line(), stdout_to_stderr_if(as_json):
        engine, notes = asked_engine(asked.engine or ENGINE)
        sellers = _sellers(asked)
        silence()
        name = served_name(asked.model)
        native = native_dtypes(name) if asked.stored_bits else None
        schemes = _schemes(axes.pop("dtype", None), native, engine)
        degrees = Degrees(**{AXES[axis]: option.distinct(f"--over {axis}", text) for axis, text in axes.items()})
        number = len(sellers) * len(schemes) * math.prod(len(getattr(degrees, field)) for field in AXES.values())
        if number > MOST:
            raise RequestError(f"--find would search {number:,} configurations; use fewer values, for at most {MOST:,}")
        if max(degrees.batch) > MOST_SEQUENCES:
            raise RequestError(f"--over batch: an engine holds at most {MOST_SEQUENCES} sequences")
        layers = layer_count(resolve(name).config)
        found = search(lambda ranks: served_model(name, ranks), layers, engine, schemes, sellers, degrees, target)
        unlawed = [seller.name for seller in sellers if not seller.pricer.laws]
        if unlawed:
            notes.append(f"no law of {', '.join(unlawed)} prices a kernel: all have the datasheet's price; calibrate")
        if any(offer.place.devices > 8 for offer in found.meeting):
            notes.append("more than 8 devices are priced as if one link joined all of them")
    if asked.csv is not None:
        with replacing(asked.csv) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            found_csv(found, file)
    title = f"{asked.model} on {engine.name}"
    about = (title, found, notes)
    show(as_json, lambda: found_json(*about), lambda: found_document(*about), html=asked.html)


def _target(asked: Question) -> Target:
    times: dict[str, float] = {}
    for part in asked.find.split(","):
        name, _, text = part.strip().partition("=")
        match = TIME.fullmatch(text.strip())
        seconds = float(match[1]) * (1e-3 if match[2] == "ms" else 1.0) if match else 0.0
        if name not in ("ttft", "tpot") or f"{name}_s" in times or not 0 < seconds < math.inf:
            raise RequestError(f"--find takes the longest times, as ttft=500ms,tpot=30ms; not {asked.find!r:.60}")
        times[f"{name}_s"] = seconds
    lengths = [
        option.distinct("--prompt", asked.prompt),
        option.distinct("--output", asked.output or str(OUTPUT_TOKENS)),
    ]
    if any(len(each) != 1 for each in lengths):
        raise RequestError("--find takes one --prompt and one --output")
    return Target(lengths[0][0], lengths[1][0], **times)


def _axes(over: Iterable[str]) -> dict[str, str]:
    axes: dict[str, str] = {}
    for text in over:
        name, _, values = text.partition("=")
        if name not in (*AXES, "dtype") or not values or name in axes:
            raise RequestError(
                f"--over takes NAME=VALUES once of {', '.join(AXES)}, dtype, as tp=1,2,4; not {text!r:.60}"
            )
        axes[name] = values
    return axes


def _sellers(asked: Question) -> list[Seller]:
    costs: dict[str, float] = {}
    for text in asked.cost:
        name, _, value = text.partition("=")
        try:
            costs[name] = float(value)
        except ValueError:
            costs[name] = 0.0
        if name not in asked.hardware or not 0 < costs[name] < math.inf:
            raise RequestError(f"--cost takes DEVICE=COST of an hour, of a device of --hardware; not {text!r:.60}")
    sellers = []
    for name in asked.hardware:
        spec = option.device(name, asked.peaks, asked.results).spec
        facts, peaks = facts_of(spec), spec.datasheet or spec.measured
        if facts.cores or peaks is None:
            raise RequestError(f"{spec.name} is a CPU; --find describes what engines run on GPUs")
        laws = {} if asked.peaks == "datasheet" else {(law.kind, law.dtype): law for law in spec.calibrated}
        link = next((peaks.links[kind] for kind in OUTWARD if kind in peaks.links), None)
        memory = peaks.levels[-1].capacity_bytes or math.inf
        sellers.append(Seller(spec.name, Pricer(laws, facts), memory, link, costs.get(name)))
    return sellers


def _schemes(text: str | None, native: tuple[str, str] | None, engine: Engine) -> dict[str, Scheme]:
    """The dtypes of --over; those of a quantised checkpoint where none are asked for."""
    names = option.dtypes(text) if text else (CHECKPOINT,) if native else DTYPES
    schemes = {}
    for name in names:
        if name != CHECKPOINT and name not in BITS:
            raise RequestError(f"--over dtype: {name!r:.40} is not known; known: {', '.join(sorted(BITS))}")
        if name == CHECKPOINT and native is None:
            raise RequestError("--over dtype: the checkpoint is not quantised; name a dtype, as bfloat16")
        layer, experts = native if native and name == CHECKPOINT else (name, name)
        schemes[name] = Scheme(layer, experts, engine.cache_bits.get(layer, 16) / 8)
    return schemes
