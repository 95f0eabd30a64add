"""A calibration's kernels as the table of a run: kernels in groups, each group as large as memory holds.

A row is a kernel in one state of the caches: the mean over its sets of operands. On a GPU decode attention is taken
with its cache in main memory, and prefill attention with what projections have just written: so they are in models, and
their laws know no caches there. What streams is taken in turns alone. All operations of eager models
(`profiler.kernels.in_model`) are rows too, and so are the gaps between them.

Example: ``probe_kernels(shapes, device, facts.cache_bytes, limit_bytes=1 << 30, versions={}).table``
"""

import gc
import hashlib
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from profiler.devices.backend import backend_of
from profiler.devices.watch import GpuReading, Watch
from profiler.kernels.family import Arena, Storage, family_of
from profiler.kernels.in_model import InModel, InModelKernels
from profiler.kernels.journal import Line, Made, Times, VisitJournal, key_of, visit_of
from profiler.kernels.level import Centre
from profiler.kernels.measure import ROUNDS, ProbedKernels, operand_bytes, sets_of
from profiler.microbench.bench import reason
from profiler.passes.samples import Sample
from profiler.record.kernel_table import COLUMNS, DIMS, Kernels, Source
from profiler.record.measurement import middle_mean
from profiler.timing.cache_state import PAST
from profiler.timing.turns import ReferenceProbes, Turns, Visit, Watched, take_turns
from roofline.hardware.spec import Peaks
from roofline.host import gap_dims
from roofline.laws.kinds import HOST_GAP, OPERATOR, KernelShape, kind_of
from roofline.price import Prepared
from roofline.price_by_law import LawInput, law_inputs

