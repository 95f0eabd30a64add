"""The search over configurations, against replays of every one of them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from roofline.hardware.load import load_device
from roofline.hardware.spec import facts_of
from roofline.serving import find
from roofline.serving.engine import engine_named
from roofline.serving.find import Degrees, Search, Seller, Target, divided, search
from roofline.serving.shape import Attention, Collective, Experts, Product, Served, Stream
from roofline.serving.step import Parallel, Pricer, Scheme

LAYERS = 32
SCHEMES = {"bfloat16": Scheme(), "float8_e4m3fn": Scheme("float8_e4m3fn", "float8_e4m3fn", 1.0)}
DEGREES = Degrees((1, 2, 3), (1, 2, 5), (1, 4), (1, 4, 16, 64))
LOOSE = Target(512, 64, 10.0, 1.0)


@pytest.fixture(autouse=True)
def few_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "REPLAYED", 24)


def model(ranks: int, experts: bool = True) -> Served:
    """A model of 8 heads of which each rank has a part."""
    if 8 % ranks:
        raise ValueError(f"8 heads do not divide by {ranks} ranks")
    return Served(
        "mixture", ranks,
        (Product("qkv", "layer", 6144 // ranks, 4096, LAYERS), Product("o", "layer", 4096, 4096 // ranks, LAYERS),
         Product("lm_head", "head", 32_000 // ranks, 4096, 1)),
        (Attention(32 // ranks, 8 // ranks, 128, 128, 0, 0, 0, LAYERS),),
        (Experts(4096, 2048 // ranks, 16, 2, LAYERS),) if experts else (),
        (Collective("all_reduce", "layer", 8192.0, 2 * LAYERS),) if ranks > 1 else (),
        (Stream("norm", 32_768.0, 2 * LAYERS),),
    )  # fmt: skip


def seller(name: str = "nvidia-h100-sxm", cost: float | None = None, memory: float | None = None) -> Seller:
    spec = load_device(name)
    assert spec.datasheet is not None
    level = spec.datasheet.levels[-1].capacity_bytes
    return Seller(name, Pricer({}, facts_of(spec)), memory or level or 0, spec.datasheet.links.get("nvlink"), cost)


def searched(target: Target, *sellers: Seller, degrees: Degrees = DEGREES) -> Search:
    return search(model, LAYERS, engine_named("vllm", "0.18.0"), SCHEMES, sellers or (seller(),), degrees, target)


def test_every_configuration_is_counted_once() -> None:
    found = searched(LOOSE, seller(), seller("nvidia-l40s"), seller("nvidia-a100-sxm-80gb", memory=10e9))
    assert found.asked == 3 * 2 * 3 * 3 * 2 * 4 == len(found.estimates) + sum(found.left_out.values())
    said = "\n".join(reason for reason, count in found.left_out.items() if count)
    for words in ("8 heads do not divide by 3", "32 layers do not divide by 5", "nvidia-l40s has no link", "weights do",
                  "fewer requests in flight"):  # fmt: skip
        assert words in said
    assert len({(offer.place, offer.batch) for offer in found.estimates}) == len(found.estimates)


def test_the_best_is_that_of_replays_of_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(512, 64, 0.5, 0.012)
    monkeypatch.setattr(find, "REPLAYED", 8)
    few, slack = searched(target), find.SLACK
    monkeypatch.setattr(find, "REPLAYED", 10_000)
    monkeypatch.setattr(find, "SLACK", 0.0)
    every = searched(target)
    assert len(few.replayed) == 8 and len(every.replayed) == len(every.estimates)
    assert few.best is not None and few.best == every.best
    assert 0 < len(every.meeting) < len(every.replayed)
    estimates = {(offer.place, offer.batch): offer for offer in every.estimates}
    off = np.array([estimates[o.place, o.batch].tpot_s / o.tpot_s for o in every.replayed])
    assert off.min() > slack and off.max() < 1 / slack, "what `SLACK` says"
    front = every.front
    assert all(a.per_device > b.per_device and a.tpot_s > b.tpot_s for a, b in pairwise(front))
    assert not any(o.per_device > f.per_device and o.tpot_s < f.tpot_s for o in every.replayed for f in front)


def test_tighter_targets_and_smaller_memories_never_serve_more() -> None:
    rates = [searched(Target(512, 64, 10.0, tpot_s)).best for tpot_s in (1.0, 0.02, 0.008)]
    assert [offer.per_device for offer in rates if offer] == sorted((o.per_device for o in rates if o), reverse=True)
    assert searched(Target(512, 64, 10.0, 1e-5)).best is None
    small, large = (searched(LOOSE, seller(memory=memory)) for memory in (25e9, 200e9))
    assert len(small.estimates) < len(large.estimates)


def test_cost_decides_apart_from_devices() -> None:
    cheap, dear = seller("nvidia-a100-sxm-80gb", 1.0), seller("nvidia-b200", 100.0)
    found = searched(LOOSE, cheap, dear)
    assert found.best is not None and found.best_for_cost is not None
    assert (found.best.place.device, found.best_for_cost.place.device) == ("nvidia-b200", "nvidia-a100-sxm-80gb")
    assert found.best_for_cost.per_cost == pytest.approx(3600 * found.best_for_cost.per_device)
    low, high = found.best.tpot_interval_s
    assert low < found.best.tpot_s < high and found.best.spread > 0.2, "no law prices a kernel"
    assert searched(LOOSE).best_for_cost is None


def test_stages_hold_more_and_send_between_them() -> None:
    one, two = (
        searched(LOOSE, seller(memory=200e9), degrees=Degrees((1,), (stages,), (1,), (4 * stages,))).estimates[0]
        for stages in (1, 2)
    )
    assert 1 < two.tpot_s / one.tpot_s < 1.05, "a group of as many sequences goes through as many layers"
    assert 1.9 < two.tokens_per_s / one.tokens_per_s < 2
    small = searched(LOOSE, seller(memory=20e9), degrees=Degrees((1,), (1, 2), (1,), (4,))).estimates
    assert {offer.place.stages for offer in small if offer.place.dtype == "bfloat16"} == {2}


def test_ranks_that_share_experts() -> None:
    assert divided(model(2), 4) == Parallel(attention_dp=2, moe_ep=4) and divided(model(2), 1) == Parallel(moe_tp=2)
    for ranks, experts, words in ((2, 3, "groups of 2"), (1, 3, "16 experts do not divide by 3")):
        with pytest.raises(ValueError, match=words):
            divided(model(ranks), experts)
    with pytest.raises(ValueError, match="no experts"):
        divided(replace(model(1), experts=()), 2)
