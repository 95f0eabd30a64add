import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from nvml_sequences import Clock, play, quiet_host, sequence

from profiler.devices.activity import process_times
from profiler.devices.backend import CPU, CUDA
from profiler.devices.nvml import NvmlMissing
from profiler.devices.watch import CLOCKED_CPUS, GpuProcess, GpuState, GpuWatch, HostWatch
from profiler.record.measurement import Window

TICKS = os.sysconf("SC_CLK_TCK")
GPU_FIGURES = ("sm_clock_hz", "memory_clock_hz", "power_w", "temperature_c", "event_reasons", "energy_j", "foreign")


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def stat(busy_s: float, steal_s: float, idle_s: float) -> str:
    """Of four CPUs: the first two did all this, the others were busy the whole time."""
    half = (busy_s / 2, steal_s / 2, idle_s / 2)
    wall_s = sum(half)
    lines = [("cpu", (busy_s + 2 * wall_s, steal_s, idle_s)), ("cpu0", half), ("cpu1", half)]
    lines += [(f"cpu{i}", (wall_s, 0.0, 0.0)) for i in (2, 3)]
    return "".join(
        f"{name} {busy * TICKS:.0f} 0 0 {idle * TICKS:.0f} 0 0 0 {steal * TICKS:.0f} 0 0\n"
        for name, (busy, steal, idle) in lines
    )


