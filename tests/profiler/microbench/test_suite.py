"""What peaks are made of, measured on this CPU in a reduced mode, never how fast it is; and the list of parts."""

import math
import random

import pytest
import torch
from microbench_samples import lost, measured
from slow_products import TWO_CORES, SlowProducts

from calibrate.device.peaks import spec_of_peaks
from profiler.devices.backend import PerDevice
from profiler.devices.caches import cache_capacities, memory_hierarchy
from profiler.devices.environment import collect
from profiler.microbench import short
from profiler.microbench.short import measure_peaks
from profiler.record.measurement import Measurement
from roofline.hardware.spec import Peaks

CPU = torch.device("cpu")
MIB = 1 << 20
Found = tuple[Peaks, dict[str, str], list[tuple[float, str]]]


@pytest.fixture(scope="module")
def found() -> Found:
    told: list[tuple[float, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short, "SHAPES", PerDevice(((256, 256, 256), (512, 256, 256)), ()))
        measurements = measure_peaks(
            "cpu", ["float32", "tfloat32"], budget_s=1.0, limit_bytes=192 * MIB,
            progress=lambda part, what: told.append((part, what)),
        )  # fmt: skip
    environment = collect("cpu", ()).model_copy(update={"device": "Nameless CPU"})
    spec = spec_of_peaks(measurements, environment, memory_hierarchy(CPU))
    assert spec.measured is not None and spec.datasheet is None and spec.characteristics == ()
    assert spec.chip is not None and spec.chip.units is not None and spec.chip.units.value == torch.get_num_threads()
    return spec.measured, spec.missing, told


def test_the_figures_of_this_cpu(found: Found) -> None:
    peaks, reasons, _ = found
    assert set(peaks.matrix) == set(peaks.vector) == {"float32"}
    assert peaks.levels[-1].name == "DRAM" and peaks.host_s_per_op is not None
    figures = [*peaks.matrix.values(), *peaks.vector.values(), *(level.bandwidth for level in peaks.levels)]
    for figure in [*figures, peaks.host_s_per_op]:
        assert figure.low is not None and figure.high is not None
        assert 0 < figure.low <= figure.value * (1 + 1e-9) and figure.value <= figure.high * (1 + 1e-9) < math.inf
        assert (
            "5–95 % of the samples in this process" in figure.source and f"torch {torch.__version__}" in figure.source
        )
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


def test_a_figure_is_what_an_undisturbed_machine_reaches() -> None:
    def visit(number: int, true_s: float, undisturbed: float) -> Measurement:
        """Samples of which a part is undisturbed (± 1 %) and the others 2 to 10 times slower."""
        samples = tuple(
            true_s * (chance.uniform(0.99, 1.01) if chance.random() < undisturbed else chance.uniform(2, 10))
            for _ in range(40)
        )
        return measured("matmul", "8×8×8", 1.0, unit="FLOP/s", work=1e6, samples=samples, process=number)

    for seed in range(3):
        chance = random.Random(seed)
        visits = [visit(0, 1e-3, 0.0), visit(1, 1e-3, 0.5), visit(2, 1e-3, 0.2)]  # the first one shared the machine
        (merged,) = short.together(visits)
        assert len(merged.samples) == 120 and merged.value() == pytest.approx(1e9, rel=0.02), seed


def test_what_no_visit_could_have_keeps_its_reason() -> None:
    failed = [lost("matmul", "burst", f"reason {i}", process=i) for i in range(3)]
    assert [one.reason for one in short.together(failed)] == ["reason 2"]


def test_the_best_shape_over_all_visits_is_the_burst() -> None:
    def product(size: int, rate: float, visit: int) -> Measurement:
        return measured("matmul", f"{size}×{size}×{size}", rate, unit="FLOP/s", process=visit)

    found = [product(256, 9e9, 0), product(512, 8e9, 0), product(256, 7e9, 1), product(512, 10e9, 1)]
    other = measured("memory", "copy", 1e9)
    left_out = {"float32": "1024×1024×1024 (18 s a call)"}
    burst, kept = short.with_bursts(short.together([*found, other]), left_out)
    assert burst.case == "burst" and burst.value() == pytest.approx(10e9) and kept.benchmark == "memory"
    assert burst.parameters["not tried"] == left_out["float32"] and "not tried" not in kept.parameters


def test_later_visits_time_what_came_near_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, {**TWO_CORES, ("bfloat16", "k×n"): 14e9, ("float32", "k×n"): 120e9})
    products = short.Products({})
    bench = paper.bench(dtypes=("float32", "bfloat16"))
    first = list(products.visit(bench, 4.0))
    middle_s, first_calls = paper.clock.at_s, len(paper.calls)
    again = list(products.visit(bench, 4.0))
    assert {layout for kind, _, layout in paper.calls[first_calls:] if kind == "bfloat16"} == {"n×k"}
    assert {layout for kind, _, layout in paper.calls[first_calls:] if kind == "float32"} == {"k×n", "n×k"}
    assert {one.key for one in again} < {one.key for one in first}
    assert middle_s <= 5.0 and paper.clock.at_s - middle_s <= 5.0


def test_three_visits_end_within_their_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = SlowProducts(monkeypatch, TWO_CORES)
    products = short.Products({})
    bench = paper.bench(dtypes=("float32", "bfloat16", "int8"))
    found = [one for _ in range(3) for one in products.visit(bench, 15 * short.SHARES["matmul"][0] / 3)]
    assert paper.clock.at_s <= 1.5 * 15 * short.SHARES["matmul"][0]
    kept = short.with_bursts(short.together(found), products.left_out)
    rates = {one.dtype: one.value() for one in kept if one.has_value}
    assert rates == {"float32": pytest.approx(150e9), "bfloat16": pytest.approx(20e9)}
    assert next(one.reason for one in kept if one.dtype == "int8") == "NotImplementedError: no int8 product"
