"""The host from recorded text and folders: counters, processors, memory and the limits of control groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import until

from profiler.devices import activity
from profiler.devices.activity import parse_cpu_times, parse_swap_pages, process_times, read_host, waited_s
from profiler.devices.host import (
    Processor,
    free_bytes,
    memory_groups,
    parse_cgroups,
    parse_chosen,
    parse_clock_hz,
    parse_cpu_name,
    parse_flags,
    parse_kib,
    parse_memory_limit,
    parse_quota,
    read_limits,
    read_processor,
    total_bytes,
    usable_cpus,
)


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


STAT = """cpu  40801 10 7448 255773 608 5 84 76 500 0
cpu0 11743 0 1042 139498 41 0 17 32 0 0
cpu1 29058 0 6406 116274 566 0 67 43 0 0
intr 1234
"""


def test_cpu_times_add_up_and_guests_count_once() -> None:
    times = parse_cpu_times(STAT, ticks_per_s=100)
    assert times.busy_s == pytest.approx(408.01 + 0.10 + 74.48 + 0.05 + 0.84)
    assert times.steal_s == pytest.approx(0.76)
    assert times.total_s == pytest.approx(times.busy_s + 0.76 + 2557.73 + 6.08)


def test_cpu_times_of_the_cpus_that_are_used() -> None:
    assert parse_cpu_times(STAT, 100, cpus=(1,)).busy_s == pytest.approx(290.58 + 64.06 + 0.67)
    both = parse_cpu_times(STAT, 100, cpus=(0, 1))
    assert both.busy_s == pytest.approx(117.43 + 10.42 + 0.17 + 290.58 + 64.06 + 0.67)
    assert both.steal_s == pytest.approx(0.75)
    assert parse_cpu_times(STAT, 100, cpus=(0, 7)) == parse_cpu_times(STAT, 100)


def test_names_of_processors() -> None:
    assert parse_cpu_name("processor\t: 0\nmodel name\t: Intel(R)  Xeon(R)\nflags\t: a b\n") == "Intel(R) Xeon(R)"
    assert parse_cpu_name("processor\t: 0\nBogoMIPS\t: 50.00\n") is None


def test_counters() -> None:
    assert parse_kib("VmSwap:\t    12 kB\nThreads:\t1\n", "VmSwap") == 12288
    assert parse_kib("Threads:\t1\n", "VmSwap") is None
    assert parse_swap_pages("pswpin 3\npswpout 4\npgfault 9\n") == 7


def test_a_look_at_recorded_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, sys_ = tmp_path / "proc", tmp_path / "sys"
    clock, own = iter([10.0, 11.0]), iter([3.0, 3.25])
    monkeypatch.setattr(activity.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(activity.time, "process_time", lambda: next(own))
    ticks = os.sysconf("SC_CLK_TCK")
    put(proc / "stat", "cpu  0 0 0 0 0 0 0 0 0 0\n")
    put(proc / "vmstat", "pswpin 1\npswpout 1\n")
    put(proc / "loadavg", "2.50 1.00 0.50 3/90 700\n")
    put(proc / "self/status", "VmSwap:\t 0 kB\n")
    put(sys_ / f"devices/system/cpu/cpu{usable_cpus()[0]}/cpufreq/scaling_governor", "powersave\n")
    processes = iter([{77: ("make", 1.0), os.getpid(): ("python", 5.0)}, {
        77: ("make", 1.75), 78: ("cc", 0.5), 79: ("idle", 0.0), os.getpid(): ("python", 6.0),
    }])  # fmt: skip

    def a_second_passes(_: float) -> None:
        put(proc / "stat", f"cpu  {ticks} 0 0 {ticks * 8 // 10} 0 0 0 {ticks // 5} 0 0\n")
        put(proc / "vmstat", "pswpin 4\npswpout 1\n")

    reading = read_host(1, 1.0, proc, sys_, sleep=a_second_passes, processes=lambda: next(processes))
    assert reading.steal_fraction == pytest.approx(0.1)
    assert reading.busy_others_cores == pytest.approx(0.75)
    assert [(p.pid, p.name, p.cores) for p in reading.busiest] == [(77, "make", 0.75), (78, "cc", 0.5)]
    assert (reading.load_1min, reading.swap_pages, reading.swapped_bytes) == (2.5, 3, 0)
    assert reading.governors == ("powersave",)
    assert reading.unread == (f"{sys_}/fs/cgroup",)


def test_a_system_without_proc_says_what_it_did_not_read(tmp_path: Path) -> None:
    reading = read_host(proc=tmp_path / "proc", sys=tmp_path / "sys", sleep=lambda _: None)
    assert reading.steal_fraction is None and reading.busy_others_cores is None
    assert {Path(name).name for name in reading.unread} == {"stat", "vmstat", "status", "loadavg", "cgroup"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_work_of_another_process_is_seen_on_this_machine() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:

        def works(_: float) -> None:
            """Wait until the other process has had a tenth of a second of a CPU, however loaded the machine is."""
            before = used_s(other.pid)
            until(lambda: used_s(other.pid) >= before + 0.1)

        try:
            reading = read_host(sleep=works)
        finally:
            other.kill()
    assert other.pid in {process.pid for process in reading.busiest}


def used_s(pid: int) -> float:
    """CPU seconds of a process."""
    return process_times()[pid][1]


CPUINFO = """processor\t: 0
cpu MHz\t\t: 3400.000
flags\t\t: fpu {} sse

