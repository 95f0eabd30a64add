"""Made-up kernels of a law whose constants are known, with noise."""

import numpy as np

from calibrate.kernels.fit import Observations
from roofline.laws.law import Constant, Facts

FACTS = Facts(
    units=100,
    cache_bytes=50e6,
    bandwidth_bytes_per_s=2e12,
    matrix_flops_per_s={"bfloat16": 400e12},
    vector_flops_per_s=50e12,
)


class Simple:
    """fixed + flops / rate + bytes / memory; `unseen` acts on nothing."""

    name = "simple"
    dims = ("m", "n")

    def constants(self, facts, dtype):
        peak, memory = facts.matrix_flops_per_s[dtype], facts.bandwidth_bytes_per_s
        return (
            Constant("fixed", "s", 1e-7, 1e-3, 3e-6, 1.0, "of a call"),
            Constant("rate", "FLOP/s", 0.05 * peak, peak, 0.8 * peak, 0.5, "sustained"),
            Constant("memory", "B/s", 0.1 * memory, memory, 0.8 * memory, 0.5, "sustained"),
            Constant("unseen", "1", 0.1, 10.0, 1.0, 0.5, "nothing that these kernels show"),
        )

    def time_s(self, dims, facts, dtype, values):
        m, n = (np.asarray(dims[name], dtype=float) for name in ("m", "n"))
        return values["fixed"] + 2 * m * n * 1000 / values["rate"] + 2 * (m + n) * 1000 / values["memory"]


TRUTH = {"fixed": 5e-6, "rate": 250e12, "memory": 1.2e12, "unseen": 1.0}


def kernels(seed=0, noise=0.02, groups=20, rows=12, bump=0.0, uneven=1.0, apart=0.0):
    """Observations of `Simple` at TRUTH, with log-normal noise.

    `bump` adds a smooth deviation that the law does not know; the smallest kernels have `uneven` times the noise of the
    largest; each group is off by itself with deviation `apart`.
    """
    generator = np.random.default_rng(seed)
    n = np.repeat(np.exp2(generator.uniform(5, 15, groups)).round(), rows)
    m = np.exp2(generator.uniform(0, 15, groups * rows)).round()
    exact = 5e-6 + 2 * m * n * 1000 / 250e12 + 2 * (m + n) * 1000 / 1.2e12
    shape = bump * np.exp(-0.5 * ((np.log2(m) - 8) / 2.5) ** 2)
    shape = shape + apart * np.repeat(generator.normal(size=groups), rows)
    small = 1 - np.log2(m) / 15
    time_s = exact * np.exp(shape + noise * uneven**small * generator.normal(size=len(m)))
    return Observations("simple", "bfloat16", {"m": m, "n": n}, time_s, np.array([f"n{x:.0f}" for x in n]))
