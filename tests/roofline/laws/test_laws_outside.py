"""Every law on every device beyond the kernels that it was fitted to: finite, held by physics, no surprises."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from law_sizes import WORK, Floats, family, grown, kernels

import roofline.devices
from calibrate.kernels.correct import train_on
from calibrate.kernels.observations import Observations
from roofline.dtypes import ELEMENT_BYTES
from roofline.hardware.facts import facts_of
from roofline.hardware.load import load_device
from roofline.laws.bounds import Bounds, floor_s, roofline_s
from roofline.laws.fitted import Corrected
from roofline.laws.kinds import laws, work_of
from roofline.laws.law import Dims, Facts, Law
from roofline.laws.residuals import Residuals

FACTORS = (1 / 4, 1, 4, 16)
"""Of each size, away from the fitted ones."""
FASTER = {
    "matmul": 0.05,
    "scaled_matmul": 0.8,
    "block_scaled_matmul": 0.35,
    "prefill_attention": 0.75,
    "decode_attention": 0.45,
    "experts": 0.5,
    "module": 0.5,
}
"""By how much a kernel of twice the size may be faster, where a library then goes over to another way of working.

Products: tiles are chosen by time, softly. Scaled ones: rows that fill up the last tile are fetched, and none are left
over (513 rows take twice the time of 512 on an H200); whole blocks of weights take a fast path. Attention: keys are
split over idle units once there are more than four blocks. Experts: tiles change with tokens. Other laws: not at all.
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
            if law.name != "collective" or facts.link_bytes_per_s is not None:
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


def domain(law: Law, dims: Dims) -> dict[str, tuple[float, float]]:
    return {name: (float(dims[name].min()), float(dims[name].max())) for name in law.dims}


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


def check(priced: Corrected, dims: Dims, facts: Facts, factor: float = 1.0) -> Floats:
    """Finite, positive, between the bounds but for a correction of up to `factor`."""
    time_s = priced.time_s(dims, facts)
    assert (np.isfinite(time_s) & (time_s > 0)).all()
    if (bounds := priced.bounds) is not None:
        todo = work_of(priced.law.name, dims, priced.dtype)
        assert (time_s * factor >= (1 - ROUNDING) * bounds.least * floor_s(todo, facts, priced.dtype)).all()
        most_s = bounds.most * (roofline_s(todo, facts, priced.dtype) + bounds.overhead_s)
        assert (time_s <= (1 + ROUNDING) * factor * most_s).all()
    return time_s


def test_all_device_files_are_asked() -> None:
    assert len(devices()) >= 48
    assert all(len(list(asked(law))) > 90 for law in laws().values())


@pytest.mark.parametrize("kind", laws())
def test_at_the_priors_physics_holds_anywhere_on_any_device(kind: str) -> None:
    law = laws()[kind]
    seen = kernels(law, 24)
    one, two = away(law, kernels(law, 6, seed=1))
    for name, facts, dtype in asked(law):
        values = priors(law, facts, dtype)
        bounds = bounds_of(law, seen, facts, dtype, law.time_s(seen, facts, dtype, values))
        priced = Corrected(law, dtype, values, 0.1, domain=domain(law, seen), bounds=bounds)
        ratio = check(priced, two, facts) / check(priced, one, facts)
        assert ratio.min() >= 1 - ROUNDING - FASTER.get(kind, 0.0), (name, dtype)


FITTED = tuple(kind for kind in laws() if kind not in ("module", "host_gap"))


@pytest.mark.parametrize("kind", FITTED)
def test_a_fit_holds_them_too(kind: str) -> None:
    """One device for each law, another each time; the law's own times at other constants, with noise and bad rows."""
    law, place = laws()[kind], FITTED.index(kind)
    able = list(asked(law))
    _, facts, dtype = able[(7 + 13 * place) % len(able)]
    seen, generator = kernels(law, 48), np.random.default_rng(place)
    noise = 0.05 * generator.normal(size=48)
    noise[:2] += 1.5
    time_s = law.time_s(seen, facts, dtype, drawn(law, facts, dtype, place)) * np.exp(noise)
    group = (np.arange(48) % 8).astype(str)
    model = train_on(law, Observations(kind, dtype, seen, time_s, group), facts)
    one, _ = away(law, kernels(law, 6, seed=1))
    check(model.corrected, one, facts, factor=np.exp(0.3))
    low, high = model.interval(one)
    assert (np.isfinite(high) & (low > 0) & (low < high)).all()


@pytest.mark.parametrize("kind", laws())
def test_an_interval_never_narrows_and_a_correction_fades_as_a_size_leaves_the_fitted_ones(kind: str) -> None:
    law, facts, dtype = laws()[kind], devices()["nvidia-h100-sxm"], "bfloat16"
    values, seen, generator = priors(law, facts, dtype), kernels(law, 30), np.random.default_rng(0)
    bare = Corrected(law, dtype, values, 2.0, watched=tuple(values)[:2], domain=domain(law, seen))
    _, places = bare.places(seen, facts)
    residuals = 0.1 + 0.05 * generator.normal(size=30)
    lengths = np.full(places.shape[1], 4.0)
    process = Residuals(places, residuals, np.full(30, 1e-3), np.arange(30), 0.06, 0.03, 0.01, lengths)
    for priced in (Corrected(**(vars(bare) | {"process": process})), bare):
        for size in WORK[family(law)]:
            if size not in law.dims:
                continue
            start = {name: column[:5].copy() for name, column in seen.items()}
            for edge, factor in ((priced.domain[size][1], 2.0), (priced.domain[size][0], 0.5)):
                steps = np.repeat(factor ** np.arange(7), 5)
                dims = {name: np.tile(column, 7) for name, column in start.items()} | {size: edge * steps}
                low, high = priced.interval(dims, facts)
                widths = np.log(high / low).reshape(7, 5)
                law_s = law.time_s(dims, facts, dtype, values)
                corrections = np.abs(np.log(priced.time_s(dims, facts) / law_s)).reshape(7, 5)
                assert (np.diff(widths, axis=0) >= -ROUNDING).all()
                if edge * factor**6 > 1:
                    assert (widths[-1] > widths[0]).all()
                    assert (corrections[-1] <= 0.01 * corrections[0] + ROUNDING).all()
