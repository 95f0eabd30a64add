"""What every law must do, and a fit of it to data that it did not make: shared by the tests of laws."""

import numpy as np
from numpy.typing import NDArray

from calibrate.kernels.fit import Fitted, Observations, fit
from roofline.laws.law import Dims, Facts, Law

Floats = NDArray[np.float64]

FACTS = Facts(
    units=100,
    cache_bytes=50e6,
    bandwidth_bytes_per_s=3e12,
    matrix_flops_per_s={"bfloat16": 900e12, "float8_e4m3fn": 1800e12},
    vector_flops_per_s=60e12,
    link_bytes_per_s=450e9,
)


def priors(law: Law, **instead: float) -> dict[str, float]:
    return {c.name: c.prior for c in law.constants(FACTS, "bfloat16")} | instead


def price(law: Law, dims: Dims, **instead: float) -> Floats:
    return law.time_s(dims, FACTS, "bfloat16", priors(law, **instead))


def columns(rows: int = 1, **sizes: float | Floats) -> dict[str, Floats]:
    return {name: np.broadcast_to(np.asarray(size, dtype=float), (rows,)).copy() for name, size in sizes.items()}


def one_by_one(law: Law, dims: Dims) -> Floats:
    rows = range(len(next(iter(dims.values()))))
    return np.concatenate([price(law, {name: column[[row]] for name, column in dims.items()}) for row in rows])


def fitted_to(law: Law, dims: Dims, time_s: Floats) -> Fitted:
    """The law fitted to times that a test computes in its own way, with 1 % of noise."""
    noisy = time_s * np.exp(0.01 * np.random.default_rng(0).normal(size=len(time_s)))
    return fit(law, Observations(law.name, "bfloat16", dims, noisy, np.full(len(time_s), "all")), FACTS)
