"""Measures one cell: prepares its inputs, traces it, times it, and says what really ran.

The trace comes from `meta` tensors where they suffice. Where the model decides on data, or the device turns out to
run another sequence, the pass is traced on the device itself and every difference is recorded; a sequence that
still differs is refused. Rounds alternate between passes without a profiler, which give the wall time, and passes under
it, which give the times of the operations. The runner says how passes run: eagerly, compiled, or replayed.

Example: ``result, graph = measure_cell(cell, loaded, device=torch.device("cpu"), budget_s=10, seed=0)``
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from profiler.attribution.operations import SequenceMismatch, differences, sequence
from profiler.devices.backend import backend_of, free_bytes
from profiler.devices.watch import Watch
from profiler.models.build import implementations
from profiler.models.inputs import PassInputs, prepare
from profiler.models.trace import trace
from profiler.passes.eager import Runner
from profiler.passes.samples import PassTimes, Sample, collect
from profiler.record.measurement import WarmUp
from profiler.record.run import Cell, CellResult, InvalidMeasurement, RequestError
from profiler.timing.clocks import HostNow, event_cost_s
from profiler.timing.engine import judge, mode_labels, sample_rounds, warm_up
from profiler.timing.stopping import Rules
from profiler.timing.turns import ReferenceProbes
from roofline.graph.op import Kind, OpGraph

PASSES = 3
"""Most timed passes in a row, with and without the profiler in turn; one untimed pass goes before each row."""
LONG_S = 0.5
"""A pass of this length needs no untimed one before it: what changes after the profiler is over in milliseconds."""
ROUNDS = (3, 12)
"""Fewest and most rounds; between them the plain passes' precision and the time budget decide."""
WARM_UP_PART = 0.1
"""Most of the time budget for passes before the first sample."""
RULES = Rules(min_samples=ROUNDS[0] * PASSES, max_samples=ROUNDS[1] * PASSES, relative_width=0.01, noise_tolerance=0.0)
"""Rules that end the plain passes: at a median known to 1 %, the size of a regression that is looked for."""

T = TypeVar("T")
Step = Callable[[str, float], None]
"""Told what begins, and how much of the cell is done by then, from 0 to 1."""

OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Words of the plain RuntimeErrors that torch's CPU allocator, CUDA and cuBLAS raise when memory ran out."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to be measured."""

    name: str
    model: PreTrainedModel
    """The model on the device, with weights."""
    meta: PreTrainedModel
    """The same layers without memory."""
    whole: PreTrainedModel
    """All layers without memory; `meta` itself where no layer was left out."""
    notes: tuple[str, ...] = ()
    """The differences of the weights from what is published."""


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
    options = {"attn": cell.attn, "experts": cell.experts, "cache": cell.cache}

    def traced(model: nn.Module, inputs: PassInputs) -> OpGraph:
        graph = trace(model, inputs, cell.workload, name=cell.model, target=device.type, options=options)
        if not cell.change or backend_of(device).is_host:
            return graph
        from profiler.models.changed import over_link

        return over_link(graph, cell.change)

    step("trace", 0)
    on_meta, explained = _trace_on_meta(traced, loaded.meta, cell, seed)
    if on_meta is not None:
        _check_memory(on_meta, device)
    model, inputs = prepared(loaded.model, loaded.meta, cell, device, seed)
    backend = backend_of(device)
    backend.reset_peak_memory(device)
    before = backend.reading(device)
    if cell.is_compiled:
        from profiler.passes.compiled import CompiledRunner

        step("compile", 0.05)
        plain: Runner = CompiledRunner(model, inputs, device)
    else:
        plain = Runner(model, inputs, device)
    runner = plain
    if cell.is_graph:
        from profiler.passes.eager import ReplayRunner

        runner = ReplayRunner(plain)
    probes = ReferenceProbes(device, dtypes=[cell.workload.dtype])

    def attempt(candidate: OpGraph) -> PassTimes:
        return rounds(runner, candidate, budget_s=budget_s, step=step, watch=watch, probes=probes)

    graph, times = on_meta, None
    if on_meta is not None:
        with suppress(SequenceMismatch):
            times = attempt(on_meta)
    if graph is None or times is None:
        step("trace on the device", 0.15)
        graph = traced(model, inputs)
        inputs.restore()
        if on_meta is not None:
            explained = differences(sequence(on_meta), sequence(graph))
        times = attempt(graph)
    elif any(op.kind == Kind.GROUPED_MATMUL for op in graph.ops):
        step("routing of the experts", 0.9)
        exact = traced(model, inputs)  # counts the experts that are hit
        graph = exact if sequence(exact) == sequence(graph) else graph
        inputs.restore()
    if loaded.whole is not loaded.meta:
        from profiler.models.graphs import scale

        step("trace of the whole model", 0.95)
        whole, why = _trace_on_meta(traced, loaded.whole, cell, seed)
        if on_meta is None or whole is None:
            raise RequestError(f"--layers cannot scale {cell.model} up: {(explained or why)[0]}; leave --layers out")
        graph = scale(graph, on_meta, whole)
    more = mode_labels(times.wall_s)
    verdict = judge(times.windows, before, backend.reading(device), on_cpu=backend.is_host, more=more)
    is_invalid = verdict.status == "invalid"  # how busy the host was is judged with the noise, in calibrate.passes
    result = CellResult(
        cell=cell,
        status="invalid" if is_invalid else "done",
        reason=verdict.reason if is_invalid else None,
        labels=verdict.device,
        other_work=verdict.other_work,
        **{field.name: getattr(times, field.name) for field in fields(times) if field.name != "backends"},
        ran=_ran(loaded, cell, inputs, times) | plain.environment_notes(),
        differences=explained,
        clock="kernel timeline" if backend.profiles_kernels else "profiler spans",
        peak_memory_bytes=backend.peak_memory_bytes(device),
    )
    return result, graph


def prepared(
    model: PreTrainedModel, meta: PreTrainedModel, cell: Cell, device: torch.device, seed: int
) -> tuple[nn.Module, PassInputs]:
    """The module that runs in a pass of a cell, and its inputs on the device. Raises RequestError as `prepare` does."""
    if cell.beside is not None:
        from profiler.models.mixed import prepare_mixed

        return model, prepare_mixed(meta, cell.workload, cell.beside, device=device, seed=seed)
    inputs = prepare(meta, cell.workload, cache=cell.cache, device=device, seed=seed)
    if not cell.change:
        return model, inputs
    from profiler.models.changed import loads

    return loads(model, inputs, cell.change)


def _trace_on_meta(
    traced: Callable[[nn.Module, PassInputs], OpGraph], model: PreTrainedModel, cell: Cell, seed: int
) -> tuple[OpGraph | None, tuple[str, ...]]:
    """The graph, or why there is none: what a model decides on data cannot be known without it."""
    try:
        return traced(*prepared(model, model, cell, torch.device("meta"), seed)), ()
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


def _ran(loaded: Loaded, cell: Cell, inputs: PassInputs, times: PassTimes) -> dict[str, str]:
    """Implementations as the model and the profiler name them."""
    names = implementations(loaded.model) | {
        "attention backend": ", ".join(name.removeprefix("aten::") for name in times.backends),
        "cache": inputs.cache_classes(),
        "weights": "; ".join((cell.weights, *loaded.notes)),
        "mode": cell.mode,
    }
    return {name: value for name, value in names.items() if value}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the host's allocator."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def reason(error: BaseException) -> str:
    """Return the reason why a cell failed, in one line."""
    if isinstance(error, RequestError):
        return str(error)
    return f"out of memory: {first_line(error)}" if is_out_of_memory(error) else first_line(error)


