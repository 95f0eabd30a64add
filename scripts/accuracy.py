"""Accuracy of the laws on kernels that they were not fitted to, on public tables, beside targets and simpler models.

    python scripts/accuracy.py ../shared/data [--seeds 5] [--json]

For each table, the seed draws half of its groups (weight shapes, head layouts). The law is fitted to at most `points`
kernels of that half, chosen by shape, and scored on all kernels of the other half. The script prints means over the
seeds: the errors, those of the kernels that a decode step waits for, the noise of repeated measurements where a table
has any, and the target. The fit knows the device's datasheet and nothing else. A table of a single model has too few
groups to hold out: there whole numbers of tokens are held out ("by tokens").
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.exchange.formats import import_tables
from calibrate.exchange.tables import ImportOptions
from calibrate.kernels.fit import Observations, halves, observations
from calibrate.kernels.score import DECODING, calibrate_kind
from roofline.hardware.spec import facts_of
from roofline.laws.law import Facts

H200, A100 = "aiconfigurator/h200_sxm/vllm-0.24.0/", "aiconfigurator/a100_sxm/vllm-0.14.0/"
NCCL = "aiconfigurator/h200_sxm/nccl-2.29.2/nccl_perf.parquet"
GEMM, PREFILL, DECODE, MOE = (
    f"{name}_perf.parquet" for name in ("gemm", "context_attention", "generation_attention", "moe")
)
LLAMA = {"hidden": 4096.0, "inner": 14336.0, "heads": 32.0, "kv_heads": 8.0, "head_dim": 128.0, "vocab": 128256.0}
"""Llama-3.1-8B, whose modules LLMServingSim's table holds."""

Rows = Callable[[Observations], np.ndarray]
Target = tuple[float | None, float | None, float | None]


def _plain(table: Observations) -> np.ndarray:
    return (table.dims["window"] == 0) & ~_narrow(table)


def _windowed(table: Observations) -> np.ndarray:
    return (table.dims["window"] > 0) & ~_narrow(table)


def _narrow(table: Observations) -> np.ndarray:
    return table.dims["kv_bytes"] < 2


@dataclass(frozen=True)
class Line:
    """One line of the printed table."""

    name: str
    file: str
    kind: str
    dtype: str
    target: Target
    """Mean, p90 and time-weighted error that are aimed at."""
    rows: Rows | None = None
    """Chooses rows of the table; None takes all."""
    points: int = 200
    held_out: str | None = None
    """Size whose values are held out, where the table's own groups are too few."""


LINES = (
    Line("H200 GEMM", H200 + GEMM, "matmul", "bfloat16", (0.05, 0.11, 0.045)),
    Line("H200 GEMM, 1000 points", H200 + GEMM, "matmul", "bfloat16", (0.043, None, None), points=1000),
    Line("H200 prefill", H200 + PREFILL, "prefill_attention", "bfloat16", (0.06, 0.14, 0.04), _plain),
    Line("H200 decode", H200 + DECODE, "decode_attention", "bfloat16", (0.07, 0.16, 0.07), _plain),
    Line("A100 GEMM", A100 + GEMM, "matmul", "bfloat16", (0.07, None, None)),
    Line("A100 prefill", A100 + PREFILL, "prefill_attention", "bfloat16", (0.08, None, None), _plain),
    Line("A100 decode", A100 + DECODE, "decode_attention", "bfloat16", (0.10, None, None), _plain),
    Line("H200 GEMM fp8", H200 + GEMM, "matmul", "float8_e4m3fn", (0.10, 0.22, 0.09)),
    Line("H200 GEMM fp8 block", H200 + GEMM, "matmul", "fp8_block", (0.10, 0.22, 0.09)),
    Line("H200 prefill windowed", H200 + PREFILL, "prefill_attention", "bfloat16", (0.12, 0.28, 0.08), _windowed),
    Line("H200 prefill fp8 KV", H200 + PREFILL, "prefill_attention", "bfloat16", (0.12, 0.28, 0.08), _narrow),
    Line("H200 decode windowed", H200 + DECODE, "decode_attention", "bfloat16", (0.14, 0.32, 0.14), _windowed),
    Line("H200 decode fp8 KV", H200 + DECODE, "decode_attention", "bfloat16", (0.14, 0.32, 0.14), _narrow),
    *(
        Line(f"H200 MoE {dtype}", H200 + MOE, "experts", dtype, (0.12, None, None))
        for dtype in ("bfloat16", "float8_e4m3fn", "fp8_block")
    ),
    *(
        Line(f"H200 MoE {dtype}, by tokens", H200 + MOE, "experts", dtype, (0.12, None, None), held_out="tokens")
        for dtype in ("int4_wo", "w4a16_mxfp4")
    ),
    Line("A100 MoE", A100 + MOE, "experts", "bfloat16", (0.12, None, None)),
    *(Line(f"H200 NCCL {d}", NCCL, "collective", d, (0.1, None, None)) for d in ("float16", "int8")),
    Line("H100 modules", "llmservingsim/H100/meta-llama/Llama-3.1-8B/tp1/layers.csv", "module", "bfloat16",
         (0.10, None, None)),
)  # fmt: skip

