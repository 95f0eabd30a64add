import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_checks import FACTS, columns, fitted_to, one_by_one, price

from roofline.laws.experts import Experts, expert_loads
from roofline.laws.work import experts_work

EXPERTS = Experts()
SHAPE = {"hidden": 4096, "inner": 2048, "topk": 8, "experts": 128, "tp": 1, "ep": 1, "skew": 0, "weight_bits": 16}
TOKENS = np.geomspace(1, 32768, 16).round()


def loads(tokens: float, topk: float, experts: float, ep: float = 1, skew: float = 0, crowding: float = 0):
    return expert_loads(*(np.array([float(size)]) for size in (tokens, topk, experts, ep, skew)), crowding=crowding)


def test_dealt_rows_hit_one_expert_each_until_all_are_hit() -> None:
    assert loads(4, 8, 128).hit == pytest.approx(32)
    assert loads(100, 8, 128).hit == pytest.approx(128)
    assert loads(100, 8, 128, ep=4).hit == pytest.approx(32)


def test_tokens_that_choose_every_expert_hit_all_and_give_each_every_token() -> None:
    for skew in (0, 1.01, 1.2):
        found = loads(5, 16, 16, skew=skew)
        assert found.hit == pytest.approx(16)
        assert np.allclose(found.rows, 5)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 100_000), st.integers(1, 16), st.sampled_from([16, 64, 256]), st.sampled_from([0, 0.6, 1.01, 1.2])
)
def test_rows_are_kept_and_no_expert_has_more_than_the_tokens(
    tokens: int, topk: int, experts: int, skew: float
) -> None:
    found = loads(tokens, topk, experts, skew=skew)
    assert found.local[0] == pytest.approx(tokens * topk)
    assert found.rows.max() <= tokens * (1 + 1e-9)
    assert found.hit[0] <= min(experts, tokens * topk) * (1 + 1e-9)


def test_skew_hits_fewer_experts_and_makes_one_rank_busier() -> None:
    assert loads(64, 8, 128, skew=1.2).hit < loads(64, 8, 128).hit
    assert loads(4096, 8, 128, ep=8, skew=1.2).local > loads(4096, 8, 128, ep=8).local


def test_few_skewed_rows_each_get_an_expert() -> None:
    # 8 and 16 rows of 256 experts: no expert's share rounds to a row, and all are dealt one each
    assert loads(1, 8, 256, skew=1.01).hit == pytest.approx(8)
    assert loads(2, 8, 256, skew=1.2).hit == pytest.approx(16)


@pytest.mark.parametrize("ep", [2, 4, 8, 16, 32])
def test_rows_left_over_may_crowd_on_one_rank_which_they_fill(ep: int) -> None:
    spread, crowded = (loads(2, 8, 256, ep=ep, skew=1.01, crowding=crowding) for crowding in (0, 1))
    assert spread.hit == pytest.approx(16 / ep)
    assert crowded.hit == pytest.approx(min(16, 256 / ep))


def test_a_busier_rank_has_more_experts_with_rows() -> None:
    one = loads(8, 8, 256, skew=1.01)
    assert one.hit / 16 < loads(8, 8, 256, ep=16, skew=1.01).hit <= 16


def test_skewed_loads_are_those_of_the_generator() -> None:
    """`power_law_logits_v3`, drawn: rows of the experts, and what rounding leaves over to those without any."""
    generator = np.random.default_rng(0)
    for tokens in (2, 8, 48, 256):
        low, high = (1, 0.8 * tokens) if tokens * 8 > 128 else (0.01, 2)
        hit = []
        for _ in range(200):
            at = generator.uniform(size=128)
            drawn = ((high**-0.2 - low**-0.2) * at + low**-0.2) ** (1 / -0.2)
            rows = np.round(drawn / drawn.sum() * tokens * 8)
            left = max(tokens * 8 - rows.sum(), 0)
            hit.append(min((rows > 0).sum() + left, 128))
        assert loads(tokens, 8, 128, skew=1.2).hit[0] == pytest.approx(np.mean(hit), rel=0.06)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 100_000),
    st.integers(1, 16),
    st.sampled_from([16, 64, 384]),
    st.sampled_from([1, 2, 8, 16]),
    st.sampled_from([0, 0.6, 1.01, 1.2, 3.0]),
    st.sampled_from([0, 0.5, 1]),
)
def test_a_rank_has_no_more_than_its_experts_and_no_less_than_its_share(
    tokens: int, topk: int, experts: int, ep: int, skew: float, crowding: float
) -> None:
    found = loads(tokens, topk, experts, ep, skew, crowding)
    local = experts / ep
    assert found.hit[0] <= local * (1 + 1e-9)
    assert found.experts.sum() == pytest.approx(local) or found.experts.shape[-1] == 1
    assert found.local[0] <= min(tokens * topk, local * tokens) * (1 + 1e-6)
    assert found.local[0] >= 0.98 * tokens * topk / ep
    assert (found.rows >= 0).all()


