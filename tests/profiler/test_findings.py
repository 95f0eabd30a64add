import pytest

from profiler.findings import REASONS, disk_findings, gpu_findings, host_findings
from profiler.host import HostReading, Process
from profiler.nvml import GpuProcess, GpuReading

QUIET = HostReading(
    cores=4,
    host_cores=4,
    threads=4,
    load_1min=0.3,
    steal_fraction=0.0,
    busy_others_cores=0.02,
    governors=("performance",),
    swapped_bytes=0,
    swap_pages=0,
)

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


def test_a_quiet_host_and_an_idle_gpu_have_no_findings() -> None:
    assert host_findings(QUIET) == ()
    assert gpu_findings(IDLE_GPU) == ()


@pytest.mark.parametrize(
    ("change", "severity", "what"),
    [
        ({"busy_others_cores": 0.5}, "warns", "other work takes 0.50 of 4 cores"),
        ({"busy_others_cores": 2.0}, "invalidates", "other work takes 2.00 of 4 cores"),
        (
            {"busy_others_cores": 1.0, "busiest": (Process(pid=9, name="make", cores=0.9),)},
            "warns",
            "other work takes 1.00 of 4 cores: make (9): 90% of a core",
        ),
        ({"steal_fraction": 0.02}, "warns", "2.0%"),
        ({"steal_fraction": 0.2}, "invalidates", "20.0%"),
        ({"load_1min": 4.5}, "note", "load average 4.50 on 4 cores"),
        ({"governors": ("performance", "powersave")}, "warns", "governor powersave"),
        ({"threads": 8}, "invalidates", "8 threads on 4 cores"),
        ({"threads": 2}, "note", "2 threads of 4 cores"),
        ({"host_cores": 16}, "note", "4 of 16 cores"),
        ({"cpu_quota_cores": 1.5}, "warns", "1.5 cores' time on 4 cores"),
        ({"memory_limit_bytes": 2 << 30}, "note", "2.0 GiB"),
        ({"swapped_bytes": 3 << 20}, "warns", "3 MiB of this process"),
        ({"swap_pages": 7}, "warns", "swapped 7 pages"),
        ({"unread": ("/proc/stat",)}, "note", "not known here: /proc/stat"),
    ],
)
def test_each_thing_that_spoils_a_host_is_one_finding(change: dict[str, object], severity: str, what: str) -> None:
    (finding,) = host_findings(QUIET.model_copy(update=change))
    assert finding.severity == severity
    assert what in finding.what
    assert finding.mend


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
    assert host_findings(HostReading(cores=1, host_cores=1)) == ()


def test_in_a_container_one_unknown_process_may_be_this_one() -> None:
    gpu = IDLE_GPU.model_copy(update={"processes": (HIDDEN,), "utilization": 0.4})
    assert gpu_findings(gpu, own_context=True) == ()
    assert [f.severity for f in gpu_findings(gpu, own_context=False)] == ["invalidates"]
    two = gpu.model_copy(update={"processes": (HIDDEN, OTHER)})
    assert "1 other process(es) on the GPU (pid 9)" in gpu_findings(two, own_context=True)[0].what


def test_a_full_disk_is_a_finding() -> None:
    assert disk_findings(10 << 30, "results") == ()
    (finding,) = disk_findings(5 << 20, "results")
    assert finding.what == "5 MiB free for results under results"


def test_a_process_that_takes_next_to_nothing_is_not_named() -> None:
    busiest = (Process(pid=9, name="make", cores=0.9), Process(pid=10, name="sshd", cores=0.04))
    (found,) = host_findings(QUIET.model_copy(update={"busy_others_cores": 1.0, "busiest": busiest}))
    assert "make" in found.what and "sshd" not in found.what
