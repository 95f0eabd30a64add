import pytest

from profiler.findings.host import host_findings
from profiler.host import HostReading, Process
from profiler.processor import Processor

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
        ({"threads": 4, "processor": Processor(physical_cores=2)}, "warns", "4 threads on 2 physical cores"),
        ({"threads": 2, "processor": Processor(physical_cores=3)}, "note", "2 threads of 3 physical cores"),
        ({"processor": Processor(numa_nodes=2)}, "warns", "2 NUMA nodes"),
        ({"processor": Processor(virtual=True)}, "note", "a virtual machine"),
        ({"processor": Processor(boost=True)}, "note", "boost is on"),
        ({"processor": Processor(boost=False)}, "note", "boost is off"),
        ({"processor": Processor(huge_pages="madvise")}, "note", "transparent huge pages: madvise"),
        ({"processor": Processor(huge_pages="never")}, "note", "transparent huge pages: never"),
        ({"unread": ("/proc/stat",)}, "note", "not known here: /proc/stat"),
    ],
)
def test_each_thing_that_spoils_a_host_is_one_finding(change: dict[str, object], severity: str, what: str) -> None:
    (finding,) = host_findings(QUIET.model_copy(update=change))
    assert finding.severity == severity
    assert what in finding.what
    assert finding.mend


@pytest.mark.parametrize(
    "processor",
    [
        Processor(physical_cores=4, numa_nodes=1, virtual=False, huge_pages="always"),
        Processor(physical_cores=4, clock_is_real=False),
    ],
)
def test_a_plain_processor_is_no_finding(processor: Processor) -> None:
    assert host_findings(QUIET.model_copy(update={"processor": processor})) == ()


def test_one_thread_a_physical_core_is_as_it_should_be() -> None:
    siblings = QUIET.model_copy(update={"threads": 2, "processor": Processor(physical_cores=2)})
    assert host_findings(siblings) == ()


def test_a_gpu_does_not_care_where_the_host_keeps_large_tensors() -> None:
    host = QUIET.model_copy(update={"processor": Processor(numa_nodes=2, huge_pages="never")})
    (finding,) = host_findings(host, "cuda")
    assert (finding.severity, "topo" in finding.mend) == ("note", True)


def test_a_process_that_takes_next_to_nothing_is_not_named() -> None:
    busiest = (Process(pid=9, name="make", cores=0.9), Process(pid=10, name="sshd", cores=0.04))
    (found,) = host_findings(QUIET.model_copy(update={"busy_others_cores": 1.0, "busiest": busiest}))
    assert "make" in found.what and "sshd" not in found.what