def first_line(error: BaseException) -> str:
    """An error in one line; of a MemoryError, which is ours, only what it says."""
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0] if isinstance(error, MemoryError) else f"{type(error).__name__}: {lines[0]}"


def rounds(
    runner: Runner,
    graph: OpGraph,
    *,
    budget_s: float,
    step: Step = lambda text, part: None,
    watch: Watch | None = None,
    probes: ReferenceProbes | None = None,
) -> PassTimes:
    """Samples of one pass for each operation of `graph`, within about `budget_s` seconds.

    A pass of which three rounds of `PASSES` do not fit the budget has fewer of them in a round, at least one.
    `probes`: timed before, between and after the plain and the profiled passes of each round.

    Raises: SequenceMismatch if the device runs other operations than `graph`; InvalidMeasurement if the samples
    cannot be trusted; torch's own errors, out of memory among them.
    """
    with torch.no_grad(), _no_garbage_collection():
        step("warm-up", 0.1)
        began = time.monotonic()
        if not runner.finite():
            raise InvalidMeasurement("the logits are not finite: the pass computes something else than the model does")
        once_s = time.monotonic() - began
        warmed = WarmUp(calls=1, seconds=once_s, steady=False)
        if once_s < max(LONG_S, WARM_UP_PART * budget_s):  # a longer pass is its own warm-up
            warmed, once_s = warm_up(runner.once, PassClock(), min_s=0.0, max_s=WARM_UP_PART * budget_s, fewest=1)
        in_a_row = max(1, min(PASSES, int(budget_s / (2 * ROUNDS[0] * once_s))))
        runner.settles = once_s < LONG_S
        step("operations", 0.15)
        backends = _twice(lambda: runner.check(graph))
        wall, profiled, ratios, costs = (list[float]() for _ in range(4))
        samples: list[Sample] = []
        reference: dict[str, list[float]] = {}
        begin = time.monotonic()

        def read_level() -> None:
            for name, seconds in (probes.time() if probes is not None else {}).items():
                reference.setdefault(name, []).append(seconds)

        def plain_passes() -> list[float]:
            """A round: plain passes, and as many under the profiler."""
            spent = max((time.monotonic() - begin) / budget_s, len(ratios) / ROUNDS[1])
            step(f"round {len(ratios) + 1}", 0.2 + 0.8 * min(1.0, spent))
            read_level()
            if runner.settles:
                runner.once()
            plain = [runner.once() for _ in range(in_a_row)]
            read_level()
            taken, walls = _twice(lambda: runner.profiled(in_a_row))
            read_level()
            if not runner.by_kernels:
                costs.append(event_cost_s())
            samples.extend(taken)
            wall.extend(plain)
            profiled.extend(walls)
            ratios.append(statistics.median(walls) / statistics.median(plain))
            return plain

        rules = replace(RULES, min_samples=ROUNDS[0] * in_a_row, max_samples=ROUNDS[1] * in_a_row).within(budget_s)
        why, windows = sample_rounds(plain_passes, rules, time.monotonic, begin, fewest=ROUNDS[0], runs=2, watch=watch)
    event_s = statistics.median(costs) if costs else 0.0
    times = runner.as_kernel_times(collect(samples, wall, profiled, ratios, backends, event_s))
    levels = {name: tuple(seconds) for name, seconds in reference.items()}
    return replace(times, warm_up=warmed, stop_reason=why, windows=windows, reference=levels)


class PassClock(HostNow):
    """The clock of a call that tells its own time: a pass, which is timed without putting its inputs back."""

    name = "wall of a pass"

    def time(self, call: Callable[[], object], repeats: int) -> float:
        return math.fsum(float(call()) for _ in range(repeats))  # type: ignore[arg-type]


def _twice(take: Callable[[], T]) -> T:
    """A session's result; taken once more where the profiler lost events."""
    try:
        return take()
    except InvalidMeasurement:
        return take()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection in the middle of a pass is nobody's operation."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
