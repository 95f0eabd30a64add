"""A calibration's kernels as the table of a run: probes one after another, each with as many kernels as memory holds.

A row is a kernel in one state of the caches: the mean over its sets of operands. On a GPU decode attention is taken
with its cache in main memory, and prefill attention with what projections have just written: so they are in models, and
their laws know no caches there. What streams is taken in turns alone. All operations of eager models
(`profiler.microbench.eager`) are rows too, and so are the gaps between them.

Example: ``probe_kernels(shapes, device, facts.cache_bytes, limit_bytes=1 << 30, versions={}).table``
"""

import hashlib
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from profiler.devices.backend import backend_of
from profiler.microbench.arena import Arena
from profiler.microbench.bench import reason
from profiler.microbench.eager import Eager, measure_eager, steps_of
from profiler.microbench.host import Step
from profiler.microbench.probe import Probe, Probed, measure_probe
from profiler.microbench.probe_kernels import ROUNDS, operand_bytes, sets_of
from profiler.record.kernel_shape import KernelShape
from profiler.record.kernels import COLUMNS, DIMS, Kernels, Source
from profiler.record.measurement import middle_mean
from profiler.timing.flush import PAST
from profiler.timing.reference import ReferenceProbes
from roofline.host_gaps import gap_dims
from roofline.laws.host_gap import HostGap
from roofline.laws.registry import OPERATOR
from roofline.op import OpGraph
from roofline.predict import Prepared
from roofline.subjects import Subject, subjects

