"""Attention laws away from the devices whose tables they were looked at on: what physics says anywhere."""

import numpy as np
import pytest

from roofline.hardware.facts import facts_of
from roofline.hardware.load import load_device
from roofline.laws.attention import DecodeAttention, PrefillAttention
from roofline.laws.law import Dims, Facts, Floats, Law

CPU = Facts(8, 32e6, 60e9, {"bfloat16": 1e12}, 0.5e12)
NAMES = ("nvidia-l40s", "amd-mi300x", "nvidia-rtx-5090", "nvidia-h100-sxm", "nvidia-a100-sxm-80gb")
DEVICES = {"cpu": CPU} | {name: facts_of(load_device(name)) for name in NAMES}
PREFILL, DECODE = PrefillAttention(), DecodeAttention()
QUANTUM = 0.35
"""By which more work may be faster, where a library goes over to another kernel: out of a captured graph, from splits
of one block each to none."""
COUNT = 4000


@pytest.fixture(params=DEVICES)
def facts(request: pytest.FixtureRequest) -> Facts:
    return DEVICES[request.param]


def sizes(law: Law, seed: int = 0) -> dict[str, Floats]:
    """Random layouts and lengths, odd ones among them."""
    generator = np.random.default_rng(seed)
    kv_heads = generator.choice([1.0, 2, 3, 4, 8, 16, 40], COUNT)
    dims = {
        "batch": np.rint(2 ** generator.uniform(0, 10, COUNT)),
        "heads": kv_heads * generator.choice([1.0, 2, 3, 4, 7, 8, 16, 64], COUNT),
        "kv_heads": kv_heads,
        "head_dim": generator.choice([64.0, 80, 96, 128, 192, 256], COUNT),
        "window": np.zeros(COUNT),
        "kv_bytes": generator.choice([1.0, 2.0], COUNT),
    }
    if law is DECODE:
        return dims | {"kv": np.rint(2 ** generator.uniform(0, 17, COUNT))}
    query = np.rint(2 ** generator.uniform(0, 14, COUNT))
    return dims | {"query": query, "context": np.rint(generator.choice([0.0, 100, 5000], COUNT))}


def time_s(law: Law, dims: Dims, facts: Facts, **instead: float) -> Floats:
    values = {c.name: c.prior for c in law.constants(facts, "bfloat16")} | instead
    return law.time_s(dims, facts, "bfloat16", values)


@pytest.mark.parametrize(
    ("law", "size"),
    [(PREFILL, size) for size in ("batch", "query", "context", "kv_heads")]
    + [(DECODE, size) for size in ("batch", "kv", "kv_heads")],
)
def test_more_is_never_faster_by_more_than_a_change_of_kernel(law: Law, size: str, facts: Facts) -> None:
    dims = sizes(law)
    more = dims | {size: 2 * dims[size] + (size == "context")}
    if size == "kv_heads":
        more["heads"] = 2 * dims["heads"]
    assert (time_s(law, more, facts) > (1 - QUANTUM) * time_s(law, dims, facts)).all()


@pytest.mark.parametrize(("law", "size"), [(PREFILL, "batch"), (PREFILL, "query"), (DECODE, "batch"), (DECODE, "kv")])
def test_one_more_is_never_faster_by_more_than_a_change_of_kernel(law: Law, size: str, facts: Facts) -> None:
    dims = sizes(law, seed=1)
    assert (time_s(law, dims | {size: dims[size] + 1}, facts) > (1 - QUANTUM) * time_s(law, dims, facts)).all()


@pytest.mark.parametrize("values", [{}, {"packed": 0.0}, {"packed": 1.0}])
def test_prefill_is_never_faster_than_its_products_at_the_datasheets_peak(
    values: dict[str, float], facts: Facts
) -> None:
    dims = sizes(PREFILL)
    peak = facts.matrix_flops_per_s["bfloat16"]
    pairs = dims["query"] * (dims["context"] + (dims["query"] + 1) / 2)
    least = dims["batch"] * dims["heads"] * pairs * 4 * dims["head_dim"] / peak
    found = time_s(PREFILL, dims, facts, **{"rate": peak, "narrow": 1.0, **values})
    assert (found >= least).all()


@pytest.mark.parametrize("regroup", [1e-8, 1e-5])
def test_decode_is_never_faster_than_main_memory_once_the_cache_is_outgrown(regroup: float, facts: Facts) -> None:
    dims = sizes(DECODE)
    moved = dims["batch"] * dims["kv_heads"] * dims["kv"] * dims["head_dim"] * 2 * dims["kv_bytes"]
    found = time_s(DECODE, dims, facts, memory=facts.bandwidth_bytes_per_s, regroup=regroup)
    large = moved > 2 * facts.cache_bytes
    assert large.sum() > COUNT / 20
    assert (found >= 0.999 * moved / facts.bandwidth_bytes_per_s)[large].all()


@pytest.mark.parametrize("law", [PREFILL, DECODE])
def test_a_window_over_all_keys_is_none_and_a_shorter_one_is_no_slower(law: Law, facts: Facts) -> None:
    dims = sizes(law)
    total = dims["kv"] if law is DECODE else dims["query"] + dims["context"]
    free = time_s(law, dims, facts)
    np.testing.assert_array_equal(time_s(law, dims | {"window": total}, facts), free)
    np.testing.assert_array_equal(time_s(law, dims | {"window": total + 1e6}, facts), free)
    # Windows of few blocks are not split where all the keys would be, and can be slower: FlashAttention's rule.
    for window in (1024.0, 2048.0):
        long = total > 4 * window
        slid = time_s(law, dims | {"window": np.full(COUNT, window)}, facts)
        assert (slid < (1 + QUANTUM) * free)[long].all()


def test_a_cache_that_holds_the_keys_is_faster(facts: Facts) -> None:
    dims = {n: c[:1] for n, c in sizes(DECODE).items()}
    dims |= {"batch": np.array([64.0]), "kv_heads": np.array([8.0]), "heads": np.array([32.0])}
    dims |= {"head_dim": np.array([128.0]), "kv_bytes": np.array([2.0])}
    key_bytes = 64 * 8 * 128 * 4
    each = [np.floor(np.array([part * facts.cache_bytes / key_bytes])) for part in (0.25, 0.5, 4, 8)]
    inside, more, outside, beyond = (float(time_s(DECODE, dims | {"kv": kv}, facts)[0]) for kv in each)
    assert (beyond - outside) / (each[3] - each[2]) > 1.2 * (more - inside) / (each[1] - each[0])
