"""AIConfigurator's tables `<op>_perf.parquet`, and their older form as CSV: GEMM, attention, experts, NCCL; ms.

Sizes as its collectors write them: context attention is `isl` new tokens after `step` cached ones; generation is one
new token of `isl + step`; `window_size` 0 is none and an absent column too; a collective's `message_size` counts
elements (collector/collect_nccl.py divides nccl-tests' bytes by the element's).

Example: ``parse(read_table(path), path, ImportOptions()).frame``
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calibrate.exchange.tables import ImportOptions, Parsed, complete, numbers, require, without, words
from profiler.record.run import RequestError
from roofline.dtypes import BITS, dtype_named

UNIT, SECONDS = "ms", 1e-3
COMMON = ("framework", "version", "device", "op_name", "kernel_source", "latency")
UNKNOWN_DTYPE = "unknown dtype"
UNKNOWN_OP = "unknown operation"

COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}
"""op_name -> our name."""


@dataclass(frozen=True)
class Family:
    """One of its tables."""

    name: str
    operations: tuple[str, ...]
    """Values of op_name."""
    columns: tuple[str, ...]
    """Besides `COMMON`."""
    dtype: str
    """Column of the arithmetic's dtype."""
    rows: Callable[[pd.DataFrame, Path, dict[str, int]], pd.DataFrame]
    """Its rows in our words; `dtype` and the common columns are there already."""


def parse(frame: pd.DataFrame, path: Path, options: ImportOptions) -> Parsed:
    """Rows of one of its tables.

    Raises RequestError, one line: not one of its tables, columns missing, or nothing in it that is known.
    """
    require(frame, ("op_name", "latency"), path, "an AIConfigurator table")
    operations = words(frame["op_name"])
    family = _family(operations, path)
    require(frame, (*COMMON, *family.columns), path, f"an AIConfigurator {family.name} table")
    dropped: dict[str, int] = {}
    common = pd.DataFrame(
        {
            "row": np.arange(len(frame)),
            "time_s": numbers(frame["latency"]) * SECONDS,
            "dtype": words(frame[family.dtype]).map(dtype_named),
            "op": operations,
            **{ours: words(frame[name]) for ours, name in _WORDS.items()},
        },
        index=frame.index,
    )
    known = without(common, ~operations.isin(family.operations), UNKNOWN_OP, dropped)
    known = without(known, known["dtype"].isna(), UNKNOWN_DTYPE, dropped)
    named = ", ".join(sorted(words(frame[family.dtype]).unique()))
    if known.empty:
        raise RequestError(f"{path}: no row has a dtype that is known (there are {named}); nothing to import")
    given = frame.loc[known.index]
    rows = family.rows(given.assign(**{name: known[name] for name in known}), path, dropped)
    if rows.empty:
        raise RequestError(f"{path}: no row is left ({', '.join(dropped)}); nothing to import")
    devices = sorted(set(words(frame["device"])) - {""})
    if len(devices) > 1:
        raise RequestError(f"{path} has rows of {' and '.join(devices)}; split it and import each device by itself")
    versions = known.groupby("framework")["version"].agg(lambda of: ", ".join(sorted(set(of) - {""})))
    return Parsed(
        frame=complete(rows),
        unit=UNIT,
        rows=len(frame),
        device=devices[0] if devices else None,
        versions={str(name): str(version) for name, version in versions.items()},
        dropped=dropped,
    )


_WORDS = {"kernel": "kernel_source", "framework": "framework", "version": "version"}


def _family(operations: pd.Series, path: Path) -> Family:
    families = [family for family in FAMILIES if operations.isin(family.operations).any()]
    if len(families) == 1:
        return families[0]
    if families:
        raise RequestError(f"{path} mixes {' and '.join(family.name for family in families)}; split it by op_name")
    known = ", ".join(operation for family in FAMILIES for operation in family.operations)
    raise RequestError(f"{path}: op_name {operations.iloc[0]!r} is not supported; there are {known}")


def _sizes(given: pd.DataFrame, names: dict[str, str]) -> dict[str, np.ndarray]:
    return {ours: numbers(given[name]) for ours, name in names.items()}


def _own(given: pd.DataFrame) -> dict[str, pd.Series]:
    return {name: given[name] for name in ("row", "time_s", "dtype", "op", *_WORDS)}


