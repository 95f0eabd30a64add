"""Kernels for calibration, timed as a model runs them: as the operations of a module, by the clock that times models.

A `Probe` runs each kernel on several sets of operands in turn, as a model runs it layer after layer: weights (and all
else that is read only then) come from main memory where they do in a model, activations and the kernel's own code do
not. Further rounds over the last sets find them in the cache. The module is traced and profiled as
any model is, so that sizes, bytes and cache states are counted by the tracer that counts them in models, outputs are
allocated as eager mode does, and an operation's time means the same on both sides: the mean within a pass, and the mean
of the middle half of the passes (`MIDDLE`), which are taken in several visits some time apart.

Contract: a device that runs other operations than were traced raises `SequenceMismatch`; non-finite outputs or lost
profiler events raise `InvalidMeasurement`; torch's own errors pass through, out of memory among them.

Example: ``measure_probe(Probe(shapes, device, rotated_bytes=64 << 20), device).time_s``
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import trim_mean
from torch import Tensor, nn

from profiler.attribution.spans import passes
from profiler.microbench.probe_kernels import Kernel, kernel_of
from profiler.models.trace import trace
from profiler.record.errors import InvalidMeasurement
from profiler.record.kernel_shape import KernelShape
from profiler.timing.runner import Runner
from profiler.timing.samples import DeviceKind, Sample, sample
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
PASSES = 2
"""Of a visit."""
MIDDLE = 0.25
"""Part of the passes, at either end, that does not count: their interquartile mean is robust, and sums of it are the
interquartile mean of sums. `calibrate.op_times` takes the passes of models so."""


class Probe(nn.Module):
    """Kernels one after another, each on all its sets of operands; small streams in turn with each other."""

    def __init__(self, shapes: Sequence[KernelShape], device: torch.device, rotated_bytes: int) -> None:
        """Make the operands. `rotated_bytes`: of all sets of a kernel together, where `most_sets` allow it."""
        super().__init__()
        self.shapes = tuple(shapes)
        with torch.device(device):
            kernels = [kernel_of(shape, rotated_bytes) for shape in shapes]
        self.sweep = nn.Buffer(torch.ones(max(1, round(SWEPT_PART * rotated_bytes / 4)), device=device))
        self.kernels = nn.ModuleList(kernels)
        self._groups = _grouped(kernels, SMALL_PART * rotated_bytes)
        self.results: list[Tensor] = []
        """Of the kernels' last calls, small streams first."""
        self.eval()

    def forward(self) -> None:
        self.results = found = []
        for group in self._groups:
            if len(group) == 1:
                found.append(group[0]())
                continue
            for turn in range(group[0].turns):
                self.sweep.sum()
                last = [kernel(turn) for kernel in group]
            found += last


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


def middle(passes: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Mean over the middle half of the passes, which is along the first axis."""
    return np.asarray(trim_mean(np.array(passes), MIDDLE, axis=0))


def measure_probe(probe: Probe, device: torch.device, before: Probed | None = None) -> Probed:
    """One visit: a profiled session, and the trace if nothing was `before`, whose passes are among the result's."""
    runner = Runner(probe, Inside(), device)
    with torch.no_grad():
        if before is None:
            before = _traced(probe, runner.kind)
        taken = samples(runner, [op.name for op in before.graph.ops], PASSES)
    return replace(before, passes=(*before.passes, *(one.device_s for one in taken)))


def _traced(probe: Probe, kind: DeviceKind) -> Probed:
    """Without any pass so far."""
    graph = traced(probe, kind)
    if not all(bool(torch.isfinite(found).all()) for found in probe.results):
        raise InvalidMeasurement(f"an output is not finite: {', '.join(sorted({s.op for s in probe.shapes}))}")
    owners = tuple(int(op.path.split(".")[1]) if op.path else None for op in graph.ops)  # "kernels.3"
    held = tuple(kernel.held for kernel in probe.kernels if isinstance(kernel, Kernel))
    return Probed(graph, owners, held, ())


def traced(probe: Probe, kind: DeviceKind) -> OpGraph:
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
    event_s = event_cost_s() if runner.kind == "cpu" else 0.0
    return [sample(timeline, window, names, runner.kind).without(event_s) for window in passes(timeline.host)]
