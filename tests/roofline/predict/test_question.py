"""What is asked of a model on a device, against passes that are traced one by one."""

from dataclasses import replace
from functools import cache

import pytest
from calibrated_laws import at_priors
from graphs import figure, peaks
from tiny import tiny

from profiler.models.graphs import ModelGraphs, Tracing, model_source
from roofline.graph.memory import footprint
from roofline.hardware.spec import HardwareSpec, Link, Peaks, facts_of
from roofline.predict.question import CALIBRATED, PROBES, Device, Question, Speculation, answer
from roofline.price import price
from roofline.sweep.family import Source
from roofline.whatif.registry import parse
from roofline.workload import Workload

ONE_LEVEL = (("HBM", 1e12, 1e11),)
LEVELS = (("L1", 4e3, 8e11), ("L2", 4e4, 4e11), ("HBM", 1e12, 1e11))


def device(levels: tuple[tuple[str, float, float], ...] = ONE_LEVEL, speed: float = 1.0) -> Device:
    rates = peaks(matrix=speed * 1e12, vector=speed * 1e11, levels=levels, dtype="bfloat16")
    return of(rates)


def of(rates: Peaks) -> Device:
    spec = HardwareSpec(name="by hand", kind="other", datasheet=rates)
    return Device(spec, rates, "datasheet")


def memory(capacity_bytes: float) -> Device:
    return device((("HBM", capacity_bytes, 1e11),))


@cache
def source(name: str, *changes: str) -> Source:
    graphs = ModelGraphs(tiny(name), name, Tracing("bfloat16"))
    return model_source(graphs, [parse(text) for text in changes], "fused")


def workload(batch: int, query: int, context: int) -> Workload:
    return Workload(batch=batch, query_tokens=query, context_tokens=context, dtype="bfloat16")


def seconds(found: Source, asked: Workload, on: Device) -> float:
    graph = found.whole(asked)
    return float(sum(t * op.count for t, op in zip(price(graph, on.peaks).time_s, graph.ops, strict=True)))


@pytest.mark.parametrize("name", ["mistral", "qwen3_moe"])
def test_a_sweep_is_its_exact_passes(name: str) -> None:
    asked = tuple(workload(b, q, c) for b in (1, 3) for q, c in ((24, 0), (33, 0), (1, 20), (1, 47), (5, 30)))
    swept = answer(source(name), Question(workloads=asked), device(), "fused").passes
    exact = answer(source(name), Question(workloads=asked, exact=True), device(), "fused").passes
    assert [one.workloads for one in swept] == [one.workloads for one in exact] == [(one,) for one in asked]
    for few, all_ in zip(swept, exact, strict=True):
        assert not few.ops and all_.ops
        assert few.time_s == pytest.approx(all_.time_s, rel=1e-9)
        assert few.matrix_flops == pytest.approx(all_.matrix_flops, rel=1e-9)
        assert few.bytes.model_dump() == pytest.approx(all_.bytes.model_dump(), rel=1e-9)
        assert few.memory.weights == pytest.approx(all_.memory.weights, rel=1e-9)
        assert few.memory.kv_cache == pytest.approx(all_.memory.kv_cache, rel=1e-9)
        assert all_.time_s == pytest.approx(sum(op.time_s or 0 for op in all_.ops), rel=1e-12)


CHANGED = (
    ("llama", "quantise:weights=4,kv=8"),
    ("llama", "tensor_parallel:degree=2"),
    ("llama", "pipeline_stage:stages=2,stage=1"),
    ("qwen3_moe", "expert_parallel:degree=2"),
    ("llama", "offload:kv=1"),
    ("qwen3_moe", "offload:weights=1,kv=0.5"),
    ("llama", "compress_kv:ratio=2"),
)


