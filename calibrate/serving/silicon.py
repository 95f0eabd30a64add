"""Measured times of serving engines, and the predictions for them: one file of rows, kernel tables of its devices.

A row names an engine and its version, a model, a device, the lengths of prompt and answer, the concurrency, parallel
sizes and quantisation, and the measured times to the first token and between tokens, in milliseconds (the columns of
AIConfigurator's accuracy tracking). Empty parallel sizes mean 1.

`moe_tp_size` = `moe_ep_size` = s > 1 with s² ranks is read as s ranks that share experts: the file repeats rows of s
ranks so, with the same measured times (its rule is that ranks × data-parallel ranks = moe_tp × moe_ep).
"""

import csv
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.record.files import requested
from profiler.record.run import RequestError
from roofline.dtypes import BITS, dtype_named
from roofline.reading import read_bytes
from roofline.serving.engine import UNKNOWN, Engine
from roofline.serving.replay import Load
from roofline.serving.step import Parallel, Scheme

NEEDED = ("backend", "model_path", "system", "isl", "osl", "concurrency")
MEASURED = {"ttft": "silicon_ttft_ms", "tpot": "silicon_tpot_ms"}
MOST_BYTES = 64 << 20
INFERENCEMAX = 1024
"""Lengths of InferenceMAX's runs are whole multiples of this; other runs of these files are genai-perf's, whose lengths
are all alike."""
LIKE_INFERENCEMAX: dict[str, Any] = {"least": 0.8, "waves": 10, "steady": False}
"""How InferenceMAX sends its requests (benchmarks/benchmark_lib.sh and its callers): ``--random-range-ratio 0.8``,
``--num-prompts`` ten times ``--max-concurrency``, ``--request-rate inf``, so that the first prompts arrive together."""


@dataclass(frozen=True)
class Case:
    """One row, read."""

    place: int
    engine: str
    version: str
    model: str
    system: str
    mode: str
    layer: str
    """dtype of the layers' products as the file names it, in this package's name."""
    experts: str
    ranks: int
    stages: int
    parallel: Parallel
    load: Load
    ttft_s: float | None
    tpot_s: float | None

    @property
    def is_inferencemax(self) -> bool:
        """Whether the run's lengths are those of that benchmark."""
        return _is_inferencemax(self.load.prompt_tokens, self.load.output_tokens)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file as they are. Raises RequestError, one line: no file, no CSV, a column missing."""
    with requested():
        content = read_bytes(path, MOST_BYTES, "name a CSV file of measured serving times")
    try:
        text = content.decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path} is no CSV file ({error}); name a file of measured serving times") from error
    if not rows:
        raise RequestError(f"{path} has no rows; nothing to predict")
    if lacking := [name for name in NEEDED if name not in rows[0]]:
        raise RequestError(f"{path}: missing columns {', '.join(lacking)}; name a file of measured serving times")
    return [{str(key): value or "" for key, value in row.items() if key is not None} for row in rows]


def case_of(place: int, row: Mapping[str, str]) -> Case:
    """A row as a case. Raises ValueError, one line, for a value that cannot be."""
    ranks, spread = _whole(row, "tp_size"), _whole(row, "attention_dp_size")
    moe_tp, moe_ep, stages = (_whole(row, f"{name}_size") for name in ("moe_tp", "moe_ep", "pp"))
    if moe_tp == moe_ep > 1 and ranks * spread == moe_tp * moe_ep:
        ranks, spread, moe_tp = (ranks, moe_ep, 1) if spread > 1 else (moe_ep, spread, 1)
    layer = _dtype(row.get("gemm_quant_mode", ""))
    prompt, output = _whole(row, "isl", None), _whole(row, "osl", None)
    return Case(
        place=place,
        engine=row["backend"].strip().lower(),
        version=row.get("backend_version", "").strip() or UNKNOWN,
        model=row["model_path"].strip(),
        system=row["system"].strip(),
        mode=row.get("mode", "").strip().lower(),
        layer=layer,
        experts=_dtype(row.get("moe_quant_mode", "")) if row.get("moe_quant_mode", "").strip() else layer,
        ranks=ranks,
        stages=stages,
        parallel=Parallel(spread, moe_tp, moe_ep),
        load=Load(
            max(1, math.ceil(_whole(row, "concurrency", None) / stages)),
            prompt,
            output,
            **(LIKE_INFERENCEMAX if _is_inferencemax(prompt, output) else {}),
        ),
        ttft_s=_milliseconds(row.get(MEASURED["ttft"], "")),
        tpot_s=_milliseconds(row.get(MEASURED["tpot"], "")),
    )


def scheme_of(case: Case, engine: Engine, native: tuple[str, str] | None) -> Scheme:
    """Return what runs: a checkpoint published in as many bits as the row says keeps its own scheme, and one whose
    layers are not quantised keeps those."""
    layer, experts = case.layer, case.experts
    if native is not None and BITS.get(experts, 16) == BITS[native[1]]:
        experts = native[1]
        layer = native[0] if BITS.get(layer, 16) <= BITS[native[0]] else layer
    return Scheme(layer, experts, engine.cache_bits.get(layer, 16) / 8)


def _is_inferencemax(prompt: int, output: int) -> bool:
    return prompt % INFERENCEMAX == output % INFERENCEMAX == 0


def _whole(row: Mapping[str, str], name: str, default: int | None = 1) -> int:
    text = row.get(name, "").strip()
    if not text or text.lower() == "nan":
        if default is None:
            raise ValueError(f"{name} is empty")
        return default
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{name} is {text!r:.40}, not a whole number") from error
    if not (value.is_integer() and 1 <= value <= 1 << 24):
        raise ValueError(f"{name} is {text!r:.40}, not a whole number from 1")
    return int(value)


def _dtype(text: str) -> str:
    if not text.strip() or text.strip().lower() in ("nan", "none"):
        return "bfloat16"
    found = dtype_named(text) or _of_bits(text)
    if found is None:
        raise ValueError(f"quantisation {text!r:.40} is not known; known: {', '.join(sorted(BITS))}")
    return "bfloat16" if found == "float16" else found


def _of_bits(text: str) -> str | None:
    """A scheme of as many bits as an unknown label states: "w4a16_nvfp4" (of weights), "fp8_per_tensor" (of both)."""
    weights = re.search(r"w(\d+)a(\d+)", text.lower())
    bits = re.search(r"(?<!\d)(4|8|16)(?!\d)", text)
    if weights:
        return {("4", "16"): "int4_wo", ("8", "16"): "int8_wo", ("4", "8"): "w4afp8", ("8", "8"): "float8_e4m3fn",
                ("4", "4"): "nvfp4"}.get((weights[1], weights[2]))  # fmt: skip
    return {"4": "nvfp4", "8": "float8_e4m3fn", "16": "bfloat16"}[bits[1]] if bits else None


def _milliseconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value / 1e3 if math.isfinite(value) and value > 0 else None
