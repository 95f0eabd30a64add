"""Kernels for calibration, timed as a model runs them: as the operations of a module, by the clock that times models.

A `Probe` runs each kernel on several sets of operands in turn, as a model runs it layer after layer: weights (and all
else that is read only then) come from main memory where they do in a model, activations and the kernel's own code do
not. Further rounds over the last sets find them in the cache. The module is traced and profiled as
any model is, so that sizes, bytes and cache states are counted by the tracer that counts them in models, outputs are
allocated as eager mode does, and an operation's time means the same on both sides: the mean within a pass, and the mean
of the middle half of the passes (`middle_mean`), which are taken in several visits some time apart.

Contract: a device that runs other operations than were traced raises `SequenceMismatch`; non-finite outputs or lost
profiler events raise `InvalidMeasurement`; torch's own errors pass through, out of memory among them.

Example: ``measure_probe(Probe(shapes, device, rotated_bytes=64 << 20), device).time_s``
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from profiler.attribution.spans import passes
from profiler.devices.backend import backend_of
from profiler.microbench.arena import Arena
from profiler.microbench.bench import reason
from profiler.microbench.probe_kernels import Kernel, kernel_of, operand_bytes
from profiler.models.trace import trace
from profiler.record.errors import InvalidMeasurement
from profiler.record.kernel_shape import KernelShape
from profiler.timing.runner import Runner
from profiler.timing.samples import Sample, sample
from profiler.timing.session import event_cost_s
from roofline.op import OpGraph
from roofline.workload import Workload

TOGETHER = 8
"""Small streams that take turns with each other, after as many bytes as a model's weights are were read: there, another
operator ran before each, and code and operands have to come back into the first caches, which is most of the time of a
small operation."""
SWEPT_PART = 1 / 12
"""Of the bytes that take turns, those read before: an eighth of the last-level cache, more than the caches below it."""
SMALL_PART = 1 / 192
"""Of the bytes that take turns, the most of a small stream's operands: eight and all their turns stay in the cache."""
PASSES = 1
"""Of a visit."""
LONGEST_S, LONGEST_STREAM_S = 0.05, 0.01
"""Of all calls of a kernel in a pass, products and attention first: a stream that takes long is a fallback of thousands
of operators, each of which the profiler records."""
LONGEST_CALL_S = 0.15
"""Of a single call."""


class Probe(nn.Module):
    """Kernels one after another, each on all its sets of operands; small streams in turn with each other."""

    def __init__(
        self, shapes: Sequence[KernelShape], device: torch.device, rotated_bytes: int, arena: Arena | None = None
    ) -> None:
        """Make the operands, of one dtype. `rotated_bytes`: of all sets of a kernel together, where `sets_of` allows
        it; `arena`: where operands are taken from, allocated without one."""
        super().__init__()
        arena = arena or Arena(device, getattr(torch, shapes[0].dtype))
        made: dict[int, Kernel] = {}
        self.failed: list[tuple[KernelShape, str]] = []
        """Kernels that the device cannot run, and why; none of the others is lost with them."""
        pace = _Pace(device)
        for place in sorted(range(len(shapes)), key=lambda place: operand_bytes(shapes[place])):
            try:
                with torch.device(device), torch.no_grad():
                    made[place] = pace.bounded(shapes[place], lambda shape: kernel_of(shape, arena, rotated_bytes))
            except (RuntimeError, ValueError, NotImplementedError) as error:
                self.failed.append((shapes[place], reason(error)))
        kernels = [made[place] for place in sorted(made)]
        self.shapes = tuple(shapes[place] for place in sorted(made))
        self.sweep = nn.Buffer(torch.ones(max(1, round(SWEPT_PART * rotated_bytes / 4)), device=device))
        self.kernels = nn.ModuleList(kernels)
        self._groups = _grouped(kernels, SMALL_PART * rotated_bytes)
        self.results: list[Tensor] | None = None
        """Of the kernels' last calls, small streams first; kept by whoever makes a list of it."""
        self.eval()

    def forward(self) -> None:
        for group in self._groups:
            if len(group) == 1:
                self._keep(group[0]())
                continue
            for turn in range(group[0].turns):
                self.sweep.sum()
                last = [kernel(turn) for kernel in group]
            self._keep(*last)

    def _keep(self, *results: Tensor) -> None:
        if self.results is not None:
            self.results += results