STATES = ("cold", "reach", "streamed")
"""Sizes that are no kernel's own, but of when it ran."""
TOGETHER = 120
"""Kernels of one session at most: its events are kept in memory, and between sessions the machine's level is read."""
FORMAT = "probe"
"""Format of the source: these kernels were measured here."""
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Probing:
    """The result of a calibration's measurements."""

    table: Kernels | None
    """None where nothing could be measured."""
    failed: dict[str, str]
    """Reasons why groups of kernels or models could not be had."""
    reference: dict[str, list[float]]
    """Seconds of each reference probe beside each visit, in the order of time."""
    centre_s: Mapping[str, float]
    """Seconds of each probe at the level to which the times of all kernels were brought; empty where they were not."""
    warning: str | None = None
    """The causes that kept the device from its own speed meanwhile, and the remedy, in one line."""


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
    longest_s: float = math.inf,
    now: Callable[[], float] = time.monotonic,
    watch: Watch | None = None,
    read: Callable[[], GpuReading | None] | None = None,
    journal: VisitJournal | None = None,
    peaks: Peaks | None = None,
) -> Probing:
    """Measure all shapes in `visits`, of which those after the second are left out where `seconds` are spent.

    After `longest_s` no visit begins: what was measured by then is the table, and the rest is in `Probing.failed`.

    Args: `limit_bytes`, of the operands of one group; `cache_bytes`, of the last-level cache; `eager`, dtypes in which
    whole passes are measured too, and the device's peak of products in each, FLOP/s; `reference`, probes that are timed
    beside each visit; `watch` and `read`, of the device's conditions, its own where there is none; `journal`, which
    keeps each visit, and whose visits of an earlier process need not be made again; `peaks`, achieved ones, by which
    the times of each visit are brought to one level of the machine (`Centre`).
    """
    rotated = round(min(PAST * cache_bytes, limit_bytes))  # with little memory, as far past the cache as it allows
    failed: dict[str, str] = {}
    known: list[KernelShape] = []
    for shape in shapes:
        try:
            family_of(shape.op)
            known.append(shape)
        except ValueError as unknown:
            failed[f"kernel.{shape.op}.{shape.dtype}"] = reason(unknown)
    backend = backend_of(device)
    arenas = _arenas(known, device, round(limit_bytes))
    most = math.inf if backend.is_host else limit_bytes  # operands out of an arena need no memory of their own
    models = {
        f"eager.{dtype}": InModelKernels(device, dtype, cache_bytes, flops_per_s)
        for dtype, flops_per_s in eager.items()
    }
    state: dict[str, object] = {"device": str(device), "cache_bytes": cache_bytes, "rotated_bytes": rotated}
    keys = {f"eager.{dtype}": key_of((), **state, dtype=dtype, flops_per_s=peak) for dtype, peak in eager.items()}
    lines = {name: journal.of(key) if journal is not None else [] for name, key in keys.items()}
    groups: dict[str, ProbedKernels] = {}
    for i, batch in enumerate(_batches(known, most, rotated)):
        name, key = f"kernels.{i}", key_of(batch, **state)
        keys[name], lines[name] = key, journal.of(key) if journal is not None else []
        made = next((line.made for line in lines[name]), None)
        groups[name] = ProbedKernels(batch, device, rotated, arenas[batch[0].dtype], made)
    levels: dict[str, list[float]] = {}

    def note_level(reference: Mapping[str, float]) -> None:
        for probe, probe_s in reference.items():
            levels.setdefault(probe, []).append(probe_s)

    for line in (line for taken in lines.values() for line in taken):
        note_level(line.reference)
    earlier = {
        name: [visit_of(line, _decoded(line.result, name in models)) for line in of] for name, of in lines.items()
    }
    done = sum(min(visits, len(taken)) for taken in earlier.values())
    whole = max(1, visits * (len(models) + len(groups)) - done)

    def take(name: str, watched: Watched) -> Any:
        try:
            return models[name].visit(watched) if name in models else groups[name].visit(watched)
        finally:
            if name in models:
                gc.collect()  # a model's modules refer to each other
            backend.release_memory()

    def keep(name: str, visit: Visit[Any]) -> None:
        note_level(visit.reference)
        if journal is not None:
            made = (groups[name].made if name in groups else None) or Made()
            result, status = _encoded(visit.result, name in models), visit.verdict.status
            about = {"key": keys[name], "made": made, "reference": dict(visit.reference)}
            journal.keep(Line(result=result, windows=visit.windows, status=status, **about))

    with closing(watch or backend.watch(device)) as open_watch:
        turns: Turns[Any] = take_turns(
            [*models, *groups],
            take,
            visits=visits,
            seconds=seconds,
            longest_s=longest_s,
            on_cpu=backend.is_host,
            watch=open_watch,
            read=read or partial(backend.reading, device),
            now=now,
            progress=lambda taken: progress(min(1.0, taken / whole), f"visit {taken + 1} of {max(whole, taken + 1)}"),
            earlier=earlier,
            keep=keep,
            probe=reference.time if reference is not None else dict,
        )
    centre = Centre.of(levels, peaks, backend.type)
    progress(1.0, "kernels")
    failed |= {name: why for group in groups.values() for name, why in group.failed.items()}
    for name, error in turns.failed.items():
        shapes_of = groups[name].shapes if name in groups else ()
        about = [f"{len(shapes_of)} kernels", f"the first {shapes_of[0].op}"] if shapes_of else []
        failed[name] = ", ".join([*about, reason(error)])
    rows: list[dict[str, object]] = []
    for name, taken in turns.visits.items():
        counted = turns.counted(name)
        if not counted:
            if taken:
                failed[name] = f"refused, in every visit: {taken[-1].verdict.reason}"
            continue
        try:
            (models[name] if name in models else groups[name]).prepare()  # all its visits may be an earlier process's
        except (RuntimeError, MemoryError, ValueError, ArithmeticError) as error:
            failed[name] = f"its earlier visits are of no use: {reason(error)}"
            continue
        if name in models:
            at_centre = [centre.samples(models[name].graphs, visit) for visit in counted]
            rows += [row for each in models[name].passes(at_centre) for row in in_model_rows(each, cache_bytes)]
        else:
            graph = groups[name].graph
            assert graph is not None  # `prepare` has traced it
            passes = [times_s for visit in counted for times_s in centre.passes(graph, visit)]
            rows += _rows(groups[name], passes, cache_bytes, on_cpu=turns.on_cpu)
    warning = turns.warning()
    if not rows:
        return Probing(None, failed, levels, centre.seconds, warning)
    for i, row in enumerate(rows):
        row["row"] = i
    requested = json.dumps([asdict(shape) for shape in shapes], sort_keys=True, default=dict)
    source = Source(
        file=FORMAT,
        sha256=hashlib.sha256(requested.encode()).hexdigest(),
        format=FORMAT,
        unit="s",
        device=None,
        versions=versions,
        rows=len(rows),
        timed=len(rows),
        kept=len(rows),
        labels=turns.labels(),
    )
    kernels = Kernels(pa.Table.from_pylist(rows, schema=COLUMNS), (source,))
    return Probing(kernels, failed, levels, centre.seconds, warning)


def _encoded(result: Any, is_model: bool) -> Times:
    """Return what a visit returned, as the journal has it: of models the times of operations and gaps by turns."""
    if is_model:
        return tuple(
            tuple(tuple(times) for sample in samples for times in (sample.device_s, sample.gap_s)) for samples in result
        )
    return (tuple(map(tuple, result)),)


def _decoded(times: Times, is_model: bool) -> Any:
    if is_model:
        return [
            [
                Sample(list(device_s), list(gap_s), 0.0, 0.0, (), (), 0.0)
                for device_s, gap_s in zip(*[iter(of)] * 2, strict=True)
            ]
            for of in times
        ]
    return [list(passes) for of in times for passes in of]


def _arenas(shapes: Sequence[KernelShape], device: torch.device, size_bytes: int) -> dict[str, Arena]:
    """Return an arena for each dtype; on a CPU all but float16 share one storage."""
    storages: dict[bool, Storage] = {}
    arenas: dict[str, Arena] = {}
    for name in sorted({shape.dtype for shape in shapes}):
        dtype = getattr(torch, name)
        own = dtype not in (torch.float32, torch.bfloat16)
        if backend_of(device).is_host and own not in storages:
            storages[own] = Storage(size_bytes, dtype)
        arenas[name] = Arena(device, dtype, storages.get(own))
    return arenas


