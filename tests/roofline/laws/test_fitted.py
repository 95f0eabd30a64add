"""Every law on every device beyond the kernels that it was fitted to: finite, held by physics, no surprises."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from law_checks import FACTS, columns
from law_sizes import WORK, Floats, family, grown, kernels

import roofline.devices
from calibrate.kernels.correct import train_on
from calibrate.kernels.fit import Observations
from roofline.dtypes import ELEMENT_BYTES
from roofline.hardware.load import load_device
from roofline.hardware.spec import facts_of
from roofline.laws.attention import DecodeAttention
from roofline.laws.fitted import Correction, Estimate, Extent, FittedLaw
from roofline.laws.kinds import law_named, laws, work_of
from roofline.laws.law import Dims, Facts, Law, Values
from roofline.laws.residuals import Residuals
from roofline.laws.work import FASTER, HEADROOM, Bounds, Work, floor_s, roofline_s

FACTORS = (1 / 4, 1, 4, 16)
"""Of each size, away from the fitted ones."""
LESS = {
    "matmul": 0.05,
    "scaled_matmul": 0.8,
    "block_scaled_matmul": 0.35,
    "prefill_attention": 0.75,
    "decode_attention": 0.45,
    "latent_prefill_attention": 0.75,
    "latent_decode_attention": 0.45,
    "experts": 0.5,
    "module": 0.5,
    "core_pointwise": 0.35,
    "core_norm": 0.35,
    "core_embedding": 0.35,
}
"""By how much a kernel of twice the size may be faster, where a library then goes over to another way of working.

Products: tiles are chosen by time, softly. Scaled ones: rows that fill up the last tile are fetched, and none are left
over (513 rows take twice the time of 512 on an H200); whole blocks of weights take a fast path. Attention: keys are
split over idle units once there are more than four blocks. Experts: tiles change with tokens. Streams on cores: where
bytes read grow alone, past those written, the second operand is no longer a number. Other laws: not at all.
"""
ROUNDING = 1e-9


@cache
def devices() -> dict[str, Facts]:
    found = {}
    for path in sorted(Path(str(roofline.devices.__path__[0])).glob("*.json")):
        found[path.stem] = facts_of(load_device(path.stem))
    return found


def asked(law: Law) -> Iterator[tuple[str, Facts, str]]:
    """Devices and dtypes that have what the law needs."""
    for name, facts in devices().items():
        for dtype in facts.matrix_flops_per_s:
            if family(law) in ("matmul", "many", "module") and dtype not in ELEMENT_BYTES:
                continue
            if family(law) != "collective" or facts.link_bytes_per_s is not None:
                yield name, facts, dtype


def priors(law: Law, facts: Facts, dtype: str) -> dict[str, float]:
    return {c.name: c.prior for c in law.constants(facts, dtype)}


def drawn(law: Law, facts: Facts, dtype: str, seed: int) -> dict[str, float]:
    """True constants of a pretended device: from the priors, within the bounds."""
    generator = np.random.default_rng(seed)
    found = {}
    for c in law.constants(facts, dtype):
        by = c.spread * generator.normal()
        found[c.name] = float(np.clip(c.prior * np.exp(by) if c.logarithmic else c.prior + by, c.low, c.high))
    return found


def fitted(
    law: Law, dtype: str, values: dict[str, float], seen: Dims, width: float, held: Bounds | None = None
) -> FittedLaw:
    """A law with these constants, as if fitted to kernels of the sizes `seen`."""
    extents = {name: Extent(low=float(seen[name].min()), high=float(seen[name].max())) for name in law.dims}
    constants = tuple(
        Estimate(name=name, unit="", value=value, low=value, high=value, determined=True)
        for name, value in values.items()
    )
    return FittedLaw(
        kind=law.name, dtype=dtype, law=law.name, arithmetic=dtype, constants=constants, domain=extents, points=1,
        scale=0.1, width=width, held=held,
    )  # fmt: skip


def away(law: Law, dims: dict[str, Floats]) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Each size at each of `FACTORS`; and the same kernels with that size twice as large."""
    sizes = [size for size in WORK[family(law)] if size in law.dims]
    one = [grown(law, dims, size, factor) for size in sizes for factor in FACTORS]
    two = [grown(law, grown(law, dims, size, factor), size, 2) for size in sizes for factor in FACTORS]
    return _stacked(one), _stacked(two)


def _stacked(parts: list[dict[str, Floats]]) -> dict[str, Floats]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def bounds_of(law: Law, dims: Dims, facts: Facts, dtype: str, time_s: Floats) -> Bounds | None:
    return None if law.name == "host_gap" else Bounds.of(work_of(law.name, dims, dtype), facts, dtype, time_s, time_s)


