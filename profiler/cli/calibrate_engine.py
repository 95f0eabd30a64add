"""`calibrate --engine`: an engine's constants from the result files of a benchmark, or from timelines. Wiring only."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from profiler.cli import options as option
from profiler.cli.output import show, stdout_to_stderr_if
from profiler.record.files import require_separate, write_text
from profiler.record.run import RequestError
from roofline.hardware.spec import facts_of
from roofline.serving.engine import asked_engine
from roofline.serving.predict import engine_constants
from roofline.serving.replay import Load, replay
from roofline.serving.step import Parallel, Pricer, Scheme
from roofline.serving.surface import Surface, surfaces

TIMELINES = (".gz", ".sqlite", ".pt.trace.json", ".nsys-rep")
"""Ends of the names of timelines; others are results of a benchmark."""


@dataclass(frozen=True)
class Question:
    """The options, as `calibrate` was given them."""

    files: Sequence[str]
    engine: str
    model: str | None
    ranks: int | None
    dtype: str | None
    hardware: str | None
    out: Path | None
    results: Path


def calibrate_engine(asked: Question, as_json: bool) -> None:
    """Fit, write and print. Raises RequestError, one line, for files that cannot be read or say too little."""
    from calibrate.report.server import server_document, server_json
    from calibrate.serving.bench import BenchStep, read_bench, steps_of
    from calibrate.serving.from_results import Seen, fit_server
    from profiler.attribution.engine import read_ranks
    from profiler.models.catalogue import silence
    from profiler.models.served import native_dtypes, served_model, served_name

    if asked.hardware is None:
        raise RequestError("--engine needs the device whose laws price its kernels; name a spec with --hardware")
    out = asked.out or Path("engine.json")
    paths = [Path(name) for name in asked.files]
    require_separate({"--out": out}, [*paths, Path(asked.hardware)])
    if out.suffix != ".json":
        raise RequestError(f"--out {out}: the description of an engine is a .json file; name one")
    with option.one_line(), stdout_to_stderr_if(as_json):
        silence()
        engine, notes = asked_engine(asked.engine)
        spec = option.find_hardware(asked.hardware, asked.results)[0]
        facts, peaks = facts_of(spec), spec.datasheet or spec.measured
        memory = (peaks.levels[-1].capacity_bytes if peaks else None) or float("inf")
        pricer = Pricer({(law.kind, law.dtype): law for law in spec.calibrated}, facts)
        if not pricer.laws:
            notes.append(f"no law of {spec.name} prices a kernel: factors then hold the datasheet's error")
        known: dict[tuple[str, int], Surface] = {}

        def surface(model: str | None, ranks: int | None, file: str) -> Surface:
            name = served_name(asked.model or model or "")
            if not name:
                raise RequestError(f"{file} does not name its model; name it with --model")
            key = name, asked.ranks or ranks or 1
            if key not in known:
                layer, experts = native_dtypes(name) or ("bfloat16", "bfloat16")
                if asked.dtype is not None:
                    layer = experts = option.dtype(asked.dtype)
                scheme = Scheme(layer, experts, engine.cache_bits.get(layer, 16) / 8)
                rank = served_model(*key)
                known[key] = surfaces([(rank, engine, scheme, Parallel(moe_tp=key[1]))], pricer, memory)[0]
            return known[key]

        constants, seen = engine_constants(engine), list[Seen]()
        for path in paths:
            if path.name.endswith(TIMELINES):
                steps: list[BenchStep] = [step for rank in read_ranks(path) for step in steps_of(rank)]
                if not steps:
                    raise RequestError(f"{path} has no step whose annotation states its work; give results or another")
                for number, step in enumerate(steps):
                    own = surface(None, None, path.name)
                    sizes = step.sequences, step.keys, step.new, step.before, max(step.prompts, 1.0)
                    seen.append(Seen(f"{path.name} step {number}", np.array(own.terms(*sizes)), step.time_s))
                continue
            for result in read_bench(path):
                own = surface(result.model, result.ranks, path.name)
                if result.prompt_tokens + result.output_tokens > own.most_tokens:
                    raise RequestError(f"{path}: a request of it does not fit beside the weights; is --tp right?")
                load = Load(result.concurrency, result.prompt_tokens, result.output_tokens)
                seen.append(Seen(path.name, replay(own, load, constants, engine).token, result.tpot_s))
        fitted = fit_server(engine, seen, facts, foreign=not pricer.laws)
        day = datetime.now(UTC).date().isoformat()
        described = fitted.described(f"fitted to {len(seen)} times of a server on {spec.name}, {day}")
        write_text(out, f"[{described.model_dump_json(indent=1)}]\n")
    show(as_json, lambda: server_json(out, fitted, notes), lambda: server_document(out, fitted, notes), kept=out)
