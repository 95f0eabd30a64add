"""The kernels of steps, priced by a device whose every kernel takes a known time."""

from collections.abc import Mapping

import numpy as np
import pytest
from calibrated_laws import at_priors
from law_checks import FACTS

from roofline.laws.kinds import LATENT_DECODE, LATENT_PREFILL, OWN_ALL_REDUCE
from roofline.serving.engine import engine_named
from roofline.serving.shape import Attention, Collective, Experts, Product, Served, Stream
from roofline.serving.step import (
    CALL_S,
    DECODE,
    EXPERTS,
    LINKED,
    MOVED,
    PRODUCTS,
    Parallel,
    Pricer,
    Scheme,
    cache_bytes,
    plan_decode,
    plan_experts,
    plan_prefill,
    plan_tokens,
    price,
    weight_bytes,
)

DENSE = Served(
    "dense",
    4,
    products=(Product("mlp.up", "layer", 2048, 1024, 32), Product("lm_head", "head", 8000, 1024, 1)),
    attentions=(Attention(8, 2, 128, 128, 0, 0, 0, 32),),
    collectives=(Collective("all_reduce", "layer", 2048.0, 64),),
    streams=(Stream("norm", 8192.0, 65),),
)
LATENT = Served("latent", 1, (), (Attention(16, 16, 192, 128, 0, 512, 64, 10),), (Experts(1024, 512, 64, 8, 9),))
M = np.array([4.0, 64.0, 8192.0])


class Known:
    """A microsecond for each kernel, and a record of what was asked."""

    facts = FACTS

    def __init__(self, *kinds: str) -> None:
        self.kinds, self.asked = kinds, dict[tuple[str, str], Mapping[str, np.ndarray]]()

    def prices(self, kind: str) -> bool:
        return kind in self.kinds

    def time_s(self, kind: str, dtype: str, dims: Mapping[str, np.ndarray]) -> tuple[np.ndarray, bool]:
        self.asked[kind, dtype] = dims
        return np.full(len(next(iter(dims.values()))), 1e-6), kind != "batched_matmul"


def test_kernels_are_counted_and_only_sampled_rows_give_logits() -> None:
    known, engine = Known(), engine_named("vllm")
    plan = plan_tokens(DENSE, engine, Scheme("float8_e4m3fn"), Parallel(), M, np.full(3, 4.0), known)
    price([plan], known)
    assert plan.parts_s[PRODUCTS] == pytest.approx(33e-6)
    assert set(known.asked["matmul", "bfloat16"]["m"]) == {4.0}  # the vocabulary, in its own dtype
    assert set(known.asked["matmul", "float8_e4m3fn"]["m"]) == set(M)
    streams = engine.streams
    assert plan.streams == pytest.approx(32 * streams["quantise"] + 32 * streams["attention"] + 65 * streams["norm"])
    assert plan.reduces.tolist() == [64, 64, 0]  # 16 MiB go through the library of collectives
    assert set(known.asked["collective", "float16"]["bytes"]) == set(M * 2048)


def test_a_measured_all_reduce_takes_the_place_of_the_constant() -> None:
    known = Known(OWN_ALL_REDUCE)
    plan = plan_tokens(DENSE, engine_named("vllm"), Scheme(), Parallel(), M[:2], M[:2], known)
    before = plan.parts_s[MOVED].copy()
    price([plan], known)
    assert plan.reduces == 0
    assert plan.parts_s[MOVED] - before == pytest.approx(64e-6)


def test_an_engine_that_joins_norms_to_all_reduces_runs_fewer_kernels() -> None:
    def streams(name: str) -> float:
        return float(plan_tokens(DENSE, engine_named(name), Scheme(), Parallel(), M, M, Known()).streams)

    joined = engine_named("trtllm").streams["attention"] * 32 + 1  # one of 65 norms has no all-reduce before it
    assert streams("trtllm") == pytest.approx(joined)
    assert streams("vllm") > streams("trtllm") + 60


def test_latent_attention_is_likened_to_another_until_it_is_measured() -> None:
    for kinds, likened, kind in (((), True, "decode_attention"), ((LATENT_DECODE,), False, LATENT_DECODE)):
        known = Known(*kinds)
        plan = plan_decode(LATENT, Scheme(), np.array([16.0]), np.array([4096.0]), known)
        price([plan], known)
        assert plan.likened is likened
        assert plan.parts_s[DECODE] == pytest.approx(10 * 3e-6)  # attention and two products that unpack
        dims = known.asked[kind, "bfloat16"]
        assert dims["kv_heads"][0] * 2 * dims["head_dim"][0] == 512 + 64  # the bytes cached for a token
        assert likened or dims["kv_heads"][0] == 1
        assert plan.bare == pytest.approx({(DECODE, "batched_matmul bfloat16"): 20e-6})
    known = Known(LATENT_PREFILL)
    price([plan_prefill(LATENT, Scheme(), np.array([512.0]), np.array([0.0]), known)], known)
    assert known.asked[LATENT_PREFILL, "bfloat16"]["head_dim"] == pytest.approx((192 + 128) / 2)