def _gemm(given: pd.DataFrame, path: Path, dropped: dict[str, int]) -> pd.DataFrame:
    sizes = _sizes(given, {"m": "m", "n": "n", "k": "k"})
    return pd.DataFrame({**_own(given), **sizes, "kind": "matmul"}, index=given.index).assign(
        group=lambda rows: _label(rows, n="n", k="k")
    )


def _attention(given: pd.DataFrame, path: Path, dropped: dict[str, int]) -> pd.DataFrame:
    given = without(given, numbers(given["beam_width"]) != 1, "beam search", dropped)
    cached = words(given["kv_cache_dtype"]).map(dtype_named)
    given = without(given, cached.isna(), UNKNOWN_DTYPE, dropped)
    sizes = _sizes(
        given, {"batch": "batch_size", "heads": "num_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
    )
    isl, step = numbers(given["isl"]), numbers(given["step"])
    context = (given["op"] == "context_attention").to_numpy()
    window = numbers(given["window_size"]) if "window_size" in given else np.zeros(len(given))
    sizes |= {
        "query": np.where(context, isl, 1.0),
        "context": np.where(context, step, isl + step - 1),
        "kv": isl + step,
        "window": np.maximum(window, 0.0),
        "kv_bytes": cached[given.index].map(BITS).to_numpy(dtype=float) / 8,
    }
    kind = np.where(context, "prefill_attention", "decode_attention")
    return pd.DataFrame({**_own(given), **sizes, "kind": kind}, index=given.index).assign(
        group=lambda rows: _label(rows, heads="heads", kv="kv_heads", dim="head_dim")
    )


def _moe(given: pd.DataFrame, path: Path, dropped: dict[str, int]) -> pd.DataFrame:
    skew = words(given["distribution"]).map(_skew)
    given = without(given, skew.isna(), "unknown distribution of loads", dropped)
    sizes = _sizes(
        given,
        {
            "tokens": "num_tokens",
            "hidden": "hidden_size",
            "inner": "inter_size",
            "topk": "topk",
            "experts": "num_experts",
            "tp": "moe_tp_size",
            "ep": "moe_ep_size",
        },
    )
    more = {
        "skew": skew[given.index],
        "weight_bits": given["dtype"].map(BITS).astype(float),
        "distribution": words(given["distribution"]),
        "kind": "experts",
    }
    return pd.DataFrame({**_own(given), **sizes, **more}, index=given.index).assign(
        group=lambda rows: _label(rows, hidden="hidden", inner="inner", topk="topk", experts="experts")
    )


def _skew(distribution: str) -> float:
    """Exponent of "power_law_1.2", 0 for a uniform one; NaN where it is neither."""
    if distribution in ("balanced", "uniform"):
        return 0.0
    name, _, exponent = distribution.rpartition("_")
    try:
        return float(exponent) if name == "power_law" else np.nan
    except ValueError:
        return np.nan


def _nccl(given: pd.DataFrame, path: Path, dropped: dict[str, int]) -> pd.DataFrame:
    bits = given["dtype"].map(BITS).to_numpy(dtype=float)
    ranks = numbers(given["num_gpus"])
    sizes = {"ranks": ranks, "per_node": ranks, "bytes": numbers(given["message_size"]) * bits / 8}
    own = _own(given) | {"op": given["op"].map(COLLECTIVES)}
    return pd.DataFrame({**own, **sizes, "kind": "collective"}, index=given.index).assign(
        group=lambda rows: rows["op"] + _label(rows, ranks="ranks").radd(" ")
    )


def _label(rows: pd.DataFrame, **parts: str) -> pd.Series:
    """ "n4096 k1024" of the columns n and k."""
    label = pd.Series("", index=rows.index)
    for prefix, name in parts.items():
        known = {value: f"{value:g}" if value < 1e6 else f"{value:.0f}" for value in rows[name].unique()}
        label = label + f" {prefix}" + rows[name].map(known).astype("object").fillna("?").astype(str)
    return label.str.strip()


_ATTENTION = ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "beam_width", "attn_dtype",
              "kv_cache_dtype", "step")  # fmt: skip
_MOE = ("moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size",
        "distribution")  # fmt: skip

FAMILIES = (
    Family("gemm", ("gemm",), ("gemm_dtype", "m", "n", "k"), "gemm_dtype", _gemm),
    Family("attention", ("context_attention", "generation_attention"), _ATTENTION, "attn_dtype", _attention),
    Family("moe", ("moe",), _MOE, "moe_dtype", _moe),
    Family("nccl", tuple(COLLECTIVES), ("nccl_dtype", "num_gpus", "message_size"), "nccl_dtype", _nccl),
)
