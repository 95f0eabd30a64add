"""Imports AIConfigurator's tables `<op>_perf.parquet`, and their older form as CSV: GEMM, attention, MoE, NCCL
and engines' own all-reduces, latent attention; ms.

Its collectors write sizes so: context attention is `isl` new tokens after `step` cached ones; generation is one new
token after `isl + step - 1`; a `window_size` of 0, or no such column, means no window; `message_size` of a collective
counts elements (collector/collect_nccl.py divides nccl-tests' bytes by those of an element).

Example: ``parse(read_table(path)[0], path, ImportOptions()).frame``
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calibrate.exchange.tables import ImportOptions, Parsed, complete, numbers, require, without, words
from profiler.record.run import RequestError
from roofline.dtypes import BITS, dtype_named
from roofline.laws.kinds import BATCHED, LATENT_DECODE, LATENT_PREFILL, OWN_ALL_REDUCE

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
"""Maps the tool's op_name to roofcal's name of the collective."""

Complete = Callable[[pd.DataFrame, pd.DataFrame, dict[str, int]], pd.DataFrame]
"""Completes rows in our columns, from the tool's own rows; drops those it cannot use and counts them by rule."""


@dataclass(frozen=True)
class Family:
    """One of AIConfigurator's tables."""

    name: str
    operations: tuple[str, ...]
    """Values of the column op_name in this table."""
    dtype: str
    """Column of the arithmetic's dtype."""
    sizes: Mapping[str, str]
    """Maps roofcal's name of a size to the table's column."""
    others: tuple[str, ...]
    """More columns that the table must have, besides `COMMON`."""
    group: Mapping[str, str]
    """Maps the prefix of a number in a group's label to roofcal's name of the size."""
    complete: Complete


def parse(frame: pd.DataFrame, path: Path, options: ImportOptions) -> Parsed:
    """Read the rows of a table.

    Raises RequestError, one line, where it is none of the tables, lacks columns, or has no row that is known.
    """
    require(frame, ("op_name", "latency"), path, "an AIConfigurator table")
    operations = words(frame["op_name"])
    family = _family(operations, set(frame.columns), path)
    if "num_heads" in family.sizes.values() and "num_heads" not in frame and "tp_size" in frame:
        frame = frame.assign(num_heads=LATENT_HEADS / numbers(frame["tp_size"]))
    columns = (*COMMON, family.dtype, *family.sizes.values(), *family.others)
    require(frame, columns, path, f"an AIConfigurator {family.name} table")
    dropped: dict[str, int] = {}
    rows = pd.DataFrame(
        {
            "row": np.arange(len(frame)),
            "time_s": numbers(frame["latency"]) * SECONDS,
            "dtype": words(frame[family.dtype]).map(dtype_named),
            "op": operations,
            "kernel": words(frame["kernel_source"]),
            "framework": words(frame["framework"]),
            "version": words(frame["version"]),
            **{size: numbers(frame[column]) for size, column in family.sizes.items()},
        },
        index=frame.index,
    )
    rows = without(rows, ~operations.isin(family.operations), UNKNOWN_OP, dropped)
    rows = without(rows, rows["dtype"].isna(), UNKNOWN_DTYPE, dropped)
    if rows.empty:
        dtypes = ", ".join(sorted(words(frame[family.dtype]).unique()))
        raise RequestError(f"{path}: no row has a dtype that is known (there are {dtypes}); nothing to import")
    versions = rows.groupby("framework")["version"].agg(lambda names: ", ".join(sorted(set(names) - {""})))
    rows = family.complete(rows, frame.loc[rows.index], dropped)
    if rows.empty:
        raise RequestError(f"{path}: no row is left ({', '.join(dropped)}); nothing to import")
    devices = sorted(set(words(frame["device"])) - {""})
    if len(devices) > 1:
        raise RequestError(f"{path} has rows of {' and '.join(devices)}; split it and import each device by itself")
    return Parsed(
        frame=complete(rows.assign(group=_group(rows, family.group))),
        unit=UNIT,
        rows=len(frame),
        device=devices[0] if devices else None,
        versions={str(name): str(version) for name, version in versions.items()},
        dropped=dropped,
    )


