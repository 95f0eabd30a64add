"""The machine and its software, as a run records them, and what about them spoils a measurement.

`collect` gives the record; `findings` looks at the machine for half a second and gives what `doctor` prints.
A device is a torch device or its name: "cpu", "cuda", "cuda:1".

Example: ``collect("cpu").device``, ``[finding.what for finding in findings("cpu")]``
"""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from profiler.device import parse_device, pci_bus_id
from profiler.findings.disk import disk_findings
from profiler.findings.finding import Finding
from profiler.findings.gpu import gpu_findings
from profiler.findings.host import host_findings
from profiler.findings.variables import variable_findings
from profiler.host import parse_cpu_name, read_host
from profiler.host_memory import total_bytes
from profiler.machine import proc_root, read_text, usable_cpus
from profiler.nvml import GpuReading, NvmlMissing, read_gpu
from profiler.record.run import Environment

DISTRIBUTION = "roofcal"
RECORDED = ("torch", "transformers", "numpy", "triton", "flash-attn", "flashinfer-python", "nvidia-ml-py")
"""Distributions whose version can change a time; those not installed are left out."""


def collect(device: str | torch.device, found: Sequence[Finding] | None = None) -> Environment:
    """Describe the machine; `found` are findings just made, looked for now if None.

    Raises RequestError where there is no such device.
    """
    chosen = parse_device(device)
    name, uuid, memory, extra = _cuda(chosen) if chosen.type == "cuda" else _cpu()
    return Environment(
        device=name,
        device_kind=_kind(chosen),
        device_uuid=uuid,
        cores=len(usable_cpus()),
        threads=torch.get_num_threads(),
        memory_bytes=memory,
        hostname=platform.node(),
        os=platform.platform(),
        python=platform.python_version(),
        versions={**versions(), **extra},
        notes=tuple(
            finding.what for finding in (findings(device) if found is None else found) if finding.severity != "note"
        ),
    )


def _kind(device: torch.device) -> Literal["cpu", "cuda"]:
    return "cuda" if device.type == "cuda" else "cpu"


def _cpu() -> tuple[str, None, int, dict[str, str]]:
    name = parse_cpu_name(read_text(proc_root() / "cpuinfo") or "")
    return name or platform.processor() or platform.machine(), None, total_bytes(), {}


def _cuda(device: torch.device) -> tuple[str, str | None, int, dict[str, str]]:
    properties = torch.cuda.get_device_properties(device)
    extra = {"cuda": str(torch.version.cuda)}
    try:
        gpu = read_gpu(pci_bus_id(device))
    except NvmlMissing:  # `findings` says so in the notes
        return properties.name, None, properties.total_memory, extra
    uuid = f"GPU-{properties.uuid}" if gpu.mig else gpu.uuid  # under MIG, the slice that torch sees
    return gpu.name, uuid, properties.total_memory, {**extra, "driver": gpu.driver}


def versions() -> dict[str, str]:
    """Installed versions of roofcal and of what can change a time; torch's with its build, as in 2.11.0+cu130."""
    found = {name: version for name in (DISTRIBUTION, *RECORDED) if (version := _installed(name)) is not None}
    return {**found, "torch": str(torch.__version__)}


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def findings(
    device: str | torch.device, results: Path = Path("results"), interval_s: float = 0.5
) -> tuple[Finding, ...]:
    """What spoils a measurement on this device now, the worst first; takes `interval_s`.

    Raises RequestError where there is no such device.
    """
    chosen = parse_device(device)
    threads, kind = torch.get_num_threads(), _kind(chosen)
    found = [*host_findings(read_host(threads, interval_s), kind), *variable_findings(os.environ, kind, threads)]
    if chosen.type == "cuda":
        try:
            reading = _reading(chosen)  # asks torch for the PCI address, which may give this process a context
            found.extend(gpu_findings(reading, _has_context(chosen), torch.cuda.memory_reserved(chosen)))
        except NvmlMissing as error:
            found.append(Finding(severity="warns", what=str(error), mend="install the driver's NVML library"))
    folder = next(path for path in (results.absolute(), *results.absolute().parents) if path.exists())
    found.extend(disk_findings(shutil.disk_usage(folder).free, str(results)))
    found.extend(version_findings(_requirements(), {name: _installed(name) for name in _required_names()}))
    order = ("invalidates", "warns", "note")
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def gpu_reading(device: torch.device) -> GpuReading | None:
    """The GPU now, in full; None on a CPU, and where NVML does not answer, which `findings` says."""
    if device.type != "cuda":
        return None
    try:
        return _reading(device)
    except NvmlMissing:
        return None


def _reading(device: torch.device) -> GpuReading:
    return read_gpu(pci_bus_id(device))


def _has_context(device: torch.device) -> bool:
    """Whether this process holds the GPU's primary context and is thus among the driver's processes."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    return bool(torch._C._cuda_hasPrimaryContext(index))  # type: ignore[attr-defined]


def _requirements() -> list[str]:
    """What this distribution's own metadata asks for; empty where it runs from a checkout that is not installed."""
    try:
        return importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _required_names() -> list[str]:
    return [Requirement(line).name for line in _requirements()]


def version_findings(requirements: list[str], installed: Mapping[str, str | None]) -> tuple[Finding, ...]:
    """Requirements, as in a distribution's metadata, that the installed versions do not meet; extras are left out."""
    if not requirements:
        what = f"{DISTRIBUTION} is not installed, so the versions of what it needs are not checked"
        return (Finding(severity="note", what=what, mend="python -m pip install -c constraints.txt -e ."),)
    found = []
    for line in requirements:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        have = installed.get(needed.name)
        if have is None or not needed.specifier.contains(Version(have), prereleases=True):
            what = f"{needed.name} {have or 'is missing'}; {DISTRIBUTION} needs {needed.specifier}"
            found.append(Finding(severity="warns", what=what, mend=f"python -m pip install '{needed}'"))
    return tuple(found)
