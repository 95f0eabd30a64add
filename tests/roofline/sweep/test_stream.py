"""A stream of workloads has the prices of a sweep, whatever the blocks, and says what it cannot price."""

import numpy as np
import pytest
from each import each
from tiny import tiny

from profiler.models.graphs import ModelGraphs, Tracing
from roofline.hardware.load import load_device
from roofline.sweep.polynomial import Sweep
from roofline.sweep.price import memory_pieces, price_pieces
from roofline.sweep.regimes import regime_of
from roofline.sweep.stream import ALONE, Extremes, Stream, codes
from roofline.workload import Workload


def drawn(count: int, seed: int = 1) -> list[Workload]:
    rng = np.random.default_rng(seed)
    sizes = zip(rng.integers(1, 5, count), rng.integers(1, 60, count), rng.integers(1, 120, count), strict=True)
    shapes = [(b, *((1, c), (q + 1, 0), (q + 1, c))[i % 3]) for i, (b, q, c) in enumerate(sizes)]
    return [Workload(batch=int(b), query_tokens=int(q), context_tokens=int(c), dtype="bfloat16") for b, q, c in shapes]


@each("windows", [(), (8,), (8, 64)])
def test_codes_are_the_regimes(windows: tuple[int, ...]) -> None:
    workloads = drawn(600)
    found = codes(Sweep.of(workloads), windows).tolist()
    names = [regime_of(workload, windows) for workload in workloads]
    assert [code == ALONE for code in found] == [name is None for name in names]
    assert len(set(zip(found, names, strict=True))) == len(set(found)) == len(set(names)), "one to one"


@each(("name", "phases"), [("mistral", ("prefill", "decode")), ("qwen3_moe", ("decode",))])
def test_prices_are_those_of_a_sweep(name: str, phases: tuple[str, ...]) -> None:
    family = ModelGraphs(tiny(name), name, Tracing("bfloat16")).family
    workloads = [w for w in drawn(300) if w.phase in phases and regime_of(w, family.windows) is not None]
    sweep = Sweep.of(workloads)
    devices = [load_device(device).datasheet for device in ("nvidia-l4", "amd-mi300x", "nvidia-h100-sxm")]
    extremes = Extremes(family.windows, family.chunks)
    blocks = [sweep.take(part) for part in np.array_split(np.arange(len(sweep)), 7)]
    for block in blocks:
        extremes.look(block)
    assert len(extremes.chosen("bfloat16")) < len(workloads)
    stream = Stream(family, extremes, "bfloat16")
    priced = [stream.price(block, devices) for block in blocks]
    pieces = family.cover(workloads)
    for place, peaks in enumerate(devices):
        swept = price_pieces(pieces, workloads, peaks)
        np.testing.assert_allclose(np.concatenate([part.time_s[place] for part in priced]), swept.time_s, rtol=1e-12)
        for total in ("matrix_flops", "kv_read", "weight_read"):
            found = np.concatenate([part.totals[total] for part in priced])
            np.testing.assert_allclose(found, getattr(swept, total), rtol=1e-12)
    memory = memory_pieces(pieces, workloads).peak
    np.testing.assert_allclose(np.concatenate([part.memory_bytes for part in priced]), memory, rtol=1e-12)


def test_workloads_on_the_edge_of_a_window_are_traced_alone_and_not_too_many() -> None:
    family = ModelGraphs(tiny("mistral"), "mistral", Tracing("bfloat16")).family
    edge = [Workload(batch=1, query_tokens=1, context_tokens=c, dtype="bfloat16") for c in (7, 8, 20, 21, 22, 23)]
    extremes = Extremes(family.windows)
    extremes.look(Sweep.of(edge))
    peaks = load_device("nvidia-l4").datasheet
    found = Stream(family, extremes, "bfloat16").price(Sweep.of(edge), [peaks]).time_s[0]
    np.testing.assert_allclose(found, price_pieces(family.cover(edge), edge, peaks).time_s, rtol=1e-12)
    many = [Workload(batch=b, query_tokens=1, context_tokens=8, dtype="bfloat16") for b in range(1, 100)]
    with pytest.raises(ValueError, match="more than 64 workloads lie on the edge of a sliding window"):
        extremes.look(Sweep.of(many))


def test_a_workload_that_was_not_looked_at_is_named() -> None:
    family = ModelGraphs(tiny("llama"), "llama", Tracing("bfloat16")).family
    extremes = Extremes(family.windows)
    extremes.look(Sweep.of([Workload(batch=1, query_tokens=1, context_tokens=9, dtype="bfloat16")]))
    stream = Stream(family, extremes, "bfloat16")
    with pytest.raises(ValueError, match="batch 2, 5 new, 0 cached"):
        stream.price(Sweep.of([Workload(batch=2, query_tokens=5, context_tokens=0, dtype="bfloat16")]), [])
