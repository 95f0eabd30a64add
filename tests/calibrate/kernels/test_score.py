import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibrate_samples import FACTS, products
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from calibrate.kernels.fit import Observations, halves
from calibrate.kernels.score import (
    Calibrated,
    by_region,
    calibrate_kind,
    fit_measured,
    regions_of,
    repeat_noise,
    scores,
    stored_laws,
)
from roofline.hardware.spec import HardwareSpec
from roofline.laws.fitted import FittedLaw, Provenance
from roofline.laws.kinds import law_named
from roofline.laws.law import Facts


def test_scores_by_hand() -> None:
    predicted, measured = np.array([11.0, 1.0, 4.0]), np.array([10.0, 2.0, 4.0])
    interval = (np.array([9.0, 0.9, 5.0]), np.array([12.0, 1.9, 6.0]))
    found = scores(predicted, measured, interval)
    assert found.mape == pytest.approx((0.1 + 0.5 + 0) / 3)
    assert found.median == pytest.approx(0.1)
    assert found.p90 == pytest.approx(0.1 + 0.8 * 0.4)
    assert found.time_weighted == pytest.approx(2 / 16)
    assert found.bias == pytest.approx((0.1 - 0.5) / 3)
    assert found.coverage == pytest.approx(1 / 3)


@pytest.mark.parametrize("predicted", [[], [1.0], [1.0, np.nan]])
def test_scores_refuse_what_is_not_a_prediction_each(predicted: list[float]) -> None:
    with pytest.raises(ValueError, match="predictions"):
        scores(np.array(predicted), np.array([1.0, 2.0][: max(len(predicted), 0)] + [1.0] * (len(predicted) == 1)))


def test_regions() -> None:
    table = products()
    regions = regions_of(table)
    assert not regions.pop("decode").any()
    assert np.sum([rows.sum() for rows in regions.values()]) == len(table)
    found = by_region(table.time_s * 1.1, table.time_s, regions)
    assert {name: round(one.mape, 9) for name, one in found.items()} == dict.fromkeys(("small", "medium", "large"), 0.1)


def test_what_a_decode_step_waits_for_is_a_region() -> None:
    table = products()
    found = regions_of(table, cache_bytes=4e7)["decode"]
    expected = (table.dims["m"] <= 64) & (2 * table.dims["n"] * table.dims["k"] >= 4e7)
    assert 0 < found.sum() < len(table)
    assert (found == expected).all()
    long = Observations("decode_attention", "bfloat16", {"kv": np.array([4095.0, 4096.0])}, np.ones(2), table.group[:2])
    assert regions_of(long)["decode"].tolist() == [False, True]


def test_a_group_is_on_one_side_only() -> None:
    for seed in range(5):
        seen, unseen = halves(products(), seed)
        assert not set(seen.group) & set(unseen.group)
        assert (len(set(seen.group)), len(set(unseen.group))) == (9, 9)
        again, _ = halves(products(), seed)
        assert (again.group == seen.group).all()


def test_one_group_cannot_be_split() -> None:
    table = products()
    with pytest.raises(ValueError, match="one group"):
        halves(table.take(table.group == table.group[0]), 0)


def test_repeat_noise_by_hand() -> None:
    one = np.array([1.0, 1.0, 2.0])
    table = Observations("matmul", "bfloat16", {"m": one}, np.array([0.9, 1.1, 7.0]), np.array(["a", "a", "b"]))
    assert repeat_noise(table) == pytest.approx(0.1)
    assert repeat_noise(table.take(np.array([0, 2]))) is None


PROVENANCE = Provenance(runs=("results/x",), date="2026-11-26T00:00:00+00:00", seed=0)


def kept_of(calibrated: Calibrated) -> FittedLaw:
    """As a spec's file says it."""
    (law,) = stored_laws([calibrated.law], PROVENANCE)
    return FittedLaw.model_validate_json(law.model_dump_json())


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
    low, high = calibrated.law.interval(unseen.dims, FACTS)
    within = (low <= unseen.time_s) & (unseen.time_s <= high)
    assert calibrated.scores.coverage == within.mean()


def test_a_law_is_the_same_after_it_was_kept(calibrated: Calibrated) -> None:
    kept = kept_of(calibrated)
    dims = products().dims
    np.testing.assert_allclose(kept.time_s(dims, FACTS), calibrated.law.time_s(dims, FACTS), rtol=1e-9)
    np.testing.assert_allclose(kept.interval(dims, FACTS), calibrated.law.interval(dims, FACTS), rtol=1e-9)
    spec = HardwareSpec(name="x", kind="cuda", calibrated=(kept,))
    assert HardwareSpec.model_validate_json(spec.model_dump_json()) == spec
    assert {one.name for one in kept.constants if not one.determined} == set(calibrated.law.undetermined)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_law_without_a_correction_is_kept_with_its_interval(noise: float) -> None:
    seen, unseen = halves(products(noise=noise), 0)
    found = calibrate_kind(seen, unseen, FACTS, points=60)
    alone = replace(found, law=found.law.model_copy(update={"correction": None, "width": 0.25}))
    kept = kept_of(alone)
    assert kept.correction is None
    low, high = kept.interval(unseen.dims, FACTS)
    np.testing.assert_allclose(low, alone.law.interval(unseen.dims, FACTS)[0], rtol=1e-12)
    np.testing.assert_allclose(high / low, np.exp(0.5))


