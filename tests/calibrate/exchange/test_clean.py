"""Cleaning by rule: what is taken out is counted, a wrong unit is refused."""

from pathlib import Path

import exchange_samples as samples
import numpy as np
import pandas as pd
import pytest
from each import each

from calibrate.exchange import clean
from calibrate.exchange.formats import Imported, import_tables
from calibrate.exchange.tables import ImportOptions
from profiler.record.run import RequestError


def imported(frame: pd.DataFrame, tmp_path: Path) -> Imported:
    return import_tables("aiconfigurator", [samples.saved(frame, tmp_path / "table.parquet")], ImportOptions())


@each(
    ("column", "value", "rule"),
    [
        ("latency", 0.0, clean.NOT_POSITIVE),
        ("latency", -1.0, clean.NOT_POSITIVE),
        ("latency", np.nan, clean.NOT_FINITE),
        ("latency", np.inf, clean.NOT_FINITE),
        ("latency", 1e-9, clean.TOO_FAST),
        ("latency", 2e6, clean.TOO_SLOW),
        ("m", 0, clean.SIZE),
        ("k", -64, clean.SIZE),
        ("n", np.nan, clean.SIZE),
        ("n", 64.5, clean.SIZE),
    ],
)
def test_a_row_that_cannot_be_true_is_taken_out_and_counted(
    tmp_path: Path, column: str, value: float, rule: str
) -> None:
    frame = samples.gemm().astype({column: float})
    frame.loc[[3, 7], column] = value
    done = imported(frame, tmp_path)
    assert done.kernels.sources[0].cleaned == {rule: 2}
    assert len(done.kernels) == 22 and 3 not in done.kernels.table["row"].to_pylist()
    assert len(done.warnings) == 1 and "2 of 24 times were dropped" in done.warnings[0]


def test_repeats_become_their_median(tmp_path: Path) -> None:
    frame = samples.gemm()
    again = [frame.loc[[0]].assign(latency=frame.loc[0, "latency"] * factor) for factor in (1.0, 1.5, 2.0, 2.5)]
    done = imported(pd.concat([frame, *again]), tmp_path)
    assert done.kernels.sources[0].cleaned == {clean.EXACT: 1, clean.REPEATED: 3}
    assert done.kernels.table["time_s"][0].as_py() == pytest.approx(1.5e-3 * frame.loc[0, "latency"])
    assert done.warnings == ()


def test_a_file_twice_over_is_the_file(tmp_path: Path) -> None:
    frame = samples.gemm()
    done = imported(pd.concat([frame, frame]), tmp_path)
    assert done.kernels.sources[0].cleaned == {clean.EXACT: 24}
    assert done.kernels.table["time_s"].to_numpy() == pytest.approx(frame["latency"].to_numpy() * 1e-3)


def test_other_kernels_of_a_shape_are_no_repeats(tmp_path: Path) -> None:
    done = imported(pd.concat([samples.gemm(), samples.gemm(kernel_source="deep")]), tmp_path)
    assert len(done.kernels) == 48


@each("device", ["NVIDIA H200", "Some GPU"])
@each(("factor", "looks"), [(1e3, "µs, not ms"), (1e6, "ns, not ms"), (1e-3, "s, not ms")])
def test_a_wrong_unit_is_refused(tmp_path: Path, device: str, factor: float, looks: str) -> None:
    frame = samples.gemm(device=device)
    with pytest.raises(RequestError, match=f"latency looks like {looks} .*convert it to ms first"):
        imported(frame.assign(latency=frame["latency"] * factor), tmp_path)


@each("frame", [samples.attention("context_attention"), samples.moe(), samples.nccl()])
@each("factor", [1e3, 1e-3])
def test_a_wrong_unit_is_seen_in_other_kinds(tmp_path: Path, frame: pd.DataFrame, factor: float) -> None:
    with pytest.raises(RequestError, match="not ms"):
        imported(frame.assign(latency=frame["latency"] * factor), tmp_path)


def test_a_table_without_a_true_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no row is left after cleaning \(latency zero or negative: 24\)"):
        imported(samples.gemm(latency=0.0), tmp_path)


def test_a_call_faster_than_this_device_is_taken_out_of_its_table_alone(tmp_path: Path) -> None:
    frame = samples.gemm()
    row = int((frame["m"] * frame["n"] * frame["k"]).idxmax())
    flops = 2 * frame.loc[row, "m"] * frame.loc[row, "n"] * frame.loc[row, "k"]
    frame.loc[row, "latency"] = flops / 3e15 * 1e3  # three times an H200's bfloat16
    assert imported(frame, tmp_path).kernels.sources[0].cleaned == {clean.TOO_FAST: 1}
    assert imported(frame.assign(device="Some GPU"), tmp_path).kernels.sources[0].cleaned == {}
