"""Single steps of an engine beside the surface that a replay asks, and what becomes of long prompts."""

import numpy as np
import pytest
from calibrated_laws import at_priors
from hypothesis import given
from hypothesis import strategies as st
from law_checks import FACTS

from roofline.serving.engine import asked_engine, engine_named
from roofline.serving.predict import MOST_SEQUENCES, OWN, EngineStep, _chunks, engine_constants, requests, steps
from roofline.serving.shape import Attention, Collective, Product, Served, Stream
from roofline.serving.step import PREFILL, PRODUCTS, Parallel, Pricer, Scheme
from roofline.serving.surface import SECONDS, TERMS, surfaces
from roofline.workload import Workload

DENSE = Served(
    "dense",
    4,
    products=(Product("mlp.up", "layer", 2048, 1024, 32), Product("lm_head", "head", 8000, 1024, 1)),
    attentions=(Attention(8, 2, 128, 128, 0, 0, 0, 32),),
    collectives=(Collective("all_reduce", "layer", 2048.0, 64),),
    streams=(Stream("norm", 8192.0, 65),),
)
LAWS = {
    (kind, dtype): at_priors(kind, dtype, FACTS) for kind, dtype in (("matmul", "bfloat16"), ("collective", "float16"))
}
PRICER = Pricer(LAWS, FACTS)


def workload(batch: int, query: int, context: int) -> Workload:
    return Workload(batch=batch, query_tokens=query, context_tokens=context, dtype="bfloat16")


def step(engine: str, *parts: Workload, parallel: Parallel = Parallel(moe_tp=4)) -> EngineStep:  # noqa: B008
    return steps(DENSE, engine_named(engine), Scheme(), parallel, [parts], PRICER)[0]


@pytest.mark.parametrize("name", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("sizes", [(32, 1, 2047), (1, 2048, 512)])
def test_a_step_is_that_of_the_surface_at_its_grid(name: str, sizes: tuple[int, int, int]) -> None:
    engine = engine_named(name)
    (surface,) = surfaces([(DENSE, engine, Scheme(), Parallel(moe_tp=4))], PRICER, 80e9)
    constants = np.array([1.0 if term in SECONDS else engine.constants[term].value for term in TERMS])
    batch, query, context = sizes
    of = (batch, context + 1) if query == 1 else (0, 0, query, context, 1)
    assert step(name, workload(*sizes)).time_s == pytest.approx(np.array(surface.terms(*of)) @ constants, rel=1e-9)


def test_parts_and_the_engine_s_own_time_add_up_and_what_no_law_priced_is_told() -> None:
    found = step("vllm", workload(32, 1, 2047))
    assert found.time_s == pytest.approx(sum(found.parts_s.values()) + sum(own.time_s for own in found.own.values()))
    assert set(found.by_law) == {"matmul bfloat16", "collective float16"}
    assert set(found.likened) == {"decode_attention bfloat16"}
    assert 0 < found.likened["decode_attention bfloat16"] / found.kernels_s <= found.without_law < 1
    assert set(found.own) == set(OWN)
    assert found.host_s == pytest.approx(3e-4 + 32 * 1e-5)  # by the constants of its file
    low, high = found.interval_s
    assert low < found.time_s < high


def test_factors_of_a_fitted_engine_multiply_their_parts() -> None:
    engine = engine_named("vllm")
    prior = engine.constants["step"].model_copy(update={"value": 1.5})
    fitted = engine.model_copy(update={"factors": {PRODUCTS: prior}})
    plain = step("vllm", workload(32, 1, 2047))
    (found,) = steps(DENSE, fitted, Scheme(), Parallel(moe_tp=4), [[workload(32, 1, 2047)]], PRICER)
    assert found.parts_s == pytest.approx(plain.parts_s | {PRODUCTS: 1.5 * plain.parts_s[PRODUCTS]})
    assert found.by_law["matmul bfloat16"] == pytest.approx(1.5 * plain.by_law["matmul bfloat16"])
    assert found.by_law["collective float16"] == plain.by_law["collective float16"]
    assert engine_constants(fitted)[TERMS.index(PRODUCTS)] == 1.5 and engine_constants(engine)[0] == 1.0


def test_an_engine_that_does_not_mix_runs_prompts_in_a_pass_of_their_own() -> None:
    parts = workload(1, 512, 0), workload(32, 1, 1024)
    mixed, apart = step("vllm", *parts), step("sglang", *parts)
    assert (mixed.passes, apart.passes) == (1, 2)
    assert apart.own["sequence"].times == mixed.own["sequence"].times == 32


@given(st.lists(st.tuples(st.integers(1, 30_000), st.integers(0, 500)), min_size=1, max_size=9), st.integers(0, 8000))
def test_no_token_of_a_prompt_is_lost_and_no_pass_is_larger_than_a_chunk(
    prompts: list[tuple[int, int]], sequences: int
) -> None:
    engine = engine_named("vllm")
    passes = list(_chunks(prompts, engine, Parallel(), sequences))
    assert sum(new for chunk in passes for new, _ in chunk) == sum(new for new, _ in prompts)
    assert all(sum(new for new, _ in chunk) == engine.chunk_tokens - sequences for chunk in passes[:-1])
    assert max(new + before for chunk in passes for new, before in chunk) == max(map(sum, prompts))


def test_attention_of_prompts_is_dealt_out_to_the_ranks() -> None:
    spread = Parallel(attention_dp=4, moe_ep=4)
    one, four = (step("vllm", workload(n, 256, 0), parallel=spread).parts_s[PREFILL] for n in (1, 4))
    assert four == pytest.approx(one)


def test_requests_answer_as_littles_law_says_and_those_that_cannot_fit_are_refused() -> None:
    engine = engine_named("vllm")
    (found,) = requests(DENSE, engine, Scheme(), Parallel(moe_tp=4), [(8, 512, 64)], PRICER, 80e9)
    assert found.end_to_end_s == pytest.approx(found.ttft_s + 63 * found.tpot_s, rel=0.1)
    assert found.tokens_per_s == pytest.approx(8 * 64 / found.end_to_end_s, rel=0.1)
    with pytest.raises(ValueError, match="does not fit beside the weights"):
        requests(DENSE, engine, Scheme(), Parallel(moe_tp=4), [(8, 512, 64)], PRICER, 1e8)
    with pytest.raises(ValueError, match="more than an engine holds"):
        step("vllm", workload(MOST_SEQUENCES + 1, 1, 10))


def test_a_version_outside_the_data_is_priced_and_said_and_what_is_no_version_is_refused() -> None:
    assert asked_engine("vllm:0.18.0") == (engine_named("vllm", "0.18.0"), [])
    engine, (doubt,) = asked_engine("vllm:9.9")
    assert (engine, "compared with measured steps of 0.18.0" in doubt) == (engine_named("vllm", "0.18.0"), True)
    assert len(asked_engine("vllm:0.9")[1]) == len(asked_engine("sglang")[1]) == 1
    assert asked_engine("sglang:0.5.7")[1] == []
    for wrong in ("vllm:", "vllm:newest"):
        with pytest.raises(ValueError, match="a version is a number"):
            asked_engine(wrong)