processor\t: 1
cpu MHz\t\t: 2400.000
flags\t\t: fpu sse
"""


def processors(folder: Path, flags: str = "") -> tuple[Path, Path]:
    """Four CPUs on two cores in two memory nodes."""
    proc, sys = folder / "proc", folder / "sys"
    put(proc / "cpuinfo", CPUINFO.format(flags))
    for cpu in range(4):
        folder = sys / f"devices/system/cpu/cpu{cpu}"
        put(folder / "topology/thread_siblings_list", f"{cpu % 2},{cpu % 2 + 2}\n")
        (folder / f"node{cpu % 2}").mkdir()
    put(sys / "kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    return proc, sys


def test_words_of_the_system() -> None:
    assert parse_flags(CPUINFO.format("hypervisor")) == {"fpu", "hypervisor", "sse"}
    assert parse_flags("processor\t: 0\nFeatures\t: fp asimd\n") == frozenset()
    assert (parse_chosen("[always] madvise never\n"), parse_chosen("")) == ("always", None)
    assert parse_clock_hz(CPUINFO) == 2900e6
    assert parse_clock_hz("processor\t: 0\nBogoMIPS\t: 50.00\n") is None


def test_cores_and_nodes_are_counted_over_the_cpus_that_are_used(tmp_path: Path) -> None:
    proc, sys = processors(tmp_path)
    whole = read_processor((0, 1, 2, 3), proc, sys)
    assert (whole.physical_cores, whole.numa_nodes, whole.huge_pages) == (2, 2, "madvise")
    siblings = read_processor((0, 2), proc, sys)
    assert (siblings.physical_cores, siblings.numa_nodes) == (1, 1)


def test_a_guest_sees_a_clock_only_if_its_counters_are_given(tmp_path: Path) -> None:
    for flags, expected in {
        "": (False, True), "hypervisor": (True, False), "hypervisor aperfmperf": (True, True)
    }.items():  # fmt: skip
        processor = read_processor((0,), *processors(tmp_path / (flags or "none"), flags))
        assert (processor.virtual, processor.clock_is_real) == expected, flags


def test_boost_under_either_driver(tmp_path: Path) -> None:
    for i, (file, text, boost) in enumerate(
        [
            ("cpufreq/boost", "1\n", True), ("cpufreq/boost", "0\n", False),
            ("intel_pstate/no_turbo", "0\n", True), ("intel_pstate/no_turbo", "1\n", False),
        ]
    ):  # fmt: skip
        put(tmp_path / f"{i}/devices/system/cpu" / file, text)
        assert read_processor((0,), tmp_path / "proc", tmp_path / str(i)).boost is boost, (file, text)


def test_a_system_that_says_nothing_is_not_known(tmp_path: Path) -> None:
    assert read_processor((0,), tmp_path / "proc", tmp_path / "sys") == Processor()


def test_control_groups() -> None:
    assert parse_cgroups("4:memory:/a/b\n1:cpu,cpuacct:/\n0::/user.slice\n") == {
        "memory": "/a/b", "cpu": "/", "cpuacct": "/", "": "/user.slice",
    }  # fmt: skip
    assert (parse_quota("max", "100000\n"), parse_quota("150000", "100000\n")) == (None, 1.5)
    assert (parse_quota("-1\n", "100000\n"), parse_quota("50000\n", "100000\n")) == (None, 0.5)
    assert parse_memory_limit("max\n") is None
    assert parse_memory_limit("9223372036854771712\n") is None
    assert parse_memory_limit("1073741824\n") == 1 << 30


def test_text_that_is_no_limit_limits_nothing() -> None:
    assert parse_cgroups("no colon\n\n0::/a\n") == {"": "/a"}
    assert [parse_quota(*texts) for texts in (("", ""), ("garbage", ""), ("1", "0"), ("-1", "5"))] == [None] * 4
    assert parse_memory_limit("a lot") is None


def test_the_tightest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    proc, sys_ = tmp_path / "proc", tmp_path / "sys"
    put(proc / "self/cgroup", "0::/pod/box\n")
    root = sys_ / "fs/cgroup"
    put(root / "pod/box/cpu.max", "max 100000\n")
    put(root / "pod/box/memory.max", f"{8 << 30}\n")
    put(root / "pod/cpu.max", "300000 100000\n")
    put(root / "pod/memory.max", f"{4 << 30}\n")
    assert read_limits(proc, sys_) == (3.0, 4 << 30)


def test_limits_of_the_older_hierarchy_even_where_the_own_group_is_hidden(tmp_path: Path) -> None:
    proc, sys_ = tmp_path / "proc", tmp_path / "sys"
    put(proc / "self/cgroup", "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n")
    root = sys_ / "fs/cgroup"
    put(root / "cpu/cpu.cfs_quota_us", "200000\n")
    put(root / "cpu/cpu.cfs_period_us", "100000\n")
    put(root / "memory/memory.limit_in_bytes", f"{1 << 30}\n")
    assert read_limits(proc, sys_) == (2.0, 1 << 30)


def test_what_is_free_is_the_limit_less_what_cannot_be_reclaimed(tmp_path: Path) -> None:
    proc, sys_ = tmp_path / "proc", tmp_path / "sys"
    put(proc / "self/cgroup", "0::/box\n")
    put(proc / "meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    assert (total_bytes(proc, sys_), free_bytes(proc, sys_)) == (16 << 30, 8 << 30)
    put(sys_ / "fs/cgroup/box/memory.max", f"{4 << 30}\n")
    put(sys_ / "fs/cgroup/box/memory.current", f"{3 << 30}\n")
    assert (total_bytes(proc, sys_), free_bytes(proc, sys_)) == (4 << 30, 1 << 30)
    put(sys_ / "fs/cgroup/box/memory.stat", f"anon 5\ninactive_file {1 << 30}\n")
    assert free_bytes(proc, sys_) == 2 << 30
    put(sys_ / "fs/cgroup/box/memory.current", f"{9 << 30}\n")
    assert free_bytes(proc, sys_) == 0, "more is used than allowed: nothing is free"


def test_what_is_free_in_the_older_hierarchy(tmp_path: Path) -> None:
    proc, sys_ = tmp_path / "proc", tmp_path / "sys"
    put(proc / "self/cgroup", "4:memory:/docker/abc\n")
    put(sys_ / "fs/cgroup/memory/docker/abc/memory.limit_in_bytes", f"{2 << 30}\n")
    put(sys_ / "fs/cgroup/memory/docker/abc/memory.usage_in_bytes", f"{1 << 30}\n")
    put(sys_ / "fs/cgroup/memory/docker/abc/memory.stat", f"total_inactive_file {1 << 29}\n")
    (group,) = memory_groups(proc, sys_)
    assert (group.limit_bytes, group.left_bytes) == (2 << 30, 3 << 29)


def test_the_time_that_threads_waited_for_a_core(tmp_path: Path) -> None:
    for task, text in {"1": "5000 2000000000 7\n", "2": "1 500000000 2\n", "3": "nothing\n"}.items():
        (tmp_path / "self" / "task" / task).mkdir(parents=True)
        (tmp_path / "self" / "task" / task / "schedstat").write_text(text)
    assert waited_s(tmp_path) == 2.5
    assert waited_s(tmp_path / "nowhere") == 0
    assert waited_s() >= 0


def test_a_process_keeps_the_memory_that_it_frees() -> None:
    """Page faults of a process that takes and frees 96 MiB again and again, by the kernel's own count."""
    counted = """
import resource, sys
from profiler.devices.host import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
import numpy
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [numpy.ones(3 << 20) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(int(kept), faults())
"""
    keeps, by_default = (
        subprocess.run([sys.executable, "-c", counted, how], capture_output=True, text=True, check=True).stdout.split()
        for how in ("keep", "not")
    )
    if keeps[0] == "0":
        pytest.skip("the C library is not glibc")
    assert int(keeps[1]) < 1000 < int(by_default[1])
