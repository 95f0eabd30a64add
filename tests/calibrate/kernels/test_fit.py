from dataclasses import replace

import numpy as np
import pytest
from made_up_kernels import FACTS, TRUTH, Simple, kernels

from calibrate.kernels.fit import Observations, fit
from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.laws.matmul import Matmul, ScaledMatmul


def test_known_constants_are_recovered_within_their_intervals():
    fitted = fit(Simple(), kernels(), FACTS)
    for name in ("fixed", "rate", "memory"):
        assert fitted.values[name] == pytest.approx(TRUTH[name], rel=0.1)
        assert fitted.low[name] <= fitted.values[name] <= fitted.high[name]
    assert fitted.points == len(kernels())


def test_what_the_data_do_not_tell_keeps_its_prior_and_says_so():
    fitted = fit(Simple(), kernels(), FACTS)
    assert fitted.undetermined == ("unseen",)
    assert fitted.values["unseen"] == pytest.approx(1.0, rel=1e-3)
    assert fitted.high["unseen"] / fitted.low["unseen"] > np.exp(1.5 * 0.5)


def test_kernels_of_one_size_do_not_determine_a_rate():
    seen = kernels()
    small = seen.take(np.asarray(seen.dims["m"] + seen.dims["n"] < 200))
    assert {"rate", "memory"} <= set(fit(Simple(), small, FACTS).undetermined)


def test_a_few_absurd_rows_change_little():
    seen = kernels()
    spoilt = seen.time_s.copy()
    spoilt[::20] *= 20
    fitted = fit(Simple(), replace(seen, time_s=spoilt), FACTS)
    assert fitted.values["rate"] == pytest.approx(TRUTH["rate"], rel=0.1)


def test_a_seed_gives_one_answer():
    assert fit(Simple(), kernels(), FACTS, seed=3) == fit(Simple(), kernels(), FACTS, seed=3)


def test_from_a_start_alone_the_same_best_is_found():
    again = fit(Simple(), kernels(), FACTS, start=TRUTH)
    assert again.values["rate"] == pytest.approx(fit(Simple(), kernels(), FACTS).values["rate"], rel=1e-2)


def test_nothing_to_fit_to_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        fit(Simple(), kernels().take(np.zeros(240, dtype=bool)), FACTS)


def test_products_that_fill_the_device_do_not_tell_what_small_ones_cost():
    """Tiles of 128 x 256 on 100 units with 700 TFLOP/s, and a memory of 2.2 TB/s."""
    generator = np.random.default_rng(0)
    m, n, k = np.exp2(generator.integers(11, 15, (3, 250)))
    waves = np.ceil(np.ceil(m / 128) * np.ceil(n / 256) / 100)
    time_s = 6e-6 + np.maximum(waves * 100 * 2 * 128 * 256 * k / 300e12, 2 * (m * k + n * k + m * n) / 1.7e12)
    seen = replace(kernels(groups=25, rows=10), kind="matmul", dims={"m": m, "n": n, "k": k}, time_s=time_s)
    fitted = fit(Matmul(), seen, FACTS)
    assert {"latency", "kept"} <= set(fitted.undetermined)
    assert fitted.scale < 0.05


class Product(Simple):
    """`Simple` whose fixed cost is the product of two constants: the points cannot tell them apart."""

    def constants(self, facts, dtype):
        half = Constant("part", "1", 0.01, 100.0, 1.0, 0.5, "of the fixed cost")
        return (*super().constants(facts, dtype), half)

    def time_s(self, dims, facts, dtype, values):
        return super().time_s(dims, facts, dtype, {**values, "fixed": values["fixed"] * values["part"]})


def test_of_two_constants_that_only_their_product_tells_neither_leaves_its_prior_more_than_it_must():
    fitted = fit(Product(), kernels(), FACTS)
    assert fitted.values["fixed"] * fitted.values["part"] == pytest.approx(TRUTH["fixed"], rel=0.1)
    assert {"part"} <= set(fitted.undetermined)
    # log 5/3 is shared as the squares of the spreads: 1.0² and 0.5².
    assert np.log(fitted.values["part"]) == pytest.approx(0.2 * np.log(5 / 3), abs=0.05)


