"""Runners that repeat one forward pass from the same state, plain and under the profiler: eagerly, or as a CUDA graph.

Module ranges cost as much as operators do, so only the session that checks has them: every timed pass must then run the
same sequence, else `SequenceMismatch` is raised. Lost device events raise `InvalidMeasurement`. The kernels of a
graph's replay are given to operations by their order, which the plain pass fixes: a model that no graph can hold raises
`NotCapturable`, a graph that ran other kernels than the plain pass `GraphMismatch`. The wall time of a replay is that
of its launch, its kernels and the synchronisation.

Example: ``runner = Runner(model, inputs, torch.device("cpu")); runner.check(graph); runner.profiled(3)``
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch._C._profiler import _RecordFunctionFast

from profiler.attribution.operations import PASS, PREFIX, passes
from profiler.attribution.timeline import Timeline, read_timeline
from profiler.devices.backend import Graph, backend_of
from profiler.models.trace import entered
from profiler.passes.samples import PassTimes, Sample, check_sequence, plain_pass, replay_sample, sample
from profiler.record.run import InvalidMeasurement
from profiler.timing.clocks import SETTLING_LAUNCHES, capture, recorded
from roofline.graph.op import OpGraph

if TYPE_CHECKING:
    from profiler.attribution.replayed import Reference


class Repeatable(Protocol):
    """The inputs and state that each pass starts from: `profiler.models.inputs.PassInputs`, or nothing."""

    def kwargs(self) -> dict[str, Any]:
        """Arguments of one call of the model."""

    def restore(self) -> None:
        """Undo what a pass did."""


class Runner:
    """An eager pass."""

    within: str | None = None
    """Name of the profiler range that all operations lie in; None where there is none."""

    def __init__(self, model: nn.Module, inputs: Repeatable, device: torch.device) -> None:
        self.model, self.inputs, self.device = model, inputs, device
        self.backend = backend_of(device)
        self.by_kernels = self.backend.profiles_kernels
        self.settling = SETTLING_LAUNCHES
        self.settles = True
        """Whether a session begins with a pass that does not count."""
        self.forward: Callable[..., Any] = model
        self.names: list[str] = []
        """Host events that every profiled pass must have, in order; `check` fixes them."""

    def synchronize(self) -> None:
        self.backend.synchronize(self.device)

    def finite(self) -> bool:
        """Run once and look at the logits."""
        logits = self.forward(**self.inputs.kwargs()).logits
        self.inputs.restore()
        return bool(torch.isfinite(logits).all())

    def check(self, graph: OpGraph) -> tuple[str, ...]:
        """Whether a pass runs the operations of `graph`; the attention backends that it takes."""
        backends = check_sequence(self.session(1 + self.settles, modules=True)[0], graph, self.by_kernels)
        self.names = [op.name for op in graph.ops]
        return backends

    def once(self) -> float:
        """Wall time of one pass in seconds, host and device."""
        kwargs = self.inputs.kwargs()
        self.synchronize()
        start = time.perf_counter()
        self.forward(**kwargs)
        self.synchronize()
        end = time.perf_counter()
        self.inputs.restore()
        return end - start

    def profiled(self, count: int) -> tuple[list[Sample], list[float]]:
        """Samples and wall times of `count` passes under the profiler."""
        first = int(self.settles)
        timeline, walls = self.session(count + first)
        windows, walls = passes(timeline.host)[first:], walls[first:]
        taken = (sample(timeline, window, self.names, self.by_kernels, self.within) for window in windows)
        return [self.without_unknown(each) for each in taken], walls

    def without_unknown(self, sample: Sample) -> Sample:
        """The same sample with what belongs to no module of the model unattributed: here, it is so already."""
        return sample

    def as_kernel_times(self, times: PassTimes) -> PassTimes:
        """The same times, of kernels where each stands for several operations: here, of operations."""
        return times

    def environment_notes(self) -> dict[str, str]:
        """Tell how passes run, for people."""
        return {}

    def session(
        self,
        count: int,
        *,
        modules: bool = False,
        watched: Callable[[Callable[[], list[float]]], list[float]] = lambda run: run(),
    ) -> tuple[Timeline, list[float]]:
        """Profile `count` passes, within `watched`; their timeline and wall times."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            walls = watched(lambda: self.record(path, count, modules=modules))
            return read_timeline(path), walls

    def record(self, path: Path, count: int, *, modules: bool = False) -> list[float]:
        """Profile `count` passes into a file that `read_timeline` reads; their wall times."""
        walls = []
        ranges = entered(self.model, lambda path: _RecordFunctionFast(PREFIX + path)) if modules else nullcontext()
        with ranges, recorded(path, self.device, self.settling):
            for _ in range(count):
                kwargs = self.inputs.kwargs()
                self.synchronize()
                start = time.perf_counter()
                with _RecordFunctionFast(PASS):
                    self.forward(**kwargs)
                    self.synchronize()
                walls.append(time.perf_counter() - start)
                self.inputs.restore()
        return walls


class ReplayRunner(Runner):
    """Replays of what another runner's pass launches."""

    def __init__(self, plain: Runner) -> None:
        super().__init__(plain.model, plain.inputs, plain.device)
        self.plain = plain
        self.by_kernels = plain.by_kernels
        self._graph: Graph | None = None
        self._logits: torch.Tensor | None = None
        self._reference: Reference | None = None
        self.forward = self._replay

    def finite(self) -> bool:
        """Run the plain pass, capture it, replay it, and look at the logits of both."""
        if not self.plain.finite():
            return False
        self._graph = capture(self._captured, 1, self.device, instead="leave --cuda-graph out")
        self.inputs.restore()
        self.once()
        return self._logits is not None and bool(torch.isfinite(self._logits).all())

    def check(self, graph: OpGraph) -> tuple[str, ...]:
        backends = self.plain.check(graph)
        timeline, _ = self.plain.session(2)
        self._reference = plain_pass(timeline, passes(timeline.host)[-1], self.plain.names, self.plain.within)
        self.profiled(1)
        return backends

    def profiled(self, count: int) -> tuple[list[Sample], list[float]]:
        if self._reference is None:
            raise InvalidMeasurement("a graph is compared with its plain pass: check it first")
        timeline, walls = self.session(count + 1)
        windows = passes(timeline.host)[1:]
        taken = (replay_sample(timeline, window, self._reference) for window in windows)
        return [self.plain.without_unknown(each) for each in taken], walls[1:]

    def as_kernel_times(self, times: PassTimes) -> PassTimes:
        return self.plain.as_kernel_times(times)

    def _captured(self) -> None:
        self._logits = self.plain.forward(**self.inputs.kwargs()).logits
        if not self.plain.backend.is_capturing():  # what puts state back is no part of the pass
            self.inputs.restore()

    def _replay(self, **kwargs: Any) -> None:
        """The captured pass; its arguments are those of the capture."""
        if self._graph is None:
            raise InvalidMeasurement("nothing was captured to be replayed")
        self._graph.replay()