class Host:
    """Two usable CPUs of four, whose files and clocks are set by hand."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.sys, self.clock, self.own_s = folder / "proc", folder / "sys", Clock(), 0.0
        put(self.proc / "loadavg", "1.50 1.00 0.50 3/90 700\n")
        put(self.proc / "stat", stat(0, 0, 0))

    def watch(self, cpus: tuple[int, ...] = (0, 1)) -> HostWatch:
        return HostWatch(self.proc, self.sys, now=self.clock, own=lambda: self.own_s, cpus=cpus)


def test_a_window_of_the_host_is_about_the_cpus_that_are_used(tmp_path: Path) -> None:
    host = Host(tmp_path)
    watch = host.watch()
    watch.begin()
    put(host.proc / "stat", stat(busy_s=10, steal_s=2, idle_s=8))
    host.clock.s += 10
    host.own_s = 6.0
    window = watch.end(samples=7)
    assert (window.start_s, window.duration_s, window.samples, window.cores) == (0, 10, 7, 2)
    assert window.steal_fraction == pytest.approx(2 / 20)
    assert window.other_cores == pytest.approx((10 - 6) / 10)
    assert window.load_1min == 1.5
    assert all(getattr(window, figure) is None for figure in GPU_FIGURES)


def test_windows_are_placed_from_the_start_of_the_first(tmp_path: Path) -> None:
    host = Host(tmp_path)
    watch = host.watch()
    placed = []
    for pause_s, length_s in ((5.0, 1.0), (0.5, 2.0)):
        host.clock.s += pause_s
        watch.begin()
        host.clock.s += length_s
        window = watch.end(1)
        placed.append((window.start_s, window.duration_s))
    assert placed == [(0, 1), (1.5, 2)]


def test_the_cpu_clock_is_the_mean_of_what_the_kernel_measures(tmp_path: Path) -> None:
    host = Host(tmp_path)
    for cpu, kilohertz in enumerate((3_000_000, 2_000_000, 400_000)):
        put(host.sys / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq", f"{kilohertz}\n")
    put(host.proc / "cpuinfo", "cpu MHz\t\t: 1.0\n")
    watch = host.watch()
    watch.begin()
    assert watch.end(1).cpu_clock_hz == 2.5e9


def test_a_host_of_many_cpus_is_read_in_part(tmp_path: Path) -> None:
    host = Host(tmp_path)
    cpus = tuple(range(3 * CLOCKED_CPUS - 1))
    for cpu in cpus[::3]:
        put(host.sys / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq", "2000000\n")
    for cpu in cpus[1::3]:
        put(host.sys / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq", "9000000\n")
    watch = host.watch(cpus)
    watch.begin()
    assert watch.end(1).cpu_clock_hz == 2e9


@pytest.mark.parametrize(
    ("flags", "clock_hz", "unread"),
    [("fpu", 2.6e9, ()), ("hypervisor aperfmperf", 2.6e9, ()), ("fpu hypervisor", None, ("virtual machine",))],
)
def test_a_nominal_clock_of_a_guest_is_not_taken_for_a_measured_one(
    flags: str, clock_hz: float | None, unread: tuple[str, ...], tmp_path: Path
) -> None:
    host = Host(tmp_path)
    put(host.proc / "cpuinfo", f"cpu MHz\t\t: 2600.0\nflags\t\t: {flags}\n")
    watch = host.watch()
    for _ in range(2):
        watch.begin()
        host.clock.s += 1
        put(host.proc / "stat", stat(busy_s=host.clock.s, steal_s=0, idle_s=host.clock.s))
        assert watch.end(1).cpu_clock_hz == clock_hz
    assert len(watch.unread) == len(unread)
    assert all(word in line for word, line in zip(unread, watch.unread, strict=True))


def test_what_the_host_does_not_say_is_none_and_said_once(tmp_path: Path) -> None:
    watch = quiet_host(tmp_path, Clock())
    for _ in range(3):
        watch.begin()
        window = watch.end(2)
    assert window == Window(start_s=0, duration_s=0, samples=2, cores=1)
    assert sorted(Path(line.partition(":")[0]).name for line in watch.unread) == ["cpuinfo", "loadavg", "stat"]


def test_counters_that_stand_still_are_not_a_quiet_host(tmp_path: Path) -> None:
    host = Host(tmp_path)
    watch = host.watch()
    watch.begin()
    host.clock.s += 0.004
    window = watch.end(1)
    assert window.steal_fraction is None and window.other_cores is None
    assert any("did not move" in line for line in watch.unread)


def test_a_window_that_was_not_opened_is_refused(tmp_path: Path) -> None:
    watch = Host(tmp_path).watch()
    with pytest.raises(RuntimeError, match="begin"):
        watch.end(1)
    watch.begin()
    watch.end(1)
    with pytest.raises(RuntimeError, match="begin"):
        watch.end(1)


def test_a_gpus_window_holds_the_state_at_its_end_and_the_energy_within_it(tmp_path: Path) -> None:
    windows, watch = play(sequence("power_capped_gemm"), tmp_path)
    assert [window.start_s for window in windows] == [0.25 * i for i in range(12)]
    last = windows[-1]
    assert (last.sm_clock_hz, last.memory_clock_hz, last.power_w) == (1410e6, 3201e6, 699)
    assert (last.temperature_c, last.event_reasons, last.foreign, last.cores) == (56, 0x4, (), 1)
    assert [window.energy_j for window in windows] == pytest.approx([0.25 * w.power_w for w in windows if w.power_w])
    assert not any("lost" in line for line in watch.unread)


def test_a_foreign_process_is_named_with_its_use(tmp_path: Path) -> None:
    windows, _ = play(sequence("foreign_process"), tmp_path)
    assert [bool(window.foreign) for window in windows] == [False] * 4 + [True] * 8
    assert windows[-1].foreign == ("pid 4242",)
    assert [w.foreign_utilization for w in windows if w.foreign] == [0, 0, *[0.38] * 6]
    assert windows[0].foreign_utilization is None


def test_in_a_container_the_unknown_process_that_works_is_this_one(tmp_path: Path) -> None:
    own = GpuProcess(pid=90_001, visible=False, sm_utilization=0.97)
    other = GpuProcess(pid=90_000, visible=False, sm_utilization=0.2)
    seen = []
    for processes in ((own,), (other, own)):
        state = GpuState(processes=processes)
        watch = GpuWatch(lambda state=state: state, quiet_host(tmp_path, Clock()))  # type: ignore[misc]
        watch.begin()
        window = watch.end(1)
        seen.append((window.foreign, window.foreign_utilization))
    assert seen == [((), None), (("pid 90000, outside this container",), 0.2)]


def test_a_driver_that_is_lost_takes_the_figures_and_not_the_samples(tmp_path: Path) -> None:
    windows, watch = play(sequence("driver_lost"), tmp_path)
    assert [window.samples for window in windows] == [10] * 12
    assert all(getattr(windows[7], figure) is not None for figure in GPU_FIGURES)
    assert all(getattr(window, figure) is None for window in windows[8:] for figure in GPU_FIGURES)
    assert sum("GPU is lost" in line for line in watch.unread) == 7


@pytest.mark.parametrize("error", [NvmlMissing("no driver"), OSError("no library"), RuntimeError("odd")])
def test_nothing_that_a_driver_raises_reaches_the_measurement(error: Exception, tmp_path: Path) -> None:
    def read() -> GpuState:
        raise error

    watch = GpuWatch(read, quiet_host(tmp_path, Clock()))
    for _ in range(2):
        watch.begin()
        assert watch.end(5).samples == 5
    assert watch.unread[0] == f"{type(error).__name__}: {error}"


def test_energy_since_the_driver_was_loaded_again_is_not_known(tmp_path: Path) -> None:
    states = iter([GpuState(energy_j=900.0), GpuState(energy_j=5.0)])
    watch = GpuWatch(lambda: next(states), quiet_host(tmp_path, Clock()))
    watch.begin()
    assert watch.end(1).energy_j is None


def test_closing_lets_the_driver_go(tmp_path: Path) -> None:
    closed = []
    with closing(GpuWatch(GpuState, quiet_host(tmp_path, Clock()), lambda: closed.append(True))):
        assert not closed
    assert closed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_another_process_is_seen_on_this_machine_and_our_own_work_is_not() -> None:
    watch = CPU.watch(torch.device("cpu"))
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            watch.begin()
            own = os.times()
            while process_times()[other.pid][1] < 0.5:
                sum(range(1000))  # this process works as well
            window = watch.end(1)
        finally:
            other.kill()
    spent = os.times()
    assert window.other_cores is not None and window.steal_fraction is not None and window.cores
    assert window.other_cores * window.duration_s > 0.4  # CPU seconds; ticks of 10 ms on each CPU
    spent_s = spent.user + spent.system - own.user - own.system
    assert spent_s + window.other_cores * window.duration_s < window.cores * window.duration_s + 0.2


@pytest.mark.gpu
def test_a_real_gpu_is_watched() -> None:
    with closing(CUDA.watch(torch.device("cuda"))) as watch:
        a = torch.randn(4096, 4096, device="cuda")
        watch.begin()
        for _ in range(50):
            a @ a
        torch.cuda.synchronize()
        window = watch.end(50)
    assert window.sm_clock_hz is not None and window.temperature_c is not None and window.power_w is not None