def test_a_sound_fit_has_no_doubts():
    seen = kernels()
    sound = Simple().time_s(seen.dims, FACTS, "bfloat16", TRUTH | {"memory": 1.7e12})
    assert fit(Simple(), replace(seen, time_s=sound), FACTS).doubts == ()


def test_slow_memory_and_a_constant_at_its_bound_are_doubted():
    seen = kernels()
    slow = Simple().time_s(seen.dims, FACTS, "bfloat16", TRUTH | {"memory": 0.25e12, "fixed": 5e-3})
    doubts = fit(Simple(), replace(seen, time_s=slow), FACTS).doubts
    assert any(one.startswith("memory is 0.") and "at least 0.6" in one for one in doubts)
    assert "fixed is at its upper bound, 0.001 s" in doubts


class Twofold(Simple):
    """`Simple` with a constant that enters by its distance from 1: two values explain the same times."""

    def constants(self, facts, dtype):
        return (*super().constants(facts, dtype)[:3], Constant("tilt", "1", 0.05, 20.0, 1.0, 0.8, "either way"))

    def time_s(self, dims, facts, dtype, values):
        return super().time_s(dims, facts, dtype, values) * (1 + np.log(values["tilt"]) ** 2)


def test_two_answers_that_are_as_good_are_both_said():
    seen = kernels()
    tilted = Twofold().time_s(seen.dims, FACTS, "bfloat16", TRUTH | {"tilt": 3.0})
    doubts = fit(Twofold(), replace(seen, time_s=tilted), FACTS).doubts
    assert any(one.startswith("tilt is ") and "about as likely" in one for one in doubts)


@pytest.mark.parametrize("seed", range(4))
def test_a_library_that_does_more_does_not_make_main_memory_slow(seed):
    """Few large weights, 5 % noise, bad rows, and conversion by a kernel of its own: memory stays the memory's."""
    law, generator, dtype = ScaledMatmul(), np.random.default_rng(seed), "float8_e4m3fn"
    facts = replace(FACTS, matrix_flops_per_s={dtype: 800e12})
    large = generator.random(120) < 0.06
    dims = {
        "m": np.exp2(generator.uniform(0, 14, 120)).round(),
        "n": np.where(large, 16384.0, 64 * generator.integers(2, 32, 120)),
        "k": np.where(large, 8192.0, 64 * generator.integers(2, 32, 120)),
    }
    truth = {c.name: c.prior for c in law.constants(facts, dtype)}
    more_s = 3e-6 + 6 * dims["m"] * dims["k"] / (0.5 * facts.bandwidth_bytes_per_s)
    noise = 0.05 * generator.normal(size=120) + np.where(generator.random(120) < 0.05, generator.normal(size=120), 0.0)
    time_s = (law.time_s(dims, facts, dtype, truth) + more_s) * np.exp(noise)
    seen = replace(kernels(groups=12, rows=10), dtype=dtype, dims=dims, time_s=time_s)
    assert fit(law, seen, facts, seed).values["memory"] > 0.6 * facts.bandwidth_bytes_per_s


class Rooted:
    """A law that takes the root of a share whose prior is its lower bound."""

    name = "rooted"
    dims = ("n",)

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        return (
            Constant("share", "1", 0.0, 1.0, 0.0, 0.3, "a share", False),
            Constant("rate", "1/s", 1e3, 1e9, 1e6, 1.0, "rows in a second"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        return np.asarray(dims["n"] / values["rate"] * (1 + np.sqrt(values["share"])))


def test_constants_are_never_tried_beyond_their_bounds() -> None:
    n = np.array([1.0, 2.0, 4.0, 8.0])
    seen = Observations("rooted", "bfloat16", {"n": n}, n / 2e6, np.array(["a"] * 4))
    assert fit(Rooted(), seen, FACTS).values["rate"] == pytest.approx(2e6, rel=0.3)  # a warning would be an error
