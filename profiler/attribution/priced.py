"""Kernels of an engine's timeline against predictions, operator by operator and layer by layer.

An operator with recorded shapes is priced as an operation of its own (`profiler.models.recorded`); of the operators
around a launch, the innermost counts that can be priced. Its kernels are what it is compared with. Layers of one kind
are one row: "Model/Layer.*/Attention/Linear.2" is the third linear layer of the attention of every layer.

Where the kernels hang on the launch of a graph no operator is known. Steps whose annotation states their sizes are then
compared part by part with the serving graph of a named model (`roofline.serving.predict`).

No torch is imported here.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from profiler.attribution.timeline import HostEvent
from profiler.record.engine_trace import LayerRow, PartRow, StepRow
from roofline.graph.op import ANCHORS, Kind, OpGraph
from roofline.hardware.spec import HardwareSpec
from roofline.predict.passes import ROOFLINE, OpPrediction, predict_pass
from roofline.serving.predict import EngineStep
from roofline.serving.step import DECODE, EXPERTS, MOVED, PREFILL, PRODUCTS, STREAMED
from roofline.workload import Workload

OUTSIDE = "(no module)"
"""Path of the kernels that no module's call is around."""
UNPRICED = ""
ESTIMATE = "estimate of a stream"
START_S = 2e-6
"""Seconds before a kernel works: the prior of `roofline/engines`, to which steps of servers agree."""


class Operations(Protocol):
    """Makes operations of recorded operators, as `profiler.models.recorded.Recorded` does."""

    def add(
        self, operator: str, inputs: Mapping[str, Any], path: str, kind: str | None, step: Mapping[str, float]
    ) -> tuple[int, ...]: ...
    def graph(self, name: str) -> OpGraph: ...


@dataclass(slots=True)
class Owned:
    """A kernel and what is around its launch."""

    seconds: float
    kind: str | None
    operators: Sequence[HostEvent]
    """From the outermost."""
    modules: Sequence[str]
    """Names of the modules' calls, from the outermost."""
    step: Mapping[str, float]
    """Sizes that the annotation of its step states."""


@dataclass(slots=True)
class _Call:
    """An operator that is priced, and the kernels that ran for it."""

    path: str
    operations: tuple[int, ...]
    measured_s: float = 0.0
    kernels: int = 0


@dataclass(slots=True)
class _Sum:
    measured_s: float = 0.0
    kernels: int = 0
    unpriced_s: float = 0.0
    calls: list[_Call] = field(default_factory=list)


def layer_rows(kernels: Sequence[Owned], spec: HardwareSpec, operations: Operations) -> tuple[LayerRow, ...]:
    """A row for each kind of layer, the longest first, of kernels inside the window."""
    paths = layer_kinds([kernel.modules for kernel in kernels])
    calls: dict[int, _Call | None] = {}
    rows: dict[str, _Sum] = defaultdict(_Sum)
    for kernel, path in zip(kernels, paths, strict=True):
        row = rows[path]
        row.measured_s += kernel.seconds
        row.kernels += 1
        call = _call_of(kernel, path, calls, operations)
        if call is None:
            row.unpriced_s += kernel.seconds
            continue
        if not call.kernels:
            row.calls.append(call)
        call.measured_s += kernel.seconds
        call.kernels += 1
    graph = operations.graph("timeline")
    peaks = spec.datasheet or spec.measured
    if peaks is None:
        raise ValueError(f"{spec.name} has neither a datasheet nor measured peaks")
    bare = predict_pass(graph, spec, peaks).ops
    ops = predict_pass(graph, spec, peaks, with_laws=True).ops if spec.calibrated else bare
    ops = tuple(_estimated(op) for op in ops)
    made = [_row(path, row, ops, bare) for path, row in rows.items()]
    return tuple(sorted(made, key=lambda row: -row.measured_s))


def _call_of(kernel: Owned, path: str, calls: dict[int, "_Call | None"], operations: Operations) -> "_Call | None":
    """The innermost operator around a kernel's launch that can be priced; each is tried once."""
    for operator in reversed(kernel.operators):
        if operator.inputs is None:
            continue
        if id(operator) not in calls:
            found = operations.add(operator.name, operator.inputs, path, kernel.kind, kernel.step)
            calls[id(operator)] = _Call(path, found) if found else None
        if (call := calls[id(operator)]) is not None:
            return call
    return None


def _estimated(op: OpPrediction) -> OpPrediction:
    """An operation without a law starts first, and one that waits for memory reaches a part of the bandwidth, as the
    streaming kernels of a serving graph do (`roofline.serving.step`)."""
    if op.source != ROOFLINE or op.time_s is None:
        return op
    if op.kind in ANCHORS - {Kind.EMBEDDING}:
        return op.model_copy(update={"time_s": START_S * op.count + op.time_s})
    return op.model_copy(update={"time_s": START_S * op.count + op.time_s / STREAMED, "source": ESTIMATE})


