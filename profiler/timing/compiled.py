"""A pass of a model that torch.compile has compiled, with times of its kernels and the operations each came from.

The plain model must run the traced operations first: kernels are then told in their terms. What the compiler leaves to
Python between its graphs belongs to no kernel and stays unattributed, with its names.

Contract: as `Runner`; a compiler whose kernels are not those that ran raises `InvalidMeasurement`.

Example: ``rounds(CompiledRunner(model, inputs, torch.device("cpu")), graph, budget_s=10).kernels``
"""

from dataclasses import replace

import torch
from torch import nn

from profiler.attribution.align import sequence
from profiler.attribution.provenance import CompiledGraph, members
from profiler.attribution.spans import BACKENDS, COMPILED, passes
from profiler.record.run import InvalidMeasurement, KernelTimes
from profiler.timing.inductor import Inductor
from profiler.timing.runner import Repeatable, Runner
from profiler.timing.samples import PassTimes, Sample, called
from roofline.graph.op import ANCHORS, OpGraph


class CompiledRunner(Runner):
    """A compiled pass."""

    within = COMPILED

    def __init__(self, model: nn.Module, inputs: Repeatable, device: torch.device) -> None:
        super().__init__(model, inputs, device)
        torch._dynamo.reset()  # else graphs of an earlier cell stay, and their number is limited
        self._made = Inductor(model)
        self._compiled = torch.compile(model, backend=self._made, dynamic=False)
        self.forward = self._compiled
        self._parts = 0  # graphs that a pass calls
        self.members: list[tuple[int, ...]] = []
        """Operations of each kernel of `names`; empty where no module is known."""

    def check(self, graph: OpGraph) -> tuple[str, ...]:
        self.forward = self.model
        try:
            backends = super().check(graph)
        finally:
            self.forward = self._compiled
        self._made.called.clear()
        timeline, _ = self.session(2)
        each, rest = divmod(len(self._made.called), 2)
        if rest or self._made.called[:each] != self._made.called[each:]:
            raise InvalidMeasurement("two compiled passes called different graphs: the model recompiles itself")
        if not each:
            raise InvalidMeasurement("torch.compile compiled no part of the model; leave --compile out")
        self._parts = each
        graphs = [self._made.graphs[number] for number in self._made.called[:each]]
        names = [kernel.name for one in graphs for kernel in one.kernels]
        ran = called(timeline, passes(timeline.host)[-1], names)
        seen = frozenset(ran)
        graphs = [_without_unseen(one, seen) for one in graphs]
        self.names = [kernel.name for one in graphs for kernel in one.kernels]
        if list(ran) != self.names:
            raise InvalidMeasurement(
                f"a compiled pass called {len(ran)} kernels in another order than the {len(self.names)} that inductor "
                "generated: which is which is not known; leave --compile out"
            )
        anchors = {i for i, op in enumerate(graph.ops) if op.kind in ANCHORS}
        self.members = members(graphs, sequence(graph), anchors)
        return tuple(sorted({name for name in self.names if name.startswith(BACKENDS)})) or backends

    def attributed(self, one: Sample) -> Sample:
        lost = [i for i, ops in enumerate(self.members) if not ops]
        if not lost:
            return one
        device_s = list(one.device_s)
        for i in lost:
            device_s[i] = 0.0
        names = (f"{self.names[i]} (of no known module)" for i in lost)
        return replace(
            one,
            device_s=device_s,
            unattributed_s=one.unattributed_s + sum(one.device_s[i] for i in lost),
            unattributed=(*one.unattributed, *names),
        )

    def described(self, times: PassTimes) -> PassTimes:
        kernels = tuple(
            KernelTimes(name=name, ops=ops, device_s=one.device_s, gap_s=one.gap_s)
            for name, ops, one in zip(self.names, self.members, times.ops, strict=True)
            if ops
        )
        return replace(times, ops=(), kernels=kernels)

    def facts(self) -> dict[str, str]:
        return {
            "compiled graphs": str(self._parts),
            "graph breaks": str(max(0, self._parts - 1)),
            "compiled kernels": str(len(self.names)),
        }


def _without_unseen(graph: CompiledGraph, seen: frozenset[str]) -> CompiledGraph:
    """Without calls that no host event stands for anywhere, as of functions of inductor's own."""
    return replace(graph, kernels=tuple(kernel for kernel in graph.kernels if kernel.name in seen))
