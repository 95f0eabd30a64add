"""The gate on simulated machines whose answer is known; benchmarks/test_regression_rules.py prints its rates."""

from collections.abc import Sequence

import numpy as np
import pytest
from regression_noise import Machine, Noise, SimulatedSampler

from calibrate.regression.gate import Drawn, Outcome, Plan, run_gate, self_test


def gate(sampler: SimulatedSampler, seed: int = 1, plan: Plan | None = None) -> Outcome:
    return run_gate(sampler, sampler.names, plan or Plan(resampled=20), np.random.default_rng(seed))


def verdicts(outcome: Outcome) -> dict[str, str]:
    return {row.name: row.verdict for row in outcome.comparisons}


def machine(kernels: int, seed: int = 1, **noise: float) -> Machine:
    return Machine(kernels, np.random.default_rng(seed), Noise(**noise))


def test_a_slowdown_is_found_and_nothing_else_is_blamed() -> None:
    outcome = gate(SimulatedSampler(machine(60), {7: 0.02, 30: -0.05}))
    found = verdicts(outcome)
    assert found.pop("7") == "slower" and found.pop("30") == "faster"
    assert set(found.values()) == {"same"}
    assert outcome.exit_code == 1
    row = next(row for row in outcome.comparisons if row.name == "7")
    assert row.ratio == pytest.approx(1.02, abs=0.006) and row.low is not None and row.low > 1
    assert row.replicates == (20, 20), "only the second draw decides"


def test_unchanged_kernels_are_not_red() -> None:
    """A third of these gates draw a kernel again; none is red. A rule that stops at the first draw fails this test."""
    outcomes = [gate(SimulatedSampler(machine(12, seed)), seed) for seed in range(25)]
    assert sum(bool(outcome.candidates) for outcome in outcomes) >= 2
    assert [outcome.exit_code for outcome in outcomes] == [0] * 25


class LuckyOnce(SimulatedSampler):
    """The first session with the new side slows kernel 0 down, as a burst of other work does; later ones do not."""

    def draw(self, kernels: Sequence[str], pairs: int, against_itself: bool = False, again: bool = False) -> Drawn:
        before = [asked for asked in self.asked if not asked[2]]
        drawn = super().draw(kernels, pairs, against_itself)
        if against_itself or len(before) > 1:
            return drawn
        return Drawn({name: [(a, b * (1.1 if name == "0" else 1)) for a, b in drawn.pairs[name]] for name in kernels})


def test_a_burst_of_other_work_is_drawn_again_and_forgotten() -> None:
    sampler = LuckyOnce(machine(12))
    outcome = gate(sampler)
    assert "0" in outcome.candidates
    assert verdicts(outcome)["0"] == "same" and outcome.exit_code == 0


def test_a_noisy_machine_is_said_so_and_measures_no_further() -> None:
    sampler = SimulatedSampler(machine(3, spread=0.2), {1: 0.5})
    outcome = gate(sampler)
    assert outcome.exit_code == 3
    assert all(is_own for _, _, is_own in sampler.asked), "no verdict was sought"
    assert all("too noisy here" in row.reason for row in outcome.comparisons)


def test_it_says_which_budget_would_find_the_tolerance() -> None:
    """With the pairs that a noisy machine asks for, its kernels are no longer too noisy."""
    plan = Plan(resampled=0, tolerance=0.02)
    outcome = gate(SimulatedSampler(machine(12, spread=0.02)), plan=plan)
    needed = list(outcome.self_test.needed.values())
    assert len(needed) == 12 and all(pairs and 20 < pairs < 200 for pairs in needed)
    assert f"--pairs {needed[0]} would find 2.00 %" in outcome.comparisons[0].reason
    pairs = max(filter(None, needed))
    own = machine(12, 2, spread=0.02).pairs(pairs)
    drawn = {str(i): [(1.0, float(np.exp(x))) for x in row] for i, row in enumerate(own)}
    larger = Plan(pairs=pairs, confirming=2 * pairs, resampled=0, tolerance=0.02)
    assert max(self_test(drawn, larger, np.random.default_rng(2)).detectable.values()) < 0.022
    hopeless = gate(SimulatedSampler(machine(2, spread=2.0)), plan=plan)
    assert "not even 1,000 pairs would find 2.00 %" in hopeless.comparisons[0].reason


class Busier(SimulatedSampler):
    """Other work begins after the first session: later processes differ four times as much."""

    def draw(self, kernels: Sequence[str], pairs: int, against_itself: bool = False, again: bool = False) -> Drawn:
        own = self.machine.own
        self.machine.own = own * (4 if again else 1)
        drawn = super().draw(kernels, pairs, against_itself)
        self.machine.own = own
        return drawn


def test_other_work_that_begins_before_the_second_draw_is_no_slowdown() -> None:
    """With the noise of the first session alone, 1 of 30 such gates is red."""
    random = np.random.default_rng(3)
    for _ in range(40):
        sampler = Busier(Machine(200, random))
        outcome = run_gate(sampler, sampler.names, Plan(resampled=0), random)
        assert outcome.exit_code != 1


class Breaking(SimulatedSampler):
    def draw(self, kernels: Sequence[str], pairs: int, against_itself: bool = False, again: bool = False) -> Drawn:
        drawn = super().draw(kernels, pairs, against_itself)
        fails = {"0": "base: no module named torch"} if against_itself else {"1": "new: it crashed (SIGSEGV)"}
        return Drawn(
            {name: pairs for name, pairs in drawn.pairs.items() if name not in fails},
            {name: why for name, why in fails.items() if name in kernels},
        )


def test_a_kernel_that_fails_costs_no_other_one() -> None:
    outcome = gate(Breaking(machine(12)))
    assert outcome.exit_code == 4
    assert {row.name: row.reason for row in outcome.comparisons if row.verdict == "failed"} == {
        "0": "base: no module named torch", "1": "new: it crashed (SIGSEGV)",
    }  # fmt: skip
    assert list(verdicts(outcome).values()).count("same") == 10


def test_settled_kernels_are_drawn_less() -> None:
    sampler = SimulatedSampler(machine(100))
    gate(sampler)
    (everything, pairs, _), (first, some, _), (waiting, rest, _) = sampler.asked[:3]
    assert (everything, pairs, first) == (100, 10, 100) and some + rest == 10
    assert waiting < 60


@pytest.mark.parametrize("spread", [0.002, 0.01])
def test_the_self_test_knows_what_can_be_found(spread: float) -> None:
    """What it says is found in 95 % of gates is, and half of it often is not."""
    quiet = {"drift": 0.0, "machine": 0.0, "outliers": 0.0, "spread": spread}
    own = machine(30, **quiet).pairs(10)
    pairs = {str(i): [(1.0, float(np.exp(x))) for x in row] for i, row in enumerate(own)}
    test = self_test(pairs, Plan(), np.random.default_rng(2))
    assert test.spread == pytest.approx(spread, rel=0.12)
    assert test.red <= 3 and test.gates == 1000
    size = float(np.median(list(test.detectable.values())))
    found = missed = 0
    for seed in range(15):
        found += _slower(machine(30, seed, **quiet), size)
        missed += 4 - _slower(machine(30, seed, **quiet), size / 2)
    assert found >= 0.92 * 60
    assert missed >= 6


def _slower(on: Machine, size: float) -> int:
    sampler = SimulatedSampler(on, dict.fromkeys((1, 9, 17, 25), size))
    outcome = gate(sampler, plan=Plan(tolerance=0.2, resampled=2))
    return sum(row.verdict == "slower" for row in outcome.comparisons)