def _rows(
    group: ProbedKernels, passes: Sequence[Sequence[float]], cache_bytes: float, *, on_cpu: bool
) -> list[dict[str, object]]:
    """Return rows of a group of kernels, from seconds of each operation in each pass."""
    assert group.graph is not None  # a visit has traced it
    calls: dict[tuple[int, str], list[tuple[LawInput, NDArray[np.float64]]]] = {}
    for op, subject, kernel, times_s in zip(
        group.graph.ops,
        law_inputs(Prepared(group.graph), cache_bytes),
        group.owners,
        np.array(passes).T,
        strict=True,
    ):
        if kernel is not None and subject is not None and middle_mean(times_s) > 0:
            calls.setdefault((kernel, op.name), []).append((subject, times_s))
    rows: list[dict[str, object]] = []
    for (kernel, name), taken in calls.items():
        shape, held = group.shapes[kernel], group.held[kernel]
        turns, warm = taken[: len(taken) - held * ROUNDS], taken[len(taken) - held :]
        if len(turns) > 1:
            turns = turns[1:]  # whose code and activations come from main memory as well
        for alike in (turns, warm):
            if alike and _is_wanted(shape.kind, alike is turns, on_cpu=on_cpu):
                seconds = float(middle_mean(np.mean([times_s for _, times_s in alike], axis=0)))
                rows.append(_row(alike[-1][0], name, shape.group, seconds))
    return rows


def _is_wanted(kind: str, is_turn: bool, *, on_cpu: bool) -> bool:
    if kind.startswith(OPERATOR):
        return is_turn
    state = kind_of(kind).state_on_gpu
    return on_cpu or state is None or state == ("cold" if is_turn else "warm")


def in_model_rows(eager: InModel, cache_bytes: float) -> list[dict[str, object]]:
    """Return operations of a pass and, where the host does not run ahead of the device, the gaps before them.

    Operations of the same sizes that ran about as long ago are one row, and so are gaps in which as many modules are
    left and entered: what is wanted of gaps is their sum, and their mean is far above most of them.
    """
    graph = eager.graph
    rows: list[tuple[LawInput, str, str, Hashable, float]] = [
        (subject, op.name, f"eager {_name(subject)}", round(math.log2(1 + subject.dims["reach"])), time_s)
        for op, subject, time_s in zip(graph.ops, law_inputs(Prepared(graph), cache_bytes), eager.time_s, strict=True)
        if subject is not None and time_s > 0
    ]
    if graph.traced_on == "cpu":
        sizes, pass_of = gap_dims(graph.ops), f"eager {len(graph.ops)} q{graph.workload.query_tokens}"
        for i, gap_s in enumerate(eager.gap_s):
            dims = {name: float(column[i]) for name, column in sizes.items()}
            gap = LawInput((HOST_GAP,), graph.workload.dtype, dims)
            if i and gap_s > 0:
                rows.append((gap, HOST_GAP, pass_of, dims["modules"], gap_s))
    alike: dict[tuple[object, ...], list[tuple[LawInput, str, str, Hashable, float]]] = {}
    for row in rows:
        subject, op, _, mark, _ = row
        own = sorted((name, size) for name, size in subject.dims.items() if name not in STATES)
        alike.setdefault((subject.kinds, subject.dtype, op, *own, mark), []).append(row)
    return [_mean([(row[0], row[4]) for row in same], *same[-1][1:3]) for same in alike.values()]


def _name(subject: LawInput) -> str:
    """Return the name of what is held out together when a fit is judged."""
    dims = subject.dims
    names = ("elements",) if subject.kinds[0].startswith(OPERATOR) else ("n", "k", "heads", "kv_heads", "head_dim")
    return " ".join(f"{name} {dims[name]:.0f}" for name in names if name in dims)


def _mean(alike: Sequence[tuple[LawInput, float]], op: str, group: str) -> dict[str, object]:
    first = alike[0][0]
    states = {
        name: statistics.fmean(subject.dims[name] for subject, _ in alike) for name in STATES if name in first.dims
    }
    return _row(
        replace(first, dims={**first.dims, **states}), op, group, statistics.fmean(time_s for _, time_s in alike)
    )


def _row(subject: LawInput, op: str, group: str, time_s: float) -> dict[str, object]:
    row: dict[str, object] = {size: float(value) for size, value in subject.dims.items() if size in DIMS}
    row |= {"kind": subject.kinds[0], "dtype": subject.dtype, "op": op, "group": group, "time_s": time_s}
    return row | {"framework": "torch", "version": torch.__version__, "source": 0}


def _batches(shapes: Sequence[KernelShape], limit_bytes: float, rotated_bytes: int) -> Iterator[list[KernelShape]]:
    """Return groups of one dtype each, as large as memory allows.

    Their order has no meaning, so that what changes with time is no kernel's in particular.
    """
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
