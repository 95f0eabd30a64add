"""10,000 workloads of Llama-2-7b priced at once, beside a loop over layers and operations in plain Python.

The loop is the straightforward way of roofline calculators such as LLM-Viewer: a call per workload goes through the
layers, computes the FLOPs and bytes of each operation by formulas written by hand, and adds up times and totals. Both
run on one core, without the traces, which are made once, and must agree to 1e-9.
Prints figures and judges no time. Run: ``python -m pytest -s tests/benchmarks/test_sweep_speed.py``
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

WORKLOADS, CALLS, REPEATS, SEED = 10_000, 100, 20, 1
LAYERS, HIDDEN, INNER, HEADS, HEAD, VOCABULARY = 32, 4096, 11008, 32, 128, 32000
SIZE = 2
"""Bytes of an element: float16."""

Work = tuple[float, float, float, float, float, float, float]
"""Matrix FLOPs, vector FLOPs, weight read, activation read, activation write, KV read, KV write."""

NAMES = (
    "matrix_flops", "vector_flops", "weight_read", "activation_read", "activation_write", "kv_read", "kv_write",
)  # fmt: skip


@pytest.mark.parametrize("form", ["executed", "fused"])
def test_microseconds_a_workload(form: str) -> None:
    one_core = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    here = Path(__file__).resolve()
    paths = os.pathsep.join([str(here.parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(here), form],
        env=os.environ | one_core | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    print(f"\n{done.stdout}", end="")


def linear(tokens: float, width: int, inner: int) -> Work:
    return (
        2 * tokens * width * inner, 0, SIZE * width * inner, SIZE * tokens * inner, SIZE * tokens * width, 0, 0,
    )  # fmt: skip


def attention(b: float, q: float, c: float) -> Work:
    pairs = q * c + q * (q + 1) / 2
    state = SIZE * b * q * HIDDEN
    return (
        4 * b * HEADS * HEAD * pairs, 5 * b * HEADS * pairs, 0, state, state, 2 * SIZE * b * (c + q) * HIDDEN, 0,
    )  # fmt: skip


def elementwise(vector: float, read: float, write: float, weight: float = 0) -> Work:
    return 0, vector, weight, read, write, 0, 0


def norm(t: float) -> Iterator[Work]:
    """Root mean square, in float32."""
    n, low, high = t * HIDDEN, SIZE * t * HIDDEN, 4 * t * HIDDEN
    yield elementwise(0, low, high)
    yield elementwise(n, high, high)
    yield elementwise(n, high, 4 * t)
    yield elementwise(t, 4 * t, 4 * t)
    yield elementwise(t, 4 * t, 4 * t)
    yield elementwise(n, high + 4 * t, high)
    yield elementwise(0, high, low)
    yield elementwise(n, low, low, SIZE * HIDDEN)


def rotary_table(q: float) -> Iterator[Work]:
    yield elementwise(0, 0, 8 * q)
    yield elementwise(q, 8 * q, 8 * q)
    yield elementwise(0, 8 * q, 4 * q)
    yield elementwise(q * HEAD / 2, 4 * q, 2 * q * HEAD, 2 * HEAD)
    yield elementwise(0, 2 * q * HEAD, 4 * q * HEAD)
    for _ in ("cos", "scale", "sin", "scale"):
        yield elementwise(q * HEAD, 4 * q * HEAD, 4 * q * HEAD)
    for _ in ("cos", "sin"):
        yield elementwise(0, 4 * q * HEAD, SIZE * q * HEAD)


def rotate(t: float, q: float) -> Iterator[Work]:
    n, state = t * HIDDEN, SIZE * t * HIDDEN
    yield elementwise(n, state + SIZE * q * HEAD, state)
    yield elementwise(n / 2, state / 2, state / 2)
    yield elementwise(0, state, state)
    yield elementwise(n, state + SIZE * q * HEAD, state)
    yield elementwise(n, 2 * state, state)


def executed(b: float, q: float, c: float) -> Iterator[Work]:
    """Every operation that runs."""
    t, state, inner = b * q, SIZE * b * q * HIDDEN, SIZE * b * q * INNER
    yield elementwise(0, 8 * t, state, SIZE * min(t, VOCABULARY) * HIDDEN)
    yield from rotary_table(q)
    for _ in range(LAYERS):
        yield from norm(t)
        for _ in ("query", "key", "value"):
            yield linear(t, HIDDEN, HIDDEN)
        for _ in ("query", "key"):
            yield from rotate(t, q)
        for _ in ("key", "value"):
            yield 0, 0, 0, state, 0, SIZE * b * c * HIDDEN, SIZE * b * (c + q) * HIDDEN
        yield attention(b, q, c)
        yield linear(t, HIDDEN, HIDDEN)
        yield elementwise(t * HIDDEN, 2 * state, state)
        yield from norm(t)
        yield linear(t, INNER, HIDDEN)
        yield elementwise(4 * t * INNER, inner, inner)
        yield linear(t, INNER, HIDDEN)
        yield elementwise(t * INNER, 2 * inner, inner)
        yield linear(t, HIDDEN, INNER)
        yield elementwise(t * HIDDEN, 2 * state, state)
    yield from norm(t)
    yield linear(b, VOCABULARY, HIDDEN)


def fused(b: float, q: float, c: float) -> Iterator[Work]:
    """What is left when everything that can be fused is: norms behind the product before them, caches appended to."""
    t, state, inner = b * q, SIZE * b * q * HIDDEN, SIZE * b * q * INNER
    table, gain = 2 * SIZE * q * HEAD, SIZE * HIDDEN
    normed, rotated = t * (4 * HIDDEN + 2), 3.5 * t * HIDDEN
    square, wide = 2 * t * HIDDEN * HIDDEN, 2 * t * HIDDEN * INNER
    small, large = SIZE * HIDDEN * HIDDEN, SIZE * HIDDEN * INNER
    yield 0, normed, SIZE * min(t, VOCABULARY) * HIDDEN + gain, 8 * t, 2 * state, 0, 0
    yield 0, q * (1 + HEAD / 2 + 4 * HEAD), 2 * HEAD, 0, table, 0, 0
    for layer in range(LAYERS):
        last = layer == LAYERS - 1
        yield square, rotated, small, state + table, state, 0, 0
        yield square, rotated, small, state + table, 0, 0, state
        yield square, 0, small, state, 0, 0, state
        yield attention(b, q, c)
        yield square, t * HIDDEN + normed, small + gain, 2 * state, 2 * state, 0, 0
        yield wide, 4 * t * INNER, large, state, inner, 0, 0
        yield wide, t * INNER, large, state + inner, inner, 0, 0
        written = SIZE * b * HIDDEN if last else 2 * state
        yield wide, t * HIDDEN + normed, large + gain, state + inner, written, 0, 0
    yield linear(b, VOCABULARY, HIDDEN)


def loop(form: str, rates: tuple[float, float, float], b: float, q: float, c: float) -> tuple[float, ...]:
    """Seconds and totals of one workload."""
    matrix_rate, vector_rate, bandwidth = rates
    total_s = matrix = vector = weight = read = write = kv_read = kv_write = 0.0
    for m, v, w, r, a, kr, kw in (executed if form == "executed" else fused)(b, q, c):
        total_s += max(m / matrix_rate, v / vector_rate, (w + r + a + kr + kw) / bandwidth)
        matrix += m
        vector += v
        weight += w
        read += r
        write += a
        kv_read += kr
        kv_write += kw
    return total_s, matrix, vector, weight, read, write, kv_read, kv_write


def main(form: str) -> None:
    import torch

    from profiler.models.graphs import ModelGraphs, Tracing
    from profiler.models.resolve import resolve
    from roofline.fusion import fuse as fusion
    from roofline.hardware.load import load_device
    from roofline.price import matrix_peak, vector_peak
    from roofline.sweep.polynomial import Sweep
    from roofline.sweep.price import price_sweep
    from roofline.workload import Workload

    torch.set_num_threads(1)
    peaks = load_device("nvidia-rtx-a6000").datasheet
    assert peaks is not None and len(peaks.levels) == 1
    matrix, vector = matrix_peak(peaks, "float16"), vector_peak(peaks, "float16")
    assert matrix and vector and vector == vector_peak(peaks, "float32")
    rates = matrix, vector, peaks.levels[0].bandwidth.value
    changes = (fusion.fused,) if form == "fused" else ()
    graphs = ModelGraphs(resolve("llama-2-7b").config, "llama-2-7b", Tracing(dtype="float16", changes=changes))
    rng = np.random.default_rng(SEED)
    drawn = zip(rng.integers(2, 65, WORKLOADS).tolist(), rng.integers(16, 4096, WORKLOADS).tolist(), strict=True)
    sizes = list(drawn)
    both = 0.0
    for phase in ("prefill", "decode"):
        shapes = [(b, n, 0) if phase == "prefill" else (b, 1, n) for b, n in sizes]
        workloads = [Workload(batch=b, query_tokens=q, context_tokens=c, dtype="float16") for b, q, c in shapes]
        start = time.perf_counter()
        (piece,) = graphs.family.cover(workloads)
        traced_s = time.perf_counter() - start
        sweep = Sweep.of(workloads)
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            swept = price_sweep(piece.graph, sweep, peaks)
            seconds.append(time.perf_counter() - start)
        each_us = float(np.median(seconds)) / WORKLOADS * 1e6
        start = time.perf_counter()
        looped = np.array([loop(form, rates, *map(float, shape)) for shape in shapes[:CALLS]])
        loop_us = (time.perf_counter() - start) / CALLS * 1e6
        for name, values in zip(("time_s", *NAMES), looped.T, strict=True):
            np.testing.assert_allclose(getattr(swept, name)[:CALLS], values, rtol=1e-9, err_msg=name)
        both += each_us
        print(
            f"{form:9}{phase:8} {WORKLOADS:,} workloads: {each_us:6.3f} µs a workload at once, {loop_us:7.1f} µs a "
            f"call of the loop, {loop_us / each_us:,.0f} times; {traced_s:.1f} s for the traces before"
        )
    print(f"{form:9}both phases {both:.3f} µs a workload")


if __name__ == "__main__":
    main(sys.argv[1])