def check(priced: FittedLaw, dims: Dims, facts: Facts, factor: float = 1.0) -> Floats:
    """Finite, positive, between the bounds but for a correction of up to `factor`."""
    time_s = priced.time_s(dims, facts)
    assert (np.isfinite(time_s) & (time_s > 0)).all()
    if (bounds := priced.held) is not None:
        todo = work_of(priced.law, dims, priced.dtype)
        assert (time_s * factor >= (1 - ROUNDING) * bounds.least * floor_s(todo, facts, priced.dtype)).all()
        most_s = bounds.most * (roofline_s(todo, facts, priced.dtype) + bounds.overhead_s)
        assert (time_s <= (1 + ROUNDING) * factor * most_s).all()
    return time_s


def test_all_device_files_are_asked() -> None:
    assert len(devices()) >= 48
    assert all(len(list(asked(law))) > 90 for law in laws().values())


@pytest.mark.parametrize("kind", laws())
def test_at_the_priors_physics_holds_anywhere_on_any_device(kind: str) -> None:
    law = law_named(kind)
    seen = kernels(law, 24)
    one, two = away(law, kernels(law, 6, seed=1))
    for name, facts, dtype in asked(law):
        values = priors(law, facts, dtype)
        bounds = bounds_of(law, seen, facts, dtype, law.time_s(seen, facts, dtype, values))
        priced = fitted(law, dtype, values, seen, 0.1, bounds)
        ratio = check(priced, two, facts) / check(priced, one, facts)
        assert ratio.min() >= 1 - ROUNDING - LESS.get(kind, 0.0), (name, dtype)


FITTED = tuple(kind for kind in laws() if kind not in ("module", "host_gap"))


@pytest.mark.parametrize("kind", FITTED)
def test_a_fit_holds_them_too(kind: str) -> None:
    """One device for each law, another each time; the law's own times at other constants, with noise and bad rows."""
    law, place = law_named(kind), FITTED.index(kind)
    able = list(asked(law))
    _, facts, dtype = able[(7 + 13 * place) % len(able)]
    seen, generator = kernels(law, 48), np.random.default_rng(place)
    noise = 0.05 * generator.normal(size=48)
    noise[:2] += 1.5
    time_s = law.time_s(seen, facts, dtype, drawn(law, facts, dtype, place)) * np.exp(noise)
    group = (np.arange(48) % 8).astype(str)
    model = train_on(law, Observations(kind, dtype, seen, time_s, group), facts)
    one, _ = away(law, kernels(law, 6, seed=1))
    check(model, one, facts, factor=np.exp(0.3))
    low, high = model.interval(one, facts)
    assert (np.isfinite(high) & (low > 0) & (low < high)).all()


@pytest.mark.parametrize("kind", laws())
def test_an_interval_never_narrows_and_a_correction_fades_as_a_size_leaves_the_fitted_ones(kind: str) -> None:
    law, facts, dtype = law_named(kind), devices()["nvidia-h100-sxm"], "bfloat16"
    values, seen, generator = priors(law, facts, dtype), kernels(law, 30), np.random.default_rng(0)
    held = bounds_of(law, seen, facts, dtype, law.time_s(seen, facts, dtype, values))
    bare, watched = fitted(law, dtype, values, seen, 2.0, held), tuple(values)[:2]
    _, places = bare.places(seen, facts, watched)
    residuals = 0.1 + 0.05 * generator.normal(size=30)
    lengths = np.full(places.shape[1], 4.0)
    process = Residuals(places, residuals, np.full(30, 1e-3), np.arange(30), 0.06, 0.03, 0.01, lengths)
    correction = Correction.of(process, seen, watched)
    for priced in (bare.model_copy(update={"correction": correction}), bare):
        for size in WORK[family(law)]:
            if size not in law.dims:
                continue
            start = {name: column[:5].copy() for name, column in seen.items()}
            for edge, factor in ((priced.domain[size].high, 2.0), (priced.domain[size].low, 0.5)):
                steps = np.repeat(factor ** np.arange(7), 5)
                dims = {name: np.tile(column, 7) for name, column in start.items()} | {size: edge * steps}
                low, high = priced.interval(dims, facts)
                widths = np.log(high / low).reshape(7, 5)
                law_s = bare.time_s(dims, facts)
                corrections = np.abs(np.log(priced.time_s(dims, facts) / law_s)).reshape(7, 5)
                assert (np.diff(widths, axis=0) >= -ROUNDING).all()
                if edge * factor**6 > 1:
                    assert (widths[-1] > widths[0]).all()
                    assert (corrections[-1] <= 0.01 * corrections[0] + ROUNDING).all()


MEMORY = 3e12


def streams(*sizes: float) -> Work:
    moved = np.array(sizes)
    return Work(np.zeros_like(moved), moved, np.zeros_like(moved))


def test_the_floor_leaves_out_what_a_cache_can_hold() -> None:
    assert floor_s(streams(40e6, 350e6), FACTS, "bfloat16") == pytest.approx([0, 300e6 / MEMORY / FASTER])
    many = Work(np.zeros(1), np.array([350e6]), np.zeros(1), kernels=3.0)
    assert floor_s(many, FACTS, "bfloat16") == pytest.approx([200e6 / MEMORY / FASTER])