def _family(operations: pd.Series, columns: set[str], path: Path) -> Family:
    """The family of a table's operations; of several that share them, the one whose dtype the table states."""
    families = [family for family in FAMILIES if operations.isin(family.operations).any()]
    if len(families) > 1 and len({family.dtype for family in families}) > 1:
        families = [family for family in families if family.dtype in columns] or families[:1]
    if len(families) == 1:
        return families[0]
    if families:
        raise RequestError(f"{path} mixes {' and '.join(family.name for family in families)}; split it by op_name")
    known = ", ".join(operation for family in FAMILIES for operation in family.operations)
    raise RequestError(f"{path}: op_name {operations.iloc[0]!r} is not supported; there are {known}")


def _group(rows: pd.DataFrame, parts: Mapping[str, str]) -> pd.Series:
    """A label of some sizes, as "n4096 k1024"."""
    label = pd.Series("", index=rows.index)
    for prefix, name in parts.items():
        if prefix:
            known = {value: f"{value:g}" if value < 1e6 else f"{value:.0f}" for value in rows[name].unique()}
            label = label + f" {prefix}" + rows[name].map(known).astype("object").fillna("?").astype(str)
        else:
            label = label + rows[name]
    return label.str.strip()


def _gemm(rows: pd.DataFrame, table: pd.DataFrame, dropped: dict[str, int]) -> pd.DataFrame:
    return rows.assign(kind="matmul")


def _attention(rows: pd.DataFrame, table: pd.DataFrame, dropped: dict[str, int]) -> pd.DataFrame:
    rows = without(rows, numbers(table["beam_width"]) != 1, "beam search", dropped)
    cached = words(table.loc[rows.index, "kv_cache_dtype"]).map(dtype_named)
    rows = without(rows, cached.isna(), UNKNOWN_DTYPE, dropped)
    table = table.loc[rows.index]
    isl, step = numbers(table["isl"]), numbers(table["step"])
    prefill = (rows["op"] == "context_attention").to_numpy()
    return rows.assign(
        query=np.where(prefill, isl, 1.0),
        context=np.where(prefill, step, isl + step - 1),
        kv=isl + step,
        window=np.maximum(numbers(table["window_size"]), 0.0) if "window_size" in table else 0.0,
        kv_bytes=cached[rows.index].map(BITS).astype(float) / 8,
        kind=np.where(prefill, "prefill_attention", "decode_attention"),
    )


def _moe(rows: pd.DataFrame, table: pd.DataFrame, dropped: dict[str, int]) -> pd.DataFrame:
    distribution = words(table["distribution"])
    rows = rows.assign(
        skew=distribution.map(_skew),
        weight_bits=rows["dtype"].map(BITS).astype(float),
        distribution=distribution,
        kind="experts",
    )
    return without(rows, rows["skew"].isna(), "unknown distribution of loads", dropped)


def _skew(distribution: str) -> float:
    """The exponent of "power_law_1.2", 0 for a uniform distribution; NaN for any other."""
    if distribution in ("balanced", "uniform"):
        return 0.0
    name, _, exponent = distribution.rpartition("_")
    try:
        return float(exponent) if name == "power_law" else np.nan
    except ValueError:
        return np.nan


def _nccl(rows: pd.DataFrame, table: pd.DataFrame, dropped: dict[str, int]) -> pd.DataFrame:
    element_bytes = rows["dtype"].map(BITS).astype(float) / 8
    return rows.assign(
        per_node=rows["ranks"],
        bytes=numbers(table["message_size"]) * element_bytes,
        op=rows["op"].map(COLLECTIVES),
        kind="collective",
    )


def _own_all_reduce(rows: pd.DataFrame, table: pd.DataFrame, dropped: dict[str, int]) -> pd.DataFrame:
    """An engine's own all-reduce; calls outside of a captured graph hold the host's time."""
    rows = without(rows, rows["kernel"].str.endswith("_eager"), "timed outside of a captured graph", dropped)
    return _nccl(rows, table.loc[rows.index], dropped).assign(kind=OWN_ALL_REDUCE)