def test_sweeps_passes_searches_and_requests_agree_under_what_ifs() -> None:
    """One peak of memory and one time, however they are asked for."""
    links = {name: Link(bandwidth=figure(1e9), latency_s=figure(1e-6), direct=True) for name in ("nvlink", "pcie")}
    asked = tuple(workload(b, q, c) for b in (1, 2, 4) for q, c in ((24, 0), (1, 20), (1, 46)))
    for name, change in CHANGED:
        changed = source(name, change)

        def on(capacity: float) -> Device:
            return of(memory(capacity).peaks.model_copy(update={"links": links}))

        swept, exact = (
            answer(changed, Question(workloads=asked, exact=each), on(1e12), "fused").passes for each in (False, True)
        )
        for few, all_ in zip(swept, exact, strict=True):
            assert few.time_s == pytest.approx(all_.time_s, rel=1e-9), (name, change)
            assert few.link_bytes == pytest.approx(all_.link_bytes, rel=1e-9), (name, change)
            assert few.memory.model_dump() == pytest.approx(all_.memory.model_dump(), rel=1e-9), (name, change)
        full = footprint(changed.whole(workload(37, 1, 20))).peak
        found = answer(changed, Question(workloads=(workload(2, 1, 20),), largest=True), on(full), "fused")
        assert found.largest_batch == 37, (name, change)
        (served,) = answer(changed, Question(requests=((2, 24, 8),)), on(1e12), "fused").requests
        steps = (workload(2, 24, 0), *(workload(2, 1, 24 + i) for i in range(7)))
        passes = answer(changed, Question(workloads=steps, exact=True), on(1e12), "fused").passes
        assert served.peak_bytes == pytest.approx(max(passes[0].memory.peak, passes[-1].memory.peak)), (name, change)
        # a cache that keeps one token in two is as long after an odd as after an even one
        rel = 1e-3 if "compress" in change else 1e-9
        assert served.end_to_end_s == pytest.approx(sum(one.time_s or 0 for one in passes), rel=rel), (name, change)


def test_a_sweep_by_laws_is_its_exact_passes_in_either_form() -> None:
    rates = device(LEVELS)
    laws = tuple(at_priors(kind, "bfloat16", facts_of(rates.spec)) for kind in ("matmul", "pointwise", "norm"))
    on = replace(rates, spec=rates.spec.model_copy(update={"calibrated": laws}), origin=CALIBRATED)
    assert on.form == "executed" and replace(on, origin="datasheet").form == "fused"
    products = rates.spec.model_copy(update={"calibrated": laws[:1]})
    assert replace(on, spec=products).form == "fused"  # tables of a serving engine: its kernels are fused
    asked = tuple(workload(b, q, c) for b in (1, 3) for q, c in ((24, 0), (1, 20), (5, 30), (1, 47)))
    for form in ("executed", "fused"):
        subject = model_source(ModelGraphs(tiny("mistral"), "mistral", Tracing("bfloat16")), (), form)
        swept = answer(subject, Question(workloads=asked), on, form).passes
        exact = answer(subject, Question(workloads=asked, exact=True), on, form).passes
        for few, all_ in zip(swept, exact, strict=True):
            assert not few.ops and all_.ops
            for name in ("time_s", "low_s", "high_s", "without_law"):
                assert getattr(few, name) == pytest.approx(getattr(all_, name), rel=5e-3, abs=1e-6), (
                    form,
                    name,
                )  # alike layers are priced as one


@pytest.mark.parametrize("levels", [ONE_LEVEL, LEVELS], ids=["one level", "three levels"])
@pytest.mark.parametrize("name", ["mistral", "qwen3_moe"])
def test_decoding_is_a_loop_over_exact_steps(name: str, levels: tuple[tuple[str, float, float], ...]) -> None:
    on = device(levels)
    batch, prompt, output = 2, 4, 2 * PROBES + 8  # over the edge of mistral's window of 8 tokens
    (found,) = answer(source(name), Question(requests=((batch, prompt, output),)), on, "fused").requests
    each = [seconds(source(name), workload(batch, 1, prompt + i), on) for i in range(output - 1)]
    first = seconds(source(name), workload(batch, prompt, 0), on)
    fold_rel = 1e-9 if len(levels) == 1 else 0.3  # a folded layer's activations are found nearer than a whole model's
    assert found.ttft_s == pytest.approx(first, rel=fold_rel)
    assert found.end_to_end_s == pytest.approx(first + sum(each), rel=fold_rel)
    assert found.tpot_s == pytest.approx(sum(each) / len(each), rel=fold_rel)
    last = footprint(source(name).whole(workload(batch, 1, prompt + output - 2)))
    assert found.peak_bytes == pytest.approx(last.peak, rel=0.02)


