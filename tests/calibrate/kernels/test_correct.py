"""Fitted laws of made-up kernels and of a device unlike those that laws were written for."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_kernels import FACTS, Simple, kernels

from calibrate.kernels.choose import design
from calibrate.kernels.correct import train_on
from calibrate.kernels.fit import Observations, halves
from roofline.laws.kinds import KINDS, KernelKind
from roofline.laws.law import Facts
from roofline.laws.matmul import Matmul


def halved(seed=0, **options):
    seen = kernels(seed=seed, groups=60, rows=20, **options)
    first = np.isin(seen.group, np.unique(seen.group)[::2])
    return seen.take(first), seen.take(~first)


def train(law, table, facts, points, seed=0):
    rows = design(law, table.dims, facts, table.dtype, points, seed, table.group)
    return train_on(law, table.take(rows), facts, seed)


def error(law, held):
    return float(np.abs(law.time_s(held.dims, FACTS) / held.time_s - 1).mean())


@pytest.fixture(autouse=True)
def _a_kind_of_its_own(monkeypatch):
    """One law and one row are what a new kind costs."""
    monkeypatch.setitem(KINDS, "simple", KernelKind("simple", law=Simple()))


def test_a_law_that_is_right_is_left_at_its_noise():
    seen, held = halved(noise=0.03)
    assert error(train(Simple(), seen, FACTS, points=100), held) < 0.032


def test_a_correction_helps_where_the_law_lacks_something():
    seen, held = halved(noise=0.01, bump=0.25)
    model = train(Simple(), seen, FACTS, points=120)
    law = np.abs(Simple().time_s(held.dims, FACTS, "bfloat16", model.values) / held.time_s - 1).mean()
    assert model.correction is not None
    assert error(model, held) < 0.6 * law


@pytest.mark.parametrize(
    ("groups", "made"),
    [
        (60, {"noise": 0.04}),
        (60, {"noise": 0.04, "bump": 0.2}),
        (60, {"noise": 0.02, "uneven": 4.0}),
        (60, {"noise": 0.02, "apart": 0.06}),
        (60, {"noise": 0.02, "apart": 0.05, "uneven": 4.0, "bump": 0.15}),
        (10, {"noise": 0.02, "apart": 0.05, "bump": 0.1}),
        (10, {"noise": 0.02, "apart": 0.05, "uneven": 4.0}),
    ],
)
def test_intervals_cover_what_they_say(groups, made):
    """Also where noise depends on size, and where whole groups are off, of which few are seen."""
    covered = []
    for seed in range(8):
        table = kernels(seed=seed, groups=groups, rows=1800 // groups, **made)
        first = np.isin(table.group, np.unique(table.group)[::2])
        held = table.take(~first)
        low, high = train(Simple(), table.take(first), FACTS, points=120, seed=seed).interval(held.dims, FACTS)
        covered.append(((low <= held.time_s) & (held.time_s <= high)).mean())
    assert 0.86 <= np.mean(covered) <= 0.94


def test_an_interval_is_wider_away_from_the_points():
    model = train(Simple(), halved(noise=0.02, bump=0.2)[0], FACTS, points=80)
    low, high = model.interval({"m": np.array([256.0, 2.0**30]), "n": np.array([1024.0, 2.0**30])}, FACTS)
    assert np.log(high / low)[1] > 1.5 * np.log(high / low)[0]


def test_of_one_group_rows_are_held_out():
    seen, _ = halved(noise=0.05)
    one = seen.take(np.arange(0, len(seen), 3))
    alone = train_on(Simple(), replace(one, group=np.full(len(one), "all")), FACTS)
    apart = train_on(Simple(), one, FACTS)
    assert alone.unseen == pytest.approx(apart.unseen, rel=0.3)


def test_only_latencies_of_the_chosen_points_are_read():
    model = train(Simple(), halved(noise=0.01, bump=0.25)[0], FACTS, points=50, seed=1)
    assert model.correction is not None
    m = model.correction.points["m"]
    assert model.points == len(m) == len(model.correction.residuals) == 50
    assert (model.domain["m"].low, model.domain["m"].high) == (min(m), max(m))


def test_a_seed_gives_one_model_and_few_points_still_give_one():
    seen, held = halved()
    one, two = (train(Simple(), seen, FACTS, points=40, seed=5).time_s(held.dims, FACTS) for _ in range(2))
    assert (one == two).all()
    few = train_on(Simple(), seen.take(np.arange(5)), FACTS)
    assert few.correction is None
    assert np.isfinite(few.interval(held.dims, FACTS)[1]).all()


ADA = Facts(142, 96e6, 864e9, {"bfloat16": 362e12}, 91e12)
MEMORY, CACHE, BURST, SUSTAINED, LAUNCH_S = 750e9, 5e12, 330e12, 230e12, 3e-6
LAYERS = 6
TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 64))
EFFICIENCY = (1.0, 1.0, 0.9, 0.75, 0.6)
SIZES = (32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 5120, 7168, 8192, 12288, 16384, 65536)
ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)


def simulated_s(m, n, k):
    """Seconds of one product among six layers."""
    weights, inputs, outputs = 2 * n * k, 2 * m * k, 2 * m * n
    weights_stay = LAYERS * weights + inputs + outputs <= ADA.cache_bytes
    others_stay = weights + inputs + outputs <= ADA.cache_bytes
    missed = (0 if weights_stay else weights) + (0 if others_stay else inputs + outputs)
    memory_s = max(missed / MEMORY, (weights + inputs + outputs) / CACHE)
    best = np.inf
    for (rows, columns), efficiency in zip(TILES, EFFICIENCY, strict=True):
        grid = -(-m // rows) * -(-n // columns)
        for parts in (1, 2, 4, 8, 16):
            if parts > max(1, k // 256):
                continue
            waves = -(-grid * parts // ADA.units)
            tile_s = 2 * rows * columns * (k / parts + 64) / (BURST * efficiency / ADA.units)
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
    model = train(Matmul(), seen, ADA, 200, seed)
    off = np.abs(model.time_s(unseen.dims, ADA) / unseen.time_s - 1)
    assert off.mean() < 0.08
    weights = LAYERS * 2 * unseen.dims["n"] * unseen.dims["k"]
    beyond = weights > 3 * ADA.cache_bytes
    assert off[beyond].mean() < 0.05
    assert model.values["kept"] == pytest.approx(1 / LAYERS, rel=0.3)
    assert model.values["memory"] == pytest.approx(MEMORY, rel=0.1)


def test_before_any_measurement_the_cache_is_known_to_be_much_faster_than_memory():
    prior = {constant.name: constant for constant in Matmul().constants(ADA, "bfloat16")}["cache"]
    assert prior.low < CACHE < prior.high
    assert prior.prior == pytest.approx(CACHE, rel=0.3)