def _latent_products(rows: pd.DataFrame, table: pd.DataFrame, dropped: dict[str, int]) -> pd.DataFrame:
    """Products of each head with its part of DeepSeek's projection: before attention its 128 elements become 512,
    behind it 512 become 128."""
    before = rows["op"] == "mla_gen_pre"
    return rows.assign(n=np.where(before, 512.0, 128.0), k=np.where(before, 128.0, 512.0), kind=BATCHED)


def _latent(rows: pd.DataFrame, table: pd.DataFrame, dropped: dict[str, int]) -> pd.DataFrame:
    """DeepSeek's latent attention, the only one that the tool times: 512 + 64 cached elements a token, keys of 192 and
    values of 128 for a prompt. `num_heads` are a rank's; older tables have those of all ranks in every row."""
    cached = words(table["kv_cache_dtype"]).map(dtype_named)
    rows = without(rows, cached.isna(), UNKNOWN_DTYPE, dropped)
    table = table.loc[rows.index]
    isl, step = numbers(table["isl"]), numbers(table["step"])
    prefill = rows["op"].isin(LATENT_CONTEXT).to_numpy()
    heads = rows["heads"]
    if "tp_size" in table and heads.nunique() == 1 and table["tp_size"].nunique() > 1:
        heads = heads / numbers(table["tp_size"])
    return rows.assign(
        heads=heads,
        kv_heads=np.where(prefill, heads, 1.0),
        head_dim=np.where(prefill, (192 + 128) / 2, (512 + 64) / 2),
        query=np.where(prefill, isl, 1.0),
        context=np.where(prefill, step, isl + step - 1),
        kv=isl + step,
        window=0.0,
        kv_bytes=cached[rows.index].map(BITS).astype(float) / 8,
        kind=np.where(prefill, LATENT_PREFILL, LATENT_DECODE),
    )


LATENT_HEADS = 128
"""Heads of DeepSeek-V3 on all ranks, in old tables that state the number of ranks alone."""
LATENT_CONTEXT, LATENT_GENERATION = ("mla_context", "context_mla"), ("mla_generation", "generation_mla")
"""Operations of latent attention, as collectors of several versions name them."""
_HEADS = {"batch": "batch_size", "heads": "num_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
_EXPERTS = {"tokens": "num_tokens", "hidden": "hidden_size", "inner": "inter_size", "topk": "topk",
            "experts": "num_experts", "tp": "moe_tp_size", "ep": "moe_ep_size"}  # fmt: skip

FAMILIES = (
    Family("gemm", ("gemm",), "gemm_dtype", {name: name for name in "mnk"}, (), {"n": "n", "k": "k"}, _gemm),
    Family(
        "attention",
        ("context_attention", "generation_attention"),
        "attn_dtype",
        _HEADS,
        ("isl", "beam_width", "kv_cache_dtype", "step"),
        {"heads": "heads", "kv": "kv_heads", "dim": "head_dim"},
        _attention,
    ),
    Family(
        "moe",
        ("moe",),
        "moe_dtype",
        _EXPERTS,
        ("distribution",),
        {name: name for name in ("hidden", "inner", "topk", "experts")},
        _moe,
    ),
    Family(
        "nccl",
        tuple(COLLECTIVES),
        "nccl_dtype",
        {"ranks": "num_gpus"},
        ("message_size",),
        {"": "op", "ranks": "ranks"},
        _nccl,
    ),
    Family(
        "own all-reduce",
        ("all_reduce",),
        "allreduce_dtype",
        {"ranks": "num_gpus"},
        ("message_size",),
        {"": "op", "ranks": "ranks"},
        _own_all_reduce,
    ),
    Family(
        "latent attention",
        (*LATENT_CONTEXT, *LATENT_GENERATION),
        "mla_dtype",
        {"batch": "batch_size", "heads": "num_heads"},
        ("isl", "kv_cache_dtype", "step"),
        {"heads": "heads"},
        _latent,
    ),
    Family(
        "latent products",
        ("mla_gen_pre", "mla_gen_post"),
        "bmm_dtype",
        {"batch": "num_heads", "m": "num_tokens"},
        (),
        {"n": "n", "k": "k"},
        _latent_products,
    ),
)
