"""A law fitted on a device unlike those it was written for: many units, a large cache, slow memory, a low power limit.

The device is simulated, and by other means than the law's: whole waves of one chosen tile shape, split-K in powers of
two, and exact reuse distances of a cache that replaces the least recently used, over six layers' weights in turn.
"""

import numpy as np
import pytest

from calibrate.kernels.correct import train
from calibrate.kernels.observations import Observations, halves
from roofline.laws.law import Facts
from roofline.laws.matmul import Matmul

FACTS = Facts(142, 96e6, 864e9, {"bfloat16": 362e12}, 91e12)
MEMORY, CACHE, BURST, SUSTAINED, LAUNCH_S = 750e9, 5e12, 330e12, 230e12, 3e-6
LAYERS = 6
TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 64))
EFFICIENCY = (1.0, 1.0, 0.9, 0.75, 0.6)
SIZES = (32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 5120, 7168, 8192, 12288, 16384, 65536)
ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)


def simulated_s(m, n, k):
    """Seconds of one product among six layers."""
    weights, inputs, outputs = 2 * n * k, 2 * m * k, 2 * m * n
    weights_stay = LAYERS * weights + inputs + outputs <= FACTS.cache_bytes
    others_stay = weights + inputs + outputs <= FACTS.cache_bytes
    missed = (0 if weights_stay else weights) + (0 if others_stay else inputs + outputs)
    memory_s = max(missed / MEMORY, (weights + inputs + outputs) / CACHE)
    best = np.inf
    for (rows, columns), efficiency in zip(TILES, EFFICIENCY, strict=True):
        grid = -(-m // rows) * -(-n // columns)
        for parts in (1, 2, 4, 8, 16):
            if parts > max(1, k // 256):
                continue
            waves = -(-grid * parts // FACTS.units)
            tile_s = 2 * rows * columns * (k / parts + 64) / (BURST * efficiency / FACTS.units)
            sums_s = 0 if parts == 1 else 2e-6 + 8 * m * n * parts / CACHE
            best = min(best, waves * tile_s + sums_s)
    loops_s = best if best < 2e-4 else 2e-4 + (best - 2e-4) * BURST / SUSTAINED
    return LAUNCH_S + max(loops_s, memory_s) + 0.2 * min(loops_s, memory_s)


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    shapes = [(n, k) for n in SIZES for k in SIZES if n * k < 5e8]
    shapes = [shapes[at] for at in generator.choice(len(shapes), 120, replace=False)]
    sizes = np.array([(m, n, k) for n, k in shapes for m in ROWS])
    times = np.array([simulated_s(*map(int, one)) for one in sizes])
    times *= np.exp(0.02 * generator.normal(size=len(times)))
    dims = {name: column.astype(float) for name, column in zip("mnk", sizes.T, strict=True)}
    return Observations("matmul", "bfloat16", dims, times, np.array([f"{n} {k}" for _, n, k in sizes]))


@pytest.mark.parametrize("seed", [0, 1])
def test_two_hundred_points_say_what_other_products_take(table, seed):
    seen, unseen = halves(table, seed)
    model = train(Matmul(), seen, FACTS, 200, seed)
    off = np.abs(model.time_s(unseen.dims) / unseen.time_s - 1)
    assert off.mean() < 0.08
    weights = LAYERS * 2 * unseen.dims["n"] * unseen.dims["k"]
    beyond = weights > 3 * FACTS.cache_bytes
    assert off[beyond].mean() < 0.05
    assert model.fitted.values["kept"] == pytest.approx(1 / LAYERS, rel=0.3)
    assert model.fitted.values["memory"] == pytest.approx(MEMORY, rel=0.1)


def test_before_any_measurement_the_cache_is_known_to_be_much_faster_than_memory():
    prior = {constant.name: constant for constant in Matmul().constants(FACTS, "bfloat16")}["cache"]
    assert prior.low < CACHE < prior.high
    assert prior.prior == pytest.approx(CACHE, rel=0.3)
