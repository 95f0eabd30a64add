"""The timeline of a real engine, read and accounted for without knowing the model.

Kernels belong to the host through their launch: the innermost operator, and the modules around it, of the same thread.
Those whose launch the file does not have are work of steps before its window and are kept apart: counting them reads a
step too long. Steps are what the engine annotated, else calls of the outermost module, else the period of the kernels.

Example: ``ranks = read_ranks(Path("vllm-rank0.pt.trace.json.gz"))``
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from profiler.attribution.kernel_kinds import form_of, kind_of, step_forms, step_sizes
from profiler.attribution.nsys import is_nsys, read_nsys
from profiler.attribution.priced import Owned, class_of
from profiler.attribution.timeline import DeviceEvent, HostEvent, Launch, Timeline, read_timeline
from profiler.record.engine_trace import Closure, KernelRow, LayerRow, ModuleRow, StepRow, StreamRow, TraceRank
from roofline.reading import Unreadable

LONGEST_NAME = 400
"""Characters of a name in the result."""
DEEPEST = 64
"""Modules within each other in a path; models have some ten."""
COLLECTIVE = "collective"

LEAST_MATCH = 0.998
"""Share of kernels that must be those one period before. Layers repeat too, but for those between steps: of 126 layers
of 12 kernels (Llama 405B) 99.1 % are those of one layer before."""
MOST_PERIOD_KERNELS = 20_000
"""Kernels in which a period is looked for; a step of DeepSeek-V3 has some 3,000."""


Price = Callable[[Sequence[Owned]], tuple[LayerRow, ...]]
"""Rows of layers for the kernels of a device that lie in the window."""


def read_ranks(path: Path, price: Price | None = None) -> list[TraceRank]:
    """Each device of a torch profiler trace (.json, .json.gz) or of an export of Nsight Systems (.sqlite).

    Args: `price` compares the kernels with predictions (`profiler.attribution.priced.layer_rows`).
    Raises Unreadable, one line, for what is neither or holds no kernel.
    """
    try:
        timeline = read_nsys(path) if is_nsys(path) else read_timeline(path)
    except Unreadable:
        raise
    except ValueError as error:
        raise Unreadable(f"{path}: {error}") from error
    if not any(event.kind == "kernel" for event in timeline.device):
        raise Unreadable(
            f"{path} holds no kernel of a GPU; profile with ProfilerActivity.CUDA, or nsys profile --trace=cuda,nvtx"
        )
    owners = _Owners(timeline)
    devices = sorted({event.device for event in timeline.device if event.kind == "kernel"})
    return [_rank(path.name, device, timeline, owners, price) for device in devices]


@dataclass(frozen=True, slots=True)
class _Work:
    """A device event and what it belongs to."""

    event: DeviceEvent
    operators: tuple[HostEvent, ...]
    """Operators and annotations around its launch, from the outermost."""
    modules: tuple[int, ...]
    """Positions of the calls of modules around its launch, from the outermost."""
    step: int | None
    is_inside: bool
    is_graph: bool

    @property
    def operator(self) -> str | None:
        """The name of the innermost operator."""
        return self.operators[-1].name.split(",")[0] if self.operators else None

    @property
    def seconds(self) -> float:
        return self.event.end_s - self.event.start_s


class _Owners:
    """Finds operator, modules and step of each launch, thread by thread."""

    def __init__(self, timeline: Timeline) -> None:
        self.launched: dict[int | None, Launch] = {launch.correlation: launch for launch in timeline.launches}
        self.has_launches = bool(timeline.launches)
        self.modules = timeline.modules
        self.steps, self.source = _steps(timeline)
        marked = {id(event) for event in timeline.host if form_of(event.name) is not None}
        self._operators = [event for event in timeline.host if id(event) not in marked]
        self._callers = {event.external_id: event for event in timeline.host if event.external_id is not None}
        points = {(launch.tid, launch.start_s) for launch in timeline.launches}
        points |= {(caller.tid, caller.start_s) for caller in self._callers.values()}
        self._of: list[dict[_Point, tuple[int, ...]]] = [
            _around(events, points) for events in (self._operators, self.modules, self.steps)
        ]

    def work(self, event: DeviceEvent) -> _Work:
        launch = self.launched.get(event.correlation) if event.correlation is not None else None
        caller = self._callers.get(event.external_id) if event.external_id is not None else None
        point = None if launch is None else (launch.tid, launch.start_s)
        if caller is not None and (point is None or not any(of.get(point) for of in self._of)):
            point = (caller.tid, caller.start_s)
        operators, modules, steps = ((of.get(point, ()) if point else ()) for of in self._of)
        around = tuple(self._operators[i] for i in operators)
        is_inside = launch is not None or caller is not None or not self.has_launches
        is_graph = launch is not None and launch.kind == "graph"
        return _Work(event, around, modules, steps[0] if steps else None, is_inside, is_graph)


_Point = tuple[int, float]
"""A thread and a moment in seconds."""


def _around(events: Sequence[HostEvent], points: Iterable[_Point]) -> dict[_Point, tuple[int, ...]]:
    """The events of a point's thread that it lies in, from the outermost; at most `DEEPEST`. Events are in order."""
    threads: dict[int, list[int]] = defaultdict(list)
    for i, event in enumerate(events):
        threads[event.tid].append(i)
    found: dict[_Point, tuple[int, ...]] = {}
    by_thread: dict[int, list[float]] = defaultdict(list)
    for tid, at in points:
        if tid in threads:
            by_thread[tid].append(at)
    for tid, times in by_thread.items():
        mine, next_, open_ = threads[tid], 0, list[int]()
        for at in sorted(times):
            while next_ < len(mine) and events[mine[next_]].start_s <= at:
                while open_ and events[open_[-1]].end_s <= events[mine[next_]].start_s:
                    open_.pop()
                if len(open_) < DEEPEST:
                    open_.append(mine[next_])
                next_ += 1
            while open_ and events[open_[-1]].end_s < at:
                open_.pop()
            found[tid, at] = tuple(i for i in open_ if events[i].end_s >= at)
    return found