def test_more_tokens_never_take_less_time() -> None:
    for skew in (0, 1.01):
        time_s = price(EXPERTS, columns(16, **SHAPE | {"skew": skew, "tokens": TOKENS}), by_tokens=1.0)
        # fewer, wider blocks from one step to the next may save a little
        assert (np.diff(time_s) > -0.05 * time_s[:-1]).all()


@pytest.mark.parametrize("size", ["hidden", "inner"])
def test_a_larger_expert_takes_longer(size: str) -> None:
    small = price(EXPERTS, columns(16, **SHAPE | {"tokens": TOKENS}))
    assert (price(EXPERTS, columns(16, **SHAPE | {"tokens": TOKENS, size: 2 * SHAPE[size]})) > small).all()


def test_sharing_over_ranks_takes_less_where_there_is_work() -> None:
    whole = price(EXPERTS, columns(1, **SHAPE | {"tokens": 4096}))
    assert price(EXPERTS, columns(1, **SHAPE | {"tokens": 4096, "ep": 8})) < whole
    assert price(EXPERTS, columns(1, **SHAPE | {"tokens": 4096, "tp": 8})) < whole


def test_a_depth_that_is_read_one_by_one_is_slow() -> None:
    uneven, even = (price(EXPERTS, columns(1, **SHAPE | {"tokens": 64, "inner": inner})) for inner in (2040, 2048))
    assert uneven > 1.5 * even


def test_eight_bits_have_kernels_that_do_not_care() -> None:
    sizes = SHAPE | {"tokens": 64, "weight_bits": 8}
    uneven, even = (price(EXPERTS, columns(1, **sizes | {"inner": inner})) for inner in (2040, 2048))
    assert uneven <= even


def test_fewer_bits_take_less_where_weights_are_waited_for() -> None:
    full, quarter = (price(EXPERTS, columns(1, **SHAPE | {"tokens": 32, "weight_bits": bits})) for bits in (16, 4))
    assert quarter < 0.5 * full


def test_columns_are_priced_as_each_alone() -> None:
    dims = columns(16, **SHAPE | {"tokens": TOKENS, "skew": 1.01, "ep": 4})
    assert np.allclose(price(EXPERTS, dims), one_by_one(EXPERTS, dims), rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 10**7),
    st.sampled_from([64, 7168, 65536]),
    st.sampled_from([1, 22, 65536]),
    st.sampled_from([1, 64]),
    st.sampled_from([0.0, 1.0, 3.0]),
)
def test_times_are_positive_and_finite_at_extremes(tokens: int, hidden: int, inner: int, ep: int, skew: float) -> None:
    sizes = SHAPE | {"tokens": tokens, "hidden": hidden, "inner": inner, "ep": ep, "skew": skew}
    time_s = price(EXPERTS, columns(1, **sizes))
    assert np.isfinite(time_s).all()
    assert (time_s > 0).all()


def test_constants_are_those_of_a_device_that_waits_for_weights_or_units() -> None:
    """40 µs, then weights of the experts hit at 2.2 TB/s, or tiles of 64 rows, that cost 80, at 600 TFLOP/s."""
    generator = np.random.default_rng(1)
    tokens = np.exp(generator.uniform(0, np.log(30000), 200)).round()
    hidden, inner = generator.choice([2048.0, 4096.0, 7168.0], 200), generator.choice([512.0, 2048.0, 8192.0], 200)
    hit = np.minimum(128, 8 * tokens)  # rows are dealt in turn
    tiles = hit * np.ceil(8 * tokens / hit / 64)
    weights_s, units_s = 6 * hit * hidden * inner / 2.2e12, tiles * 80 * 6 * hidden * inner / 600e12
    time_s = 40e-6 + np.maximum(weights_s, units_s) + 8 * tokens * (5 * inner + hidden) * 2 / 2.4e12
    dims = columns(200, **SHAPE | {"tokens": tokens, "hidden": hidden, "inner": inner})
    found = fitted_to(EXPERTS, dims, time_s)
    device = {"fixed": 4e-5, "bandwidth": 2.2e12, "peak": 600e12}
    assert {name: found.values[name] for name in device} == pytest.approx(device, rel=0.1)


def test_work_of_one_token_is_its_experts() -> None:
    work = experts_work(columns(1, **SHAPE | {"tokens": 1}), "bfloat16")
    assert work.flops == pytest.approx(8 * 6 * 4096 * 2048)
    assert work.bytes == pytest.approx(8 * 3 * 4096 * 2048 * 2 + 4 * 4096)


def test_it_has_a_dozen_constants_at_most() -> None:
    assert len(EXPERTS.constants(FACTS, "bfloat16")) <= 12