def test_a_kernel_of_few_pieces_occupies_few_units() -> None:
    sizes = columns(1, batch=1, heads=8, kv_heads=2, kv=1e6, head_dim=128, window=0, kv_bytes=2)
    one = work_of("decode_attention", sizes, "bfloat16")
    assert one.pieces == 2
    assert roofline_s(one, FACTS, "bfloat16") == pytest.approx(50 * one.bytes / MEMORY)


def test_a_bad_row_does_not_loosen_the_bounds() -> None:
    todo, law_s = streams(3e6, 3e9, 3e9), np.array([5e-6, 1.5e-3, 1.5e-3])
    clean = Bounds.of(todo, FACTS, "bfloat16", law_s, law_s)
    assert clean.overhead_s == 5e-6
    assert clean.most == pytest.approx(HEADROOM * 1.5e-3 / (1e-3 + 5e-6))
    spoilt = Bounds.of(todo, FACTS, "bfloat16", law_s * np.array([1, 1, 100]), law_s)
    assert spoilt == clean
    fast = Bounds.of(todo, FACTS, "bfloat16", law_s * np.array([1, 1, 0.01]), law_s)
    assert (fast.least, fast.overhead_s) == (clean.least, clean.overhead_s)


def test_a_law_is_held_and_otherwise_left() -> None:
    bounds, todo = Bounds(overhead_s=1e-6, most=4.0), streams(3e9, 3e9, 3e9)
    held = bounds.held(np.array([1e-9, 1.5e-3, 1.0]), todo, FACTS, "bfloat16")
    assert held == pytest.approx([(1e-3 - 50e6 / MEMORY) / FASTER, 1.5e-3, 4 * (1e-3 + 1e-6)])


LAW, DTYPE = DecodeAttention(), "bfloat16"
NAMES = ("nvidia-h100-sxm", "nvidia-a100-sxm-80gb", "nvidia-b200", "nvidia-rtx-pro-6000", "amd-mi300x")
CHUNK = 256.0


def dims(rows: int, head_dim: Floats, generator: np.random.Generator) -> dict[str, Floats]:
    kv_heads = generator.choice([1.0, 2, 4, 8], rows)
    return {
        "batch": 2.0 ** generator.integers(0, 9, rows),
        "heads": kv_heads * generator.choice([1.0, 4, 8], rows),
        "kv_heads": kv_heads,
        "kv": 2.0 ** generator.integers(4, 16, rows),
        "head_dim": head_dim,
        "window": np.zeros(rows),
        "kv_bytes": np.full(rows, 2.0),
    }


def law_s(sizes: Dims, facts: Facts, values: Values) -> Floats:
    return LAW.time_s(sizes, facts, DTYPE, values)


def other_library_s(sizes: Dims, facts: Facts, values: Values) -> Floats:
    """Not of the law's form: keys are always cut into pieces of 256, and nothing of them stays in a cache."""
    splits = np.ceil(sizes["kv"] / CHUNK)
    rounds = np.ceil(sizes["batch"] * sizes["kv_heads"] * splits / facts.units)
    key_bytes = 2 * sizes["head_dim"] * sizes["kv_bytes"]
    drawn = rounds * np.minimum(CHUNK, sizes["kv"]) * key_bytes * facts.units / values["draw"]
    moved = sizes["batch"] * sizes["kv_heads"] * sizes["kv"] * key_bytes / values["memory"]
    once = values["fixed"] + rounds * values["start"] + np.where(splits > 1, values["combine"], 0.0)
    return np.asarray(once + np.maximum(drawn, moved))


@pytest.mark.parametrize("seed", range(20))
def test_four_times_the_fitted_head_dim_is_within_twice_of_the_truth(seed: int) -> None:
    """Head dims up to 128, three rows of 256; then 512. True constants are drawn from the priors."""
    generator, facts = np.random.default_rng(seed), facts_of(load_device(NAMES[seed % len(NAMES)]))
    values = {}
    for c in LAW.constants(facts, DTYPE):
        by = c.spread * generator.normal()
        values[c.name] = float(np.clip(c.prior * np.exp(by) if c.logarithmic else c.prior, c.low, c.high))
    truth_s = other_library_s if seed % 2 else law_s
    head_dim = generator.choice([64.0, 128.0], 100)
    head_dim[:3] = 256
    seen = dims(100, head_dim, generator)
    time_s = truth_s(seen, facts, values) * np.exp(0.04 * generator.normal(size=100))
    group = np.char.add("kv heads ", seen["kv_heads"].astype(str))
    model = train_on(LAW, Observations(LAW.name, DTYPE, seen, time_s, group), facts, seed)
    wide = dims(100, np.full(100, 512.0), generator)
    off = np.log2(model.time_s(wide, facts) / truth_s(wide, facts, values))
    assert np.abs(off).max() < (1.0 if truth_s is law_s else 2.0)
    assert np.mean(np.abs(off) < 1) > 0.95
