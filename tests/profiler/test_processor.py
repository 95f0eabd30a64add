from pathlib import Path

import pytest

from profiler.processor import Processor, parse_chosen, parse_clock_hz, parse_flags, read_processor

CPUINFO = """processor\t: 0
cpu MHz\t\t: 3400.000
flags\t\t: fpu {} sse

processor\t: 1
cpu MHz\t\t: 2400.000
flags\t\t: fpu sse
"""


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machine(folder: Path, flags: str = "") -> tuple[Path, Path]:
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
    proc, sys = machine(tmp_path)
    whole = read_processor((0, 1, 2, 3), proc, sys)
    assert (whole.physical_cores, whole.numa_nodes, whole.huge_pages) == (2, 2, "madvise")
    siblings = read_processor((0, 2), proc, sys)
    assert (siblings.physical_cores, siblings.numa_nodes) == (1, 1)


@pytest.mark.parametrize(
    ("flags", "virtual", "real"),
    [("", False, True), ("hypervisor", True, False), ("hypervisor aperfmperf", True, True)],
)
def test_a_guest_sees_a_clock_only_if_its_counters_are_given(
    flags: str, virtual: bool, real: bool, tmp_path: Path
) -> None:
    processor = read_processor((0,), *machine(tmp_path, flags))
    assert (processor.virtual, processor.clock_is_real) == (virtual, real)


@pytest.mark.parametrize(
    ("file", "text", "boost"),
    [
        ("cpufreq/boost", "1\n", True),
        ("cpufreq/boost", "0\n", False),
        ("intel_pstate/no_turbo", "0\n", True),
        ("intel_pstate/no_turbo", "1\n", False),
    ],
)
def test_boost_under_either_driver(file: str, text: str, boost: bool, tmp_path: Path) -> None:
    put(tmp_path / "sys/devices/system/cpu" / file, text)
    assert read_processor((0,), tmp_path / "proc", tmp_path / "sys").boost is boost


def test_a_system_that_says_nothing_is_not_known(tmp_path: Path) -> None:
    assert read_processor((0,), tmp_path / "proc", tmp_path / "sys") == Processor()
