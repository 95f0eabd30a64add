"""The passes of a run as timelines, for viewers of traces: Perfetto and chrome://tracing, and speedscope.

Each pass has lanes (`LANES`) of its operations in order, within the ranges of their modules, and all within the pass.
A time is the middle of the rounds, as in every report, not that of one execution; the idle before an operation stands
empty. Operations of a pass in which only some layers ran appear once; `count` says how often the whole model has them.

- Chrome traces (the "Trace Event Format" document; Perfetto: src/trace_processor/importers/json) hold complete events
  ("X") whose `ts` and `dur` are microseconds. Perfetto nests events of a thread by their times in whole nanoseconds,
  to which some of its versions round and others cut off, so that times here are whole nanoseconds under both.
- speedscope (src/lib/file-format-spec.ts) holds evented profiles: frames that open and close, balanced, in order of
  time. A stack's own time within a module is idle.

Example: ``chrome_trace(traced_of(folder, version="0.1.0", now=now)).files[0].content``
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from calibrate.exchange.figures import Export, File, plain
from calibrate.passes.efficiency import UNATTRIBUTED
from calibrate.passes.replicates import median_by_round
from calibrate.passes.reports import MeasuredPass, load_passes
from calibrate.passes.table import Array, OpTimesTable
from profiler.record.folder import RunFolder, slug
from profiler.record.run import LONGEST_S, CellResult
from roofline.graph.op import Op

SPEEDSCOPE = "https://www.speedscope.app/file-format-schema.json"
MOST_DEPTH = 32
"""Nested ranges of modules; what lies deeper in a path is one more range. Those of transformers nest about ten deep."""
LONGEST_NAME = 1000
"""Characters of a name; paths of modules have about a hundred."""

MEASURED, PREDICTED = "measured", "predicted"
LANES = (MEASURED, PREDICTED)
"""Timelines of a pass from top to bottom; the predicted one has the device's time alone, without idle."""


@dataclass(frozen=True, slots=True)
class Traced:
    """Everything that an exporter of traces reads."""

    folder: RunFolder
    passes: tuple[MeasuredPass, ...]
    left_out: dict[str, str]
    """Maps the key of a cell that cannot be shown, or its predicted lane, to the reason."""
    version: str
    """Version of roofcal."""
    now: datetime
    """Time of the export."""


def traced_of(folder: RunFolder, *, version: str, now: datetime) -> Traced:
    """The passes of a run. Raises RequestError where it cannot be read, ValueError, one line, where it has none."""
    if folder.content != "passes":
        raise ValueError(
            f"{folder.path} has no passes of a model, which traces show; name a run of: python -m profiler run"
        )
    passes, failed = load_passes(folder)
    left_out = {result.cell.key: _why(result) for result in failed}
    for each in passes:
        if each.table.count.size and _predicted_s(each.table) is None:
            left_out[f"{each.result.cell.key} {PREDICTED}"] = "the run has no measured peaks of the device, nor laws"
    if not passes:
        why = next(iter(left_out.values()), "no cell was measured")
        raise ValueError(
            f"{folder.path} has no measured pass ({why}); go on: python -m profiler run --resume {folder.path}"
        )
    return Traced(folder, tuple(passes), left_out, version, now)


@dataclass(frozen=True, slots=True)
class Range:
    """Something that began and ended: a pass, a module, or an operation."""

    name: str
    category: str
    """ "pass", "module" or "operation"."""
    depth: int
    """Ranges that it lies in."""
    start_ns: int
    end_ns: int
    """Nanoseconds since the pass began."""
    args: dict[str, Any] = field(default_factory=dict)


