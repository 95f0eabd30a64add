import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import until

from profiler import host
from profiler.host import (
    parse_cpu_name,
    parse_cpu_times,
    parse_kib,
    parse_process_times,
    parse_swap_pages,
    read_host,
)
from profiler.machine import usable_cpus

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


def test_process_names_may_hold_brackets_and_blanks() -> None:
    text = "77 (tmux: (srv) 1) S 1 77 77 0 -1 4194560 900 0 3 0 250 50 0 0 20 0 1 0 5000 1 1 1\n"
    assert parse_process_times(text, ticks_per_s=100) == ("tmux: (srv) 1", 3.0)


def test_names_of_processors() -> None:
    assert parse_cpu_name("processor\t: 0\nmodel name\t: Intel(R)  Xeon(R)\nflags\t: a b\n") == "Intel(R) Xeon(R)"
    assert parse_cpu_name("processor\t: 0\nBogoMIPS\t: 50.00\n") is None


def test_counters() -> None:
    assert parse_kib("VmSwap:\t    12 kB\nThreads:\t1\n", "VmSwap") == 12288
    assert parse_kib("Threads:\t1\n", "VmSwap") is None
    assert parse_swap_pages("pswpin 3\npswpout 4\npgfault 9\n") == 7


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_look_at_recorded_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, sys_ = tmp_path / "proc", tmp_path / "sys"
    clock = iter([10.0, 11.0])
    monkeypatch.setattr(host.time, "monotonic", lambda: next(clock))
    ticks = os.sysconf("SC_CLK_TCK")
    busy = "77 (make) R 1 77 77 0 -1 0 0 0 0 0 {} 0 0 0 20 0 1 0 5000 1 1 1\n"
    own = f"{os.getpid()} (python) S 1 77 77 0 -1 0 0 0 0 0 {{}} 0 0 0 20 0 1 0 5000 1 1 1\n"
    _put(proc / "stat", "cpu  0 0 0 0 0 0 0 0 0 0\n")
    _put(proc / "vmstat", "pswpin 1\npswpout 1\n")
    _put(proc / "loadavg", "2.50 1.00 0.50 3/90 700\n")
    _put(proc / "self/status", "VmSwap:\t 0 kB\n")
    _put(proc / "77/stat", busy.format(0))
    _put(proc / f"{os.getpid()}/stat", own.format(0))
    cpu = usable_cpus()[0]
    _put(sys_ / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "powersave\n")

    def a_second_passes(_: float) -> None:
        _put(proc / "stat", f"cpu  {ticks} 0 0 {ticks * 8 // 10} 0 0 0 {ticks // 5} 0 0\n")
        _put(proc / "vmstat", "pswpin 4\npswpout 1\n")
        _put(proc / "77/stat", busy.format(ticks * 3 // 4))
        _put(proc / f"{os.getpid()}/stat", own.format(ticks // 4))

    reading = read_host(threads=1, interval_s=1.0, proc=proc, sys=sys_, sleep=a_second_passes)
    assert reading.steal_fraction == pytest.approx(0.1)
    assert reading.busy_others_cores == pytest.approx(0.75)
    assert [(p.pid, p.name, p.cores) for p in reading.busiest] == [(77, "make", 0.75)]
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
            """Until the other process has had a tenth of a second of a CPU, however loaded the machine is."""
            before = used_s(other.pid)
            until(lambda: used_s(other.pid) >= before + 0.1)

        try:
            reading = read_host(sleep=works)
        finally:
            other.kill()
    assert other.pid in {process.pid for process in reading.busiest}


def used_s(pid: int) -> float:
    """CPU seconds of a process."""
    return parse_process_times(Path(f"/proc/{pid}/stat").read_text(), os.sysconf("SC_CLK_TCK"))[1]
