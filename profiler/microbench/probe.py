"""Kernels for calibration, timed as a model runs them: as the operations of a module, by the clock that times models.

A `Probe` runs each kernel twice in a row after the caches were swept with other data: the first call finds its operands
in main memory, the second where the first left them. It is traced and profiled as any model is, so that sizes, bytes
and cache states are counted by the tracer that counts them in models, outputs are allocated as eager mode does, and an
operation's time means the same on both sides.

Contract: a device that runs other operations than were traced raises `SequenceMismatch`; non-finite outputs or lost
profiler events raise `InvalidMeasurement`; torch's own errors pass through, out of memory among them.

Example: ``measure_probe(Probe(shapes, device, sweep_bytes=64 << 20), device).time_s``
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from profiler.attribution.spans import passes
from profiler.microbench.probe_kernels import kernel_of
from profiler.models.trace import trace
from profiler.record.errors import InvalidMeasurement
from profiler.record.kernel_shape import KernelShape
from profiler.timing.runner import Runner
from profiler.timing.samples import DeviceKind, sample
from roofline.op import OpGraph
from roofline.workload import Workload

KERNELS = "kernels"
"""Path of the kernels within a probe: kernel 3 is "kernels.3"."""


class Probe(nn.Module):
    """Kernels one after another, each cold and then warm."""

    def __init__(self, shapes: Sequence[KernelShape], device: torch.device, sweep_bytes: int) -> None:
        """Make the operands. `sweep_bytes`: of other data that is touched before each kernel."""
        super().__init__()
        self.shapes = tuple(shapes)
        with torch.device(device):
            self.sweep = nn.Buffer(torch.ones(max(1, sweep_bytes // 4)))
            self.kernels = nn.ModuleList(kernel_of(shape) for shape in shapes)
        self.eval()

    def forward(self) -> list[Tensor]:
        """Results of the kernels' last calls."""
        found = []
        for kernel in self.kernels:
            self.sweep.sum()  # read, not written: what leaves a cache dirty is paid for by who comes next
            kernel()
            found.append(kernel())
        return found


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe's operations took."""

    graph: OpGraph
    kernel: tuple[int | None, ...]
    """Of each operation of the graph, the shape that it belongs to; None for the sweeps."""
    time_s: tuple[float, ...]
    """Of each operation, seconds: median of the passes."""


def measure_probe(probe: Probe, device: torch.device, sessions: int = 3, passes_each: int = 3) -> Probed:
    """Trace the probe, then profile it in sessions of several passes; the first pass of each is not looked at."""
    runner = Runner(probe, Inside(), device)
    graph = traced(probe, runner.kind)
    names = [op.name for op in graph.ops]
    taken: list[list[float]] = []
    with torch.no_grad():
        for shape, found in zip(probe.shapes, probe(), strict=True):
            if not bool(torch.isfinite(found).all()):
                raise InvalidMeasurement(f"{shape.op} of {dict(shape.dims)} in {shape.dtype} is not finite")
        for _ in range(sessions):
            taken += operation_times(runner, names, passes_each)
    owners = tuple(int(op.path.split(".")[1]) if op.path.startswith(KERNELS) else None for op in graph.ops)
    return Probed(graph, owners, tuple(statistics.median(times) for times in zip(*taken, strict=True)))


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


def operation_times(runner: Runner, names: Sequence[str], count: int) -> list[list[float]]:
    """Seconds of each operation in each of `count` profiled passes; one more goes before them."""
    timeline, _ = runner.session(1 + count)
    return [sample(timeline, window, names, runner.kind).device_s for window in passes(timeline.host)[1:]]
