"""A table of kernels as columns: several kernels of one shape."""

from pathlib import Path

import exchange_samples as samples
import pandas as pd
import pytest

from calibrate.exchange.formats import import_tables
from calibrate.exchange.tables import ImportOptions
from calibrate.kernels.fit import observations


def imported(frame: pd.DataFrame, path: Path) -> list[float]:
    kernels = import_tables("aiconfigurator", [samples.saved(frame, path)], ImportOptions()).kernels
    return observations(kernels)["matmul", "bfloat16"].time_s.tolist()


def test_of_several_kernels_for_a_shape_the_fastest_is_kept(tmp_path: Path) -> None:
    frame = samples.gemm()
    one = imported(frame, tmp_path / "one.parquet")
    slower = frame.assign(kernel_source="other", latency=frame["latency"] * 1.5)
    faster = frame.head(1).assign(kernel_source="third", latency=frame["latency"] * 0.8)
    several = imported(pd.concat([frame, slower, faster]), tmp_path / "several.parquet")
    assert sorted(several) == pytest.approx(sorted([0.8 * one[0], *one[1:]]))


def test_each_kernel_has_its_own_shapes(tmp_path: Path) -> None:
    frame = samples.gemm()
    one = imported(frame, tmp_path / "one.parquet")
    frame.loc[0, "kernel_source"] = "other"
    assert imported(frame, tmp_path / "two.parquet") == one