@given(st.lists(st.integers(0, 179), min_size=1, max_size=5))
def test_a_kernel_is_priced_alike_in_any_batch(calibrated: Calibrated, rows: list[int]) -> None:
    law, dims = kept_of(calibrated), products().take(np.array(rows)).dims
    alone = [law.interval({name: column[[i]] for name, column in dims.items()}, FACTS) for i in range(len(rows))]
    np.testing.assert_allclose(law.interval(dims, FACTS), np.concatenate(alone, axis=1), rtol=1e-9)


def test_outside_the_domain_a_prediction_says_so(calibrated: Calibrated) -> None:
    kept = kept_of(calibrated)
    m = np.array([kept.domain["m"].high, kept.domain["m"].high * 2])
    side = np.full(2, kept.domain["n"].low)
    assert kept.outside({"m": m, "n": side, "k": np.full(2, kept.domain["k"].low)}).tolist() == [False, True]


def test_an_unknown_law_is_refused_by_name(calibrated: Calibrated) -> None:
    content = kept_of(calibrated).model_dump()
    with pytest.raises(ValidationError, match="no law is known for 'quantum'"):
        FittedLaw.model_validate({**content, "law": "quantum"})
    with pytest.raises(ValidationError, match="law of matmul is from a newer roofcal: update it"):
        FittedLaw.model_validate({**content, "schema_version": 99, "later": 1})
    with pytest.raises(ValidationError, match="law of matmul is from an older roofcal: calibrate again"):
        FittedLaw.model_validate({**content, "schema_version": 1, "width": None})
    law = kept_of(calibrated)
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
    kept = json.loads((Path(__file__).parents[2] / "data" / "laws" / "schema3.json").read_text())
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
    doubtful = replace(calibrated, law=calibrated.law.model_copy(update={"doubts": ("memory is odd",)}))
    kept = kept_of(doubtful)
    assert kept.doubts == ("memory is odd",)
    assert kept.held is not None and kept.held == calibrated.law.held


CPU = Facts(8, 32e6, 1e11, {"float32": 1e12}, 5e11)
LAW = law_named("pointwise")
TRUE = {c.name: c.prior for c in LAW.constants(CPU, "float32")} | {"launch": 5e-6, "memory": 6e10, "cache": 4e11}


def kernels(kind: str, rows: int, noise: float, seed: int = 0, factor: float = 1.0) -> Observations:
    generator = np.random.default_rng(seed)
    size = np.exp(generator.uniform(np.log(1e3), np.log(1e8), rows))
    dims = {"bytes_read": size, "bytes_written": size, "kernels": np.ones(rows), "elements": size / 4}
    dims |= {"flops": size / 4, "cold": generator.integers(0, 2, rows).astype(float)}
    time_s = factor * LAW.time_s(dims, CPU, "float32", TRUE) * np.exp(noise * generator.normal(size=rows))
    return Observations(kind, "float32", dims, time_s, np.array([f"s{i % 7}" for i in range(rows)]))


def test_a_law_of_an_operator_predicts_sizes_that_were_not_measured() -> None:
    found = fit_measured({("aten::mul", "float32"): kernels("aten::mul", 24, 0.02)}, CPU)
    law = next(one for one in found if one.kind == "aten::mul")
    unseen = kernels("aten::mul", 200, 0.0, seed=1)
    assert np.abs(law.time_s(unseen.dims, CPU) / unseen.time_s - 1).mean() < 0.05
    assert 0.005 < law.unseen < 0.2


def test_operators_of_one_kind_are_pooled_for_those_that_were_not_measured() -> None:
    tables = {(op, "float32"): kernels(op, 14, 0.01) for op in ("aten::mul", "aten::add", "aten::mean")}
    found = {(law.kind, law.dtype): law.points for law in fit_measured(tables, CPU)}
    assert found["pointwise", "float32"] == 28
    assert found["norm", "float32"] == 14
    assert set(found) == {*tables, ("pointwise", "float32"), ("norm", "float32")}


def test_too_few_kernels_make_no_law() -> None:
    assert fit_measured({("matvec", "float32"): kernels("matvec", 5, 0.01)}, CPU) == []


def test_stored_laws_predict_what_the_models_do() -> None:
    found = fit_measured({("aten::mul", "float32"): kernels("aten::mul", 24, 0.02)}, CPU)
    kept = stored_laws(found, Provenance(runs=("r",), date="2026-01-01", seed=0))
    unseen = kernels("aten::mul", 50, 0.0, seed=2)
    for law, again in zip(found, kept, strict=True):
        assert (again.kind, again.points, again.unseen) == (law.kind, law.points, law.unseen)
        assert again.time_s(unseen.dims, CPU) == pytest.approx(law.time_s(unseen.dims, CPU))
