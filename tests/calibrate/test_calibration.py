import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibrate_samples import FACTS, products
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from calibrate.kernels.observations import halves
from calibrate.kernels.score import Calibrated, calibrate_kind, stored
from roofline.hardware.spec import HardwareSpec
from roofline.laws.fitted import FittedLaw, Provenance

PROVENANCE = Provenance(runs=("results/x",), date="2026-11-26T00:00:00+00:00", seed=0)


@pytest.fixture(scope="module")
def calibrated() -> Calibrated:
    return calibrate_kind(*halves(products(), 0), FACTS, points=60, seed=0)


def test_a_known_law_is_found_and_beats_rooflines(calibrated: Calibrated) -> None:
    assert calibrated.points <= 60
    assert calibrated.scores.rows == 90
    assert calibrated.scores.mape < 0.07
    assert calibrated.scores.mape < calibrated.four_constant.mape < calibrated.datasheet.mape


def test_coverage_is_of_the_kernels_not_seen(calibrated: Calibrated) -> None:
    _, unseen = halves(products(), 0)
    low, high = calibrated.model.interval(unseen.dims)
    within = (low <= unseen.time_s) & (unseen.time_s <= high)
    assert calibrated.scores.coverage == within.mean()


def test_a_law_is_the_same_after_it_was_kept(calibrated: Calibrated) -> None:
    kept = FittedLaw.model_validate_json(stored(calibrated, PROVENANCE).model_dump_json())
    dims = products().dims
    np.testing.assert_allclose(kept.time_s(dims, FACTS), calibrated.model.time_s(dims), rtol=1e-9)
    np.testing.assert_allclose(kept.interval(dims, FACTS), calibrated.model.interval(dims), rtol=1e-9)
    spec = HardwareSpec(name="x", kind="cuda", calibrated=(kept,))
    assert HardwareSpec.model_validate_json(spec.model_dump_json()) == spec
    assert {one.name for one in kept.constants if not one.determined} == set(calibrated.model.fitted.undetermined)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_law_without_a_correction_is_kept_with_its_interval(noise: float) -> None:
    seen, unseen = halves(products(noise=noise), 0)
    found = calibrate_kind(seen, unseen, FACTS, points=60)
    bare = replace(found.model.corrected, process=None, width=0.25)
    alone = replace(found, model=replace(found.model, corrected=bare))
    kept = FittedLaw.model_validate_json(stored(alone, PROVENANCE).model_dump_json())
    assert kept.correction is None
    low, high = kept.interval(unseen.dims, FACTS)
    np.testing.assert_allclose(low, alone.model.interval(unseen.dims)[0], rtol=1e-12)
    np.testing.assert_allclose(high / low, np.exp(0.5))


@given(st.lists(st.integers(0, 179), min_size=1, max_size=5))
def test_a_kernel_is_priced_alike_in_any_batch(calibrated: Calibrated, rows: list[int]) -> None:
    law, dims = stored(calibrated, PROVENANCE), products().take(np.array(rows)).dims
    alone = [law.interval({name: column[[i]] for name, column in dims.items()}, FACTS) for i in range(len(rows))]
    np.testing.assert_allclose(law.interval(dims, FACTS), np.concatenate(alone, axis=1), rtol=1e-9)


def test_outside_the_domain_a_prediction_says_so(calibrated: Calibrated) -> None:
    kept = stored(calibrated, PROVENANCE)
    m = np.array([kept.domain["m"].high, kept.domain["m"].high * 2])
    side = np.full(2, kept.domain["n"].low)
    assert kept.outside({"m": m, "n": side, "k": np.full(2, kept.domain["k"].low)}).tolist() == [False, True]


def test_an_unknown_law_is_refused_by_name(calibrated: Calibrated) -> None:
    content = stored(calibrated, PROVENANCE).model_dump()
    with pytest.raises(ValidationError, match="no law is known for 'quantum'"):
        FittedLaw.model_validate({**content, "law": "quantum"})
    with pytest.raises(ValidationError, match="law of matmul is from a newer roofcal: update it"):
        FittedLaw.model_validate({**content, "schema_version": 99, "later": 1})
    with pytest.raises(ValidationError, match="law of matmul is from an older roofcal: calibrate again"):
        FittedLaw.model_validate({**content, "schema_version": 1, "width": None})
    law = stored(calibrated, PROVENANCE)
    with pytest.raises(ValidationError, match="two laws of matmul bfloat16"):
        HardwareSpec(name="x", kind="cuda", calibrated=(law, law))


def test_fewer_points_than_constants() -> None:
    with pytest.raises(ValueError, match="constants, and 5 points cannot"):
        calibrate_kind(*halves(products(), 0), FACTS, points=5)


def test_one_point_is_one_in_words() -> None:
    table = products()
    with pytest.raises(ValueError, match="and 1 row cannot"):
        calibrate_kind(table.take(np.array([0])), table, FACTS)


def test_a_law_that_was_kept_before_there_were_bounds_is_read_and_held() -> None:
    kept = json.loads((Path(__file__).parents[1] / "data" / "laws" / "schema3.json").read_text())
    law = FittedLaw.model_validate(kept["law"])
    assert (law.held, law.doubts) == (None, ())
    dims = {name: np.array(column) for name, column in kept["dims"].items()}
    # The law of products has moved since (steps on slow units, what weights keep of a cache), by a few per cent: said.
    assert law.is_outdated
    np.testing.assert_allclose(law.time_s(dims, FACTS), kept["time_s"], rtol=0.08)
    # Without its correction no measured kernel is known, and the law is believed as it is.
    bare = FittedLaw.model_validate(kept["law"] | {"correction": None})
    assert np.isfinite(bare.time_s(dims, FACTS)).all()


def test_bounds_and_doubts_are_kept(calibrated: Calibrated) -> None:
    fitted = replace(calibrated.model.fitted, doubts=("memory is odd",))
    kept = stored(replace(calibrated, model=replace(calibrated.model, fitted=fitted)), PROVENANCE)
    assert kept.doubts == ("memory is odd",)
    bounds = calibrated.model.corrected.bounds
    assert kept.held is not None and bounds is not None
    assert (kept.held.overhead_s, kept.held.most) == (bounds.overhead_s, bounds.most)
