import pytest

from profiler.findings.gpu import REASONS, gpu_findings
from profiler.nvml import GpuProcess, GpuReading

IDLE_GPU = GpuReading(
    name="NVIDIA H200",
    uuid="GPU-0",
    driver="575.57.08",
    memory_bytes=150_754_820_096,
    memory_used_bytes=500_000_000,
    processes=(),
    utilization=0.0,
    mig=False,
    ecc=True,
    ecc_uncorrected=0,
    sm_clock_hz=1980e6,
    sm_clock_max_hz=1980e6,
    event_reasons=0x1,
    persistence=True,
    temperature_c=31,
    slowdown_temperature_c=92,
    power_limit_w=700,
    power_default_w=700,
)


def test_an_idle_gpu_has_no_findings() -> None:
    assert gpu_findings(IDLE_GPU) == ()


OTHER = GpuProcess(pid=9, memory_bytes=1 << 30, visible=True)
HIDDEN = GpuProcess(pid=88_000, visible=False)


@pytest.mark.parametrize(
    ("change", "severity", "what"),
    [
        ({"processes": (OTHER,)}, "warns", "1 other process(es) on the GPU (pid 9)"),
        ({"processes": (OTHER,), "utilization": 0.4}, "invalidates", "(pid 9), busy 40% of the time"),
        ({"processes": (HIDDEN,)}, "warns", "pid 88000, outside this container"),
        ({"mig": True}, "warns", "MIG is on"),
        ({"ecc": False}, "note", "ECC is off"),
        ({"ecc_uncorrected": 2}, "invalidates", "2 uncorrected"),
        ({"sm_clock_hz": 345e6}, "note", "345 MHz now, up to 1980 MHz"),
        ({"persistence": False}, "note", "persistence"),
        ({"temperature_c": 85}, "warns", "85 °C; it slows down at 92 °C"),
        ({"power_limit_w": 500}, "warns", "capped at 500 W; the default is 700 W"),
        ({"unread": ("power limit: Not Supported",)}, "note", "does not say: power limit: Not Supported"),
        ({"memory_used_bytes": 5 << 30}, "warns", "5.0 of 140.4 GiB of the GPU's memory are in use"),
        ({"compute_mode": "prohibited"}, "invalidates", "prohibited: no process may use CUDA"),
        ({"compute_mode": "exclusive process"}, "note", "exclusive process: two processes cannot"),
        *(({"event_reasons": bit}, severity, what) for bit, what, severity, _ in REASONS),
    ],
)
def test_each_thing_that_spoils_a_gpu_is_one_finding(change: dict[str, object], severity: str, what: str) -> None:
    (finding,) = gpu_findings(IDLE_GPU.model_copy(update=change))
    assert finding.severity == severity
    assert what in finding.what
    assert finding.mend


def test_a_reading_with_nothing_known_has_no_findings() -> None:
    bare = GpuReading(name="x", uuid="u", driver="d", memory_bytes=1, memory_used_bytes=0)
    assert gpu_findings(bare) == ()


def test_in_a_container_one_unknown_process_may_be_this_one() -> None:
    gpu = IDLE_GPU.model_copy(update={"processes": (HIDDEN,), "utilization": 0.4})
    assert gpu_findings(gpu, own_context=True) == ()
    assert [f.severity for f in gpu_findings(gpu, own_context=False)] == ["invalidates"]
    busy = HIDDEN.model_copy(update={"pid": 88_001, "sm_utilization": 0.9})
    assert [p.pid for p in gpu.model_copy(update={"processes": (HIDDEN, busy)}).foreign(own_context=True)] == [88_000]
    two = gpu.model_copy(update={"processes": (HIDDEN, OTHER)})
    assert "1 other process(es) on the GPU (pid 9)" in gpu_findings(two, own_context=True)[0].what


def test_memory_that_our_own_tensors_hold_is_not_in_the_way() -> None:
    gpu = IDLE_GPU.model_copy(update={"memory_used_bytes": 21 << 30})
    assert gpu_findings(gpu, own_bytes=20 << 30) == ()
    assert "11.0 of" in gpu_findings(gpu, own_bytes=10 << 30)[0].what
    # the driver counts the whole device where this process has a slice of it
    assert [f.what[:6] for f in gpu_findings(gpu.model_copy(update={"mig": True}))] == ["MIG is"]