def ranges(name: str, ops: Sequence[Op], gap_s: Array, time_s: Array, args: Sequence[dict[str, Any]],
           rest_s: Sequence[tuple[str, float]] = ()) -> list[Range]:  # fmt: skip
    """A pass as nested ranges in the order in which they open: those of one depth never overlap.

    Args: seconds of idle before, and of, one execution of each operation, shape (operations,); what a viewer shows
    beside each; what follows the last operation, a range or, without a name, idle.
    Raises ValueError, one line, for times that no pass has.
    """
    rest = [seconds for _, seconds in rest_s]
    steps_s = np.concatenate([np.stack([gap_s, time_s], axis=1).ravel(), rest])
    if not (steps_s >= 0).all() or not steps_s.sum() < LONGEST_S:
        raise ValueError("times are negative or longer than a day, which no pass is; restore the run from a copy")
    edges = np.rint(np.concatenate([[0.0], np.cumsum(steps_s)]) * 1e9).astype(np.int64).tolist()
    starts, ends = edges[1 : 2 * len(ops) : 2], edges[2 : 2 * len(ops) + 1 : 2]
    out = [Range(name, "pass", 0, 0, edges[-1])]
    paths = [_modules(op.path) for op in ops]
    last = _last_within(paths)
    opened: tuple[str, ...] = ()
    for i, (op, path) in enumerate(zip(ops, paths, strict=True)):
        for depth in range(_shared(opened, path), len(path)):
            out.append(Range(path[depth], "module", depth + 1, starts[i], ends[last[i][depth]]))
        out.append(Range(op.name, "operation", len(path) + 1, starts[i], ends[i], args[i]))
        opened = path
    for k, (what, _) in enumerate(rest_s):
        if what and edges[2 * len(ops) + k + 1] > edges[2 * len(ops) + k]:
            out.append(Range(what, "operation", 1, edges[2 * len(ops) + k], edges[2 * len(ops) + k + 1]))
    return out


