from dataclasses import replace

import numpy as np
import pytest
from made_up_kernels import FACTS, TRUTH, Simple, kernels

from calibrate.fit import fit
from roofline.laws.matmul import Matmul


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


def test_the_law_of_products_is_recovered_from_its_own_times():
    generator = np.random.default_rng(0)
    law = Matmul()
    dims = {name: np.exp2(generator.integers(5, 15, 250)) for name in "mnk"}
    truth = {c.name: c.prior for c in law.constants(FACTS, "bfloat16")}
    truth |= {"fixed": 6e-6, "rate": 270e12, "memory": 1.5e12, "store": 3e12}
    exact = law.time_s(dims, FACTS, "bfloat16", truth)
    seen = kernels(groups=25, rows=10)
    seen = replace(seen, kind="matmul", dims=dims, time_s=exact * np.exp(0.01 * generator.normal(size=250)))
    fitted = fit(law, seen, FACTS)
    for name in ("fixed", "rate", "memory"):
        assert fitted.values[name] == pytest.approx(truth[name], rel=0.1)
    large = np.asarray(np.logical_and.reduce([dims[name] >= 2**11 for name in "mnk"]))
    assert {"latency", "kept"} <= set(fit(law, seen.take(large), FACTS).undetermined)
