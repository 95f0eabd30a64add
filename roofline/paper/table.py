"""The per-layer table of arXiv 2402.16363 ("LLM Inference Unveiled") in its own accounting, as LLM-Viewer computes it.

It is here to be compared with: it reproduces that tool's figures, the wrong ones included (docs/accounting.md has the
differences from this package's own accounting, and why). Fields have LLM-Viewer's names, so that its output compares
key by key: operations with a multiply-add as 2, bytes, operations a second, seconds. Prefill is `seqlen` tokens
without context; decode is one token whose attention spans `seqlen`. The roofline is Williams, Waterman, Patterson,
CACM 52(4), 2009, with one peak for all operations.
"""

from dataclasses import asdict
from typing import Literal

from pydantic import Field

from roofline.hardware.spec import Peaks
from roofline.paper.rules import PaperPass, PaperShape, Work, head_work, layer_work
from roofline.price import matrix_peak
from roofline.record import Record

INT8_BITS = 8
"""The int8 peak is taken where weights, activations and cache all have at most so many bits."""
MAX_BITS = 16
"""Bits of the widest type with a peak in the paper's accounting."""


class PaperCosts(Record):
    """Costs of one operation, or of one pass."""

    OPs: float = Field(allow_inf_nan=False)
    memory_access: float = Field(allow_inf_nan=False)
    """Bytes: the sum of the five classes."""
    load_weight: float = Field(allow_inf_nan=False)
    load_act: float = Field(allow_inf_nan=False)
    store_act: float = Field(allow_inf_nan=False)
    load_kv_cache: float = Field(allow_inf_nan=False)
    store_kv_cache: float = Field(allow_inf_nan=False)
    inference_time: float = Field(allow_inf_nan=False)


class PaperRow(PaperCosts):
    """One line of the table: one execution of one operation."""

    name: str
    """LLM-Viewer's name of it."""
    count: int = Field(gt=0)
    """Executions in the whole model: as many as layers, or 1 for the head."""
    arithmetic_intensity: float = Field(allow_inf_nan=False)
    """Operations a byte."""
    performance: float = Field(allow_inf_nan=False)
    """Operations a second."""
    bound: Literal["memory", "compute"]


class PaperTotal(PaperCosts):
    """One pass of the whole model, and the memory that it takes."""

    memory_consumption: float
    """Weights, cache and temporary activations."""
    memory_consumption_tmp_act: float
    """All that the operations of one layer write as activations."""
    memory_consumption_weight: float
    """Weights of the layers: neither the embedding nor the head."""
    memory_consumption_kv_cache: float
    """Keys and values of `seqlen` tokens."""


class PaperPhase(Record):
    """The table of one pass."""

    rows: tuple[PaperRow, ...]
    """The operations of one layer, then the head."""
    total: PaperTotal


class PaperResult(Record):
    """Both passes, with the sizes that they were computed for."""

    shape: PaperShape
    batch: int
    seqlen: int
    w_bit: int
    a_bit: int
    kv_bit: int
    use_flash: bool
    bandwidth: float
    """Bytes a second of main memory."""
    max_OPS: float
    """Operations a second: the peak that every row is held against."""
    prefill: PaperPhase
    decode: PaperPhase


def paper_table(
    shape: PaperShape,
    peaks: Peaks,
    batch: int,
    seqlen: int,
    w_bit: int = 16,
    a_bit: int = 16,
    kv_bit: int = 16,
    use_flash: bool = False,
) -> PaperResult:
    """The paper's table and totals for prefill and decode.

    Args:
        peaks: main memory is the last level; the peak is `matrix["float16"]`, or `matrix["int8"]` where weights,
            activations and cache all have 8 bits or fewer.
        use_flash: LLM-Viewer's FlashAttention in place of the three operations of attention.
    Raises: ValueError for a size below 1, bits outside 1 to 16, or a peak that `peaks` lacks.
    """
    for name, size in (("batch", batch), ("seqlen", seqlen)):
        if size < 1:
            raise ValueError(f"{name} is {size}; give 1 or more")
    for name, bits in (("w_bit", w_bit), ("a_bit", a_bit), ("kv_bit", kv_bit)):
        if not 1 <= bits <= MAX_BITS:
            raise ValueError(f"{name} is {bits}; the paper's accounting knows 1 to {MAX_BITS} bits")
    bandwidth = peaks.levels[-1].bandwidth.value
    dtype = "int8" if max(w_bit, a_bit, kv_bit) <= INT8_BITS else "float16"
    peak = matrix_peak(peaks, dtype)
    if peak is None:
        raise ValueError(f"the paper's accounting needs the matrix peak of {dtype}, which this hardware lacks; add it")

    def rows(prefill: bool) -> tuple[PaperRow, ...]:
        of = PaperPass(shape, prefill, batch, seqlen, w_bit / 8, a_bit / 8, kv_bit / 8)
        layer = [_row(work, shape.layers, bandwidth, peak) for work in layer_work(of, use_flash)]
        return (*layer, _row(head_work(of), 1, bandwidth, peak))

    prefill, decode = rows(prefill=True), rows(prefill=False)
    weights = _total(prefill[:-1], "load_weight")
    cache = _total(prefill[:-1], "store_kv_cache")
    return PaperResult(
        shape=shape,
        batch=batch,
        seqlen=seqlen,
        w_bit=w_bit,
        a_bit=a_bit,
        kv_bit=kv_bit,
        use_flash=use_flash,
        bandwidth=bandwidth,
        max_OPS=peak,
        prefill=_phase(prefill, weights, cache),
        decode=_phase(decode, weights, cache),
    )


def _row(work: Work, count: int, bandwidth: float, peak: float) -> PaperRow:
    """Return one line of the table. The order of the arithmetic is LLM-Viewer's, so that every digit agrees."""
    access = work.load_weight + work.load_act + work.store_act + work.load_kv_cache + work.store_kv_cache
    intensity = work.OPs / access
    memory = intensity < peak / bandwidth
    performance = intensity * bandwidth if memory else peak
    return PaperRow(
        **asdict(work),
        count=count,
        memory_access=access,
        arithmetic_intensity=intensity,
        performance=performance,
        bound="memory" if memory else "compute",
        inference_time=work.OPs / performance,
    )


def _phase(rows: tuple[PaperRow, ...], weights: float, cache: float) -> PaperPhase:
    temporary = sum(row.store_act for row in rows[:-1])
    total = PaperTotal(
        **{name: _total(rows, name) for name in PaperCosts.model_fields},
        memory_consumption=temporary + (weights + cache),
        memory_consumption_tmp_act=temporary,
        memory_consumption_weight=weights,
        memory_consumption_kv_cache=cache,
    )
    return PaperPhase(rows=rows, total=total)


def _total(rows: tuple[PaperRow, ...], name: str) -> float:
    """Sum over the model, in the rows' order."""
    return float(sum(getattr(row, name) * row.count for row in rows))
