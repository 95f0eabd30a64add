"""Environment variables that change what is measured without showing in it.

One row a variable. A variable that is not set, or set to what it means anyway, is no finding.

Example: ``variable_findings(os.environ, "cuda")``
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from profiler.findings.finding import Finding
from profiler.record.measurement import Severity


class Variable(NamedTuple):
    """A variable and what it does."""

    name: str
    device: Literal["cpu", "cuda", "both"]
    """Where it matters."""
    severity: Severity
    does: str
    harmless: tuple[str, ...] = ()
    """Values, in lower case, with which it changes nothing."""


OFF = ("0", "false", "off", "no")
COMPARE = "compare only with runs that set it so"
ISA = "keeps kernels from instructions that this processor has"

VARIABLES = (
    Variable(
        "CUDA_LAUNCH_BLOCKING", "cuda", "warns", "every launch waits for its kernel, so passes are slower", ("0",)
    ),
    Variable("PYTORCH_NO_CUDA_MEMORY_CACHING", "cuda", "warns", "every tensor is a cudaMalloc"),
    Variable("PYTORCH_CUDA_ALLOC_CONF", "cuda", "note", "changes how torch takes memory"),
    Variable("PYTORCH_ALLOC_CONF", "cuda", "note", "changes how torch takes memory"),
    Variable("NVIDIA_TF32_OVERRIDE", "cuda", "warns", "sets TF32 for fp32 matmuls, whatever the program asks for"),
    Variable("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "cuda", "warns", "turns on TF32 for fp32 matmuls", OFF),
    Variable("CUBLAS_WORKSPACE_CONFIG", "cuda", "warns", "limits the algorithms that cuBLAS can choose"),
    Variable("CUBLASLT_WORKSPACE_SIZE", "cuda", "note", "changes the algorithms that cuBLASLt can choose"),
    Variable("CUDA_DEVICE_MAX_CONNECTIONS", "cuda", "note", "changes which streams can run at once"),
    Variable("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "cuda", "warns", "leaves us a part of the SMs only", ("100",)),
    Variable("OMP_DYNAMIC", "cpu", "warns", "the number of threads may change within a pass", OFF),
    Variable("OMP_WAIT_POLICY", "cpu", "warns", "threads sleep between operations and must be woken", ("active",)),
    Variable(
        "KMP_BLOCKTIME",
        "cpu",
        "warns",
        "sets how long Intel's OpenMP threads stay awake between operations",
        ("200", "200ms"),
    ),
    Variable("OMP_PROC_BIND", "cpu", "note", "binds threads to places", ("false",)),
    Variable("OMP_PLACES", "cpu", "note", "says where threads may be bound"),
    Variable("GOMP_CPU_AFFINITY", "cpu", "note", "binds threads to CPUs"),
    Variable("KMP_AFFINITY", "cpu", "note", "binds Intel's OpenMP threads to CPUs", ("none", "disabled")),
    Variable("MKL_CBWR", "cpu", "warns", f"{ISA}, for the same bits everywhere", ("off",)),
    Variable("MKL_ENABLE_INSTRUCTIONS", "cpu", "warns", ISA),
    Variable("MKL_DEBUG_CPU_TYPE", "cpu", "warns", "makes MKL take this processor for another"),
    Variable("ONEDNN_MAX_CPU_ISA", "cpu", "warns", ISA, ("all", "default")),
    Variable("DNNL_MAX_CPU_ISA", "cpu", "warns", ISA, ("all", "default")),
    Variable("ATEN_CPU_CAPABILITY", "cpu", "warns", ISA),
    Variable("ONEDNN_DEFAULT_FPMATH_MODE", "cpu", "warns", "computes fp32 in a smaller type", ("strict",)),
    Variable("MKL_VERBOSE", "cpu", "warns", "prints a line for every call", OFF),
    Variable("ONEDNN_VERBOSE", "cpu", "warns", "prints a line for every call", (*OFF, "none")),
    Variable("LD_PRELOAD", "both", "note", "puts a library first: often another memory allocator"),
)


def variable_findings(
    environ: Mapping[str, str], device: Literal["cpu", "cuda"], threads: int | None = None
) -> tuple[Finding, ...]:
    """Findings about the environment of measurements on a device; `threads` is what torch uses within an operation."""
    found = [
        Finding(
            severity=row.severity,
            what=f"{row.name}={environ[row.name].strip()}: {row.does}",
            mend=f"unset {row.name}" + ("" if row.severity == "warns" else f", or {COMPARE}"),
        )
        for row in VARIABLES
        if row.device in (device, "both")
        and (value := environ.get(row.name, "").strip().lower())
        and value not in row.harmless
    ]
    mkl = environ.get("MKL_NUM_THREADS", "").strip()
    if device == "cpu" and threads is not None and mkl.isdigit() and int(mkl) != threads:
        what = f"MKL_NUM_THREADS={mkl}, while torch uses {threads} threads: matmuls run on another number of cores"
        found.append(Finding(severity="warns", what=what, mend="unset it, and set OMP_NUM_THREADS alone"))
    return tuple(found)
