"""Imports LLMServingSim's layers.csv: times (ns) of a decoder's modules, as Hugging Face runs them eagerly, by tokens.

A row is one module (`layer_name`) of one pass of `input` tokens after `kv_cache` cached ones. The file names neither
its model nor its device: both are folders of its path, ``<device>/<organisation>/<model>/tp<n>/layers.csv``. With the
model's sizes a law can price modules of another one; without them rows have tokens alone.

Example: ``parse(read_table(path)[0], path, ImportOptions(sizes={"hidden": 4096.0, …})).frame``
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from calibrate.exchange.tables import ImportOptions, Parsed, complete, numbers, require, without, words
from profiler.record.run import RequestError
from roofline.laws.eager_modules import MODULES

UNIT, SECONDS = "ns", 1e-9
LATENCY = "latency(ns)"
FRAMEWORK = "transformers"


def model_of(path: Path) -> str | None:
    """The model's hub name in the path, if the path ends as the tool lays it out; else None."""
    parts = Path(os.path.realpath(path)).parts  # unlike `resolve` it bears loops of links
    if len(parts) < 5 or not parts[-2].startswith("tp"):
        return None
    return f"{parts[-4]}/{parts[-3]}"


def parse(frame: pd.DataFrame, path: Path, options: ImportOptions) -> Parsed:
    """Read the rows. Raises RequestError, one line, where columns are missing or no module is known."""
    require(frame, ("layer_name", "input", "kv_cache", "tp_size", LATENCY), path, "an LLMServingSim table of layers")
    dropped: dict[str, int] = {}
    op = words(frame["layer_name"])
    rows = pd.DataFrame(
        {
            "kind": "module",
            "dtype": options.dtype or "bfloat16",
            "op": op,
            "framework": FRAMEWORK,
            "kernel": "eager",
            "tokens": numbers(frame["input"]),
            "context": numbers(frame["kv_cache"]),
            "tp": numbers(frame["tp_size"]),
            "time_s": numbers(frame[LATENCY]) * SECONDS,
            "row": np.arange(len(frame)),
            **options.sizes,
        }
    )
    rows = without(rows, ~op.isin(MODULES), "unknown module", dropped)
    if rows.empty:
        raise RequestError(f"{path}: no layer_name is known ({op.iloc[0]!r}); there are {', '.join(MODULES)}")
    rows["group"] = f"{options.model or 'unnamed model'} " + words(frame["input"]).loc[rows.index] + " tokens"
    return Parsed(frame=complete(rows), unit=UNIT, rows=len(frame), model=options.model, dropped=dropped)
