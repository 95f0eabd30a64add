"""Figures of several processes, and the peaks that price operations, against values worked out by hand."""

import math
import statistics

import pytest
from microbench_samples import CAP, characterised, lost, measured, replicated

from calibrate.device.figures import characteristic, characteristics, datasheet_value, name_of, with_datasheet
from calibrate.device.peaks import peaks_of
from profiler.record.measurement import Capacity, MemoryHierarchy, grouped
from profiler.record.run import Environment
from roofline.hardware.load import load_device
from roofline.hardware.spec import Characteristic

MAIN = Capacity(name="DRAM", bytes=1 << 34)
HIERARCHY = MemoryHierarchy(main=MAIN, caches=(Capacity(name="L2", bytes=2 << 20), Capacity(name="L3", bytes=32 << 20)))


def environment(kind: str = "cpu") -> Environment:
    return Environment(
        device="A device", device_kind=kind, cores=2, threads=2, memory_bytes=1 << 34, hostname="h", os="o",
        python="3", versions={"torch": "9"},
    )  # type: ignore[arg-type]  # fmt: skip


def test_a_figure_is_the_geometric_mean_of_one_value_a_process() -> None:
    values = [100e9, 110e9, 90e9]
    one = characteristic("memory.triad", replicated("memory", "triad", values))
    assert one.value == pytest.approx(statistics.geometric_mean(values)) and one.replicates == 3
    logs = [math.log(v) for v in values]
    half = 2.919986 * statistics.stdev(logs) / math.sqrt(3)  # Student's t, 2 degrees of freedom, 95 %
    assert one.low == pytest.approx(one.value * math.exp(-half)) and one.high == pytest.approx(
        one.value * math.exp(half)
    )
    assert one.variation == pytest.approx(statistics.stdev(values) / 100e9)
    assert one.typical == pytest.approx((one.value or 0) / 1.1)  # the median lies between the fast and the slow half


def test_fewer_than_three_processes_have_no_interval() -> None:
    for count in (1, 2):
        figure = characteristic("x", replicated("memory", "triad", [1e9] * count))
        assert (figure.low, figure.high, figure.replicates) == (None, None, count)


def test_a_later_measurement_of_a_process_replaces_the_first() -> None:
    first, again = measured("memory", "copy", 1e9, process=1), measured("memory", "copy", 2e9, process=1)
    ((only,),) = grouped([first, again]).values()
    assert only is again


def test_busy_processes_count_only_where_there_is_no_other() -> None:
    busy = [measured("memory", "copy", 1e9, process=i, status="inconclusive", reason="other work") for i in (1, 2)]
    quiet = measured("memory", "copy", 2e9, process=3)
    assert characteristic("x", [*busy, quiet]).value == pytest.approx(2e9)
    all_busy = characteristic("x", busy)
    assert all_busy.status == "inconclusive" and all_busy.value == pytest.approx(1e9)
    assert all_busy.reason == "other work"


def test_what_failed_has_its_reason_and_labels_are_kept() -> None:
    one = characteristic("x", [lost("memory", "copy", "out of memory")])
    assert (one.value, one.status, one.reason) == (None, "failed", "out of memory")
    capped = characteristic("x", replicated("matmul", "burst", [1e12] * 3, unit="FLOP/s", labels=(CAP,)))
    assert capped.labels == (CAP.what,) and capped.status == "done"
    hot = characteristic("x", [lost("matmul", "burst", "thermal", status="invalid")])
    assert (hot.status, hot.value) == ("invalid", None)


def test_names_tell_one_core_from_all() -> None:
    assert name_of(measured("memory", "copy", 1e9, threads=1), threads=2) == "memory.copy.one core"
    assert name_of(measured("memory", "copy", 1e9, threads=1), threads=1) == "memory.copy"
    assert name_of(measured("memory", "copy", 1e9, threads=None), threads=None) == "memory.copy"
    names = [one.name for one in characteristics(characterised(), threads=2)]
    assert len({(one.name, one.dtype) for one in characteristics(characterised(), threads=2)}) == len(names)


