"""Error of the laws of matrix products on weight shapes that the fit did not see.

Splits a table of AIConfigurator by weight shape (half to choose from, half to score on), lets the design choose points
among the first by shape alone, and prints the mean over seeds of: mean absolute percentage error, its 90th percentile,
the time-weighted error, the signed bias, and how many held-out rows the 90 % intervals cover.

Example: ``python scripts/accuracy_matmul.py TABLE.parquet nvidia-h200-sxm --points 200``
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

from calibrate.model import train
from calibrate.observations import Observations
from roofline.laws.law import Facts, Law
from roofline.laws.matmul import Matmul
from roofline.laws.scaled_matmul import BlockScaledMatmul, ScaledMatmul

LAWS: dict[str, tuple[Law, str]] = {
    "bfloat16": (Matmul(), "bfloat16"),
    "fp8": (ScaledMatmul(), "float8_e4m3fn"),
    "fp8_block": (BlockScaledMatmul(), "float8_e4m3fn"),
}
"""Law and torch's dtype by the table's `gemm_dtype`."""
DEVICES = Path(__file__).parent.parent / "roofline" / "devices"


def facts_of(device: str) -> Facts:
    """Of a datasheet in `roofline/devices`."""
    sheet = json.loads((DEVICES / f"{device}.json").read_text())
    chip, data = sheet["chip"], sheet["datasheet"]
    return Facts(
        units=int(chip["units"]["value"]),
        cache_bytes=chip["last_level_cache_bytes"]["value"],
        bandwidth_bytes_per_s=data["levels"][0]["bandwidth"]["value"],
        matrix_flops_per_s={dtype: peak["value"] for dtype, peak in data["matrix"].items()},
        vector_flops_per_s=data["vector"]["float32"]["value"],
    )


def scores(law: Law, table: Observations, facts: Facts, points: int, seed: int) -> list[float]:
    """Percentages for one seed, and seconds of training."""
    groups = np.random.default_rng(seed).permutation(np.unique(table.group))
    train_side = np.isin(table.group, groups[: len(groups) // 2])
    started = time.perf_counter()
    model = train(law, table.take(train_side), facts, points, seed)
    seconds = time.perf_counter() - started
    held = table.take(~train_side)
    off = model.time_s(held.dims) / held.time_s - 1
    low, high = model.interval(held.dims)
    covered = (low <= held.time_s) & (held.time_s <= high)
    weighted = np.sum(np.abs(off) * held.time_s) / held.time_s.sum()
    figures = [np.abs(off).mean(), np.quantile(np.abs(off), 0.9), weighted, off.mean(), covered.mean()]
    return [*(100 * float(figure) for figure in figures), seconds]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("device")
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    facts, rows = facts_of(arguments.device), pd.read_parquet(arguments.table)
    print("dtype       MAPE    p90  time-weighted   bias  covered  train s")
    for name, part in rows.groupby("gemm_dtype"):
        law, dtype = LAWS[str(name)]
        group = ("n" + part.n.astype(str) + " k" + part.k.astype(str)).to_numpy(dtype=str)
        dims = {size: part[size].to_numpy(dtype=float) for size in "mnk"}
        table = Observations(law.kind, dtype, dims, part.latency.to_numpy(dtype=float) * 1e-3, group)
        mean = np.mean([scores(law, table, facts, arguments.points, seed) for seed in range(arguments.seeds)], axis=0)
        print("{:<10} {:5.2f} {:6.2f} {:14.2f} {:6.2f} {:8.1f} {:8.1f}".format(name, *mean))


if __name__ == "__main__":
    main()