class _Pace:
    """What calls of each kind of kernel have taken so far, on a CPU.

    A fallback, such as bfloat16 on cores that lack it, can be a hundred times slower than the device's peak tells.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cpu = backend_of(device).is_host
        self._least_s_per_byte: dict[str, float] = {}
        """By kind, of its last kernel; products and attention take more a byte the larger they are."""

    def bounded(self, shape: KernelShape, make: Callable[[KernelShape], Kernel]) -> Kernel:
        """The kernel, with fewer sets of operands where all of them would take longer than `LONGEST_S`.

        Raises RuntimeError where one call takes longer than `LONGEST_CALL_S`, as far as smaller ones of its kind tell.
        """
        expected_s = operand_bytes(shape) * self._least_s_per_byte.get(shape.kind, 0.0)
        if expected_s > LONGEST_CALL_S:
            raise RuntimeError(f"a call takes more than {expected_s:.2g} s, calibration gives it {LONGEST_CALL_S:g} s")
        kernel = make(shape)
        start = time.perf_counter()
        kernel(0)
        once_s = time.perf_counter() - start
        if not self._is_cpu:
            return kernel
        if once_s > LONGEST_CALL_S / 10:  # shorter first calls are mostly their first touch of memory
            self._least_s_per_byte[shape.kind] = once_s / operand_bytes(shape)
        if once_s > LONGEST_CALL_S:
            raise RuntimeError(f"a call takes {once_s:.2g} s, calibration gives it {LONGEST_CALL_S:g} s")
        longest_s = LONGEST_STREAM_S if kernel.is_stream else LONGEST_S
        return kernel.bounded(max(1, int(longest_s / once_s)))


def _grouped(kernels: Sequence[Kernel], small_bytes: float) -> list[list[Kernel]]:
    """Small streams with as many turns, `TOGETHER` at a time; all other kernels by themselves."""
    small: dict[int, list[Kernel]] = {}
    groups: list[list[Kernel]] = []
    for kernel in kernels:
        if kernel.is_stream and kernel.set_bytes <= small_bytes:
            small.setdefault(kernel.turns, []).append(kernel)
        else:
            groups.append([kernel])
    alike = [each[i : i + TOGETHER] for each in small.values() for i in range(0, len(each), TOGETHER)]
    return [*alike, *groups]


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe's operations took."""

    graph: OpGraph
    kernel: tuple[int | None, ...]
    """Of each operation of the graph, the shape that it belongs to; None for the sweeps."""
    held: tuple[int, ...]
    """Of each shape, the sets of operands that took turns again."""
    passes: tuple[Sequence[float], ...]
    """Seconds of each operation in each pass."""


def measure_probe(probe: Probe, device: torch.device, before: Probed | None = None) -> Probed:
    """One visit: a profiled session, and the trace if nothing was `before`, whose passes are among the result's."""
    runner = Runner(probe, Inside(), device)
    with torch.no_grad():
        if before is None:
            before = _traced(probe, runner.backend.type)
        taken = samples(runner, [op.name for op in before.graph.ops], PASSES)
    return replace(before, passes=(*before.passes, *(one.device_s for one in taken)))


def _traced(probe: Probe, kind: str) -> Probed:
    """Without any pass so far."""
    probe.results = []
    graph, results = traced(probe, kind), probe.results
    probe.results = None
    if not all(bool(torch.isfinite(found).all()) for found in results):
        raise InvalidMeasurement(f"an output is not finite: {', '.join(sorted({s.op for s in probe.shapes}))}")
    owners = tuple(int(op.path.split(".")[1]) if op.path else None for op in graph.ops)  # "kernels.3"
    held = tuple(kernel.held for kernel in probe.kernels if isinstance(kernel, Kernel))
    return Probed(graph, owners, held, ())


def traced(probe: Probe, kind: str) -> OpGraph:
    """The probe's operations, counted as a model's are."""
    workload = Workload(batch=1, query_tokens=1, context_tokens=0, dtype=probe.shapes[0].dtype)
    return trace(probe, Inside(), workload, name="probe", target=kind, options={})


class Inside:
    """The inputs of a module that has its operands inside: none."""

    def kwargs(self) -> dict[str, Any]:
        return {}

    def call(self, model: nn.Module) -> Any:
        return model()

    def restore(self) -> None:
        """Nothing was changed."""

    def cache_tensors(self) -> Iterable[tuple[int, str, Tensor]]:
        return ()


def samples(runner: Runner, names: Sequence[str], count: int) -> list[Sample]:
    """Of each of `count` passes of a profiled session, less what the profiler added to them."""
    timeline, _ = runner.session(count)
    event_s = event_cost_s() if not runner.by_kernels else 0.0
    return [sample(timeline, window, names, runner.by_kernels).without(event_s) for window in passes(timeline.host)]