DECODE_FIGURES = ("mape", "time_weighted")
"""Figures of the kernels that a decode step waits for."""
FIGURES = ("mape", "median", "p90", "time_weighted", "bias", "coverage")


class Tables:
    """The data's files, each read once."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._read: dict[str, tuple[dict[tuple[str, str], Observations], Facts]] = {}

    def of(self, line: Line) -> tuple[Observations, Facts]:
        """The kernels of a line, and what the laws know of their device."""
        if line.file not in self._read:
            tool, options = line.file.partition("/")[0], ImportOptions()
            if tool == "llmservingsim":
                options = ImportOptions(device="nvidia-h100-sxm", model="Llama-3.1-8B", sizes=LLAMA)
            read = import_tables(tool, [self._data / line.file], options)
            if read.device.spec is None:
                raise ValueError(f"{line.file}: no device file describes {read.device.name}")
            self._read[line.file] = observations(read.kernels), facts_of(read.device.spec)
        tables, facts = self._read[line.file]
        table = tables[line.kind, line.dtype]
        if line.rows is not None:
            table = table.take(line.rows(table))
        if size := line.held_out:
            table = replace(table, group=np.array([f"{size}{value:g}" for value in table.dims[size]]))
        return table, facts


def judge(line: Line, tables: Tables, seeds: int) -> dict[str, Any]:
    """The figures of a line, as means over the seeds; errors are fractions."""
    table, facts = tables.of(line)
    splits = [calibrate_kind(*halves(table, seed), facts, line.points, seed) for seed in range(seeds)]
    decoding = [split.regions[DECODING] for split in splits if DECODING in split.regions]
    figures = {name: _mean(getattr(split.scores, name) for split in splits) for name in FIGURES}
    targets = zip(("mape", "p90", "time_weighted"), line.target, strict=True)
    return {
        "name": line.name,
        "kind": line.kind,
        "dtype": line.dtype,
        "points": max(split.points for split in splits),
        "scored": splits[0].scores.rows,
        **figures,
        "datasheet_mape": _mean(split.datasheet.mape for split in splits),
        "four_constant_mape": _mean(split.four_constant.mape for split in splits),
        "noise": _mean(split.noise for split in splits if split.noise is not None),
        **{f"decode_{name}": _mean(getattr(scores, name) for scores in decoding) for name in DECODE_FIGURES},
        "target": line.target,
        "met": all(limit is None or (figures[name] or 0.0) <= limit for name, limit in targets),
    }


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return float(np.mean(known)) if known else None


def _row(figures: dict[str, Any]) -> str:
    columns = (*FIGURES, "datasheet_mape", "four_constant_mape", *(f"decode_{name}" for name in DECODE_FIGURES))
    percents = " ".join(f"{_percent(figures[name]):>9}" for name in columns)
    target = "/".join("–" if limit is None else f"{100 * limit:g}" for limit in figures["target"])
    return (
        f"{figures['name']:30} {figures['points']:>6} {figures['scored']:>6} {percents} "
        f"{_percent(figures['noise']):>6}  {target:>11} {'yes' if figures['met'] else 'NO'}"
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def main() -> int:
    """Print the table, or JSON; the exit code is 0 where every line was scored."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the public tables, as ../shared/data")
    parser.add_argument("--seeds", type=int, default=5, help="random splits to average over")
    parser.add_argument("--json", action="store_true", dest="as_json", help="JSON on stdout")
    parser.add_argument("--only", default="", help="lines whose name holds this")
    options = parser.parse_args()
    if options.seeds < 1 or not options.data.is_dir():
        print(f"needs a folder of tables and at least one seed; got {options.data}, {options.seeds}", file=sys.stderr)
        return 2
    tables, results = Tables(options.data), []
    lines = [line for line in LINES if options.only in line.name]
    if not options.as_json:
        names = ("mean", "median", "p90", "weighted", "bias", "in 90 %", "datasheet", "4-const", "decode", "weighted")
        columns = " ".join(f"{name:>9}" for name in names)
        print(f"{'%, held out':30} {'points':>6} {'scored':>6} {columns} {'noise':>6}  {'target':>11} met")
    for line in lines:
        try:
            results.append(judge(line, tables, options.seeds))
        except (ValueError, KeyError) as error:
            print(f"{line.name}: not scored: {error}", file=sys.stderr)
            continue
        if not options.as_json:
            print(_row(results[-1]), flush=True)
    if options.as_json:
        print(json.dumps(results, indent=1))
    return 0 if len(results) == len(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
