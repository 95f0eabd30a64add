"""Which reference probe an operation's time follows."""

import numpy as np
import pytest
from graphs import GraphBuilder, peaks

from roofline.graph.op import OpGraph
from roofline.laws.fitted import PROBES, LevelRatio
from roofline.price import Prepared
from roofline.price_by_law import level_factors, ratio_of, waits
from roofline.workload import Workload

PEAKS = peaks(matrix=100, vector=10, levels=(("DRAM", 1e9, 10.0),), host_s=0.5)


def graph() -> OpGraph:
    """Of the measured peaks: 6 s of bytes and 4 s of arithmetic; 3 s and 1 s; nothing but 1 s of bytes."""
    b = GraphBuilder(Workload(batch=1, query_tokens=1, context_tokens=8, dtype="float32"))
    b.weight("w", 50)
    b.op("matmul", reads=["w"], writes={"a": 10}, matrix=400, path="up")
    b.op("pointwise", reads=["a"], writes={"b": 20}, vector=10, path="act")
    b.weight("v", 5)
    b.op("copy", reads=["v"], writes={"c": 5}, path="copy")
    return b.graph()


def level(**ratios: float) -> dict[str, LevelRatio]:
    return {probe: LevelRatio(ratio=ratio, low=0.9 * ratio, high=1.1 * ratio) for probe, ratio in ratios.items()}


def test_shares_by_hand() -> None:
    shares = waits(Prepared(graph()), PEAKS, "cpu")
    assert shares == pytest.approx(
        np.array([[6 / 10.5, 4 / 10.5, 0.5 / 10.5], [3 / 4.5, 1 / 4.5, 0.5 / 4.5], [1 / 1.5, 0, 0.5 / 1.5]])
    )


def test_the_fixed_cost_of_a_kernel_of_a_gpu_is_not_the_hosts() -> None:
    shares = waits(Prepared(graph()), PEAKS, "cuda")
    assert shares[:, PROBES.index("host")].tolist() == [0, 0, 0]
    assert shares.sum(axis=1) == pytest.approx(1)


def test_bytes_of_caches_follow_the_product() -> None:
    cached = peaks(matrix=100, vector=10, levels=(("L3", 1e6, 20.0), ("DRAM", 1e9, 10.0)), host_s=0.5)
    read_again = waits(Prepared(graph()), cached, "cpu")[1]  # "a" is in the cache: 10 of its 30 bytes
    assert read_again[PROBES.index("product")] > waits(Prepared(graph()), PEAKS, "cpu")[1][PROBES.index("product")]
    assert read_again.sum() == pytest.approx(1)


def test_an_operation_without_a_peak_keeps_the_calibrations_level() -> None:
    b = GraphBuilder(Workload(batch=1, query_tokens=1, context_tokens=8, dtype="float32"))
    b.op("matmul", reads={"x": 10}, writes={"y": 10}, matrix=100, dtype="bfloat16", path="a")
    shares = waits(Prepared(b.graph()), PEAKS, "cpu")
    assert shares.tolist() == [[0, 0, 0]]
    assert level_factors(shares, level(memory=2.0)).tolist() == [1]


def test_a_machine_that_is_slower_in_all_is_slower_by_that() -> None:
    shares = waits(Prepared(graph()), PEAKS, "cpu")
    assert level_factors(shares, level(memory=1.3, product=1.3, host=1.3)) == pytest.approx(1.3)
    assert level_factors(shares, {}) == pytest.approx(1)
    only_memory = level_factors(shares, level(memory=2.0))
    assert only_memory == pytest.approx(1 + shares[:, PROBES.index("memory")])
    assert (ratio_of(level(memory=2.0), "memory"), ratio_of({}, "memory")) == (2.0, 1.0)
