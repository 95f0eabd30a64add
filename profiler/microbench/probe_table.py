"""A calibration's kernels as the table of a run: probes one after another, each with as many kernels as memory holds.

Decode attention is taken with its cache in main memory, and prefill attention with what projections have just written:
so they are in models, and their laws know no caches.

Example: ``table, failed = probe_kernels(shapes, device, facts.cache_bytes, limit_bytes=1 << 30, versions={})``
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import pyarrow as pa
import torch

from profiler.microbench.probe import Probe, Probed, measure_probe
from profiler.record.kernel_shape import KernelShape
from profiler.record.kernels import COLUMNS, DIMS, Kernels, Source
from profiler.timing.flush import PAST
from roofline.predict import Prepared
from roofline.subjects import subjects

COLD = {"decode_attention": True, "prefill_attention": False}
"""Kinds of which only one of the two calls is kept: whether the first."""
FORMAT = "probe"
"""Of the source: these kernels were measured here."""

Progress = Callable[[float, str], None]


def probe_kernels(
    shapes: Sequence[KernelShape],
    device: torch.device,
    cache_bytes: float,
    *,
    limit_bytes: float,
    versions: dict[str, str],
    progress: Progress = lambda part, what: None,
) -> tuple[Kernels, list[str]]:
    """Measure all shapes. Args: `limit_bytes`, of the operands of one probe; `cache_bytes`, of the last-level cache.

    Returns the table, and a line for each probe that could not be had.
    """
    rows: list[dict[str, object]] = []
    failed: list[str] = []
    batches = list(_batches(shapes, limit_bytes))
    for done, batch in enumerate(batches):
        progress(done / len(batches), f"kernels {done + 1}/{len(batches)}")
        try:
            rows += _rows(measure_probe(Probe(batch, device, round(PAST * cache_bytes)), device), batch, cache_bytes)
        except (RuntimeError, MemoryError, ValueError, ArithmeticError) as error:
            failed.append(f"{len(batch)} kernels, the first {batch[0].op} in {batch[0].dtype}: {_line(error)}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    progress(1.0, "kernels")
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
    rows: list[dict[str, object]] = []
    found = subjects(Prepared(probed.graph), cache_bytes)
    for op, subject, kernel, time_s in zip(probed.graph.ops, found, probed.kernel, probed.time_s, strict=True):
        if kernel is None or subject is None or time_s <= 0:
            continue
        shape = shapes[kernel]
        if shape.kind in COLD and (subject.dims["cold"] > 0.5) != COLD[shape.kind]:
            continue
        row: dict[str, object] = {name: float(value) for name, value in subject.dims.items() if name in DIMS}
        row |= {"kind": subject.kinds[0], "dtype": subject.dtype, "op": op.name, "group": shape.group}
        rows.append(row | {"framework": "torch", "version": torch.__version__, "time_s": time_s, "source": 0})
    return rows


def _batches(shapes: Sequence[KernelShape], limit_bytes: float) -> Iterator[list[KernelShape]]:
    """In an order of no meaning, so that what changes with time is nobody's; each as large as memory allows."""
    left = sorted(shapes, key=lambda shape: (shape.dtype, shape.op, sorted(shape.dims.items())))
    random.Random(0).shuffle(left)
    batch: list[KernelShape] = []
    held = 0.0
    for shape in left:
        needed = operand_bytes(shape)
        if batch and held + needed > limit_bytes:
            yield batch
            batch, held = [], 0.0
        batch.append(shape)
        held += needed
    if batch:
        yield batch


def operand_bytes(shape: KernelShape) -> float:
    """Of a kernel's operands and result, about."""
    sizes, width = shape.dims, getattr(torch, shape.dtype).itemsize
    if "n" in sizes:
        return float(width * (sizes["m"] * sizes["k"] + sizes["n"] * sizes["k"] + sizes["m"] * sizes["n"]))
    if "heads" in sizes:
        rows = sizes["heads"] * sizes["query"] * 2 + 2 * sizes["kv_heads"] * sizes["kv"]
        return float(width * sizes["batch"] * sizes["head_dim"] * rows)
    return float(6 * width * math.prod(sizes.values()))


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