@pytest.mark.parametrize(("acceptance", "yields"), [(0.0, 1), (1.0, 4)])
def test_speculation(acceptance: float, yields: int) -> None:
    asked = Question(requests=((1, 20, 12),), speculation=Speculation(source("qwen2"), 3, acceptance))
    (found,) = answer(source("llama"), asked, device(), "fused").requests
    drafted = sum(seconds(source("qwen2"), workload(1, 1, 20 + i), device()) for i in range(11))
    passes = [workload(1, 4, 20 + i).model_copy(update={"logits": "all"}) for i in range(11)]
    verified = sum(seconds(source("llama"), one, device()) for one in passes)
    assert found.tpot_s == pytest.approx((3 * drafted + verified) / yields / 11, rel=1e-9)
    both = sum(seconds(source(name), workload(1, 20, 0), device()) for name in ("llama", "qwen2"))
    assert found.ttft_s == pytest.approx(both, rel=1e-9)
    (alone,) = answer(source("llama"), Question(requests=((1, 20, 12),)), device(), "fused").requests
    assert found.peak_bytes > alone.peak_bytes + footprint(source("qwen2").whole(workload(1, 1, 30))).weights


@pytest.mark.parametrize(("batch", "drafted"), [(1, 3), (3, 4)])
def test_a_verification_has_the_logits_of_every_drafted_row(batch: int, drafted: int) -> None:
    """The head of the tiny llama: 32 × 128."""

    def head(logits: str) -> float:
        asked = workload(batch, drafted + 1, 20).model_copy(update={"logits": logits})
        (op,) = (op for op in source("llama").whole(asked).ops if op.path == "lm_head")
        return op.matrix_flops

    assert head("last") == 2 * batch * 32 * 128
    assert head("all") == 2 * batch * (drafted + 1) * 32 * 128


def test_a_sweep_of_verifications_is_its_exact_passes() -> None:
    asked = tuple(
        workload(b, q, c).model_copy(update={"logits": "all"}) for b in (1, 3) for q, c in ((5, 30), (5, 61), (3, 40))
    )
    both = (*asked, *(one.model_copy(update={"logits": "last"}) for one in asked))
    swept, exact = (
        answer(source("gemma2"), Question(workloads=both, exact=exact), device(), "fused").passes
        for exact in (False, True)
    )
    for few, all_ in zip(swept, exact, strict=True):
        assert few.time_s == pytest.approx(all_.time_s, rel=1e-9)
        assert few.matrix_flops == pytest.approx(all_.matrix_flops, rel=1e-9)


def test_decode_on_another_device_waits_for_the_cache() -> None:
    link = {"network": Link(bandwidth=figure(1e9))}
    rates = device().peaks.model_copy(update={"links": link})
    fast = device(speed=100)
    asked = Question(requests=((1, 20, 12),), decode=(source("llama"), fast))
    (found,) = answer(source("llama", "send_kv:link=network,by_layer=false"), asked, of(rates), "fused").requests
    (alone,) = answer(source("llama"), Question(requests=((1, 20, 12),)), of(rates), "fused").requests
    (there,) = answer(source("llama"), Question(requests=((1, 20, 12),)), fast, "fused").requests
    cache = footprint(source("llama").whole(workload(1, 20, 0))).kv_cache
    assert found.tpot_s == pytest.approx(there.tpot_s, rel=1e-9)
    assert alone.ttft_s is not None and found.ttft_s == pytest.approx(alone.ttft_s + cache / 1e9, rel=1e-9)


@pytest.mark.parametrize(("name", "sizes"), [("llama", (1, 24, 0)), ("mistral", (1, 1, 20)), ("mamba", (1, 1, 9))])
def test_the_largest_batch_fits_and_one_more_does_not(name: str, sizes: tuple[int, int, int]) -> None:
    def peak(batch: int) -> float:
        return footprint(source(name).whole(workload(batch, *sizes[1:]))).peak

    capacity = peak(5)
    (asked,) = (Question(workloads=(workload(*sizes),), largest=True),)
    largest = answer(source(name), asked, memory(capacity * 1.0001), "fused").largest_batch
    assert largest is not None and largest >= 4
    assert peak(largest) <= capacity * 1.02 and peak(largest + 1) > capacity * 0.98


@pytest.mark.parametrize(("name", "context"), [("llama", 100), *(("gemma3", size) for size in (3, 6, 7, 9, 100))])
def test_the_largest_context_fits_and_one_more_does_not(name: str, context: int) -> None:
    """On both sides of gemma3's window of 8 tokens, and on its edge."""

    def peak(context: int) -> float:
        return (
            answer(source(name), Question(workloads=(workload(2, 1, context),)), device(), "fused")
            .passes[0]
            .memory.peak
        )

    asked = Question(workloads=(workload(2, 16, 0), workload(2, 1, 20)), largest=True)
    found = answer(source(name), asked, memory(peak(context)), "fused")
    assert found.largest_context is not None
    assert peak(found.largest_context) <= peak(context) < peak(found.largest_context + 1)