def _modules(path: str) -> tuple[str, ...]:
    """The paths of the modules around an operation, the outermost first: "model", "model.norm"."""
    if not path:
        return ()
    parts = path.split(".", MOST_DEPTH)
    return tuple(".".join(parts[: depth + 1]) for depth in range(len(parts)))


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Number of modules, from the outermost, that two operations have in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _last_within(paths: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """Return, for each operation and module around it, the last operation before that module is left."""
    out: list[list[int]] = [[] for _ in paths]
    for i in reversed(range(len(paths))):
        after = i + 1 if i + 1 < len(paths) else i
        kept = _shared(paths[i], paths[after])
        out[i] = [*out[after][:kept], *[i] * (len(paths[i]) - len(out[after][:kept]))]
    return out


def lanes(one: MeasuredPass) -> dict[str, list[Range]]:
    """The timelines of a pass by the names of `LANES`; without one that is not known. Raises as `ranges`."""
    table, ops, result = one.table, one.graph.ops, one.result
    predicted_s = _predicted_s(table)
    args = _args(ops, table, predicted_s)
    lost_s, tail_s = (median_by_round(samples, result.rounds) for samples in (result.unattributed_s, result.tail_gap_s))
    rest = [(UNATTRIBUTED, lost_s), ("", tail_s)]
    found = {MEASURED: ranges(_title(one), ops, table.gap_s, table.measured_s, args, rest)}
    if predicted_s is not None:
        found[PREDICTED] = ranges(_title(one), ops, np.zeros(len(ops)), predicted_s, args)
    return found


def chrome_trace(traced: Traced) -> Export:
    """Return one file for Perfetto: a process for each pass, a thread for each lane. Raises ValueError as `_shown`."""
    shown, left_out = _shown(traced)
    events: list[dict[str, Any]] = []
    for pid, (one, found) in enumerate(shown, 1):
        events.append(_about(pid, 0, "process_name", name=_name(f"{_title(one)}, {one.result.cell.mode}")))
        events.append(_about(pid, 0, "process_sort_index", sort_index=pid))
        for tid, lane in enumerate(LANES, 1):
            if lane not in found:
                continue
            events.append(_about(pid, tid, "thread_name", name=lane))
            events.append(_about(pid, tid, "thread_sort_index", sort_index=tid))
            events += [_complete(pid, tid, each) for each in found[lane]]
    run = traced.folder.run
    about = {
        "by": f"roofcal {traced.version}",
        "exported": traced.now.isoformat(timespec="seconds"),
        "device": _name(run.environment.device),
        "started": _name(run.started),
        "times": "middle of the rounds",
        "versions": {_name(name): _name(version) for name, version in run.environment.versions.items()},
        "left_out": {_name(key): _name(why) for key, why in left_out.items()},
    }
    return _export(traced, "trace", {"traceEvents": events, "displayTimeUnit": "ns", "otherData": about}, left_out)


def speedscope(traced: Traced) -> Export:
    """Return one file for speedscope: a profile for each lane of each pass. Raises ValueError as `_shown`."""
    shown, left_out = _shown(traced)
    frames: dict[str, int] = {}
    profiles = []
    for one, found in shown:
        for lane, every in found.items():
            events = [
                {"type": kind, "frame": frames.setdefault(_name(each.name), len(frames)), "at": at}
                for kind, each, at in _opened_and_closed(every)
            ]
            profiles.append(
                {
                    "type": "evented",
                    "name": _name(f"{_title(one)}, {one.result.cell.mode}: {lane}"),
                    "unit": "nanoseconds",
                    "startValue": 0,
                    "endValue": every[0].end_ns,
                    "events": events,
                }
            )
    content = {
        "$schema": SPEEDSCOPE,
        "exporter": f"roofcal {traced.version}",
        "name": _name(f"{traced.folder.run.name} on {traced.folder.run.environment.device}"),
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": name} for name in frames]},
        "profiles": profiles,
    }
    return _export(traced, "speedscope", content, left_out)


def _shown(traced: Traced) -> tuple[list[tuple[MeasuredPass, dict[str, list[Range]]]], dict[str, str]]:
    """The lanes of each pass, and what cannot be shown. Raises ValueError, one line, where that is every pass."""
    shown, left_out = [], dict(traced.left_out)
    for one in traced.passes:
        try:
            shown.append((one, lanes(one)))
        except ValueError as error:
            left_out[one.result.cell.key] = str(error)
    if not shown:
        raise ValueError(f"{traced.folder.path} has no pass to show: {next(iter(left_out.values()))}")
    return shown, left_out


def _export(traced: Traced, suffix: str, content: dict[str, Any], left_out: dict[str, str]) -> Export:
    text = json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n"  # a model has 10,000 events a pass
    return Export((File.text(f"{slug(traced.folder.path.name)}.{suffix}.json", text),), left_out)


def _about(pid: int, tid: int, what: str, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": tid, "ts": 0, "name": what, "args": args}


def _complete(pid: int, tid: int, each: Range) -> dict[str, Any]:
    event = {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "ts": microseconds(each.start_ns),
        "dur": microseconds(each.end_ns - each.start_ns),
    }
    return {**event, "name": _name(each.name), "cat": each.category} | ({"args": each.args} if each.args else {})


def microseconds(ns: int) -> float:
    """Microseconds that are `ns` again where a viewer multiplies them by 1000, and rounds or cuts off."""
    us = ns / 1000
    return us if us * 1000 >= ns else math.nextafter(us, math.inf)


def _opened_and_closed(every: Sequence[Range]) -> Iterator[tuple[str, Range, int]]:
    """ "O" and "C" of each range at their times, balanced."""
    stack: list[Range] = []
    for each in every:
        while len(stack) > each.depth:
            yield "C", stack[-1], stack.pop().end_ns
        stack.append(each)
        yield "O", each, each.start_ns
    while stack:
        yield "C", stack[-1], stack.pop().end_ns


def _args(ops: Sequence[Op], table: OpTimesTable, predicted_s: Array | None) -> list[dict[str, Any]]:
    """Return what a viewer shows beside each operation, in SI units as the names say."""
    every = []
    for i, op in enumerate(ops):
        about: dict[str, Any] = {
            "module": _name(op.path) if op.path else "",
            "kind": op.kind.value,
            "dtype": _name(op.dtype),
            "dims": " ".join(f"{_name(name)}={size}" for name, size in op.dims.items()),
            "count": op.count,
            "flops": op.matrix_flops + op.vector_flops,
            "bytes": sum(access.bytes for access in (*op.reads, *op.writes)),
            "bound": _name(table.bound[i]) if table.bound[i] else "",
            "kernels": "; ".join(map(_name, table.kernels[i])),
            "measured_us": float(table.measured_s[i]) * 1e6,
            "predicted_us": None if predicted_s is None else float(predicted_s[i]) * 1e6,
        }
        every.append({name: value for name, value in about.items() if value not in (None, "")})
    return every


def _predicted_s(table: OpTimesTable) -> Array | None:
    """Seconds of each operation by the best prediction that has all: laws at the machine's speed, laws, rooflines."""
    rungs = (table.rungs[name] for name in ("calibrated_at_level", "calibrated", "executed"))
    return next((times for times in rungs if not np.isnan(times).any()), None)


def _title(one: MeasuredPass) -> str:
    layers = one.graph.layers
    only = f", {layers[0]} of {layers[1]} layers" if layers else ""
    cell = one.result.cell
    more = [cell.change, f"beside {cell.beside.key}" if cell.beside else ""]
    return ", ".join(filter(None, (f"{cell.model} {cell.workload.key}", *more))) + only


def _why(result: CellResult) -> str:
    return result.reason or "it has no samples"


def _name(text: str) -> str:
    """A name without control characters, which a file may hold and no viewer may obey, and not without end."""
    return plain(text[: 2 * LONGEST_NAME])[:LONGEST_NAME]