def _steps(timeline: Timeline) -> tuple[list[HostEvent], str]:
    """Annotations of steps, or calls of the outermost module where there are several, and whose form they have.

    The first form of the table counts that occurs; of annotations within each other the outermost.
    """
    found: dict[str, list[HostEvent]] = defaultdict(list)
    for event in timeline.host:
        if (form := form_of(event.name)) is not None:
            found[form.engine].append(event)
    for form in step_forms():
        if form.engine in found:
            return _outermost(found[form.engine]), form.engine
    roots = _outermost(timeline.modules)
    by_class = Counter(class_of(event.name) for event in roots)
    longest = max(roots, key=lambda event: event.end_s - event.start_s, default=None)
    if longest is not None and by_class[class_of(longest.name)] > 1:
        return [event for event in roots if class_of(event.name) == class_of(longest.name)], "modules"
    return [], ""


def _outermost(events: Iterable[HostEvent]) -> list[HostEvent]:
    kept: list[HostEvent] = []
    ends: dict[int, float] = {}
    for event in sorted(events, key=lambda e: (e.start_s, -e.end_s)):
        if event.start_s >= ends.get(event.tid, -np.inf):
            ends[event.tid] = event.end_s
            kept.append(event)
    return kept


def _rank(file: str, device: int, timeline: Timeline, owners: _Owners, price: Price | None) -> TraceRank:
    events = [event for event in timeline.device if event.device == device]
    backward = sum(event.end_s < event.start_s for event in events)
    work = [owners.work(event) for event in events if event.end_s >= event.start_s]
    kernels = [w for w in work if w.event.kind == "kernel"]
    inside = [w for w in work if w.is_inside] or work
    rules = [kind_of(w.event.name, w.operator) for w in kernels]
    kinds = {id(w): rule.kind for w, rule in zip(kernels, rules, strict=True) if rule is not None}

    def spans(which: Callable[[_Work], bool]) -> float:
        return _covered([w.event for w in inside if which(w)])

    busy = spans(lambda w: True)
    on_kernels = spans(lambda w: w.event.kind == "kernel")
    computing = spans(lambda w: w.event.kind == "kernel" and kinds.get(id(w)) != COLLECTIVE)
    source, steps, between = _step_rows(owners, [w for w in kernels if w.is_inside], kinds)
    left_out = [f"{backward} device events end before they start"] if backward else []
    if timeline.broken:
        first = timeline.broken[0]
        left_out.append(
            f"{len(timeline.broken)} events cannot be read (the first: {_short(first.name)}, {first.reason})"
        )
    by_name: dict[str, list[int]] = defaultdict(list)
    for i, w in enumerate(kernels):
        by_name[w.event.name].append(i)
    rows = []
    for name, at in by_name.items():
        seconds = [kernels[i].seconds for i in at]
        rule = next((rules[i] for i in at if rules[i] is not None), None)
        rows.append(
            KernelRow(
                name=_short(name), kind=rule.kind if rule else None, family=rule.family if rule else "",
                calls=len(at), total_s=sum(seconds), median_s=float(np.median(seconds)),
                outside=sum(not kernels[i].is_inside for i in at),
                outside_s=sum(kernels[i].seconds for i in at if not kernels[i].is_inside),
            )
        )  # fmt: skip
    streams = {stream: [e for e in events if e.stream == stream] for stream in sorted({e.stream for e in events})}
    return TraceRank(
        file=_short(file),
        device=device,
        span_s=max(w.event.end_s for w in inside) - min(w.event.start_s for w in inside),
        busy_s=busy,
        compute_s=computing,
        exposed_collective_s=on_kernels - computing,
        exposed_memory_s=busy - on_kernels,
        closure=_closure(kernels, [rule.family if rule is not None else None for rule in rules]),
        kernels=tuple(sorted(rows, key=lambda row: (-row.total_s, row.name))),
        streams=tuple(StreamRow(stream=s, events=len(of), busy_s=_covered(of)) for s, of in streams.items()),
        steps=tuple(steps),
        between_steps_s=between if source else 0.0,
        modules=_module_rows(owners.modules, [w for w in kernels if w.is_inside]),
        layers=price(_owned(owners, kernels, kinds)) if price is not None else (),
        left_out=tuple(left_out),
    )