def test_nothing_fits() -> None:
    found = answer(source("llama"), Question(workloads=(workload(1, 1, 20),), largest=True), memory(1e4), "fused")
    assert (found.largest_batch, found.largest_context) == (0, 0)
    assert found.passes[0].fits is False and found.passes[0].time_s


def test_a_search_that_ends_says_so() -> None:
    asked = Question(workloads=(workload(1, 1, 2**26 - 1),), largest=True)
    found = answer(source("llama"), asked, memory(1e15), "fused")
    assert found.largest_batch == 2
    assert "the search for the largest batch ended at 2: more may fit" in found.notes


def test_the_largest_needs_lengths() -> None:
    with pytest.raises(ValueError, match="ask without --mix"):
        answer(source("llama"), Question(mixes=((workload(1, 4, 0),),), largest=True), device(), "fused")


def test_mixed_steps_come_with_their_parts() -> None:
    parts = (workload(1, 12, 0), workload(4, 1, 20))
    found = answer(source("llama"), Question(mixes=(parts,)), device(), "fused")
    assert found.passes[0].workloads == parts
    alone = answer(source("llama"), Question(workloads=parts), device(), "fused").passes
    assert found.passes[0].matrix_flops == sum(one.matrix_flops for one in alone)
    one = answer(source("llama"), Question(mixes=(parts[:1],)), device(), "fused").passes[0]
    assert one.time_s == alone[0].time_s and one.memory == alone[0].memory


def test_tokens_of_cache_are_what_is_left_of_the_servers_share_by_the_bytes_of_a_token() -> None:
    """(capacity × share − overhead − weights − activations) ÷ bytes of a token, from the config alone."""
    asked = Question(workloads=(workload(4, 1, 20),), largest=True)
    found = answer(source("llama"), asked, memory(1e8), "fused")
    config, held = tiny("llama"), footprint(source("llama").whole(workload(4, 1, 20)))
    token = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # keys, values; 2 bytes
    for share, overhead in ((1.0, 0.0), (0.9, 0.0), (0.9, 2e7), (0.001, 0.0)):
        limits = {"memory_utilisation": share, "overhead_bytes": overhead}
        found = answer(source("llama"), replace(asked, **limits), memory(1e8), "fused")
        left = share * 1e8 - overhead - held.weights - (held.peak - held.weights - held.kv_cache)
        assert found.cache_tokens == max(0, left // token), limits
        assert found.budget_bytes == share * 1e8 - overhead, limits
        assert found.largest_batch is not None and found.largest_batch * 21 <= found.cache_tokens + 21, limits
    state = answer(source("mamba"), Question(workloads=(workload(1, 1, 9),), largest=True), memory(1e8), "fused")
    assert state.cache_tokens is None  # a state does not grow with tokens


def test_measured_peaks_give_passes_sweeps_and_requests_the_interval_of_their_figures() -> None:
    """Where every rate may be twice as high, or 1.25 times lower, so is every time half, or 1.25 times as long."""

    def spread(part: object) -> object:
        if isinstance(part, dict) and "value" in part:
            return part | {"low": part["value"] / 1.25, "high": part["value"] * 2}
        return {key: spread(value) for key, value in part.items()} if isinstance(part, dict) else (
            [spread(one) for one in part] if isinstance(part, list) else part
        )  # fmt: skip

    plain = device((("L2", 1e5, 4e12), ("HBM", 1e9, 1e12)))
    wide = of(Peaks.model_validate(spread(plain.peaks.model_dump(mode="json", exclude_none=True))))
    asked = Question(
        workloads=(workload(1, 1, 12), workload(2, 9, 0)), requests=((1, 9, 30),), dtype="bfloat16", exact=True
    )
    found = source("llama")
    for exact in (True, False):
        certain, said = (answer(found, replace(asked, exact=exact), on, "fused") for on in (plain, wide))
        for one, other in zip(certain.passes, said.passes, strict=True):
            assert (one.time_s, one.low_s, one.high_s) == (other.time_s, None, None)
            assert (other.low_s, other.high_s) == pytest.approx((one.time_s / 2, 1.25 * one.time_s))
            assert all(op.low_s and op.low_s < op.time_s < op.high_s for op in other.ops)
        (before,), (after,) = certain.requests, said.requests
        assert not before.intervals
        assert after.intervals["ttft_s"] == pytest.approx((before.ttft_s / 2, 1.25 * before.ttft_s))
        assert after.intervals["tpot_s"] == pytest.approx((before.tpot_s / 2, 1.25 * before.tpot_s))
