"""A calibration's kernels as the table of a run: probes one after another, each with as many kernels as memory holds.

A row is a kernel in one state of the caches: the median over its sets of operands. Decode attention is taken with its
cache in main memory, and prefill attention with what projections have just written: so they are in models, and their
laws know no caches. What streams is taken from a model (`profiler.microbench.eager`), and from probes in turns alone.

Example: ``table, failed = probe_kernels(shapes, device, facts.cache_bytes, limit_bytes=1 << 30, versions={})``
"""

import hashlib
import json
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import pyarrow as pa
import torch

from profiler.microbench.bench import reason
from profiler.microbench.eager import Eager
from profiler.microbench.probe import Probe, Probed, measure_probe
from profiler.microbench.probe_kernels import ROUNDS, VOCABULARY, most_sets, sets_of
from profiler.record.kernel_shape import KernelShape
from profiler.record.kernels import COLUMNS, DIMS, Kernels, Source
from profiler.timing.flush import PAST
from roofline.laws.registry import OPERATOR
from roofline.predict import Prepared
from roofline.subjects import Subject, subjects

COLD = {"decode_attention": True, "prefill_attention": False}
"""Kinds of which only one state is kept: whether that of operands that take turns."""
FORMAT = "probe"
"""Of the source: these kernels were measured here."""

Progress = Callable[[float, str], None]


def probe_kernels(
    shapes: Sequence[KernelShape],
    device: torch.device,
    cache_bytes: float,
    *,
    limit_bytes: float,
    eager: Sequence[Eager] = (),
    versions: dict[str, str],
    progress: Progress = lambda part, what: None,
) -> tuple[Kernels | None, list[str]]:
    """Measure all shapes. Args: `limit_bytes`, of the operands of one probe; `cache_bytes`, of the last-level cache;
    `eager`, models whose streaming operations are rows too.

    Returns the table, None where nothing could be measured, and a line for each probe that could not be had.
    """
    rows = [row for one in eager for row in eager_rows(one, cache_bytes)]
    failed: list[str] = []
    rotated = round(PAST * cache_bytes)
    batches = list(_batches(shapes, limit_bytes, rotated))
    for done, batch in enumerate(batches):
        progress(done / len(batches), f"kernels {done + 1}/{len(batches)}")
        try:
            rows += _rows(measure_probe(Probe(batch, device, rotated), device), batch, cache_bytes)
        except (RuntimeError, MemoryError, ValueError, ArithmeticError) as error:
            failed.append(f"{len(batch)} kernels, the first {batch[0].op} in {batch[0].dtype}: {reason(error)}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    progress(1.0, "kernels")
    if not rows:
        return None, failed
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
    return Kernels(pa.Table.from_pylist(rows, schema=COLUMNS), (source,)), failed


def _rows(probed: Probed, shapes: Sequence[KernelShape], cache_bytes: float) -> list[dict[str, object]]:
    calls: dict[tuple[int, str], list[tuple[Subject, float]]] = {}
    found = subjects(Prepared(probed.graph), cache_bytes)
    for op, subject, kernel, time_s in zip(probed.graph.ops, found, probed.kernel, probed.time_s, strict=True):
        if kernel is not None and subject is not None and time_s > 0:
            calls.setdefault((kernel, op.name), []).append((subject, time_s))
    rows: list[dict[str, object]] = []
    for (kernel, name), taken in calls.items():
        held = probed.held[kernel]
        turns, warm = taken[: -held * ROUNDS], taken[-held:]
        if len(turns) > 1:
            turns = turns[1:]  # whose code and activations come from main memory as well
        states = [alike for alike in (turns, warm) if _is_wanted(shapes[kernel].kind, alike is turns)]
        for alike in states:
            seconds = statistics.median(time_s for _, time_s in alike)
            rows.append(_row(alike[-1][0], name, shapes[kernel].group, seconds))
    return rows


def _is_wanted(kind: str, is_turn: bool) -> bool:
    return is_turn if kind.startswith(OPERATOR) else kind not in COLD or COLD[kind] == is_turn


def eager_rows(eager: Eager, cache_bytes: float) -> list[dict[str, object]]:
    """Streaming operations of a model, alike ones as one row."""
    taken: dict[tuple[object, ...], list[float]] = {}
    about: dict[tuple[object, ...], Subject] = {}
    for graph, times in eager.passes:
        found = subjects(Prepared(graph), cache_bytes)
        for op, subject, time_s in zip(graph.ops, found, times, strict=True):
            if subject is not None and subject.kinds[0].startswith(OPERATOR) and time_s > 0:
                key = (op.name, subject.dtype, *sorted(subject.dims.items()))
                taken.setdefault(key, []).append(time_s)
                about[key] = subject
    return [
        _row(about[key], str(key[0]), f"eager {about[key].dims['elements']:.0f}", statistics.median(times))
        for key, times in taken.items()
    ]


def _row(subject: Subject, op: str, group: str, time_s: float) -> dict[str, object]:
    row: dict[str, object] = {size: float(value) for size, value in subject.dims.items() if size in DIMS}
    row |= {"kind": subject.kinds[0], "dtype": subject.dtype, "op": op, "group": group, "time_s": time_s}
    return row | {"framework": "torch", "version": torch.__version__, "source": 0}


def _batches(shapes: Sequence[KernelShape], limit_bytes: float, rotated_bytes: int) -> Iterator[list[KernelShape]]:
    """In an order of no meaning, so that what changes with time is nobody's; each as large as memory allows."""
    left = sorted(shapes, key=lambda shape: (shape.dtype, shape.op, sorted(shape.dims.items())))
    random.Random(0).shuffle(left)
    batch: list[KernelShape] = []
    held = 0.0
    for shape in left:
        each = operand_bytes(shape)
        needed = each * sets_of(each, rotated_bytes, most_sets(shape))
        if batch and held + needed > limit_bytes:
            yield batch
            batch, held = [], 0.0
        batch.append(shape)
        held += needed
    if batch:
        yield batch


def operand_bytes(shape: KernelShape) -> int:
    """Of one set of a kernel's operands, about."""
    sizes, width = shape.dims, getattr(torch, shape.dtype).itemsize
    if "n" in sizes:
        return int(width * (sizes["m"] * sizes["k"] + sizes["n"] * sizes["k"]))
    if "heads" in sizes:
        rows = sizes["heads"] * sizes["query"] + 2 * sizes["kv_heads"] * sizes["kv"]
        return int(width * sizes["batch"] * sizes["head_dim"] * rows)
    return int((VOCABULARY if shape.op == "aten::embedding" else 2) * width * math.prod(sizes.values()))