COLD = {"decode_attention": True, "prefill_attention": False}
"""Kinds of which a GPU's law knows one state, that in models: whether that of operands that take turns."""
STATES = ("cold", "reach", "streamed")
"""Sizes that are no kernel's own, but of when it ran."""
TOGETHER = 120
"""Kernels of one session at most: its events are kept in memory, and between sessions the machine's level is read."""
FEWEST_VISITS = 2
"""However long they take: a single one could be another process's fault."""
FORMAT = "probe"
"""Of the source: these kernels were measured here."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Probing:
    """What a calibration measured."""

    table: Kernels | None
    """None where nothing could be measured."""
    failed: dict[str, str]
    """For each probe or model that could not be had, why."""
    reference: dict[str, list[float]]
    """Seconds of each reference probe, in the order of time."""


def probe_kernels(
    shapes: Sequence[KernelShape],
    device: torch.device,
    cache_bytes: float,
    *,
    limit_bytes: float,
    eager: Mapping[str, float] = MappingProxyType({}),
    visits: int = 2,
    versions: dict[str, str],
    progress: Progress = lambda part, what: None,
    reference: ReferenceProbes | None = None,
    seconds: float = math.inf,
    now: Callable[[], float] = time.monotonic,
) -> Probing:
    """Measure all shapes, and all of them again in each of the `visits`, of which those after the second are left out
    where `seconds` are spent.

    Args: `limit_bytes`, of the operands of one probe; `cache_bytes`, of the last-level cache; `eager`, dtypes in which
    whole passes are measured too, and the device's peak of products in each, FLOP/s; `reference`, probes that are timed
    before each of these measurements.
    """
    rotated = round(min(PAST * cache_bytes, limit_bytes))  # with little memory, as far past the cache as it allows
    widest = max((getattr(torch, shape.dtype).itemsize for shape in shapes), default=1)
    arenas = {
        name: Arena(device, kind, round(limit_bytes * kind.itemsize / widest))
        for name in sorted({shape.dtype for shape in shapes})
        for kind in [getattr(torch, name)]
    }
    most = (
        math.inf if backend_of(device).is_host else limit_bytes
    )  # operands out of an arena need no memory of their own
    batches = {f"kernels.{i}": batch for i, batch in enumerate(_batches(shapes, most, rotated))}
    models: dict[str, tuple[Eager, ...]] = {}
    steps: dict[str, list[Step]] = {}
    probes: dict[str, Probe] = {}
    probed: dict[str, Probed] = {}
    failed: dict[str, str] = {}
    levels: dict[str, list[float]] = {}
    began = now()
    for step, (visit, what) in enumerate(product(range(visits), [*(f"eager.{dtype}" for dtype in eager), *batches])):
        if what in failed or (visit >= FEWEST_VISITS and now() - began > seconds):
            continue
        whole = visits * (len(eager) + len(batches))
        progress(step / whole, f"kernels {step + 1}/{whole}")
        for name, probe_s in (reference.time() if reference is not None else {}).items():
            levels.setdefault(name, []).append(probe_s)
        try:
            if what in batches:
                probe = probes.get(what) or Probe(batches[what], device, rotated, arenas[batches[what][0].dtype])
                if backend_of(device).is_host:  # operands out of an arena are kept, as no others are needed in between
                    probes[what] = probe
                failed |= {f"kernel.{shape.op}.{shape.dtype}": why for shape, why in probe.failed}
                if batches[what] and not probe.shapes:
                    raise RuntimeError(f"none of them can run, the last: {probe.failed[-1][1]}")
                batches[what] = list(probe.shapes)
                probed[what] = measure_probe(probe, device, probed.get(what))
            else:
                dtype = what.removeprefix("eager.")
                if dtype not in steps:
                    steps[dtype] = steps_of(device, dtype, cache_bytes)
                models[what] = measure_eager(device, dtype, steps[dtype], eager[dtype], models.get(what, ()))
        except (RuntimeError, MemoryError, ValueError, ArithmeticError) as error:
            of = [f"{len(batches[what])} kernels", f"the first {batches[what][0].op}"] if what in batches else []
            failed[what] = ", ".join([*of, reason(error)])
        backend_of(device).release_memory()
    progress(1.0, "kernels")
    rows = [row for passes in models.values() for one in passes for row in eager_rows(one, cache_bytes)]
    rows += [row for what, one in probed.items() for row in _rows(one, batches[what], cache_bytes)]
    if not rows:
        return Probing(None, failed, levels)
    asked = json.dumps([asdict(shape) for shape in shapes], sort_keys=True, default=dict)
    source = Source(
        file=FORMAT,
        sha256=hashlib.sha256(asked.encode()).hexdigest(),
        format=FORMAT,
        unit="s",
        device=None,
        versions=versions,
        rows=len(rows),
        timed=len(rows),
        kept=len(rows),
    )
    for i, row in enumerate(rows):
        row["row"] = i
    return Probing(Kernels(pa.Table.from_pylist(rows, schema=COLUMNS), (source,)), failed, levels)


def _rows(probed: Probed, shapes: Sequence[KernelShape], cache_bytes: float) -> list[dict[str, object]]:
    calls: dict[tuple[int, str], list[tuple[Subject, NDArray[np.float64]]]] = {}
    found = subjects(Prepared(probed.graph), cache_bytes)
    for op, subject, kernel, times_s in zip(
        probed.graph.ops, found, probed.kernel, np.array(probed.passes).T, strict=True
    ):
        if kernel is not None and subject is not None and middle_mean(times_s) > 0:
            calls.setdefault((kernel, op.name), []).append((subject, times_s))
    rows: list[dict[str, object]] = []
    for (kernel, name), taken in calls.items():
        held = probed.held[kernel]
        turns, warm = taken[: len(taken) - held * ROUNDS], taken[len(taken) - held :]
        if len(turns) > 1:
            turns = turns[1:]  # whose code and activations come from main memory as well
        states = [
            alike for alike in (turns, warm) if alike and _is_wanted(shapes[kernel].kind, probed.graph, alike is turns)
        ]
        for alike in states:
            seconds = float(middle_mean(np.mean([times_s for _, times_s in alike], axis=0)))
            rows.append(_row(alike[-1][0], name, shapes[kernel].group, seconds))
    return rows


def _is_wanted(kind: str, graph: OpGraph, is_turn: bool) -> bool:
    if kind.startswith(OPERATOR):
        return is_turn
    return graph.traced_on == "cpu" or COLD.get(kind, is_turn) == is_turn


def eager_rows(eager: Eager, cache_bytes: float) -> list[dict[str, object]]:
    """Operations of a pass and, where the host does not run ahead of the device, the gaps before them.

    Operations of the same sizes that ran about as long ago are one row, and so are gaps in which as many modules are
    left and entered: what is wanted of gaps is their sum, and their mean is far above most of them.
    """
    graph = eager.graph
    rows: list[tuple[Subject, str, str, Hashable, float]] = [
        (subject, op.name, f"eager {_name(subject)}", round(math.log2(1 + subject.dims["reach"])), time_s)
        for op, subject, time_s in zip(graph.ops, subjects(Prepared(graph), cache_bytes), eager.time_s, strict=True)
        if subject is not None and time_s > 0
    ]
    if graph.traced_on == "cpu":
        sizes, pass_of = gap_dims(graph.ops), f"eager {len(graph.ops)} q{graph.workload.query_tokens}"
        for i, gap_s in enumerate(eager.gap_s):
            dims = {name: float(column[i]) for name, column in sizes.items()}
            gap = Subject((HostGap.kind,), graph.workload.dtype, dims)
            if i and gap_s > 0:
                rows.append((gap, HostGap.kind, pass_of, dims["modules"], gap_s))
    alike: dict[tuple[object, ...], list[tuple[Subject, float]]] = {}
    about: dict[tuple[object, ...], tuple[str, str]] = {}
    for subject, op, group, mark, time_s in rows:
        own = sorted((name, size) for name, size in subject.dims.items() if name not in STATES)
        key = (subject.kinds, subject.dtype, op, *own, mark)
        alike.setdefault(key, []).append((subject, time_s))
        about[key] = op, group
    return [_mean(found, *about[key]) for key, found in alike.items()]


def _name(subject: Subject) -> str:
    """Of what is held out together when a fit is judged."""
    dims = subject.dims
    names = ("elements",) if subject.kinds[0].startswith(OPERATOR) else ("n", "k", "heads", "kv_heads", "head_dim")
    return " ".join(f"{name} {dims[name]:.0f}" for name in names if name in dims)


def _mean(found: Sequence[tuple[Subject, float]], op: str, group: str) -> dict[str, object]:
    first = found[0][0]
    states = {name: statistics.fmean(one.dims[name] for one, _ in found) for name in STATES if name in first.dims}
    return _row(
        replace(first, dims={**first.dims, **states}), op, group, statistics.fmean(time_s for _, time_s in found)
    )


def _row(subject: Subject, op: str, group: str, time_s: float) -> dict[str, object]:
    row: dict[str, object] = {size: float(value) for size, value in subject.dims.items() if size in DIMS}
    row |= {"kind": subject.kinds[0], "dtype": subject.dtype, "op": op, "group": group, "time_s": time_s}
    return row | {"framework": "torch", "version": torch.__version__, "source": 0}


def _batches(shapes: Sequence[KernelShape], limit_bytes: float, rotated_bytes: int) -> Iterator[list[KernelShape]]:
    """In an order of no meaning, so that what changes with time is nobody's; each of one dtype, as large as memory
    allows."""
    left = sorted(shapes, key=lambda shape: (shape.dtype, shape.op, sorted(shape.dims.items())))
    random.Random(0).shuffle(left)
    left.sort(key=lambda shape: shape.dtype)
    batch: list[KernelShape] = []
    held = 0.0
    for shape in left:
        needed = float(operand_bytes(shape) * sets_of(shape, rotated_bytes))
        if batch and (held + needed > limit_bytes or len(batch) >= TOGETHER or shape.dtype != batch[0].dtype):
            yield batch
            batch, held = [], 0.0
        batch.append(shape)
        held += needed
    if batch:
        yield batch