def test_peaks_of_a_cpu() -> None:
    peaks, missing = peaks_of(characterised(), environment(), HIERARCHY)
    assert [level.name for level in peaks.levels] == ["L2", "DRAM"]
    middle = statistics.geometric_mean([1.0, 1.01, 0.99])
    assert peaks.levels[-1].bandwidth.value == pytest.approx(24e9 * middle)  # triad; a fill alone is no bandwidth
    assert peaks.levels[0].bandwidth.value == pytest.approx(100e9 * middle)
    assert peaks.levels[0].capacity_bytes == 2 << 20
    assert peaks.matrix["bfloat16"].value == pytest.approx(400e9 * middle)  # the burst
    assert peaks.vector["float32"].value == pytest.approx(30e9 * middle)  # the best operation
    assert peaks.host_s_per_op is not None and peaks.host_s_per_op.value == pytest.approx(1e-5 * middle)
    assert "torch 9" in peaks.matrix["float32"].source and "3 fresh processes" in peaks.matrix["float32"].source
    assert missing["matrix.int8"] == "NotImplementedError: no kernel"
    assert missing["level.L3"].startswith("merged into DRAM")


def test_a_gpu_s_ieee_products_run_on_its_vector_units() -> None:
    on_a_gpu = [m.model_copy(update={"threads": None}) for m in characterised() if m.threads == 2]
    peaks, _ = peaks_of(on_a_gpu, environment("cuda"), MemoryHierarchy(main=MAIN))
    assert peaks.vector["float32"] == peaks.matrix["float32"]
    assert peaks.vector["bfloat16"].value < peaks.matrix["bfloat16"].value


def test_nothing_is_priced_without_main_memory() -> None:
    found = [one for one in characterised() if one.benchmark != "memory"]
    with pytest.raises(RuntimeError, match="main memory"):
        peaks_of([*found, lost("memory", "triad", "out of memory")], environment(), HIERARCHY)


DATASHEET = (
    ("memory.triad", "float32", "B/s", 4.8e12),
    ("memory.triad.one core", "float32", "B/s", None),
    ("level.HBM", "float32", "B/s", 4.8e12),
    ("level.L2", "float32", "B/s", None),
    ("matmul.burst", "bfloat16", "FLOP/s", 989.4e12),
    ("matmul.sustained", "float8_e4m3fn", "FLOP/s", 1978.9e12),
    ("vector.gelu", "bfloat16", "FLOP/s", 133.8e12),
    ("transfer.pinned to device.bandwidth", None, "B/s", 63e9),
    ("transfer.pinned both ways.bandwidth", None, "B/s", None),
    ("transfer.pinned to device.latency", None, "s", None),
    ("launch.call", None, "s", None),
)
"""Name, dtype and unit of a figure, and what the datasheet of the H200 says of the same."""


def test_a_figure_is_held_against_the_datasheet_s_figure_of_the_same() -> None:
    datasheet = load_device("nvidia-h200-sxm").datasheet
    for name, dtype, unit, value in DATASHEET:
        figure = Characteristic(name=name, dtype=dtype, unit=unit, value=1.0)
        assert datasheet_value(figure, datasheet) == value, name
        assert with_datasheet([figure], datasheet)[0].datasheet == value, name
        assert datasheet_value(figure, None) is None, name


def test_the_middle_placement_is_the_value() -> None:
    lucky = (0.5, 1.0, 1.1, 1.0) * 5  # four sets of operands, one on twice as fast pages
    one = measured("memory", "copy", 1.0, samples=lucky, work=1.0, quantile=0.0, placements=4)
    assert one.value() == pytest.approx(1.0)
    assert one.model_copy(update={"placements": 1}).value() == pytest.approx(2.0)
