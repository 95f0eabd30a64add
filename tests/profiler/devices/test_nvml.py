"""The driver's raw values are composed here in its units; a real driver answers in the test that is marked for it."""

import os
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from profiler.devices.nvml import Gpu, NvmlMissing
from profiler.devices.watch import GpuState

ADDRESS = "00000000:1B:00.0"
ANSWERS = {
    "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=os.getpid(), usedGpuMemory=9)],
    "nvmlDeviceGetGraphicsRunningProcesses": [],
    "nvmlDeviceGetClockInfo": {pynvml.NVML_CLOCK_SM: 1605, pynvml.NVML_CLOCK_MEM: 3201},
    "nvmlDeviceGetMaxClockInfo": {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 3201},
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
    "nvmlDeviceGetTemperature": {pynvml.NVML_TEMPERATURE_GPU: 61},
    "nvmlDeviceGetTemperatureThreshold": {pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN: 92},
    "nvmlDeviceGetPowerUsage": 698_912,
    "nvmlDeviceGetTotalEnergyConsumption": 81_234_567,
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=40),
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=150 << 30, used=1 << 30),
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetEccMode": [1, 1],
    "nvmlDeviceGetRemappedRows": (1, 2, 0, 0),
    "nvmlDeviceGetTotalEccErrors": {pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED: 0},
    "nvmlDeviceGetComputeMode": 3,
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetEnforcedPowerLimit": 650_000,
    "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
    "nvmlDeviceGetName": "NVIDIA H200",
    "nvmlDeviceGetUUID": b"GPU-0",
}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the driver answers: a value, one for each of a call's kinds, or an error."""
    answers = dict(ANSWERS)
    calls: list[str] = []

    def answering(name: str) -> Any:
        def call(handle: object, *kinds: int) -> Any:
            answer = answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer[kinds[0]] if isinstance(answer, dict) else answer

        return call

    for name in answers:
        monkeypatch.setattr(pynvml, name, answering(name))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByPciBusId", lambda address: address)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "575.57.08")
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: calls.append("init"))
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: calls.append("shutdown"))
    answers["calls"] = calls
    return answers


def test_a_quick_look_is_in_si_units_and_opens_the_driver_once(driver: dict[str, Any]) -> None:
    with Gpu(ADDRESS) as gpu:
        assert gpu.quick() == gpu.quick()
        state = gpu.quick()
    assert (state.sm_clock_hz, state.memory_clock_hz) == (1605e6, 3201e6)
    assert (state.power_w, state.energy_j) == pytest.approx((698.912, 81_234.567))
    assert (state.temperature_c, state.event_reasons, state.processes) == (61, 0x4, ())
    assert driver["calls"] == ["init", "shutdown"]


def test_a_whole_reading_holds_what_a_quick_one_does(driver: dict[str, Any]) -> None:
    with Gpu(ADDRESS) as gpu:
        reading, state = gpu.read(), gpu.quick()
    assert {name: getattr(reading, name) for name in GpuState.model_fields} == dict(state)
    assert (reading.name, reading.uuid, reading.compute_mode) == ("NVIDIA H200", "GPU-0", "exclusive process")
    assert (reading.utilization, reading.mig, reading.ecc, reading.persistence) == (0.4, False, True, True)
    assert (reading.sm_clock_max_hz, reading.power_limit_w, reading.power_default_w) == (1980e6, 650, 700)
    assert reading.unread == ()


def test_what_the_driver_refuses_is_named_and_none(driver: dict[str, Any]) -> None:
    driver["nvmlDeviceGetPowerUsage"] = pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
    with Gpu(ADDRESS) as gpu:
        state = gpu.quick()
    assert state.power_w is None and state.sm_clock_hz == 1605e6
    assert state.unread == ("power: Insufficient Permissions",)


def test_a_driver_that_is_lost_leaves_a_state_in_which_nothing_is_known(driver: dict[str, Any]) -> None:
    with Gpu(ADDRESS) as gpu:
        driver.update((name, pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)) for name in ANSWERS)
        state = gpu.quick()
        with pytest.raises(NvmlMissing, match=ADDRESS):
            gpu.read()
    assert dict(state) == dict(GpuState()) | {"unread": state.unread}
    assert len(state.unread) == len(GpuState.model_fields) - 1


def test_each_figure_that_the_driver_refuses_loses_only_itself(
    driver: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Gpu(ADDRESS) as gpu:
        whole = dict(gpu.read())
    errors = (pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED), AttributeError("no such function"))
    for name in [*ANSWERS, "nvmlSystemGetDriverVersion"]:
        for error in errors:
            if name in ANSWERS:
                driver[name] = error
            else:
                monkeypatch.setattr(pynvml, name, lambda error=error: (_ for _ in ()).throw(error))
            with Gpu(ADDRESS) as gpu:
                reading = dict(gpu.read())
            lost = {key for key in whole if reading[key] != whole[key]} - {"unread"}
            pairs = {"nvmlDeviceGetMemoryInfo": 2, "nvmlDeviceGetClockInfo": 2, "nvmlDeviceGetMaxClockInfo": 2}
            assert len(lost) == (0 if "RunningProcesses" in name else pairs.get(name, 1)), (name, lost)
            assert all(reading[key] is None for key in lost), name
            assert reading["unread"] and str(error) in reading["unread"][0], name
        driver.update(ANSWERS)


def test_what_other_processes_do_is_counted_since_the_last_look(driver: dict[str, Any]) -> None:
    asked: list[int] = []
    samples = [(7, 100, 30), (7, 200, 50), (8, 150, 0)]

    def utilization(handle: object, since_us: int) -> list[SimpleNamespace]:
        asked.append(since_us)
        if new := [SimpleNamespace(pid=p, timeStamp=t, smUtil=u) for p, t, u in samples if t > since_us]:
            return new
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    driver["nvmlDeviceGetComputeRunningProcesses"] = [
        SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in (7, 8, os.getpid())
    ]
    with pytest.MonkeyPatch.context() as patch, Gpu(ADDRESS) as gpu:
        patch.setattr(pynvml, "nvmlDeviceGetProcessUtilization", utilization)
        looks = [[(p.pid, p.sm_utilization) for p in gpu.quick().processes or ()] for _ in range(2)]
    assert looks == [[(7, 0.5), (8, 0.0)], [(7, 0.0), (8, 0.0)]]
    assert asked == [0, 200]


def test_utilisation_that_is_not_given_is_not_zero(driver: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetProcessUtilization", refused)
    driver["nvmlDeviceGetComputeRunningProcesses"] = [SimpleNamespace(pid=7, usedGpuMemory=1)]
    with Gpu(ADDRESS) as gpu:
        (process,) = gpu.quick().processes or ()
    assert process.sm_utilization is None


def test_a_gpu_that_is_not_there_lets_the_driver_go(driver: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: bytes) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByPciBusId", unknown)
    with pytest.raises(NvmlMissing, match=ADDRESS):
        Gpu(ADDRESS)
    assert driver["calls"] == ["init", "shutdown"]


@pytest.mark.gpu
def test_a_real_driver_answers() -> None:
    pynvml.nvmlInit()
    try:
        address = pynvml.nvmlDeviceGetPciInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).busId
    finally:
        pynvml.nvmlShutdown()
    with Gpu(address if isinstance(address, str) else address.decode()) as gpu:
        reading, state = gpu.read(), gpu.quick()
    assert reading.name and reading.memory_bytes > 1 << 30
    assert state.sm_clock_hz is not None and state.sm_clock_hz > 1e8
