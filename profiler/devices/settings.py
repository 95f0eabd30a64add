"""Settings around a measurement that change it without showing in it: environment variables, disk, versions.

A variable that is not set, or set to what it means anyway, is no finding. Each kind of device has its own list.

Example: ``variable_findings(os.environ, CUDA_VARIABLES)``
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version

from profiler.devices.conditions import Finding, finding
from profiler.record.measurement import Severity

DISTRIBUTION = "roofcal"
DISK_WARN_BYTES = 1 << 30
"""A run takes megabytes, a GPU campaign some hundred of them."""


class Variable(NamedTuple):
    """A variable and what it does."""

    name: str
    severity: Severity
    does: str
    harmless: tuple[str, ...] = ()
    """Values, in lower case, with which it changes nothing."""


OFF = ("0", "false", "off", "no")
ISA = "kernels may not use instructions that this processor has"

COMMON_VARIABLES = (Variable("LD_PRELOAD", "note", "a library comes first: often another memory allocator"),)
CUDA_VARIABLES = (
    Variable("CUDA_LAUNCH_BLOCKING", "warns", "every launch waits for its kernel, so passes are slower", ("0",)),
    Variable("PYTORCH_NO_CUDA_MEMORY_CACHING", "warns", "every tensor is a cudaMalloc"),
    Variable("PYTORCH_CUDA_ALLOC_CONF", "note", "it changes how torch takes memory"),
    Variable("PYTORCH_ALLOC_CONF", "note", "it changes how torch takes memory"),
    Variable("NVIDIA_TF32_OVERRIDE", "warns", "it sets TF32 for fp32 matmuls, whatever the program asks for"),
    Variable("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "warns", "it turns on TF32 for fp32 matmuls", OFF),
    Variable("CUBLAS_WORKSPACE_CONFIG", "warns", "it limits the algorithms that cuBLAS can choose"),
    Variable("CUBLASLT_WORKSPACE_SIZE", "note", "it changes the algorithms that cuBLASLt can choose"),
    Variable("CUDA_DEVICE_MAX_CONNECTIONS", "note", "it changes which streams can run at once"),
    Variable("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "warns", "this process has a part of the SMs only", ("100",)),
)
CPU_VARIABLES = (
    Variable("OMP_DYNAMIC", "warns", "the number of threads may change within a pass", OFF),
    Variable("OMP_WAIT_POLICY", "warns", "threads sleep between operations and must be woken", ("active",)),
    Variable("KMP_BLOCKTIME", "warns", "it sets how long Intel's OpenMP threads stay awake between operations",
             ("200", "200ms")),
    Variable("OMP_PROC_BIND", "note", "it binds threads to places", ("false",)),
    Variable("OMP_PLACES", "note", "it says where threads may be bound"),
    Variable("GOMP_CPU_AFFINITY", "note", "it binds threads to CPUs"),
    Variable("KMP_AFFINITY", "note", "it binds Intel's OpenMP threads to CPUs", ("none", "disabled")),
    Variable("MKL_CBWR", "warns", f"{ISA}, for the same bits everywhere", ("off",)),
    Variable("MKL_ENABLE_INSTRUCTIONS", "warns", ISA),
    Variable("MKL_DEBUG_CPU_TYPE", "warns", "MKL takes this processor for another"),
    Variable("ONEDNN_MAX_CPU_ISA", "warns", ISA, ("all", "default")),
    Variable("DNNL_MAX_CPU_ISA", "warns", ISA, ("all", "default")),
    Variable("ATEN_CPU_CAPABILITY", "warns", ISA),
    Variable("ONEDNN_DEFAULT_FPMATH_MODE", "warns", "fp32 is computed in a smaller type", ("strict",)),
    Variable("MKL_VERBOSE", "warns", "a line is printed for every call", OFF),
    Variable("ONEDNN_VERBOSE", "warns", "a line is printed for every call", (*OFF, "none")),
)  # fmt: skip


def variable_findings(
    environ: Mapping[str, str], variables: Sequence[Variable], threads: int | None = None
) -> tuple[Finding, ...]:
    """Findings about the environment; `threads` is what torch uses within an operation on the host's processors."""
    findings = []
    for name, severity, does, harmless in (*variables, *COMMON_VARIABLES):
        value = environ.get(name, "").strip()
        if value and value.lower() not in harmless:
            mend = f"unset {name}" + ("" if severity == "warns" else ", or compare only with runs that set it so")
            findings.append(Finding(severity=severity, what=f"{name}={value} is set", why=does, mend=mend))
    mkl = environ.get("MKL_NUM_THREADS", "").strip()
    if threads is not None and mkl.isdigit() and int(mkl) != threads:
        findings.append(finding("mkl threads", f"MKL_NUM_THREADS={mkl}, while torch uses {threads} threads"))
    return tuple(findings)


def disk_findings(free_bytes: int, folder: str) -> tuple[Finding, ...]:
    """At most one finding, about the free space under the folder of results."""
    if free_bytes >= DISK_WARN_BYTES:
        return ()
    return (finding("disk", f"{free_bytes / 2**20:.0f} MiB are free for results under {folder}"),)


def installed(name: str) -> str | None:
    """The installed version of a distribution."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def requirements() -> list[str]:
    """Return the requirements of this distribution's own metadata; empty in a checkout that is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.requires(DISTRIBUTION) or []
    return []


def version_findings(requirements: Sequence[str], versions: Mapping[str, str | None]) -> tuple[Finding, ...]:
    """Requirements, as in a distribution's metadata, that the installed versions do not meet; extras are left out."""
    if not requirements:
        return (finding("not installed", f"{DISTRIBUTION} is not installed"),)
    findings = []
    for needed in map(Requirement, requirements):
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        have = versions.get(needed.name)
        if have is None or not needed.specifier.contains(Version(have), prereleases=True):
            what = f"{needed.name} {have or 'is missing'}; {DISTRIBUTION} needs {needed.specifier}"
            findings.append(finding("versions", what, requirement=needed))
    return tuple(findings)
