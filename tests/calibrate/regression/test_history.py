"""Histories with known answers; benchmarks/test_history_rules.py prints rates over many."""

from collections.abc import Mapping

import numpy as np
import pytest
from each import each
from regression_noise import nightly

from calibrate.regression.compare import Comparison, Key, Verdict
from calibrate.regression.history import Change, Night, change_points, changes, common, gated
from calibrate.regression.statistics import Array


def nights(count: int, **later: tuple[int, str]) -> list[Night]:
    """Runs of one device; each of `later` has another value from a night on."""
    made = []
    for i in range(count):
        made_of = {"device": "H200", "torch": "2.11", "method version": "2", "driver": "550", "commit": "a"}
        made_of.update({name: value for name, (at, value) in later.items() if i >= at})
        made.append(Night(f"run{i}", f"2026-01-{i % 28 + 1:02}", made_of))
    return made


def found(logs: Array, runs: list[Night]) -> list[Change]:
    series: Mapping[Key, Array] = {(("kernel", str(i)),): row for i, row in enumerate(logs)}
    return changes(runs, series, common(logs), 0.01)


def quiet(seed: int = 1, kernels: int = 40, count: int = 40) -> Array:
    return np.random.default_rng(seed).normal(0, 0.002, (kernels, count))


def test_a_step_has_its_night_size_and_cause() -> None:
    logs = quiet()
    logs[7, 25:] += np.log(1.05)
    (change,) = [change for change in found(logs, nights(40, torch=(25, "2.13"))) if change.lasts]
    assert change.name == "7" and change.at == 25 and change.nights == (25, 15)
    assert change.ratio == pytest.approx(1.05, rel=0.003)
    assert (change.cause, change.what) == ("code", ("torch 2.11 → 2.13",))


@pytest.mark.parametrize(
    ("later", "cause"),
    [({"driver": (25, "560")}, "hardware"), ({"method version": (25, "3"), "torch": (25, "2.13")}, "method"),
     ({"commit": (25, "b")}, "code"), ({}, "noise")],
)  # fmt: skip
def test_the_four_causes(later: dict[str, tuple[int, str]], cause: str) -> None:
    logs = quiet()
    logs[7, 25:] += 0.05
    assert [change.cause for change in found(logs, nights(40, **later)) if change.name == "7"] == [cause]


@pytest.mark.parametrize(
    ("clock", "cause", "what"),
    [("1890 MHz", "hardware", ("SM clock 1980 MHz → 1890 MHz", "commit a → b")),
     ("2080 MHz", "code", ("SM clock 1980 MHz → 2080 MHz", "commit a → b")), ("1975 MHz", "code", ("commit a → b",))],
)  # fmt: skip
def test_a_clock_is_the_cause_where_it_explains_the_change(clock: str, cause: str, what: tuple[str, ...]) -> None:
    logs = quiet()
    logs[7, 25:] += 0.05
    runs = [Night(night.name, night.started, {**night.made_of, "SM clock": clock if i >= 25 else "1980 MHz"})
            for i, night in enumerate(nights(40, commit=(25, "b")))]  # fmt: skip
    assert [(change.cause, change.what) for change in found(logs, runs) if change.name == "7"] == [(cause, what)]


def test_a_gate_confirms_or_refutes_the_kernel_of_the_same_name() -> None:
    def row(name: str, verdict: Verdict, ratio: float | None = 1.0) -> Comparison:
        return Comparison((("kernel", name),), verdict, ratio=ratio)

    def said(name: str, ratio: float, *rows: Comparison) -> str | None:
        key = (("kernel", name), ("shape", "8×4096")) if name else ()
        return gated(Change(key, 5, ratio, (5, 5), "code", (), True), rows, 0.01).gated

    slower, same = row("rms_norm", "slower", 1.06), row("norm", "same")
    assert said("rms norm", 1.05, slower, same) == "confirmed", "the longest name that fits"
    assert said("rms_norm", 0.95, slower, same) == "refuted", "it is slower, not faster"
    assert said("layer norm", 1.05, slower, same) == "refuted"
    assert said("softmax", 1.05, slower, same) == "undecided"
    assert said("softmax", 1.05, slower) == "confirmed", "the only kernel of the file stands for all"
    assert said("softmax", 0.95, row("x", "faster", 0.94)) == "confirmed"
    assert (
        said("softmax", 1.05, row("x", "ambiguous")) == said("softmax", 1.05, row("x", "failed", None)) == "undecided"
    )
    broad = [row(str(i), "slower" if i else "same", 1.08 if i else 1.0) for i in range(4)]
    assert said("", 1.08, *broad) == "confirmed" and said("", 1.08, same) == "refuted"
    assert said("", 1.08, row("x", "failed", None)) == "undecided"


