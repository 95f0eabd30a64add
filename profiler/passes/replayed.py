"""A pass that is captured into a CUDA graph once and replayed: a plain pass's kernels without the host between them.

The kernels of a replay are given to operations by their order, which the plain pass fixes. A model that no graph can
hold raises `NotCapturable`, a graph that ran other kernels than the plain pass `GraphMismatch`. The wall time is that
of a replay: launch of the graph, kernels, synchronisation.

Example: ``rounds(ReplayRunner(Runner(model, inputs, device)), graph, budget_s=10)``
"""

from typing import Any

import torch

from profiler.attribution.operations import passes
from profiler.attribution.replayed import Reference
from profiler.devices.backend import Graph
from profiler.passes.eager import Runner
from profiler.passes.samples import PassTimes, Sample, plain_pass, replay_sample
from profiler.record.run import InvalidMeasurement
from profiler.timing.clocks import capture
from roofline.graph.op import OpGraph


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
