"""Each thing that spoils a machine at rest is one finding, by rules over recorded readings."""

from profiler.devices.activity import HostReading, Process
from profiler.devices.conditions import CONDITIONS, REASONS, worst
from profiler.devices.findings import gpu_findings, host_findings
from profiler.devices.host import Processor
from profiler.devices.watch import GpuProcess, GpuReading
from profiler.record.measurement import Label

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


def test_a_quiet_host_has_no_findings() -> None:
    assert host_findings(QUIET) == ()
    assert host_findings(HostReading(cores=1, host_cores=1)) == ()


HOST_CASES = [
    ({"busy_others_cores": 0.5}, "warns", "other work takes 0.50 of 4 cores"),
    ({"busy_others_cores": 2.0}, "invalidates", "other work takes 2.00 of 4 cores"),
    (
        {"busy_others_cores": 1.0, "busiest": (Process(pid=9, name="make", cores=0.9),)},
        "warns",
        "other work takes 1.00 of 4 cores: make (9): 90 % of a core",
    ),
    ({"steal_fraction": 0.02}, "warns", "2.00 %"),
    ({"steal_fraction": 0.2}, "invalidates", "20.0 %"),
    ({"load_1min": 4.5}, "note", "4.50 on 4 cores"),
    ({"governors": ("performance", "powersave")}, "warns", "governor is powersave"),
    ({"threads": 8}, "invalidates", "8 threads on 4 cores"),
    ({"threads": 2}, "note", "2 threads of 4 cores"),
    ({"host_cores": 16}, "note", "4 of 16 cores"),
    ({"cpu_quota_cores": 1.5}, "warns", "1.5 cores' time on 4 cores"),
    ({"memory_limit_bytes": 2 << 30}, "note", "2.0 GiB"),
    ({"swapped_bytes": 3 << 20}, "warns", "3 MiB of this process"),
    ({"swap_pages": 7}, "warns", "swapped 7 pages"),
    ({"threads": 4, "processor": Processor(physical_cores=2)}, "warns", "4 threads on 2 physical cores"),
    ({"threads": 2, "processor": Processor(physical_cores=3)}, "note", "2 threads of 3 physical cores"),
    ({"processor": Processor(numa_nodes=2)}, "warns", "2 NUMA nodes"),
    ({"processor": Processor(virtual=True)}, "note", "virtual machine"),
    ({"processor": Processor(boost=True)}, "note", "boost is on"),
    ({"processor": Processor(boost=False)}, "note", "boost is off"),
    ({"processor": Processor(huge_pages="madvise")}, "note", "transparent huge pages: madvise"),
    ({"processor": Processor(huge_pages="never")}, "note", "transparent huge pages: never"),
    ({"unread": ("/proc/stat",)}, "note", "not known here: /proc/stat"),
]


def test_each_thing_that_spoils_a_host_is_one_finding() -> None:
    for change, severity, what in HOST_CASES:
        (finding,) = host_findings(QUIET.model_copy(update=change))
        assert finding.severity == severity and what in finding.what, (change, finding)
        assert finding.why and finding.mend and "{" not in finding.mend, finding


def test_a_plain_processor_is_no_finding() -> None:
    for processor in (
        Processor(physical_cores=4, numa_nodes=1, virtual=False, huge_pages="always"),
        Processor(physical_cores=4, clock_is_real=False),
    ):
        assert host_findings(QUIET.model_copy(update={"processor": processor})) == ()


def test_one_thread_a_physical_core_is_as_it_should_be() -> None:
    siblings = QUIET.model_copy(update={"threads": 2, "processor": Processor(physical_cores=2)})
    assert host_findings(siblings) == ()


def test_a_gpu_does_not_care_where_the_host_keeps_large_tensors() -> None:
    host = QUIET.model_copy(update={"processor": Processor(numa_nodes=2, huge_pages="never")})
    (finding,) = host_findings(host, on_host=False)
    assert (finding.severity, "topo" in finding.mend) == ("note", True)


def test_a_process_that_takes_next_to_nothing_is_not_named() -> None:
    busiest = (Process(pid=9, name="make", cores=0.9), Process(pid=10, name="sshd", cores=0.04))
    (found,) = host_findings(QUIET.model_copy(update={"busy_others_cores": 1.0, "busiest": busiest}))
    assert "make" in found.what and "sshd" not in found.what


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


GPU_CASES = [
    ({"processes": (OTHER,)}, "warns", "1 other process(es) on the GPU (pid 9)"),
    ({"processes": (OTHER,), "utilization": 0.4}, "invalidates", "(pid 9), busy 40 % of the time"),
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
    ({"compute_mode": "prohibited"}, "invalidates", "compute mode is prohibited"),
    ({"compute_mode": "exclusive process"}, "note", "compute mode is exclusive process"),
    *(({"event_reasons": bit}, severity, what) for bit, what, severity, _ in REASONS),
]


def test_each_thing_that_spoils_a_gpu_is_one_finding() -> None:
    for change, severity, what in GPU_CASES:
        (finding,) = gpu_findings(IDLE_GPU.model_copy(update=change))
        assert finding.severity == severity and what in finding.what, (change, finding)
        assert finding.why and finding.mend and "{" not in finding.mend, finding


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


def test_every_condition_says_why_it_matters_and_what_to_do() -> None:
    for name, (_, why, mend) in CONDITIONS.items():
        assert why and mend and len(why) < 110 and len(mend) < 110, name
    assert worst([Label(severity="warns", what="w", share=1)]) == "warns"
