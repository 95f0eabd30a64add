"""Compares prefill attention of several releases, from kernel tables in AIConfigurator's layout, and checks the tables.

    python scripts/attention_releases.py OLDEST/context_attention_perf.parquet … NEWEST/context_attention_perf.parquet

For each release against the one before, and for the newest against the oldest, it prints the ratio of times of the same
kernel (median, and the 10th to 90th percentile), by heads (of all alike, or fewer of keys than of queries), window and
length. Above stands, for each table, whether its times can be those of the shapes that its rows name:

    impossible   rows that are faster than the device's peaks, which the import leaves out
    window       time with a window of 128 keys ÷ time without, prompts of 4,096 tokens and more: far below 1
    fewer heads  time of attention with fewer heads of keys ÷ time with as many as of queries, same queries and length,
                 1,024 tokens and more: near 1, as the FLOPs are the same
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from calibrate.exchange.formats import import_tables
from calibrate.exchange.tables import ImportOptions

SHAPE = ["batch", "heads", "kv_heads", "query", "head_dim", "window", "kv_bytes"]
CHANGED = 0.05
"""Relative difference from which a kernel is faster or slower here: each was timed in one process."""


def table_of(path: Path) -> tuple[str, "pd.Series[float]", float]:
    """The release's name, seconds by shape, and the share of rows that were left out as impossible."""
    read = import_tables("aiconfigurator", [path], ImportOptions())
    frame = read.kernels.table.select([*SHAPE, "time_s"]).to_pandas().fillna({"window": 0})
    (source,) = read.kernels.sources
    lost = sum(count for why, count in source.cleaned.items() if why.startswith("faster"))
    name = ", ".join(f"{name} {version}" for name, version in source.versions.items())
    return name, frame.groupby(SHAPE)["time_s"].median(), lost / (lost + source.kept)


def spread(ratios: "pd.Series[float]") -> str:
    """Median and percentiles."""
    low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9)) if len(ratios) else (np.nan,) * 3
    return f"{middle:5.2f} ({low:.2f}–{high:.2f})"


def checked(name: str, times: "pd.Series[float]", impossible: float) -> None:
    """Print whether the times can be those of their shapes."""
    frame = times.reset_index()
    same = [column for column in SHAPE if column != "window"]
    both = frame[frame.window == 0].merge(frame[frame.window == 128], on=same)
    window = (both.time_s_y / both.time_s_x)[both["query"] >= 4096]
    full = frame[(frame.window == 0) & (frame["query"] >= 1024)]
    same = [column for column in SHAPE if column != "kv_heads"]
    pairs = full[full.heads == full.kv_heads].merge(full[full.heads > full.kv_heads], on=same)
    fewer = pairs.time_s_y / pairs.time_s_x
    print(f"{name:14} {impossible:6.1%} impossible   window {spread(window)}   fewer heads {spread(fewer)}")


def compared(before: "pd.Series[float]", after: "pd.Series[float]") -> None:
    """Print the ratios of the kernels of both tables by group."""
    ratio = (after / before).dropna().rename("ratio").reset_index()
    heads = np.where(ratio.heads == ratio.kv_heads, "all alike", "fewer of keys")
    window = np.where(ratio.window == 0, "no window", "window")
    length = np.where(ratio["query"] >= 512, "≥ 512 tokens", "< 512 tokens")
    for group, rows in ratio.groupby([heads, window, length]):
        faster, slower = (rows.ratio < 1 - CHANGED).mean(), (rows.ratio > 1 + CHANGED).mean()
        counts = f"{len(rows):6,}  {spread(rows.ratio)}  {slower:4.0%} slower, {faster:4.0%} faster"
        print(f"  {', '.join(map(str, group)):42} {counts}")


def main() -> None:
    """Read, check and compare the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path, help="tables of prefill attention, the oldest release first")
    tables = [table_of(path) for path in parser.parse_args().tables]
    for table in tables:
        checked(*table)
    pairs = list(itertools.pairwise(tables))
    pairs += [(tables[0], tables[-1])] if len(tables) > 2 else []
    for (old, before, _), (new, after, _) in pairs:
        print(f"\n{old} → {new}: time after ÷ before")
        compared(before, after)


if __name__ == "__main__":
    main()
