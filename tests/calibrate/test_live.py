"""Laws fitted to a simulated device's kernels: what was put in comes out, on sizes that were not measured."""

import numpy as np
import pytest

from calibrate.kernels.observations import Observations
from calibrate.kernels.score import fit_measured, stored_laws
from roofline.laws.fitted import Provenance
from roofline.laws.kinds import laws
from roofline.laws.law import Facts

FACTS = Facts(8, 32e6, 1e11, {"float32": 1e12}, 5e11)
LAW = laws()["pointwise"]
TRUE = {c.name: c.prior for c in LAW.constants(FACTS, "float32")} | {"launch": 5e-6, "memory": 6e10, "cache": 4e11}


def kernels(kind: str, rows: int, noise: float, seed: int = 0, factor: float = 1.0) -> Observations:
    generator = np.random.default_rng(seed)
    size = np.exp(generator.uniform(np.log(1e3), np.log(1e8), rows))
    dims = {"bytes_read": size, "bytes_written": size, "kernels": np.ones(rows), "elements": size / 4}
    dims |= {"flops": size / 4, "cold": generator.integers(0, 2, rows).astype(float)}
    time_s = factor * LAW.time_s(dims, FACTS, "float32", TRUE) * np.exp(noise * generator.normal(size=rows))
    return Observations(kind, "float32", dims, time_s, np.array([f"s{i % 7}" for i in range(rows)]))


def test_a_law_of_an_operator_predicts_sizes_that_were_not_measured() -> None:
    found = fit_measured({("aten::mul", "float32"): kernels("aten::mul", 24, 0.02)}, FACTS)
    law = next(one for one in found if one.kind == "aten::mul")
    unseen = kernels("aten::mul", 200, 0.0, seed=1)
    assert np.abs(law.model.time_s(unseen.dims) / unseen.time_s - 1).mean() < 0.05
    assert 0.005 < law.model.unseen_error < 0.2


def test_operators_of_one_kind_are_pooled_for_those_that_were_not_measured() -> None:
    tables = {(op, "float32"): kernels(op, 14, 0.01) for op in ("aten::mul", "aten::add", "aten::mean")}
    found = {(law.kind, law.dtype): law.points for law in fit_measured(tables, FACTS)}
    assert found["pointwise", "float32"] == 28
    assert found["norm", "float32"] == 14
    assert set(found) == {*tables, ("pointwise", "float32"), ("norm", "float32")}


def test_too_few_kernels_make_no_law() -> None:
    assert fit_measured({("matvec", "float32"): kernels("matvec", 5, 0.01)}, FACTS) == []


def test_stored_laws_predict_what_the_models_do() -> None:
    found = fit_measured({("aten::mul", "float32"): kernels("aten::mul", 24, 0.02)}, FACTS)
    kept = stored_laws(found, Provenance(runs=("r",), date="2026-01-01", seed=0))
    unseen = kernels("aten::mul", 50, 0.0, seed=2)
    for law, stored in zip(found, kept, strict=True):
        assert (stored.kind, stored.points, stored.unseen) == (law.name, law.points, law.model.unseen_error)
        assert stored.time_s(unseen.dims, FACTS) == pytest.approx(law.model.time_s(unseen.dims))
