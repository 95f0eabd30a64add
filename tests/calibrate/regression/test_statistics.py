"""Estimates against scipy's own, and error rates against noise whose answer is known."""

import numpy as np
import pytest
from scipy.stats import chi2, kstest, norm, ttest_ind

from calibrate.regression.statistics import TRIM, joined, moderated, paired, single, unpaired

RANDOM = np.random.default_rng(11)


@pytest.mark.parametrize(("before", "after"), [(3, 3), (4, 9), (10, 10), (12, 5), (2, 30)])
def test_two_sides_are_yuens_test_as_scipy_has_it(before: int, after: int) -> None:
    base, new = RANDOM.normal(0, 1, (6, before)), RANDOM.normal(0.5, 2, (6, after))
    ours = unpaired(base, new)
    theirs = ttest_ind(new, base, axis=1, equal_var=False, trim=TRIM)
    assert ours.p_different() == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ours.freedom == pytest.approx(theirs.df, rel=1e-9)
    assert ours.p_slower() == pytest.approx(
        ttest_ind(new, base, axis=1, equal_var=False, trim=TRIM, alternative="greater").pvalue, rel=1e-9
    )


@pytest.mark.parametrize("count", [3, 5, 10, 20])
def test_pairs_are_yuens_test_against_a_side_without_noise(count: int) -> None:
    ratios = RANDOM.normal(0.2, 1, (6, count))
    theirs = ttest_ind(ratios, np.zeros_like(ratios), axis=1, equal_var=False, trim=TRIM)
    assert paired(ratios).p_different() == pytest.approx(theirs.pvalue, rel=1e-9)


def test_a_tail_is_right_where_decisions_are_taken() -> None:
    """With five degrees of freedom a plain interval is far too wide or, taken as normal, far too narrow; what a suite
    of equally noisy kernels knows makes p uniform, down to the tail."""
    p = moderated(paired(RANDOM.normal(0, 0.01, (200_000, 4)))).p_slower()
    assert kstest(p, "uniform").statistic < 0.005
    assert (p < 1e-3).mean() == pytest.approx(1e-3, rel=0.25)


def test_the_common_variance_and_its_worth_are_found() -> None:
    """Variances drawn as the theory has them: inverse chi-squared around 4, worth 10 degrees of freedom."""
    own = 4.0 * 10 / chi2.rvs(10, size=40_000, random_state=RANDOM)
    estimates = paired(RANDOM.normal(0, np.sqrt(own)[:, None], (40_000, 4)))
    shrunk = moderated(estimates)
    assert shrunk.freedom[0] - estimates.freedom[0] == pytest.approx(10, rel=0.1)
    worth = 10 * 4.0 + estimates.freedom * estimates.error**2 * estimates.size
    assert shrunk.error**2 * shrunk.size == pytest.approx(worth / (10 + estimates.freedom), rel=0.05)


def test_uneven_noise_is_hardly_shrunk() -> None:
    own = np.exp(RANDOM.normal(0, 3, 2_000))
    estimates = paired(RANDOM.normal(0, own[:, None], (2_000, 12)))
    assert moderated(estimates).freedom[0] < estimates.freedom[0] + 1


def test_a_small_suite_keeps_its_own_errors() -> None:
    estimates = paired(RANDOM.normal(0, 1, (9, 6)))
    assert moderated(estimates) is estimates


def test_one_outlier_in_ten_moves_little() -> None:
    ratios = RANDOM.normal(0, 0.005, (500, 10))
    before = paired(ratios)
    ratios[:, 3] += 5.0
    after = paired(ratios)
    assert np.abs(after.value - before.value).max() < 0.01
    assert np.median(after.error / before.error) < 1.5


def test_one_replicate_has_no_interval_unless_the_spread_is_known() -> None:
    base, new = np.log([[1.0]]), np.log([[1.02]])
    alone = unpaired(base, new)
    assert np.isinf(alone.half(0.95)[0]) and alone.p_slower()[0] == 1.0
    known = single(base, new, 0.005)
    assert known.p_slower()[0] == pytest.approx(norm.sf(np.log(1.02) / (0.005 * np.sqrt(2))), rel=1e-3)
    both = moderated(joined([alone, *[paired(RANDOM.normal(0, 1, (1, 5)))] * 12]))
    assert np.isinf(both.error[0])


def test_no_noise_at_all_is_certain() -> None:
    same = moderated(paired(np.zeros((20, 5))))
    assert (same.p_slower() == 1).all()
    assert (moderated(paired(np.full((20, 5), 0.1))).p_slower() == 0).all()
