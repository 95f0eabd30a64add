"""Measures one cell: prepares its inputs, traces it, times it, and says what really ran.

The trace comes from `meta` tensors where they suffice. Where the model decides on data, or the device turns out to
run another sequence, the pass is traced on the device itself and every difference is recorded; a sequence that
still differs is refused.

Example: ``result, graph = measure_cell(cell, loaded, device=torch.device("cpu"), budget_s=10, seed=0)``
"""

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from profiler.attribution.align import SequenceMismatch, differences, sequence
from profiler.devices.backend import backend_of, free_bytes
from profiler.devices.conditions import device_labels, other_share
from profiler.devices.watch import Watch
from profiler.models.inputs import PassInputs, prepare
from profiler.models.scale import scale
from profiler.models.trace import trace
from profiler.models.weights import implementations
from profiler.record.errors import InvalidMeasurement, RequestError
from profiler.record.run import Cell, CellResult
from profiler.timing.passes import Step, rounds
from profiler.timing.reference import ReferenceProbes
from profiler.timing.replayed import ReplayRunner
from profiler.timing.runner import Runner
from profiler.timing.samples import PassTimes
from roofline.op import Kind, OpGraph

OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What plain RuntimeErrors of torch's CPU allocator, of CUDA and of cuBLAS say when memory ran out."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to be measured."""

    name: str
    model: PreTrainedModel
    """On the device, with weights."""
    meta: PreTrainedModel
    """The same layers without memory."""
    whole: PreTrainedModel
    """All layers without memory; `meta` itself where no layer was left out."""
    notes: tuple[str, ...] = ()
    """How the weights differ from what is published."""


def measure_cell(
    cell: Cell,
    loaded: Loaded,
    *,
    device: torch.device,
    budget_s: float,
    seed: int,
    step: Step = lambda text, part: None,
) -> tuple[CellResult, OpGraph | None]:
    """The cell's result and graph; a cell that cannot be measured has its reason in the result."""
    try:
        with closing(backend_of(device).watch(device)) as watch:
            return _measure(cell, loaded, device, budget_s, seed, step, watch)
    except SequenceMismatch as error:
        return CellResult(cell=cell, status="invalid", reason=str(error), differences=error.differences), None
    except InvalidMeasurement as error:
        return CellResult(cell=cell, status="invalid", reason=str(error)), None
    except Exception as error:  # noqa: BLE001 - whatever a model raises fails its cell, and the others go on
        return CellResult(cell=cell, status="failed", reason=reason(error)), None
    finally:
        backend_of(device).release_memory()


def _measure(
    cell: Cell, loaded: Loaded, device: torch.device, budget_s: float, seed: int, step: Step, watch: Watch
) -> tuple[CellResult, OpGraph]:
    explained: tuple[str, ...] = ()
    options = {"attn": cell.attn, "experts": cell.experts, "cache": cell.cache}

    def traced(model: PreTrainedModel, inputs: PassInputs) -> OpGraph:
        return trace(model, inputs, cell.workload, name=cell.model, target=device.type, options=options)

    step("trace", 0)
    on_meta, explained = _trace_on_meta(traced, loaded.meta, cell, seed)
    if on_meta is not None:
        _check_memory(on_meta, device)
    inputs = prepare(loaded.meta, cell.workload, cache=cell.cache, device=device, seed=seed)
    backend_of(device).reset_peak_memory(device)

    before = backend_of(device).reading(device)

    plain = _runner(cell, loaded, inputs, device, step)
    runner = ReplayRunner(plain) if cell.is_graph else plain
    probes = ReferenceProbes(device)

    def attempt(candidate: OpGraph) -> PassTimes:
        return rounds(runner, candidate, budget_s=budget_s, step=step, watch=watch, probes=probes)

    graph, times = on_meta, None
    if on_meta is not None:
        with suppress(SequenceMismatch):
            times = attempt(on_meta)
    if graph is None or times is None:
        step("trace on the device", 0.15)
        graph = traced(loaded.model, inputs)
        inputs.restore()
        if on_meta is not None:
            explained = differences(sequence(on_meta), sequence(graph))
        times = attempt(graph)
    elif any(op.kind == Kind.GROUPED_MATMUL for op in graph.ops):
        step("routing of the experts", 0.9)
        graph = _routed(graph, traced(loaded.model, inputs))
        inputs.restore()
    if loaded.whole is not loaded.meta:
        step("trace of the whole model", 0.95)
        whole, why = _trace_on_meta(traced, loaded.whole, cell, seed)
        if on_meta is None or whole is None:
            raise RequestError(f"--layers cannot scale {cell.model} up: {(explained or why)[0]}; leave --layers out")
        graph = scale(graph, on_meta, whole)
    found = device_labels(times.windows, before, backend_of(device).reading(device))
    wrong = [label.what for label in found if label.severity == "invalidates"]
    result = CellResult(
        cell=cell,
        status="invalid" if wrong else "done",
        reason="; ".join(wrong) or None,
        warm_up=times.warm_up,
        stop_reason=times.stop_reason,
        windows=times.windows,
        reference=times.reference,
        labels=tuple(found),
        other_work=other_share(times.windows),
        wall_s=times.wall_s,
        profiled_wall_s=times.profiled_wall_s,
        ops=times.ops,
        kernels=times.kernels,
        tail_gap_s=times.tail_gap_s,
        unattributed_s=times.unattributed_s,
        unattributed=times.unattributed,
        closure=times.closure,
        ran=_ran(loaded, cell, inputs, times) | plain.facts(),
        differences=explained,
        clock="kernel timeline" if backend_of(device).profiles_kernels else "profiler spans",
        peak_memory_bytes=backend_of(device).peak_memory_bytes(device),
    )
    return result, graph


