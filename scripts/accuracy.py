"""Held-out accuracy of every kind on the public tables, beside its target and simpler models.

    python scripts/accuracy.py ../shared/data [--seeds 5] [--json]

For each table: half of its groups (weight shapes, head layouts) are drawn by the seed, at most `points` kernels among
them are chosen by shape and fitted to, and all kernels of the other groups are scored. The mean over the seeds is
printed, that of the kernels a decode step waits for beside it, its target behind it, and the noise of repeated
measurements where a table has any. A100's tables hold one
device, H200's another; nothing in here is told to the fit but the device's datasheet. Tables of a single model, or of
one model for each of two kernels, cannot be asked about models not seen: whole counts of tokens are held out there.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibrate.exchange.formats import import_tables
from calibrate.exchange.tables import ImportOptions
from calibrate.kernels.observations import Observations, halves, observations
from calibrate.kernels.score import DECODING, Calibrated, calibrate_kind
from roofline.hardware.facts import facts_of
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


def _all(table: Observations) -> np.ndarray:
    return np.ones(len(table), dtype=bool)


def _plain(table: Observations) -> np.ndarray:
    return (table.dims["window"] == 0) & (table.dims["kv_bytes"] == 2)


def _windowed(table: Observations) -> np.ndarray:
    return (table.dims["window"] > 0) & (table.dims["kv_bytes"] == 2)


def _narrow(table: Observations) -> np.ndarray:
    return table.dims["kv_bytes"] < 2


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    name: str
    file: str
    kind: str
    dtype: str
    target: Target
    """Mean, p90, time-weighted: issue 5."""
    rows: Rows = _all
    points: int = 200
    apart: str | None = None
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
        Line(f"H200 MoE {dtype}, by tokens", H200 + MOE, "experts", dtype, (0.12, None, None), apart="tokens")
        for dtype in ("int4_wo", "w4a16_mxfp4")
    ),
    Line("A100 MoE", A100 + MOE, "experts", "bfloat16", (0.12, None, None)),
    *(
        Line(f"H200 NCCL {d}", NCCL, "collective", d, (0.1, None, None))
        for d in ("float16", "int8")
    ),
    Line("H100 modules", "llmservingsim/H100/meta-llama/Llama-3.1-8B/tp1/layers.csv", "module", "bfloat16",
         (0.10, None, None)),
)  # fmt: skip

DECODE_FIGURES = ("mape", "time_weighted")
"""Of the region that a decode step waits for, by itself."""
FIGURES = ("mape", "median", "p90", "time_weighted", "bias", "coverage")


class Tables:
    """The data's files, each read once."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._read: dict[str, tuple[dict[tuple[str, str], Observations], Facts]] = {}

    def of(self, line: Line) -> tuple[Observations, Facts]:
        if line.file not in self._read:
            modules = line.file.startswith("llmservingsim")
            asked = (
                ImportOptions(device="nvidia-h100-sxm", model="Llama-3.1-8B", sizes=LLAMA)
                if modules
                else ImportOptions()
            )
            read = import_tables("llmservingsim" if modules else "aiconfigurator", [self._data / line.file], asked)
            if read.device.spec is None:
                raise ValueError(f"{line.file}: no device file describes {read.device.name}")
            self._read[line.file] = observations(read.kernels), facts_of(read.device.spec)
        tables, facts = self._read[line.file]
        table = tables[line.kind, line.dtype]
        table = table.take(line.rows(table))
        if line.apart is not None:
            table = replace(table, group=np.array([f"{line.apart}{value:g}" for value in table.dims[line.apart]]))
        return table, facts


def judge(line: Line, tables: Tables, seeds: int) -> dict[str, object]:
    """One line, as the mean over the seeds; fractions."""
    table, facts = tables.of(line)
    each = [calibrate_kind(*halves(table, seed), facts, line.points, seed) for seed in range(seeds)]
    return {
        "name": line.name,
        "kind": line.kind,
        "dtype": line.dtype,
        "points": max(one.points for one in each),
        "scored": each[0].scores.rows,
        **{name: _mean([getattr(one.scores, name) for one in each]) for name in FIGURES},
        "datasheet_mape": _mean([one.datasheet.mape for one in each]),
        "four_constant_mape": _mean([one.four_constant.mape for one in each]),
        "noise": _noise(each),
        **{f"decode_{name}": _decoding(each, name) for name in DECODE_FIGURES},
        "target": line.target,
        "met": all(
            limit is None or _mean([getattr(one.scores, name) for one in each]) <= limit
            for name, limit in zip(("mape", "p90", "time_weighted"), line.target, strict=True)
        ),
    }


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _decoding(each: list[Calibrated], name: str) -> float | None:
    known = [getattr(one.regions[DECODING], name) for one in each if DECODING in one.regions]
    return _mean(known) if known else None


def _noise(each: list[Calibrated]) -> float | None:
    known = [one.noise for one in each if one.noise is not None]
    return _mean(known) if known else None


def _words(found: dict[str, object]) -> Iterator[str]:
    numbers = [found[name] for name in (*FIGURES, "datasheet_mape", "four_constant_mape")]
    target = "/".join("–" if part is None else f"{100 * part:g}" for part in found["target"])  # type: ignore[attr-defined]
    noise = "–" if found["noise"] is None else f"{100 * float(found['noise']):.1f}"  # type: ignore[arg-type]
    yield f"{found['name']:30} {found['points']:>6} {found['scored']:>6} "
    yield " ".join(f"{100 * float(value):>9.1f}" for value in numbers)  # type: ignore[arg-type]
    for name in DECODE_FIGURES:
        value = found[f"decode_{name}"]
        yield f" {'–' if value is None else f'{100 * float(value):.1f}':>9}"  # type: ignore[arg-type]
    yield f" {noise:>6}  {target:>11} {'yes' if found['met'] else 'NO'}"


def main() -> int:
    """Exit code: 0 where every line was scored."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the public tables, as ../shared/data")
    parser.add_argument("--seeds", type=int, default=5, help="random splits to average over")
    parser.add_argument("--json", action="store_true", dest="as_json", help="JSON on stdout")
    parser.add_argument("--only", default="", help="lines whose name holds this")
    asked = parser.parse_args()
    if asked.seeds < 1 or not asked.data.is_dir():
        print(f"need a folder of tables and at least one seed; got {asked.data} and {asked.seeds}", file=sys.stderr)
        return 2
    tables, found = Tables(asked.data), []
    if not asked.as_json:
        names = ("mean", "median", "p90", "weighted", "bias", "in 90 %", "datasheet", "4-const")
        print(
            f"{'%, held out':30} {'points':>6} {'scored':>6} "
            + " ".join(f"{name:>9}" for name in names)
            + f" {'decode':>9} {'weighted':>9} {'noise':>6}  {'target':>11} met"
        )
    for line in LINES:
        if asked.only not in line.name:
            continue
        try:
            found.append(judge(line, tables, asked.seeds))
        except (ValueError, KeyError) as error:
            print(f"{line.name}: not scored: {error}", file=sys.stderr)
            continue
        if not asked.as_json:
            print("".join(_words(found[-1])), flush=True)
    if asked.as_json:
        print(json.dumps(found, indent=1))
    return 0 if len(found) == sum(asked.only in line.name for line in LINES) else 1


if __name__ == "__main__":
    sys.exit(main())
