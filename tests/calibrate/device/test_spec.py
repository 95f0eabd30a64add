"""The spec of a characterisation: every figure there, curves and sweeps as what was fitted to them."""

import pytest
from microbench_samples import characterised, lost, measured

from calibrate.device.spec import spec_of
from profiler.record.measurement import Capacity, Measurement, MemoryHierarchy
from profiler.record.run import Environment
from roofline.hardware.load import load_device
from roofline.hardware.spec import HardwareSpec

KIB, MIB = 1 << 10, 1 << 20
MAIN = Capacity(name="DRAM", bytes=1 << 34)
HIERARCHY = MemoryHierarchy(main=MAIN, caches=(Capacity(name="L2", bytes=2 * MIB),))


def environment(device: str = "A CPU", kind: str = "cpu") -> Environment:
    return Environment(
        device=device, device_kind=kind, device_uuid="GPU-1" if kind == "cuda" else None, cores=2, threads=2,
        memory_bytes=1 << 34, hostname="h", os="o", python="3", versions={"torch": "9"},
    )  # type: ignore[arg-type]  # fmt: skip


def curve() -> list[Measurement]:
    """100 GB/s up to 2 MiB, 10 GB/s from 8 MiB on."""
    found = []
    for i in range(22):
        size = int(256 * KIB * 2 ** (i / 3))
        rate = 100e9 if size <= 2 * MIB else 10e9 if size >= 8 * MIB else 100e9 * (2 * MIB / size) ** 1.66
        parameters = {"kernel": "triad", "working_set_bytes": size}
        found.append(measured("curve", f"triad {size}", rate, parameters=parameters))
    return found


def transfers() -> list[Measurement]:
    """10 µs and 50 GB/s to the device, 20 GB/s from it."""
    found = []
    for direction, rate in (("to device", 50e9), ("from device", 20e9)):
        for size in (KIB, 32 * KIB, MIB, 32 * MIB, 1 << 30):
            seconds = 10e-6 + size / rate
            parameters = {"bytes": size, "direction": direction, "memory": "pinned"}
            given = {"work": float(size), "parameters": parameters, "threads": None}
            found.append(measured("transfer", f"pinned {direction} {size}", size / seconds, **given))
    return found


@pytest.fixture
def made() -> HardwareSpec:
    graphs = [
        measured("launch", f"graph {n}", 3e-6 + n * 1e-6, unit="s", work=1.0, parameters={"nodes": n}, dtype=None)
        for n in (1, 4, 16, 64, 256)
    ]
    return spec_of([*characterised(), *curve(), *transfers(), *graphs], environment(), HIERARCHY)


def values(spec: HardwareSpec) -> dict[tuple[str, str | None], float | None]:
    return {(one.name, one.dtype): one.value for one in spec.characteristics}


def test_figures_have_names_of_their_own(made: HardwareSpec) -> None:
    names = [(one.name, one.dtype) for one in made.characteristics]
    assert len(set(names)) == len(names)
    found = values(made)
    assert found["matmul.burst", "int8"] is None and found["memory.copy.one core", "float32"] is not None
    assert not any(name.startswith("cache.") for name, _ in found)


def test_what_was_fitted_stands_for_curves_and_sweeps(made: HardwareSpec) -> None:
    found = values(made)
    assert found["curve.plateau 1 triad", "float32"] == pytest.approx(100e9)
    assert found["curve.plateau 2 triad", "float32"] == pytest.approx(10e9)
    knee = found["curve.knee 1 triad", None]
    assert knee is not None and 2 * MIB <= knee <= 3 * MIB
    assert found["transfer.pinned to device.bandwidth", None] == pytest.approx(50e9, rel=0.05)
    assert found["transfer.pinned to device.latency", None] == pytest.approx(10e-6, rel=0.1)
    assert found["launch.graph start", None] == pytest.approx(3e-6, rel=0.05)
    assert found["launch.graph node", None] == pytest.approx(1e-6, rel=0.05)
    assert found["level.L2", "float32"] is not None and ("level.L3", "float32") not in found


def test_the_host_s_link_is_the_slower_way(made: HardwareSpec) -> None:
    assert made.measured is not None
    link = made.measured.links["pcie"]
    assert link.bandwidth.value == pytest.approx(20e9, rel=0.05) and link.latency_s is not None


def test_a_known_device_keeps_its_datasheet_beside() -> None:
    on_a_gpu = [m.model_copy(update={"threads": None}) for m in characterised() if m.threads == 2]
    spec = spec_of(on_a_gpu, environment("NVIDIA H200", "cuda"), MemoryHierarchy(main=MAIN))
    known = load_device("nvidia-h200-sxm")
    assert (spec.name, spec.datasheet, spec.chip, spec.uuid) == (known.name, known.datasheet, known.chip, "GPU-1")
    against = {one.name: one.datasheet for one in spec.characteristics if one.dtype == "bfloat16"}
    assert against["matmul.burst"] == 989.4e12


def test_a_spec_is_read_back_as_a_device_file(made: HardwareSpec, tmp_path: object) -> None:
    path = tmp_path / "spec.json"  # type: ignore[operator]
    path.write_text(made.model_dump_json())
    assert load_device(path) == made


def test_collectives_that_cannot_be_fitted_are_no_link() -> None:
    one_gpu = lost("collective", "all", "one GPU: collectives need two or more", dtype=None)
    spec = spec_of([*characterised(), one_gpu], environment(), MemoryHierarchy(main=MAIN))
    assert spec.measured is not None and spec.measured.links == {} and "a link needs" in spec.missing["links"]
    assert [one.reason for one in spec.characteristics if one.name == "collective.all"] == [one_gpu.reason]


def test_parts_without_main_memory_make_a_spec_without_peaks() -> None:
    spec = spec_of([measured("launch", "call", 1e-6, unit="s", work=1.0)], environment(), MemoryHierarchy(main=MAIN))
    assert spec.measured is None and "main memory" in spec.missing["peaks"]
    assert [one.name for one in spec.characteristics] == ["launch.call"]