def test_experts_see_the_tokens_of_all_ranks() -> None:
    known = Known()
    plan = plan_experts(LATENT, Scheme(experts="nvfp4"), Parallel(8, 1, 8), M)
    price([plan], known)
    dims = known.asked["experts", "nvfp4"]
    assert set(dims["tokens"]) == set(M)
    assert (dims["ep"][0], dims["inner"][0], dims["weight_bits"][0]) == (8, 512, 4)
    assert plan.parts_s[EXPERTS] == pytest.approx(9e-6)


def test_caches_and_weights_have_the_bytes_of_their_scheme() -> None:
    assert cache_bytes(DENSE, Scheme(), 100) == 32 * 2 * 2 * 128 * 2 * 100
    assert cache_bytes(LATENT, Scheme(cache_bytes=1.0), 100) == 10 * 576 * 100
    assert weight_bytes(DENSE, Scheme("float8_e4m3fn"), Parallel()) == 32 * 2048 * 1024 + 2 * 8000 * 1024 * 2
    assert weight_bytes(LATENT, Scheme(experts="nvfp4"), Parallel(1, 1, 8)) == 9 * 8 * 3 * 1024 * 512 / 2


def test_without_any_law_a_kernel_is_no_faster_than_the_datasheet_and_says_so() -> None:
    sizes = {"m": M, "n": np.full(3, 4096.0), "k": np.full(3, 4096.0)}
    time_s, own = Pricer({}, FACTS).time_s("matmul", "bfloat16", sizes)
    assert not own
    assert (time_s >= 2 * M * 4096 * 4096 / 900e12).all()


def test_what_an_engine_launches_beside_its_kernels_is_not_anothers() -> None:
    """A small call of attention costs another engine as much as any kernel, and not what was measured of this one."""
    law = at_priors("decode_attention", "bfloat16", FACTS)
    sizes = {"batch": 1, "heads": 8, "kv_heads": 1, "kv": 64, "head_dim": 128, "window": 0, "kv_bytes": 2}
    dims = {name: np.array([float(size)]) for name, size in sizes.items()}
    own, other = (
        Pricer({("decode_attention", "bfloat16"): law}, FACTS, foreign).time_s("decode_attention", "bfloat16", dims)
        for foreign in ((), ("decode_attention", "matmul"))
    )
    assert own[0] - other[0] == pytest.approx(law.values["fixed"] - CALL_S)
    assert own[1] and other[1]


def test_one_exchange_of_few_tokens_sends_more_bytes_than_two() -> None:
    """Four ranks: each sends its buffer to three others, or 3/4 of it twice."""

    def moved_s(one_shot_tokens: int) -> np.ndarray:
        engine = engine_named("trtllm").model_copy(update={"one_shot_tokens": one_shot_tokens})
        return plan_tokens(DENSE, engine, Scheme(), Parallel(), M[:2], M[:2], Known()).parts_s[MOVED]

    link = FACTS.link_bytes_per_s or np.inf
    more = (3 - 1.5) * 64 * 2048 * M[0] / (LINKED * link)
    assert moved_s(16) - moved_s(0) == pytest.approx([more, 0])


def test_narrow_products_of_the_main_library_take_as_long_as_wide_ones_of_as_many_bytes() -> None:
    laws = {("matmul", dtype): at_priors("matmul", dtype, FACTS) for dtype in ("bfloat16", "float8_e4m3fn")}
    dims = {name: np.array([size]) for name, size in {"m": 8.0, "n": 4096.0, "k": 8192.0}.items()}
    half = dims | {"k": dims["k"] / 2}
    wide, own = (Pricer(laws, FACTS, (), ("float8_e4m3fn",)).time_s("matmul", dtype, sizes)
                 for dtype, sizes in (("bfloat16", half), ("float8_e4m3fn", dims)))  # fmt: skip
    likened = Pricer(laws, FACTS, ("matmul",), ("float8_e4m3fn",)).time_s("matmul", "float8_e4m3fn", dims)
    assert likened[0] == pytest.approx(wide[0]) and not likened[1]
    assert own[0] != pytest.approx(wide[0]) and own[1]