def _owned(owners: _Owners, kernels: Sequence[_Work], kinds: Mapping[int, str]) -> list[Owned]:
    """The kernels of the window with what is around them."""
    sizes = [step_sizes(event.name) for event in owners.steps]
    return [
        Owned(
            w.seconds, kinds.get(id(w)), w.operators, [owners.modules[i].name[:LONGEST_NAME] for i in w.modules],
            {} if w.step is None else sizes[w.step],
        )
        for w in kernels
        if w.is_inside
    ]  # fmt: skip


def _closure(kernels: Sequence[_Work], families: Sequence[str | None]) -> Closure:
    def total(which: Callable[[_Work, str | None], bool]) -> float:
        return sum(w.seconds for w, family in zip(kernels, families, strict=True) if which(w, family))

    return Closure(
        kernels=len(kernels),
        kernel_s=total(lambda w, f: True),
        outside=sum(not w.is_inside for w in kernels),
        outside_s=total(lambda w, f: not w.is_inside),
        classified_s=total(lambda w, f: f is not None and f != "by operator"),
        by_operator_s=total(lambda w, f: f == "by operator"),
        module_s=total(lambda w, f: w.is_inside and bool(w.modules)),
        operator_s=total(lambda w, f: w.is_inside and not w.modules and not w.is_graph and w.operator is not None),
        graph_s=total(lambda w, f: w.is_inside and not w.modules and w.is_graph),
        unexplained_s=total(
            lambda w, f: w.is_inside and (f is None or not (w.modules or w.is_graph or w.operator is not None))
        ),
    )


