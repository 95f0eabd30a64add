import numpy as np
import pytest
from calibrate_samples import FACTS, products

from calibrate.kernels.observations import Observations, halves
from calibrate.kernels.score import by_region, regions_of, repeat_noise, scores
from roofline.laws.kinds import work_of
from roofline.laws.work import datasheet_s


def test_scores_by_hand() -> None:
    predicted, measured = np.array([11.0, 1.0, 4.0]), np.array([10.0, 2.0, 4.0])
    interval = (np.array([9.0, 0.9, 5.0]), np.array([12.0, 1.9, 6.0]))
    found = scores(predicted, measured, interval)
    assert found.mape == pytest.approx((0.1 + 0.5 + 0) / 3)
    assert found.median == pytest.approx(0.1)
    assert found.p90 == pytest.approx(0.1 + 0.8 * 0.4)
    assert found.time_weighted == pytest.approx(2 / 16)
    assert found.bias == pytest.approx((0.1 - 0.5) / 3)
    assert found.coverage == pytest.approx(1 / 3)


@pytest.mark.parametrize("predicted", [[], [1.0], [1.0, np.nan]])
def test_scores_refuse_what_is_not_a_prediction_each(predicted: list[float]) -> None:
    with pytest.raises(ValueError, match="predictions"):
        scores(np.array(predicted), np.array([1.0, 2.0][: max(len(predicted), 0)] + [1.0] * (len(predicted) == 1)))


def test_regions() -> None:
    table = products()
    regions = regions_of(table)
    assert not regions.pop("decode").any()
    assert np.sum([rows.sum() for rows in regions.values()]) == len(table)
    found = by_region(table.time_s * 1.1, table.time_s, regions)
    assert {name: round(one.mape, 9) for name, one in found.items()} == dict.fromkeys(("small", "medium", "large"), 0.1)


def test_what_a_decode_step_waits_for_is_a_region() -> None:
    table = products()
    found = regions_of(table, cache_bytes=4e7)["decode"]
    expected = (table.dims["m"] <= 64) & (2 * table.dims["n"] * table.dims["k"] >= 4e7)
    assert 0 < found.sum() < len(table)
    assert (found == expected).all()
    long = Observations("decode_attention", "bfloat16", {"kv": np.array([4095.0, 4096.0])}, np.ones(2), table.group[:2])
    assert regions_of(long)["decode"].tolist() == [False, True]


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_on_one_side_only(seed: int) -> None:
    seen, unseen = halves(products(), seed)
    assert not set(seen.group) & set(unseen.group)
    assert (len(set(seen.group)), len(set(unseen.group))) == (9, 9)
    again, _ = halves(products(), seed)
    assert (again.group == seen.group).all()


def test_one_group_cannot_be_split() -> None:
    table = products()
    with pytest.raises(ValueError, match="one group"):
        halves(table.take(table.group == table.group[0]), 0)


def test_repeat_noise_by_hand() -> None:
    one = np.array([1.0, 1.0, 2.0])
    table = Observations("matmul", "bfloat16", {"m": one}, np.array([0.9, 1.1, 7.0]), np.array(["a", "a", "b"]))
    assert repeat_noise(table) == pytest.approx(0.1)
    assert repeat_noise(table.take(np.array([0, 2]))) is None


def test_work_of_a_product_and_its_datasheet_time() -> None:
    dims = {"m": np.array([4.0]), "n": np.array([8.0]), "k": np.array([16.0])}
    found = work_of("matmul", dims, "bfloat16")
    assert work_of("matmul_row_major", dims, "bfloat16").flops == found.flops
    assert (found.flops[0], found.bytes[0]) == (1024, 2 * (64 + 128) + 2 * 32)
    assert work_of("matmul", dims, "float8_e4m3fn").bytes[0] == 64 + 128 + 2 * 32
    assert datasheet_s(found, FACTS, "bfloat16")[0] == pytest.approx(448 / 2e12)


def test_work_of_attention_counts_unmasked_pairs() -> None:
    sizes = {"batch": 1, "heads": 4, "kv_heads": 2, "query": 3, "context": 2, "head_dim": 8, "window": 3, "kv_bytes": 2}
    found = work_of("prefill_attention", {name: np.array([float(size)]) for name, size in sizes.items()}, "bfloat16")
    assert found.flops[0] == 4 * 4 * 8 * (3 + 3 + 3)
    assert found.bytes[0] == 8 * (2 * 2 * 2 * 5 + 2 * 2 * 4 * 3)
    decode = {"batch": 2, "heads": 4, "kv_heads": 2, "kv": 10, "head_dim": 8, "window": 4, "kv_bytes": 1}
    found = work_of("decode_attention", {name: np.array([float(size)]) for name, size in decode.items()}, "bfloat16")
    assert found.flops[0] == 4 * 2 * 4 * 8 * 4
    assert found.bytes[0] == 2 * 8 * (2 * 1 * 2 * 4 + 2 * 2 * 4)


def test_a_kind_whose_work_is_not_known() -> None:
    with pytest.raises(ValueError, match="'scan'"):
        work_of("scan", {}, "bfloat16")
