"""Names of passes for people: their phase and sizes, what decodes beside them, and how they ran."""

from calibrate.passes.pass_report import PassReport
from profiler.record.run import Cell, Mode
from roofline.units import dtype
from roofline.workload import Workload

MODES: dict[Mode, str] = {
    "eager": "",
    "compile": ", compiled",
    "cuda-graph": ", CUDA graph",
    "compile-cuda-graph": ", compiled in a CUDA graph",
}


def workload_title(workload: Workload) -> str:
    """ "decode b1 q1 ctx 512 bf16"."""
    tokens = f"b{workload.batch} q{workload.query_tokens} ctx {workload.context_tokens}"
    every = ", all logits" if workload.logits == "all" else ""
    return f"{workload.phase} {tokens} {dtype(workload.dtype)}{every}"


def title(report: PassReport) -> str:
    """ "llama-3.1-8b decode b1 q1 ctx 512 bf16", with how it ran where that was not eagerly."""
    step = step_title(report.workload, report.beside, report.change)
    return f"{report.model} {step}{MODES[report.mode]}"


def step_title(workload: Workload, beside: Workload | None, change: str) -> str:
    """The workload of a pass, with what decodes beside it and what was done to the model."""
    other = f" beside {workload_title(beside)}" if beside else ""
    return f"{workload_title(workload)}{other}{f', {change}' if change else ''}"


def cell_title(cell: Cell) -> str:
    """The pass of a cell, with all its options."""
    layers = [f"{cell.layers} layers"] if cell.layers else []
    mode = [cell.mode] if cell.mode != "eager" else []
    options = [f"attention {cell.attn}", f"experts {cell.experts}", f"cache {cell.cache}", *layers, *mode]
    return f"{cell.model} {step_title(cell.workload, cell.beside, cell.change)} ({', '.join(options)})"