def _step_rows(owners: _Owners, kernels: Sequence[_Work], kinds: Mapping[int, str]) -> tuple[str, list[StepRow], float]:
    """Who named the steps, the steps that have kernels, and the time of kernels between them."""
    per_step: dict[int, list[_Work]] = defaultdict(list)
    between = 0.0
    for w in kernels:
        if w.step is None:
            between += w.seconds
        else:
            per_step[w.step].append(w)
    if not per_step:
        parts = period([w.event.name for w in kernels])
        rows = [_step_row(f"step {i}", "period", {}, None, kernels[a:b], kinds) for i, (a, b) in enumerate(parts)]
        within = sum(row.kernel_s for row in rows)
        return ("period" if parts else ""), rows, sum(w.seconds for w in kernels) - within
    rows = []
    for i, of in sorted(per_step.items()):
        event = owners.steps[i]
        sizes = step_sizes(event.name)
        rows.append(_step_row(event.name, owners.source, sizes, event.end_s - event.start_s, of, kinds))
    return owners.source, rows, between


def _step_row(
    name: str, source: str, sizes: dict[str, float], host_s: float | None, of: Sequence[_Work], kinds: Mapping[int, str]
) -> StepRow:
    events = [w.event for w in of]
    first = min(event.start_s for event in events)
    by_kind: dict[str, list[float]] = defaultdict(list)
    for w in of:
        if (kind := kinds.get(id(w))) is not None:
            by_kind[kind].append(w.seconds)
    return StepRow(
        name=_short(name), source=source, sizes=sizes, host_s=host_s, kernels=len(events),
        kernel_s=sum(w.seconds for w in of), start_s=first, span_s=max(event.end_s for event in events) - first,
        busy_s=_covered(events), kinds={kind: sum(seconds) for kind, seconds in by_kind.items()},
        calls={kind: len(seconds) for kind, seconds in by_kind.items()},
    )  # fmt: skip


def period(names: Sequence[str]) -> list[tuple[int, int]]:
    """Where the whole steps of a sequence of kernels begin and end, by its period; empty where it has none.

    The period is the least lag at which `LEAST_MATCH` of the kernels are those of one lag before. A step is cut before
    a kernel that occurs once in it, so that it may begin in the middle of the engine's.
    """
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(name, len(numbers)) for name in names[:MOST_PERIOD_KERNELS]], dtype=np.int32)
    best = 0
    for lag in range(1, len(codes) // 2 + 1):
        if float(np.mean(codes[lag:] == codes[:-lag])) >= LEAST_MATCH:
            best = lag
            break
    if not best:
        return []
    counts = Counter(names[:best])
    once = [i for i in range(best) if counts[names[i]] == 1]
    if not once:
        return [(i, i + best) for i in range(0, len(names) - best + 1, best)]
    starts = [i for i, name in enumerate(names) if name == names[once[0]]]
    return [(a, b) for a, b in zip(starts, [*starts[1:], len(names)], strict=True) if b - a >= best * LEAST_MATCH]


def _module_rows(modules: Sequence[HostEvent], kernels: Sequence[_Work]) -> tuple[ModuleRow, ...]:
    """Kernels and time of each path of modules, in the order in which the paths first ran."""
    rows: dict[tuple[str, ...], list[float]] = {}
    for w in kernels:
        path = tuple(modules[i].name[:LONGEST_NAME] for i in w.modules)
        for depth in range(1, len(path) + 1):
            row = rows.setdefault(path[:depth], [0, 0.0, 0.0])
            row[2] += w.seconds
            if depth == len(path):
                row[0] += 1
                row[1] += w.seconds
    return tuple(
        ModuleRow(path=_short("/".join(path)), kernels=int(count), own_s=own, total_s=total)
        for path, (count, own, total) in rows.items()
    )


def _covered(events: Sequence[DeviceEvent]) -> float:
    """Time in which any of them ran."""
    spans: NDArray[np.float64] = np.array(sorted((e.start_s, e.end_s) for e in events if e.end_s >= e.start_s))
    if not len(spans):
        return 0.0
    reached = np.maximum.accumulate(spans[:, 1])
    before = np.concatenate([[spans[0, 0]], reached[:-1]])
    return float(np.maximum(0.0, spans[:, 1] - np.maximum(spans[:, 0], before)).sum())


def _short(name: str) -> str:
    """A name without characters that a terminal would obey, and of a bounded length."""
    clean = "".join(c if c.isprintable() else "�" for c in name[: LONGEST_NAME + 1])
    return clean if len(clean) <= LONGEST_NAME else clean[: LONGEST_NAME - 1] + "…"
