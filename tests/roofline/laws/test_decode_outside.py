"""Attention of wide heads, priced by laws that were fitted to narrow ones: within twice of the truth."""

import numpy as np
import pytest
from law_sizes import Floats

from calibrate.kernels.correct import train_on
from calibrate.kernels.observations import Observations
from roofline.hardware.facts import facts_of
from roofline.hardware.load import load_device
from roofline.laws.attention import DecodeAttention
from roofline.laws.law import Dims, Facts, Values

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
    off = np.log2(model.time_s(wide) / truth_s(wide, facts, values))
    assert np.abs(off).max() < (1.0 if truth_s is law_s else 2.0)
    assert np.mean(np.abs(off) < 1) > 0.95
