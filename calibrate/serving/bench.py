"""Measured times of one server: result files of `vllm bench serve --save-result`, and steps of its timelines.

A result file holds one JSON object, or one in each line (`--append-result`); `benchmark_serving.py` and SGLang's
`bench_serving` write the same names (vllm/benchmarks/serve.py, sglang/bench_serving.py):

    model_id, tp (of --metadata)                       the model, and the ranks that divide it
    completed, total_input_tokens, total_output_tokens the requests' number and mean lengths
    max_concurrency, request_rate, num_prompts         how they were sent
    duration, mean_e2el_ms, mean_ttft_ms               seconds and milliseconds, for the number in flight
    median_tpot_ms, else mean_tpot_ms                  what is fitted

Example: ``read_bench(Path("vllm-infqps-concurrency8.json"))[0].tpot_s``
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.record.engine_trace import StepRow, TraceRank
from profiler.record.files import requested
from profiler.record.run import RequestError
from roofline.reading import parse_json, read_bytes

MOST_BYTES = 256 << 20
"""With --save-detailed a file holds every token's time."""
MEND = "name a file that vllm bench serve --save-result wrote"
RANKS = ("tp", "tp_size", "tensor_parallel_size", "tensor_parallel")
"""Names by which metadata state the ranks."""
LEAST_OUTPUT = 2
"""Tokens of an answer that has a time between two of them."""


@dataclass(frozen=True)
class BenchResult:
    """One benchmark of a server."""

    file: str
    model: str | None
    ranks: int | None
    """None where the file does not say."""
    concurrency: int
    """Requests in flight: as many as were allowed, all where they were sent at once, else by Little's law."""
    prompt_tokens: int
    output_tokens: int
    tpot_s: float


@dataclass(frozen=True)
class BenchStep:
    """One step of a timeline."""

    file: str
    sequences: float
    """Decoding sequences."""
    keys: float
    """Mean keys of each."""
    new: float
    """Tokens of prompts."""
    before: float
    """Mean cached tokens before them."""
    prompts: float
    time_s: float


def read_bench(path: Path) -> list[BenchResult]:
    """The benchmarks of a file. Raises RequestError, one line: no file, no JSON, a field missing or impossible."""
    with requested():
        content = read_bytes(path, MOST_BYTES, MEND)
    documents = []
    try:
        documents = [parse_json(content)]
    except ValueError:
        lines = [line for line in content.splitlines() if line.strip()]
        try:
            documents = [parse_json(line) for line in lines]
        except ValueError as error:
            raise RequestError(f"{path} is no JSON of a benchmark ({error}); {MEND}") from error
    return [_result(path, document) for document in documents]


def _result(path: Path, document: Any) -> BenchResult:
    if not isinstance(document, Mapping):
        raise RequestError(f"{path} holds no JSON object; {MEND}")

    def number(*names: str, least: float = 0.0) -> float:
        for name in names:
            value = document.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                if value > least:
                    return float(value)
                raise RequestError(f"{path}: {name} is {value:g}, not above {least:g}; {MEND}")
        raise RequestError(f"{path}: {' or '.join(names)} is missing or no number; {MEND}")

    completed = number("completed")
    prompt, output = number("total_input_tokens") / completed, number("total_output_tokens") / completed
    if output < LEAST_OUTPUT:
        raise RequestError(f"{path}: answers of {output:.3g} tokens have no time between tokens; ask for longer ones")
    tpot_s = number("median_tpot_ms", "mean_tpot_ms") / 1e3
    if document.get("max_concurrency") is not None:
        concurrency = min(number("max_concurrency"), completed)
    elif document.get("request_rate") in ("inf", None):
        concurrency = completed
    else:
        whole_s = (
            number("mean_e2el_ms") / 1e3
            if "mean_e2el_ms" in document
            else number("mean_ttft_ms") / 1e3 + tpot_s * (output - 1)
        )
        concurrency = completed * whole_s / number("duration")
    model = document.get("model_id")
    ranks = next((document[name] for name in RANKS if name in document), None)
    return BenchResult(
        path.name,
        model if isinstance(model, str) and model else None,
        int(ranks) if isinstance(ranks, int | str) and str(ranks).isdecimal() and 0 < int(ranks) <= 1024 else None,
        max(1, round(concurrency)),
        max(1, round(prompt)),
        round(output),
        tpot_s,
    )


def steps_of(rank: TraceRank) -> Iterator[BenchStep]:
    """Steps of a timeline whose annotations state their work, each from its start to the next one's.

    The last step of a timeline has no end; where it is the only one, it is taken as long as its kernels and the host's
    work for it, whichever is longer.
    """
    known = [step for step in rank.steps if step.sizes.get("prefill_tokens", 0) + step.sizes.get("decode_tokens", 0)]
    if len(rank.steps) == 1:
        for step in known:
            yield _step(rank.file, step, max(step.span_s, step.host_s or 0.0))
        return
    following = dict(zip(map(id, rank.steps), rank.steps[1:], strict=False))
    for step in known:
        if (after := following.get(id(step))) is not None and after.start_s > step.start_s:
            yield _step(rank.file, step, after.start_s - step.start_s)


def _step(file: str, step: StepRow, time_s: float) -> BenchStep:
    sizes = step.sizes
    sequences, prompts = sizes.get("decode_sequences", 0.0), sizes.get("prefill_sequences", 0.0)
    new = sizes.get("prefill_tokens", 0.0)
    before = max(0.0, sizes.get("prefill_context", 0.0) - new) / max(prompts, 1.0)
    keys = sizes.get("decode_context", 0.0) / max(sequences, 1.0)
    return BenchStep(file, sequences, keys, new, before, prompts, time_s)
