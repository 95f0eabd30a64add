"""How the host's processors are built and set up: what stays the same while one measures, but differs between machines.

Each figure is None where the system does not say (another system, a container that hides it, a machine without it).

Example: ``read_processor(usable_cpus()).physical_cores``
"""

from collections.abc import Sequence
from pathlib import Path

from profiler.machine import proc_root, read_text, sys_root
from roofline.record import Record


class Processor(Record):
    """The processors that this process may run on."""

    physical_cores: int | None = None
    """Cores to which its CPUs belong; fewer than CPUs where SMT siblings share one."""
    numa_nodes: int | None = None
    """Memory nodes to which its CPUs belong."""
    virtual: bool | None = None
    """Whether a hypervisor says what this machine is; x86 only."""
    clock_is_real: bool | None = None
    """Whether /proc/cpuinfo's "cpu MHz" is measured; a guest without the counters sees a nominal clock. x86 only."""
    boost: bool | None = None
    """Whether the clock may exceed its base."""
    huge_pages: str | None = None
    """Transparent huge pages: "always", "madvise" (for memory that asks for them) or "never"."""


def parse_flags(cpuinfo: str) -> frozenset[str]:
    """Flags of the first CPU in an x86's /proc/cpuinfo; empty on other architectures."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def parse_chosen(text: str) -> str | None:
    """The choice in brackets of sysfs's "always [madvise] never"."""
    for word in text.split():
        if word.startswith("[") and word.endswith("]"):
            return word[1:-1]
    return None


def parse_clock_hz(cpuinfo: str) -> float | None:
    """Mean of the "cpu MHz" lines of /proc/cpuinfo; None where there are none."""
    megahertz = [float(line.partition(":")[2]) for line in cpuinfo.splitlines() if line.startswith("cpu MHz")]
    return sum(megahertz) / len(megahertz) * 1e6 if megahertz else None


def read_processor(cpus: Sequence[int], proc: Path | None = None, sys: Path | None = None) -> Processor:
    """Look at the processors that these CPU numbers name; `proc` and `sys`: None for those of this host."""
    proc, sys = proc or proc_root(), sys or sys_root()
    system = sys / "devices/system"
    siblings = {read_text(system / f"cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus}
    nodes = {node.name for cpu in cpus for node in (system / f"cpu/cpu{cpu}").glob("node[0-9]*")}
    flags = parse_flags(read_text(proc / "cpuinfo") or "")
    return Processor(
        physical_cores=None if None in siblings else len(siblings),
        numa_nodes=len(nodes) or None,
        virtual="hypervisor" in flags if flags else None,
        clock_is_real="hypervisor" not in flags or "aperfmperf" in flags if flags else None,
        boost=_boost(system / "cpu"),
        huge_pages=parse_chosen(read_text(sys / "kernel/mm/transparent_hugepage/enabled") or ""),
    )


def _boost(cpu: Path) -> bool | None:
    """From acpi-cpufreq's and amd-pstate's "boost", or from intel_pstate's "no_turbo", which says the opposite."""
    if (boost := read_text(cpu / "cpufreq/boost")) is not None:
        return boost == "1"
    if (no_turbo := read_text(cpu / "intel_pstate/no_turbo")) is not None:
        return no_turbo == "0"
    return None
