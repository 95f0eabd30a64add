"""The parts of a scenario: the passes that it measures, and the figures that follow from them.

A scenario is a class whose fields are its options. `steps` lists passes as sizes and changes of the model, without
torch; whoever measures them makes cells of a run from them (`Step.cell`). `results` then reads the measured passes by
their steps and yields curves, and sentences about them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import NamedTuple, Protocol

from calibrate.passes.pass_report import PassReport
from calibrate.scenarios.quantity import UNKNOWN, Quantity, derived
from profiler.record.folder import RunFolder
from profiler.record.run import Cell, CellResult, ModelFacts
from roofline.graph.memory import Footprint, footprint
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec, Link
from roofline.workload import Logits, Workload


class Step(NamedTuple):
    """One pass of a scenario."""

    query: int
    """New tokens of each sequence."""
    context: int = 0
    batch: int = 1
    logits: Logits = "last"
    decoding: int = 0
    """Sequences that decode in the same step."""
    decoding_context: int = 0
    change: str = ""
    """What is done to the model, as `Cell.change`."""
    attn: str = ""
    """Attention implementation; that of the run if empty."""

    def cell(self, like: Cell) -> Cell:
        """The cell of this pass; model, dtype and options are those of `like`. Raises ValueError for a size below 1."""
        if min(self.query, self.batch) < 1 or min(self.context, self.decoding, self.decoding_context) < 0:
            raise ValueError("sizes and counts have to be 1 or more")
        workload = Workload(
            batch=self.batch,
            query_tokens=self.query,
            context_tokens=self.context,
            dtype=like.workload.dtype,
            logits=self.logits,
        )
        beside = None
        if self.decoding:
            sizes = {"batch": self.decoding, "query_tokens": 1, "context_tokens": self.decoding_context}
            beside = workload.model_copy(update=sizes)
        changed = {"workload": workload, "beside": beside, "change": self.change, "attn": self.attn or like.attn}
        return like.model_copy(update=changed)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.query + self.context, self.decoding_context + 1 if self.decoding else 0)


@dataclass(eq=False)
class Pass:
    """A measured pass."""

    report: PassReport
    result: CellResult
    folder: RunFolder

    @property
    def wall(self) -> Quantity:
        """Seconds of the pass; nothing of an invalid one."""
        report = self.report
        if report.status == "invalid":
            return Quantity(predicted=report.predicted_wall_s)
        low, high = report.wall_s_low, report.wall_s_high
        half = None if low is None or high is None else (high - low) / 2
        return Quantity(report.wall_s, half, report.predicted_wall_s)

    @cached_property
    def graph(self) -> OpGraph:
        """The operations that ran. Raises RequestError where the file is missing."""
        return self.folder.read_graph(self.result.graph or "")

    @cached_property
    def memory(self) -> Footprint:
        return footprint(self.graph)


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that a scenario's figures follow from."""

    facts: ModelFacts
    passes: Mapping[Step, Pass]
    """Those that have a result."""
    spec: HardwareSpec

    def wall(self, step: Step) -> Quantity:
        """Seconds of a pass; unknown where it has no result."""
        return self.passes[step].wall if step in self.passes else UNKNOWN

    def load(self, step: Step) -> Quantity:
        """Seconds of a pass that only loads; on a device with a link to its host the link's time is predicted."""
        found = self.wall(step)
        link, size = self.links.get("pcie"), self.loaded_bytes(step)
        if found.predicted is not None or link is None or size is None:
            return found
        latency_s = link.latency_s.value if link.latency_s else 0.0
        return replace(found, predicted=size / link.bandwidth.value + latency_s)

    def loaded_bytes(self, step: Step) -> float | None:
        """Bytes that such a pass brings; None where it has no result."""
        if step not in self.passes:
            return None
        graph = self.passes[step].graph
        return float(sum(op.count * sum(write.bytes for write in op.writes) for op in graph.ops))

    def ratio(self, step: Step, to: Step) -> Quantity:
        """Time of a pass ÷ time of another."""
        return derived(lambda a, b: a / b, self.wall(step), self.wall(to))

    @property
    def links(self) -> Mapping[str, Link]:
        """Links of the device by name, those that were measured before the datasheet's."""
        known = (peaks.links for peaks in (self.spec.datasheet, self.spec.measured) if peaks is not None)
        return {name: link for links in known for name, link in links.items()}


@dataclass(frozen=True)
class Row:
    """One figure of a curve."""

    x: float | str
    quantity: Quantity
    series: str = ""
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Figures in one unit over one size: a table and a plot."""

    title: str
    x: str
    """Meaning of `Row.x`."""
    unit: str
    """ "s", "B", "B/s", "J", "tokens/s", "×" for a ratio, "" for a count."""
    rows: Sequence[Row]
    note: str
    """A sentence on what the figures are."""


class Scenario(Protocol):
    """A class of `calibrate.scenarios.registry.SCENARIOS`; its first docstring line says what it answers."""

    def steps(self, facts: ModelFacts) -> Sequence[Step]:
        """The passes to measure. Raises ValueError, one line, where the model cannot do it."""

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        """Curves and sentences, whichever of the passes are known."""


@dataclass(frozen=True)
class Answer:
    """The results of one scenario of one model in one dtype."""

    name: str
    model: str
    dtype: str
    question: str
    curves: Sequence[Curve] = ()
    findings: Sequence[str] = ()
    lost: Sequence[str] = ()
    """Passes without a result, each with its reason."""
    refused: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)


def options_of(scenario: object) -> dict[str, object]:
    """Return the options of a scenario with their values."""
    return {each.name: getattr(scenario, each.name) for each in fields(scenario)}  # type: ignore[arg-type]


def require_context(facts: ModelFacts) -> None:
    """Raise ValueError for a model without a cache."""
    if not facts.keeps_cache:
        raise ValueError("the model keeps no cache from pass to pass, which it needs; use a causal language model")
