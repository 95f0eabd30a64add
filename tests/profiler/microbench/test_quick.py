"""The quick peaks on this CPU in a reduced mode: what they are made of, never how fast they are."""

import math

import pytest
import torch
from microbench_samples import measured

from profiler.microbench import quick
from profiler.microbench.caches import cache_capacities
from profiler.microbench.quick import VISITS, measure_peaks
from roofline.hardware import Peaks

CPU = torch.device("cpu")
MIB = 1 << 20
Found = tuple[Peaks, dict[str, str], list[tuple[float, str]]]


@pytest.fixture(scope="module")
def found() -> Found:
    told: list[tuple[float, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quick.SHAPES, "cpu", ((256, 256, 256), (512, 256, 256)))
        peaks, reasons = measure_peaks(
            "cpu", ["float32", "tfloat32"], budget_s=1.0, limit_bytes=192 * MIB,
            progress=lambda part, what: told.append((part, what)),
        )  # fmt: skip
    return peaks, reasons, told


def test_the_figures_of_this_cpu(found: Found) -> None:
    peaks, reasons, _ = found
    assert set(peaks.matrix) == set(peaks.vector) == {"float32"}
    assert peaks.levels[-1].name == "DRAM" and peaks.host_s_per_op is not None
    figures = [*peaks.matrix.values(), *peaks.vector.values(), *(level.bandwidth for level in peaks.levels)]
    for figure in [*figures, peaks.host_s_per_op]:
        assert figure.low is not None and figure.high is not None
        assert 0 < figure.low <= figure.value * (1 + 1e-9) and figure.value <= figure.high * (1 + 1e-9) < math.inf
        assert f"{VISITS} visits in one process" in figure.source and f"torch {torch.__version__}" in figure.source
    for level in {level.name for level in cache_capacities(CPU)} - {level.name for level in peaks.levels}:
        assert reasons[f"level.{level}"].startswith("merged into")


def test_a_dtype_that_cannot_be_multiplied_is_left_out_with_its_reason(found: Found) -> None:
    assert "tensor cores" in found[1]["matrix.tfloat32"]


def test_progress_only_goes_up(found: Found) -> None:
    parts = [part for part, _ in found[2]]
    assert parts == sorted(parts) and parts[0] == 0 and parts[-1] == 1 and all(what for _, what in found[2])


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="no dtype of a product"):
        measure_peaks("cpu", ["fp32"])


def test_the_best_shape_over_all_visits_is_the_burst() -> None:
    def product(size: int, rate: float, visit: int) -> object:
        return measured("matmul", f"{size}×{size}×{size}", rate, unit="FLOP/s", process=visit)

    found = [product(256, 9e9, 0), product(512, 8e9, 0), product(256, 7e9, 1), product(512, 10e9, 1)]
    other = measured("memory", "copy", 1e9)
    kept = quick._with_bursts([*found, other])  # type: ignore[list-item]
    assert [(one.case, one.value()) for one in kept if one.benchmark == "matmul"] == [
        ("burst", pytest.approx(8e9)),
        ("burst", pytest.approx(10e9)),
    ]
    assert other in kept
