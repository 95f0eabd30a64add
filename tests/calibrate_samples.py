"""Made-up tables of kernels whose law is known exactly, and a device to have measured them."""

import numpy as np

from calibrate.kernels.fit import Observations
from roofline.laws.law import Facts
from roofline.laws.matmul import Matmul

FACTS = Facts(
    units=100,
    cache_bytes=4e7,
    bandwidth_bytes_per_s=2e12,
    matrix_flops_per_s={"bfloat16": 4e14},
    vector_flops_per_s=3e13,
    link_bytes_per_s=3e11,
)


def products(seed: int = 0, noise: float = 0.03) -> Observations:
    """18 weight shapes × 10 values of m, timed by the law at its priors, with log-normal noise."""
    sides = [512, 1024, 2048, 4096, 6144, 8192]
    shapes = [(n, k) for n in sides for k in sides[::2]]
    rows = [(m, n, k) for n, k in shapes for m in 2 ** np.arange(10)]
    m, n, k = np.array(rows, dtype=float).T
    law = Matmul()
    values = {one.name: one.prior for one in law.constants(FACTS, "bfloat16")}
    dims = {"m": m, "n": n, "k": k}
    time_s = law.time_s(dims, FACTS, "bfloat16", values)
    time_s = time_s * np.exp(noise * np.random.default_rng(seed).normal(size=len(m)))
    group = np.array([f"n{a:g} k{b:g}" for a, b in zip(n, k, strict=True)])
    return Observations("matmul", "bfloat16", dims, time_s, group)
