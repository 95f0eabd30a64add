"""Attention laws: how they cut work into pieces, what physics says of them, and that a fit finds constants again."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from law_checks import columns, price

from calibrate.kernels.fit import Observations, fit
from roofline.hardware.load import load_device
from roofline.hardware.spec import facts_of
from roofline.laws import attention as flash
from roofline.laws.attention import DecodeAttention, PrefillAttention
from roofline.laws.law import Dims, Facts, Floats, Law

FACTS = (
    Facts(132, 50e6, 4.8e12, {"bfloat16": 989e12}, 67e12),
    Facts(108, 40e6, 2.0e12, {"bfloat16": 312e12}, 19.5e12),
)
HEADS = ((1, 1), (8, 8), (32, 8), (64, 4), (24, 1))


@dataclass(frozen=True)
class Case:
    law: Law
    facts: Facts

    @property
    def length(self) -> str:
        return "query" if self.law.name == "prefill_attention" else "kv"

    def time_s(self, **sizes: object) -> Floats:
        base = {"batch": 4, "heads": 32, "kv_heads": 8, "head_dim": 128, "window": 0, "kv_bytes": 2}
        base |= {"query": 1024, "context": 0} if self.length == "query" else {"kv": 1024}
        arrays = np.broadcast_arrays(*(np.asarray(v, float) for v in (base | sizes).values()))
        dims: Dims = dict(zip(base | sizes, arrays, strict=True))
        return self.law.time_s(dims, self.facts, "bfloat16", priors(self.law, self.facts))


def priors(law: Law, facts: Facts) -> dict[str, float]:
    return {c.name: c.prior for c in law.constants(facts, "bfloat16")}


@pytest.fixture(params=[(law, facts) for law in (PrefillAttention(), DecodeAttention()) for facts in FACTS])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def test_constants_are_few_and_apart(case: Case) -> None:
    names = [c.name for c in case.law.constants(case.facts, "bfloat16")]
    assert len(names) == len(set(names)) <= 15


def test_time_grows_with_batch_and_with_length(case: Case) -> None:
    for (heads, kv_heads), head_dim in product(HEADS, (64, 128, 256)):
        for size, values in (("batch", 2.0 ** np.arange(9)), (case.length, 2.0 ** np.arange(4, 18))):
            time_s = case.time_s(heads=heads, kv_heads=kv_heads, **{"head_dim": head_dim, size: values})
            assert (np.diff(time_s) > -0.02 * time_s[:-1]).all(), (size, heads, kv_heads, head_dim)
            assert time_s[-1] > 2 * time_s[0], (size, heads, kv_heads, head_dim)


def test_more_heads_are_never_faster(case: Case) -> None:
    same_group = case.time_s(heads=4.0 * 2.0 ** np.arange(6), kv_heads=2.0 ** np.arange(6))
    assert (np.diff(same_group) > -0.02 * same_group[:-1]).all()
    assert same_group[-1] > same_group[0]


def test_longer_context_is_never_faster() -> None:
    time_s = Case(PrefillAttention(), FACTS[0]).time_s(query=256, context=256.0 * np.arange(64))
    assert (np.diff(time_s) >= 0).all()


def test_a_window_over_the_length_is_none_and_a_short_one_saves(case: Case) -> None:
    length = np.array([16.0, 300.0, 4096.0, 16384.0])
    free = case.time_s(batch=64, **{case.length: length})
    np.testing.assert_allclose(case.time_s(batch=64, window=length, **{case.length: length}), free)
    np.testing.assert_allclose(case.time_s(batch=64, window=1e6, **{case.length: length}), free)
    short = case.time_s(batch=64, window=128, **{case.length: length})
    assert (short[2:] < 0.5 * free[2:]).all()


def test_columns_are_rows(case: Case) -> None:
    generator = np.random.default_rng(0)
    columns = simulated_dims(case, 50, generator)
    values = priors(case.law, case.facts)
    together = case.law.time_s(columns, case.facts, "bfloat16", values)
    alone = [
        float(case.law.time_s({n: np.asarray(v[i]) for n, v in columns.items()}, case.facts, "bfloat16", values))
        for i in range(50)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize("kv_bytes", [1, 2])
def test_extreme_sizes_have_a_time(case: Case, kv_bytes: int) -> None:
    sizes = 10.0 ** np.arange(7)
    batch, length = (grid.ravel() for grid in np.meshgrid(sizes, sizes))
    for heads, kv_heads, head_dim, window in ((1, 1, 1, 1), (1, 1, 64, 0), (128, 8, 128, 128), (1000, 1, 1000, 1e6)):
        time_s = case.time_s(
            batch=batch,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            window=window,
            kv_bytes=kv_bytes,
            **{case.length: length},
        )
        assert np.isfinite(time_s).all()
        assert (time_s > 0).all()


def test_never_under_the_datasheet_in_the_long_run(case: Case) -> None:
    """Work over the peaks that the constants stand for is a lower bound."""
    length = 2.0**17
    time_s = float(case.time_s(batch=32, **{case.length: length}))
    if case.length == "query":
        assert time_s >= 32 * 32 * 4 * 128 * length * (length + 1) / 2 / case.facts.matrix_flops_per_s["bfloat16"]
    else:
        assert time_s >= 32 * 8 * 2 * 128 * 2 * length / case.facts.bandwidth_bytes_per_s


def simulated_dims(case: Case, count: int, generator: np.random.Generator) -> dict[str, Floats]:
    layouts = np.array(HEADS, dtype=float)[generator.integers(len(HEADS), size=count)]
    dims = {
        "batch": 2.0 ** generator.integers(9, size=count),
        "heads": layouts[:, 0],
        "kv_heads": layouts[:, 1],
        "head_dim": generator.choice([64.0, 128.0, 256.0], size=count),
        "window": np.zeros(count),
        "kv_bytes": np.full(count, 2.0),
        case.length: 2.0 ** generator.integers(4, 15, size=count),
    }
    return dims | ({"context": np.zeros(count)} if case.length == "query" else {})


def test_a_fit_finds_constants_again(case: Case) -> None:
    generator = np.random.default_rng(1)
    dims = simulated_dims(case, 200, generator)
    moved = {"prefill_attention": {"fixed": 1.3, "rate": 0.8, "append": 1.5}, "decode_attention": {"fixed": 1.2}}
    truth = priors(case.law, case.facts)
    truth |= {name: truth[name] * factor for name, factor in moved[case.law.name].items()}
    if case.length == "kv":
        truth |= {"memory": 0.75 * case.facts.bandwidth_bytes_per_s, "start": 2.5e-6}
    exact_s = case.law.time_s(dims, case.facts, "bfloat16", truth)
    noisy_s = exact_s * np.exp(0.02 * generator.normal(size=200))
    group = np.array(["all"] * 200)
    found = fit(case.law, Observations(case.law.name, "bfloat16", dims, noisy_s, group), case.facts)
    again = simulated_dims(case, 200, np.random.default_rng(2))
    fitted_s = case.law.time_s(again, case.facts, "bfloat16", found.values)
    true_s = case.law.time_s(again, case.facts, "bfloat16", truth)
    assert np.abs(fitted_s / true_s - 1).mean() < 0.03
    assert found.values["fixed"] == pytest.approx(truth["fixed"], rel=0.15)
    leading = "rate" if case.length == "query" else "memory"
    assert found.values[leading] == pytest.approx(truth[leading], rel=0.15)


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


def test_more_is_never_faster_by_more_than_a_change_of_kernel(facts: Facts) -> None:
    """Twice of a size, and one more."""
    for law, names in ((PREFILL, ("batch", "query", "context", "kv_heads")), (DECODE, ("batch", "kv", "kv_heads"))):
        dims, others = sizes(law), sizes(law, seed=1)
        for size in names:
            more = dims | {size: 2 * dims[size] + (size == "context")}
            if size == "kv_heads":
                more["heads"] = 2 * dims["heads"]
            assert (time_s(law, more, facts) > (1 - QUANTUM) * time_s(law, dims, facts)).all(), (law.name, size)
            if size in ("batch", "query", "kv"):
                one_more = time_s(law, others | {size: others[size] + 1}, facts)
                assert (one_more > (1 - QUANTUM) * time_s(law, others, facts)).all(), (law.name, size)


def test_prefill_is_never_faster_than_its_products_at_the_datasheets_peak(facts: Facts) -> None:
    dims = sizes(PREFILL)
    peak = facts.matrix_flops_per_s["bfloat16"]
    pairs = dims["query"] * (dims["context"] + (dims["query"] + 1) / 2)
    least = dims["batch"] * dims["heads"] * pairs * 4 * dims["head_dim"] / peak
    for values in ({}, {"packed": 0.0}, {"packed": 1.0}):
        found = time_s(PREFILL, dims, facts, **{"rate": peak, "narrow": 1.0, **values})
        assert (found >= least).all(), values


def test_decode_is_never_faster_than_main_memory_once_the_cache_is_outgrown(facts: Facts) -> None:
    dims = sizes(DECODE)
    moved = dims["batch"] * dims["kv_heads"] * dims["kv"] * dims["head_dim"] * 2 * dims["kv_bytes"]
    large = moved > 2 * facts.cache_bytes
    assert large.sum() > COUNT / 20
    for regroup in (1e-8, 1e-5):
        found = time_s(DECODE, dims, facts, memory=facts.bandwidth_bytes_per_s, regroup=regroup)
        assert (found >= 0.999 * moved / facts.bandwidth_bytes_per_s)[large].all(), regroup


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


FREE = {"memory": 1e30, "cache": 1e30, "ride": 1e30, "idle": 1e-30, "sequence": 1e-30, "join": 1e-30, "regroup": 1e-12,
        "apart": 0.0}  # fmt: skip
"""Of a decode, all but launch, start, draw and combine."""


def test_splits_share_blocks_over_all_units() -> None:
    # 64 blocks of 8 tiles on 132 units: 1.1 · 512 / 132 = 4.3, so 5 blocks each, 13 splits of a tile
    assert flash.splits(np.array([64.0, 64.0, 1.0]), np.array([8.0, 132.0, 1.0]), 132).tolist() == [13, 1, 1]
    blocks, tiles = (grid.ravel() for grid in np.meshgrid(np.arange(1.0, 200), np.arange(1.0, 300)))
    found = flash.splits(blocks, tiles, 132)
    assert ((found >= 1) & (found <= blocks)).all()
    assert (np.ceil(blocks / found) * found >= blocks).all()


def test_keys_are_split_where_one_sequence_leaves_units_idle_and_has_more_than_four_blocks() -> None:
    blocks, tiles = np.array([5.0, 4.0, 5.0]), np.array([105.0, 105.0, 106.0])
    assert flash.may_split(blocks, tiles, 132).tolist() == [1, 0, 0]


def test_tiles_are_those_of_flash_attention_3_and_2() -> None:
    head_dim = np.array([64.0, 128, 192, 256, 512])
    wide, narrow = np.full(5, 2.0), np.full(5, 1.0)
    assert flash.tile_rows(head_dim, packed=True).tolist() == [192, 128, 128, 128, 64]
    assert flash.tile_keys(head_dim, wide, packed=True).tolist() == [128, 128, 96, 80, 80]
    assert flash.tile_keys(head_dim, narrow, packed=True).tolist() == [160, 160, 160, 128, 128]
    assert flash.tile_rows(head_dim, packed=False).tolist() == [64] * 5
    assert flash.tile_keys(head_dim, wide, packed=False).tolist() == [256, 128, 64, 64, 64]


def test_who_copies_heads_together_splits_no_others() -> None:
    assert flash.splits_everything(2e-7) == pytest.approx(1, abs=0.001)
    assert flash.splits_everything(8e-6) == pytest.approx(0, abs=0.002)


def test_wide_heads_are_split_blindly_within_a_captured_graph() -> None:
    batch, query, head_dim = np.array([512.0, 513, 1, 1]), np.array([1.0, 1, 2, 1]), np.array([512.0, 512, 512, 256])
    assert flash.is_split_blindly(batch, query, head_dim).tolist() == [1, 0, 0, 0]


def decode(kv: float, heads: float, batch: float = 1, **instead: float) -> float:
    dims = columns(1, batch=batch, heads=heads, kv_heads=1, kv=kv, head_dim=128, window=0, kv_bytes=2)
    values = FREE | {"fixed": 1e-5, "start": 2e-6, "combine": 3e-6, "draw": 6.5536e12} | instead
    return float(price(DecodeAttention(), dims, **values)[0])


def test_a_split_decode_draws_one_block_in_each_unit_and_combines() -> None:
    # A block: 128 keys · 512 bytes at 6.5536e12 / 100 units = 1 µs. 1024 keys are 8 blocks: 8 splits of one.
    assert decode(kv=128, heads=8) == pytest.approx(1e-5 + 2e-6 + 1e-6, rel=1e-3)
    assert decode(kv=1024, heads=8) == pytest.approx(1e-5 + 2e-6 + 1e-6 + 3e-6, rel=1e-3)
    # 150 blocks: 75 splits of 2 would feed all units, but there are 32 at most, of 5
    assert decode(kv=150 * 128, heads=8) == pytest.approx(1e-5 + 2e-6 + 5e-6 + 3e-6, rel=1e-3)


def test_a_head_alone_is_not_split_by_who_copies_groups_together() -> None:
    assert decode(kv=1024, heads=1) == pytest.approx(1.6e-5, rel=1e-3)
    assert decode(kv=1024, heads=1, regroup=1e-5) == pytest.approx(1e-5 + 2e-6 + 8e-6, rel=1e-2)
    assert decode(kv=1024, heads=8, regroup=1e-5) == pytest.approx(1.6e-5, rel=1e-3)


def test_more_pieces_than_units_start_in_rounds() -> None:
    one, four = decode(kv=1, heads=8, batch=100), decode(kv=1, heads=8, batch=400)
    assert four - one == pytest.approx(3 * (2e-6 + 1e-6), rel=1e-3)


def prefill(query: float, kv_heads: float = 1, window: float = 0, **instead: float) -> float:
    dims = columns(1, batch=1000, heads=kv_heads, kv_heads=kv_heads, query=query, context=0, head_dim=128, kv_bytes=2)
    free = {"fixed": 1e-12, "start": 1e-12, "append": 1e-30, "fill": 1e30, "memory": 1e30, "exponentials": 1e30}
    free |= {"sustained": 0.0, "packed": 1.0, "rate": 1e14}
    return float(price(PrefillAttention(), dims | columns(1, window=window), **(free | instead))[0])


def test_prefill_multiplies_whole_blocks_of_whole_tiles() -> None:
    block_s = 128 * 128 * 4 * 128 / 1e14
    # 20,000 tiles of 128 rows, each sees one block of 128 keys, on 100 units; 2^⅛ where path and work are alike
    assert prefill(128, 20) == pytest.approx(20_000 * block_s, rel=0.1)
    assert prefill(100, 20) == pytest.approx(prefill(128, 20), rel=1e-3)
    # 8 tiles see 1, 2, … 8 blocks; with a window of one block 1, 2, … 2
    assert prefill(1024, 20) == pytest.approx(36 * 20_000 * block_s, rel=0.03)
    assert prefill(1024, 20, window=128) == pytest.approx(15 * 20_000 * block_s, rel=0.03)


def test_tiles_of_half_as_many_rows_make_as_much_work() -> None:
    assert prefill(1024, 20, packed=0.0) == pytest.approx(prefill(1024, 20), rel=0.02)


def test_a_kernel_that_may_split_is_slower() -> None:
    # one KV head: 8 tiles of a sequence on 100 units, 8 blocks; of 4 blocks keys are not split
    assert 20 * prefill(1024) == pytest.approx(1.15 * prefill(1024, 20), rel=0.03)
    assert 20 * prefill(512) == pytest.approx(prefill(512, 20), rel=0.03)


def test_long_busy_calls_are_slower_and_short_ones_are_not() -> None:
    assert prefill(64, sustained=0.1) == pytest.approx(prefill(64), rel=0.03)
    assert prefill(16384, sustained=0.1) == pytest.approx(1.1 * prefill(16384), rel=0.01)