def test_a_night_in_which_everything_slows_blames_the_machine() -> None:
    logs = quiet()
    logs[:, 39] += np.log(1.03)
    (change,) = found(logs, nights(40))
    assert change.key == () and change.name == "all rows together" and not change.lasts
    assert change.ratio == pytest.approx(1.03, rel=0.003) and change.cause == "hardware"
    logs = quiet()
    logs[:, 20] += np.log(1.03)
    assert found(logs, nights(40)) == [], "one night long ago is no change of anything"


def test_one_kernel_that_changes_in_a_bad_night_is_still_found() -> None:
    logs = quiet()
    logs[:, 20:] += np.log(1.03)
    logs[7, 20:] -= np.log(1.05)
    machine, kernel = [change for change in found(logs, nights(40)) if change.lasts]
    assert machine.key == () and machine.ratio == pytest.approx(1.03, rel=0.003)
    assert kernel.name == "7" and kernel.ratio == pytest.approx(1 / 1.05, rel=0.003)


def test_a_slow_drift_below_every_tolerance_is_told() -> None:
    logs = quiet()
    logs[7] += np.linspace(0, np.log(1.04), 40)
    told = [change for change in found(logs, nights(40, commit=(20, "b"))) if change.name == "7" and change.lasts]
    assert told and np.prod([change.ratio for change in told]) > 1.02


def test_a_broad_slowdown_and_its_recovery_by_release() -> None:
    """As three releases of one project: everything slower in the second, back in the third, two kernels faster."""
    logs = quiet(count=30)
    logs[:, 10:20] += np.log(1.08)
    logs[[3, 4], 20:] += np.log(0.8)
    changed = found(logs, nights(30, torch=(10, "b"), commit=(20, "c")))
    assert [(change.at, round(change.ratio, 2)) for change in changed if not change.key] in (
        [(10, 1.08), (20, 0.93)], [(20, 0.93), (10, 1.08)],
    )  # fmt: skip
    assert {change.name for change in changed if change.key and change.lasts} == {"3", "4"}


def test_missing_nights_and_short_histories() -> None:
    logs = quiet()
    logs[7, 25:] += 0.05
    logs[7, [3, 24, 30]] = np.nan
    assert [change.at for change in found(logs, nights(40)) if change.name == "7"] == [25]
    logs[8] = np.nan
    assert found(logs[:, :4], nights(4)) == []
    assert found(np.zeros((6, 20)), nights(20)) == []


def test_outliers_are_no_changes() -> None:
    logs = nightly("iid 0.5 %", 100, 60, np.random.default_rng(3))
    lasting = [change for change in found(logs, nights(60)) if change.lasts]
    assert len(lasting) <= 5


@each("seed", range(12))
def test_change_points_are_those_of_ruptures_or_better(seed: int) -> None:
    ruptures = pytest.importorskip("ruptures")
    random = np.random.default_rng(seed)
    steps = np.repeat(random.normal(0, 3, 6), random.integers(1, 40, 6))
    values = steps + random.normal(0, 1, len(steps))

    def cost(points: list[int], penalty: float) -> float:
        parts = np.split(values, points)
        return penalty * len(points) + sum(float(((part - part.mean()) ** 2).sum()) for part in parts)

    for least, penalty in ((1, 2.0), (3, 12.0), (3, 0.5)):
        theirs = (
            ruptures.KernelCPD(kernel="linear", min_size=least).fit(values.reshape(-1, 1)).predict(pen=penalty)[:-1]
        )
        own = change_points(values, penalty, least)
        assert min(np.diff([0, *own, len(values)])) >= least
        assert cost(own, penalty) <= cost(theirs, penalty) + 1e-9, "it prunes by a rule that is exact for least = 1"
        assert own == theirs or penalty < 1
