import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofline.laws.law import Facts
from roofline.laws.matmul import Matmul
from roofline.laws.scaled_matmul import BlockScaledMatmul, ScaledMatmul

FACTS = Facts(
    units=100,
    cache_bytes=50e6,
    bandwidth_bytes_per_s=2e12,
    matrix_flops_per_s={"bfloat16": 400e12, "float8_e4m3fn": 800e12},
    vector_flops_per_s=50e12,
)
LAWS = [(Matmul(), "bfloat16"), (ScaledMatmul(), "float8_e4m3fn"), (BlockScaledMatmul(), "float8_e4m3fn")]
SIZE = st.integers(1, 20_000)


def priors(law, dtype):
    return {constant.name: constant.prior for constant in law.constants(FACTS, dtype)}


def time_s(law, dtype, m, n, k, **values):
    dims = {"m": np.atleast_1d(m), "n": np.atleast_1d(n), "k": np.atleast_1d(k)}
    return law.time_s(dims, FACTS, dtype, priors(law, dtype) | values)


@pytest.mark.parametrize(("law", "dtype"), LAWS)
@settings(max_examples=60, deadline=None)
@given(m=SIZE, n=SIZE, k=SIZE)
def test_never_below_the_roofline_of_its_own_constants(law, dtype, m, n, k):
    values = priors(law, dtype)
    size = {"bfloat16": 2, "float8_e4m3fn": 1}[dtype]
    compute_s = 2 * m * n * k / values["rate"]
    bytes_moved = size * (m * k + k * n) + 2 * m * n
    memory_s = bytes_moved / max(values["memory"], values["cache"])
    assert time_s(law, dtype, m, n, k)[0] >= max(compute_s, memory_s) * (1 - 1e-9)


@pytest.mark.parametrize(("law", "dtype"), LAWS)
@settings(max_examples=60, deadline=None)
@given(m=SIZE, n=SIZE, k=SIZE)
def test_twice_the_work_in_any_direction_is_never_quicker(law, dtype, m, n, k):
    m, n, k = 16 * m, 16 * n, 16 * k  # alignment aside
    base = time_s(law, dtype, m, n, k)[0]
    slack = 1.02 if law.kind == "matmul" else 1.05  # partial tiles fill up, and the soft choice moves
    assert time_s(law, dtype, 2 * m, n, k)[0] * slack >= base
    assert time_s(law, dtype, m, 2 * n, k)[0] * slack >= base
    assert time_s(law, dtype, m, n, 2 * k)[0] * slack >= base


@pytest.mark.parametrize(("law", "dtype"), LAWS)
def test_an_array_is_its_elements(law, dtype):
    generator = np.random.default_rng(0)
    m, n, k = generator.integers(1, 9000, size=(3, 40)).astype(float)
    together = time_s(law, dtype, m, n, k)
    alone = [time_s(law, dtype, *one)[0] for one in zip(m, n, k, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize(("law", "dtype"), LAWS)
def test_a_faster_device_is_never_slower(law, dtype):
    generator = np.random.default_rng(1)
    sizes = generator.integers(1, 9000, size=(3, 200)).astype(float)
    values = priors(law, dtype)
    base = time_s(law, dtype, *sizes)
    for name in ("rate", "memory", "cache", "conversion"):
        if name in values:
            assert (time_s(law, dtype, *sizes, **{name: 1.1 * values[name]}) <= base * (1 + 1e-9)).all()


def test_limits_have_their_physics():
    law, dtype, values = Matmul(), "bfloat16", priors(Matmul(), "bfloat16")
    large = time_s(law, dtype, 32768, 16384, 16384)[0]
    assert large == pytest.approx(2 * 32768 * 16384 * 16384 / values["rate"] / values["spilled"], rel=0.15)
    thin = time_s(law, dtype, 1, 32768, 32768)[0]
    assert thin == pytest.approx(2 * 32768**2 / values["memory"], rel=0.1)
    assert time_s(law, dtype, 1, 64, 64)[0] == pytest.approx(values["fixed"] + values["latency"], rel=0.6)


def test_whole_waves_are_waited_for_as_quantum_says():
    law = Matmul()
    sizes = (FACTS.units + 1) * 128.0, 128.0, 8192.0
    no_sharing = {"split_s": 1e-4, "stream_s": 1e-2}
    loose, strict = (time_s(law, "bfloat16", *sizes, quantum=part, **no_sharing)[0] for part in (0.02, 1.0))
    assert strict > 1.08 * loose  # another tile softens it


def test_a_long_k_with_few_tiles_is_split():
    law = Matmul()
    quick, never = (time_s(law, "bfloat16", 64, 64, 65536, split_s=cost)[0] for cost in (1e-6, 1e-4))
    assert quick < 0.5 * never


def test_rows_that_are_no_whole_words_cost_more():
    assert time_s(Matmul(), "bfloat16", 512, 4097, 4096)[0] > 1.2 * time_s(Matmul(), "bfloat16", 512, 4096, 4096)[0]


def test_the_host_is_a_floor_of_block_scaled_products():
    law = BlockScaledMatmul()
    assert time_s(law, "float8_e4m3fn", 64, 128, 128, host=1e-4)[0] >= 1e-4
    assert time_s(law, "float8_e4m3fn", 64, 128, 64, host=1e-4, host_whole=2.0)[0] >= 2e-4


@pytest.mark.parametrize(("law", "dtype"), LAWS)
def test_unknown_dtypes_are_refused(law, dtype):
    with pytest.raises(ValueError, match="no peak of float64"):
        law.constants(FACTS, "float64")
    with pytest.raises(ValueError, match="size of float64"):
        time_s(law, dtype, 1, 1, 1) if dtype == "float64" else law.time_s(
            {"m": np.ones(1), "n": np.ones(1), "k": np.ones(1)}, FACTS, "float64", priors(law, dtype)
        )


def test_a_hundred_thousand_products_are_one_call():
    generator = np.random.default_rng(2)
    times = time_s(Matmul(), "bfloat16", *np.exp2(generator.uniform(0, 15, size=(3, 100_000))).round())
    assert times.shape == (100_000,)
    assert (np.isfinite(times) & (times > 0)).all()
