"""Brings the times of all visits of a calibration to one level of the machine, before laws are fitted to them.

A shared host changes for seconds at a time, so that the visits to one kernel are of different machines, and the middle
of three is that of whichever was there twice. Reference probes run beside each visit. `Centre` is the median of each
over the whole calibration; an operation's time is divided by the part of it that follows a probe
(`roofline.price_by_law.waits`) times that probe's time over the centre.

Example: ``Centre.of(readings, peaks, "cpu").passes(graph, visit)``
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from profiler.passes.samples import Sample
from profiler.timing.turns import Visit
from roofline.graph.op import OpGraph
from roofline.hardware.spec import Peaks
from roofline.laws.fitted import PROBES, LevelRatio, probe_of
from roofline.price import Prepared
from roofline.price_by_law import level_factors, ratio_of, waits


@dataclass(frozen=True)
class Centre:
    """The level to which times are brought."""

    seconds: Mapping[str, float]
    """Median time of each probe; empty where times stay as measured."""
    peaks: Peaks | None
    """Achieved peaks; without them it is not known what an operation waits for."""
    kind: str
    """Kind of the device, as backends name it."""
    _shares: dict[int, tuple[OpGraph, NDArray[np.float64]]] = field(default_factory=dict)

    @classmethod
    def of(cls, readings: Mapping[str, Sequence[float]], peaks: Peaks | None, kind: str) -> "Centre":
        """`readings`: seconds of each probe beside each visit."""
        medians = {probe: statistics.median(times) for probe, times in readings.items()} if peaks is not None else {}
        return cls(medians, peaks, kind)

    def passes(self, graph: OpGraph, visit: Visit[Sequence[Sequence[float]]]) -> list[list[float]]:
        """Return seconds of each operation in each pass of a visit to kernels."""
        factors = self._factors(graph, visit.reference)
        return [np.divide(times_s, factors).tolist() for times_s in visit.result]

    def samples(self, graphs: Sequence[OpGraph], visit: Visit[Sequence[Sequence[Sample]]]) -> list[list[Sample]]:
        """Return the samples of a visit to models; their gaps are the host's."""
        return [
            [
                replace(
                    sample,
                    device_s=np.divide(sample.device_s, self._factors(graph, visit.reference)).tolist(),
                    gap_s=np.divide(sample.gap_s, ratio_of(self._ratios(graph, visit.reference), "host")).tolist(),
                )
                for sample in samples
            ]
            for graph, samples in zip(graphs, visit.result, strict=True)
        ]

    def _factors(self, graph: OpGraph, reference: Mapping[str, float]) -> NDArray[np.float64]:
        """Return the time of each operation beside these readings ÷ its time at the centre, shape (operations,)."""
        ratios = self._ratios(graph, reference)
        if self.peaks is None or not ratios:
            return np.ones(len(graph.ops))
        if id(graph) not in self._shares:
            self._shares[id(graph)] = graph, waits(Prepared(graph), self.peaks, self.kind)
        return level_factors(self._shares[id(graph)][1], ratios)

    def _ratios(self, graph: OpGraph, reference: Mapping[str, float]) -> dict[str, LevelRatio]:
        """Return readings ÷ centre by probe: the probe in the graph's dtype, or else the one without a dtype."""
        ratios = {}
        for probe in PROBES:
            name = probe_of(probe, graph.workload.dtype, reference, self.seconds)
            if name is not None:
                ratio = reference[name] / self.seconds[name]
                ratios[probe] = LevelRatio(ratio=ratio, low=ratio, high=ratio)
        return ratios