def _row(path: str, row: _Sum, ops: Sequence[OpPrediction], bare: Sequence[OpPrediction]) -> LayerRow:
    """Ends of the operations' intervals add up: operations of a layer are of one or two laws, which err together."""
    own = [i for call in row.calls for i in call.operations]
    predicted = [ops[i].time_s for i in own]
    ideal = [bare[i].time_s for i in own]
    sources: dict[str, float] = defaultdict(float)
    bounds: dict[str, float] = defaultdict(float)
    for i in own:
        sources[ops[i].source] += ops[i].time_s or 0.0
        bounds[bare[i].bound] += bare[i].time_s or 0.0
    known = bool(own) and None not in predicted
    low, high = (
        sum(end if end is not None else op.time_s or 0.0 for op, end in ends)
        for ends in ([(ops[i], ops[i].low_s) for i in own], [(ops[i], ops[i].high_s) for i in own])
    )
    by_law = any(ops[i].low_s is not None for i in own)
    return LayerRow(
        path=path,
        kernels=row.kernels,
        calls=len(row.calls),
        measured_s=row.measured_s,
        unpriced_s=row.unpriced_s,
        predicted_s=sum(s for s in predicted if s is not None) if known else None,
        low_s=low if known and by_law else None,
        high_s=high if known and by_law else None,
        ideal_s=sum(s for s in ideal if s is not None) if own and None not in ideal else None,
        by_law_s=sum(ops[i].time_s or 0.0 for i in own if ops[i].low_s is not None),
        bound=max(bounds, key=lambda name: bounds[name], default=""),
        source=max(sources, key=lambda name: sources[name], default=UNPRICED),
    )


def layer_kinds(paths: Sequence[Sequence[str]]) -> list[str]:
    """The kind of layer of each path of module calls, as "Model/Layer.*/MLP/Linear.1".

    Modules of one class in one module are repeated layers where they hold modules themselves, and are numbered in the
    order of their first call where they do not.
    """
    children: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for path in paths:
        for depth, name in enumerate(path):
            children[tuple(path[:depth])][name] = None
    names: dict[tuple[str, ...], str] = {}
    for parent, inside in children.items():
        alike: dict[str, list[str]] = defaultdict(list)
        for name in inside:
            alike[class_of(name)].append(name)
        for kind, same in alike.items():
            for number, name in enumerate(same):
                is_block = any((*parent, one) in children for one in same)
                names[*parent, name] = kind if len(same) == 1 else f"{kind}.*" if is_block else f"{kind}.{number}"
    return ["/".join(names[tuple(path[: i + 1])] for i in range(len(path))) or OUTSIDE for path in paths]


def class_of(module: str) -> str:
    """The class of a module's call: kineto names the 21st linear layer "Linear_21"."""
    name, _, number = module.rpartition("_")
    return name if number.isdigit() else module


PARTS = {
    "products with weights": (("matmul",), (PRODUCTS,)),
    "experts": (("experts", "routing"), (EXPERTS,)),
    "attention": (("attention",), (DECODE, PREFILL)),
}
"""Parts of a step: kinds of their kernels, and parts of the serving graph. All other kinds stream or communicate."""
OTHERS = "streaming kernels and collectives"
STARTS = ("stream", "reduce")
"""Constants of an engine that are device time of those others."""


def workloads_of(step: StepRow) -> tuple[Workload, ...]:
    """The work of a step by its annotation, sequences of one phase being equally long; empty where it states none."""
    found = []
    for phase in ("prefill", "decode"):
        wanted = (f"{phase}_sequences", f"{phase}_tokens", f"{phase}_context")
        batch, tokens, context = (step.sizes.get(name, 0.0) for name in wanted)
        if not (batch >= 1 and tokens >= batch and context >= tokens):
            continue
        new = max(1, round(tokens / batch))
        before = max(0, round(context / batch) - new)
        found.append(Workload(batch=round(batch), query_tokens=new, context_tokens=before, dtype="bfloat16"))
    return tuple(found)


def doubt_of(steps: Sequence[StepRow], model: str, attentions: int) -> str | None:
    """A sentence where the number of attention kernels says that another model ran; a layer may have several."""
    odd = next((n for step in steps if (n := step.calls.get("attention", 0)) % max(attentions, 1)), None)
    if odd is None:
        return None
    return f"{odd} attention kernels in a step are no multiple of {model}'s {attentions} layers: another model ran"


def part_rows(measured: Sequence[StepRow], predicted: Sequence[EngineStep]) -> tuple[PartRow, ...]:
    """Each part of the steps together, the longest first; steps and predictions in the same order."""
    rows = dict.fromkeys((*PARTS, OTHERS), (0.0, 0.0))
    part_of = {kind: part for part, (kinds, _) in PARTS.items() for kind in kinds}
    for step, of in zip(measured, predicted, strict=True):
        for kind, seconds in step.kinds.items():
            part = part_of.get(kind, OTHERS)
            rows[part] = rows[part][0] + seconds, rows[part][1]
        for part, (_, names) in PARTS.items():
            rows[part] = rows[part][0], rows[part][1] + sum(of.parts_s[name] for name in names)
        others = of.parts_s[MOVED] + sum(of.own[name].time_s for name in STARTS)
        rows[OTHERS] = rows[OTHERS][0], rows[OTHERS][1] + others
    made = [PartRow(part=part, measured_s=m, predicted_s=p) for part, (m, p) in rows.items() if m or p]
    return tuple(sorted(made, key=lambda row: -row.measured_s))
