"""Attention laws: what physics says of any constants, and that a fit finds constants again."""

from dataclasses import dataclass

import numpy as np
import pytest

from calibrate.kernels.fit import fit
from calibrate.kernels.observations import Observations
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


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_time_grows_with_batch(case: Case, heads: tuple[int, int], head_dim: int) -> None:
    batch = 2.0 ** np.arange(9)
    time_s = case.time_s(batch=batch, heads=heads[0], kv_heads=heads[1], head_dim=head_dim)
    assert (np.diff(time_s) > -0.02 * time_s[:-1]).all()
    assert time_s[-1] > 2 * time_s[0]


@pytest.mark.parametrize("heads", HEADS)
def test_time_grows_with_length(case: Case, heads: tuple[int, int]) -> None:
    time_s = case.time_s(heads=heads[0], kv_heads=heads[1], **{case.length: 2.0 ** np.arange(4, 18)})
    assert (np.diff(time_s) > -0.02 * time_s[:-1]).all()
    assert time_s[-1] > 2 * time_s[0]


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