def _runner(cell: Cell, loaded: Loaded, inputs: PassInputs, device: torch.device, step: Step) -> Runner:
    if not cell.is_compiled:
        return Runner(loaded.model, inputs, device)
    from profiler.timing.compiled import CompiledRunner  # inductor takes seconds to load

    step("compile", 0.05)
    return CompiledRunner(loaded.model, inputs, device)


def _trace_on_meta(
    traced: Callable[[PreTrainedModel, PassInputs], OpGraph], model: PreTrainedModel, cell: Cell, seed: int
) -> tuple[OpGraph | None, tuple[str, ...]]:
    """The graph, or why there is none: what a model decides on data cannot be known without it."""
    try:
        return traced(model, prepare(model, cell.workload, cache=cell.cache, device="meta", seed=seed)), ()
    except Exception as error:  # noqa: BLE001 - which error says so differs from model to model
        return None, (f"traced on the device: on meta the model fails with {first_line(error)}",)


def _check_memory(graph: OpGraph, device: torch.device) -> None:
    """Raise MemoryError where the cache and the largest operation cannot fit beside the weights.

    A GPU would say so itself; on a CPU the kernel kills the process instead.
    """
    cache = sum(tensor.storage_bytes for tensor in graph.tensors if tensor.role == "kv")
    largest = max((t.activation_read + t.activation_write for t in graph.traffic), default=0)
    free = free_bytes(device)
    if cache + largest > free:
        raise MemoryError(f"the pass needs at least {(cache + largest) / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def _routed(graph: OpGraph, exact: OpGraph) -> OpGraph:
    """`exact`, traced on the device, where it runs the same operations: it has counted the experts that are hit."""
    return exact if sequence(exact) == sequence(graph) else graph


def _ran(loaded: Loaded, cell: Cell, inputs: PassInputs, times: PassTimes) -> dict[str, str]:
    """Implementations as the model and the profiler name them."""
    found = implementations(loaded.model) | {
        "attention backend": ", ".join(name.removeprefix("aten::") for name in times.backends),
        "cache": inputs.cache_classes(),
        "weights": "; ".join((cell.weights, *loaded.notes)),
        "mode": cell.mode,
    }
    return {name: value for name, value in found.items() if value}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the host's allocator."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def reason(error: BaseException) -> str:
    """Why a cell failed, in one line."""
    if isinstance(error, RequestError):
        return str(error)
    return f"out of memory: {first_line(error)}" if is_out_of_memory(error) else first_line(error)


def first_line(error: BaseException) -> str:
    """An error in one line; of a MemoryError, which is ours, only what it says."""
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0] if isinstance(error, MemoryError) else f"{type(error).__name__}: {lines[0]}"
