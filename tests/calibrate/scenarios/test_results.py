"""The figures of scenarios from passes whose times are known: simulations and closed forms, as oracles."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from calibrate.scenarios.decode import EarlyExit, Length, Verify, tokens_per_pass
from calibrate.scenarios.model import mean_power_w
from calibrate.scenarios.prefill import Chunked, Disaggregate, Mixed, Prefix
from calibrate.scenarios.quantity import Quantity
from calibrate.scenarios.registry import SCENARIOS, WRITTEN, parse, question
from calibrate.scenarios.scenario import Curve, Measured, Scenario, Step
from profiler.record.measurement import Window
from profiler.record.run import Cell, ModelFacts
from roofline.hardware.load import load_device
from roofline.workload import Workload

FACTS = ModelFacts(layers=8, experts=16, longest=4096)


class Timed:
    """A pass that took a known time."""

    def __init__(self, time_s: float) -> None:
        self.wall = Quantity(time_s, 0.0, 2 * time_s)


def curves(scenario: Scenario, time_s: Callable[[Step], float], device: str = "nvidia-h100-sxm") -> dict[str, Curve]:
    passes: Any = {step: Timed(time_s(step)) for step in scenario.steps(FACTS)}
    found = scenario.results(Measured(FACTS, passes, load_device(device)))
    return {curve.title: curve for curve in found if isinstance(curve, Curve)}


def values(curve: Curve, series: str = "") -> list[float | None]:
    return [row.quantity.measured for row in curve.rows if row.series == series]


def test_tokens_of_a_verified_pass_are_those_of_a_simulation() -> None:
    rng = np.random.default_rng(1)
    for drafted, acceptance in ((1, 0.5), (4, 0.8), (8, 0.9)):
        accepted = np.cumprod(rng.random((100_000, drafted)) < acceptance, axis=1).sum(axis=1)
        assert tokens_per_pass(drafted, acceptance) == pytest.approx(float(accepted.mean()) + 1, rel=0.01)
    assert tokens_per_pass(4, 1.0) == 5


def test_a_draft_pays_by_the_tokens_and_the_time_of_its_passes() -> None:
    def time_s(step: Step) -> float:
        return 1.0 if step.change else 8.0 + 0.5 * (step.query - 1)

    found = curves(Verify(tokens=(4,), acceptance=(0.8,)), time_s)
    assert values(found["verification ÷ decode step, T(k)/T(1)"]) == [10 / 8]
    faster = found["tokens a second ÷ without drafts"].rows[0]
    assert faster.quantity.measured == pytest.approx(tokens_per_pass(4, 0.8) * 8 / (4 * 1 + 10))
    assert faster.quantity.predicted == pytest.approx(faster.quantity.measured)  # all times twice as long


def test_chunks_add_up_to_the_sum_over_all_of_them_where_time_is_linear() -> None:
    def time_s(step: Step) -> float:
        return 3.0 + 0.1 * step.query + 0.01 * step.context

    found = curves(Chunked(prompt=640, chunk=(64, 160, 640)), time_s)
    whole = [sum(time_s(Step(chunk, at)) for at in range(0, 640, chunk)) for chunk in (64, 160, 640)]
    assert values(found["the whole prompt"]) == pytest.approx(whole)
    assert values(found["longest step"]) == pytest.approx(
        [time_s(Step(64, 576)), time_s(Step(160, 480)), time_s(Step(640))]
    )
    assert len(Chunked(prompt=640, chunk=(64,)).steps(FACTS)) == 4  # the whole, and three of ten chunks


def test_the_last_chunk_of_an_uneven_prompt_counts_in_part() -> None:
    found = curves(Chunked(prompt=100, chunk=(64,)), lambda step: float(step.query))
    assert values(found["the whole prompt"]) == pytest.approx([100.0])


def test_a_length_is_worth_what_a_queue_of_requests_shows() -> None:
    """Mean wait of many jobs at once, shortest first ÷ in random order, with geometric lengths."""
    rng, mean = np.random.default_rng(2), 20

    def time_s(step: Step) -> float:
        return 1.0 + 0.02 * step.context

    found = curves(Length(context=(10, 60, 410), mean=mean), time_s)
    assert values(found["all decode steps of a request"]) == pytest.approx(
        [sum(1.0 + 0.02 * (10 + i) for i in range(tokens)) for tokens in (50, 400)]
    )
    ends = np.concatenate([[0.0], np.cumsum(1.0 + 0.02 * (10 + np.arange(400)))])
    service = ends[np.minimum(rng.geometric(1 / mean, 20_000), 400)]
    waits = [float((np.cumsum(order) - order).mean()) for order in (np.sort(service), service)]
    worth = values(found["mean wait, shortest first ÷ first come"])
    assert worth == pytest.approx([waits[0] / waits[1]], rel=0.02)
    assert worth[0] is not None and worth[0] < 0.5  # times grow faster than lengths, and so does what knowing is worth


def test_the_layers_of_an_early_exit_are_told_from_the_rest() -> None:
    scenario = EarlyExit(layers=(2, 4))

    def time_s(step: Step) -> float:
        return 5.0 + (int(step.change.rpartition("=")[2]) if step.change else 8)

    found = curves(scenario, time_s)
    assert values(found["decode step"]) == [7.0, 9.0, 13.0]
    passes: Any = {step: Timed(time_s(step)) for step in scenario.steps(FACTS)}
    said = [
        line
        for line in scenario.results(Measured(FACTS, passes, load_device("nvidia-h100-sxm")))
        if isinstance(line, str)
    ]
    assert said == ["38.5 % of a step belongs to no layer: the embedding, the head, the host"]  # 5 ÷ 13


def test_a_chunk_beside_decoding_sequences_adds_what_the_step_is_longer() -> None:
    found = curves(Mixed(chunk=(32,), sequences=(4,)), lambda step: 2.0 + 0.1 * (step.query + step.decoding))
    added = values(found["time that the chunk adds ÷ its time alone"], "4 decoding")
    assert added == pytest.approx([(2 + 3.6 - 2.1) / (2 + 3.2)])


def test_an_answer_has_the_passes_that_are_known() -> None:
    """Every scenario says what it can of no pass at all."""
    for name, kind in SCENARIOS.items():
        scenario = kind()
        steps = scenario.steps(FACTS)
        assert len(steps) == len(set(steps)), name
        list(scenario.results(Measured(FACTS, {}, load_device("nvidia-h100-sxm"))))


def test_each_scenario_says_what_it_answers_and_what_its_options_are() -> None:
    for name in SCENARIOS:
        assert question(name).startswith("It measures ") and question(name).endswith("."), name
        _, _, *lines = WRITTEN.help_text(name).split("\n")
        assert all(len(line.strip().partition(": ")[2].partition(" (")[0]) > 8 for line in lines), name


def test_a_scenario_is_read_with_its_options() -> None:
    assert parse("verify:tokens=1|3,context=64") == ("verify", Verify(tokens=(1, 3), context=64))
    for text, why in (
        ("verfy", "no scenario 'verfy'; did you mean verify?"),
        ("zzz", "known: mixed, chunked"),
        ("verify:tokens=0", "tokens has to be above 0"),
        ("verify:tokens=2|2", "tokens names a value twice"),
        ("verify:tokens=x", "should be a whole number"),
        ("verify:layers=2", "'layers=2' is not one of its options"),
    ):
        with pytest.raises(ValueError) as refused:
            parse(text)
        assert why in str(refused.value) and "\n" not in str(refused.value)


DENSE = ModelFacts(layers=4)
NO_CACHE = ModelFacts(layers=4, keeps_cache=False)


@pytest.mark.parametrize(
    ("scenario", "facts", "why"),
    [
        ("experts", DENSE, "no experts"),
        ("verify", NO_CACHE, "keeps no cache"),
        ("verify:draft_layers=4", DENSE, "more than its 4"),
        ("early_exit:layers=4", DENSE, "the model has 4"),
        ("prefix:shared=1", DENSE, "between 0 and 1"),
        ("prefix:prompt=2", DENSE, "too short"),
        ("chunked:prompt=8,chunk=16", DENSE, "longer than the prompt"),
        ("length:context=8", DENSE, "two contexts"),
        ("offload:share=2", DENSE, "between 0 and 1"),
        ("verify:acceptance=2", DENSE, "between 0 and 1"),
    ],
)
def test_what_a_model_cannot_do_is_one_line(scenario: str, facts: ModelFacts, why: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(scenario)[1].steps(facts)
    assert why in str(refused.value) and "\n" not in str(refused.value)


def test_a_step_is_a_cell_of_its_own() -> None:
    like = Cell(
        model="m", workload=Workload(batch=1, query_tokens=1, context_tokens=0, dtype="float32"), attn="default",
        experts="default", cache="dynamic",
    )  # fmt: skip
    steps = [step for kind in SCENARIOS.values() for step in kind().steps(FACTS)]
    keys = {step.cell(like).key for step in steps}
    assert len(keys) == len(set(steps))
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") for key in keys)
    with pytest.raises(ValueError, match="1 or more"):
        Step(0).cell(like)


def test_links_and_networks_take_bytes_over_bandwidth() -> None:
    scenario, seen = Disaggregate(prompt=(128,), network=(1e9,)), load_device("nvidia-h100-sxm")
    assert seen.datasheet is not None
    measured = Measured(FACTS, {}, seen)
    assert set(measured.links) == set(seen.datasheet.links)
    assert all(not curve.rows for curve in scenario.results(measured) if isinstance(curve, Curve))
    assert Prefix(prompt=64, shared=(0.5,)).steps(FACTS)[1:] == [Step(32, 32), Step(1, 32, change="load:what=kv")]


def test_power_is_that_of_the_energy_counter_where_there_is_one() -> None:
    def window(**told: float) -> Window:
        return Window(start_s=0, duration_s=2, samples=1, **told)  # type: ignore[arg-type]

    assert mean_power_w([window(energy_j=600, power_w=1), window(energy_j=200)]) == 200
    assert mean_power_w([window(power_w=100), window(power_w=300), window()]) == 200
    assert mean_power_w([window()]) is None
