"""Units that are not like their sisters, on simulated fleets; the spec of a model; upgrades."""

import math

import hardware_samples
import numpy as np
import pytest
from each import each
from fleets import BAD_LINK, SLOW_CLOCK, SLOW_MEMORY, Fault, fleet, named

from calibrate.fleet.outliers import LEAST, Measured, Unit, causes, outliers, simes, spread
from calibrate.fleet.units import model_spec
from calibrate.fleet.upgrades import upgrades
from calibrate.regression.history import Night
from profiler.devices.conditions import REASONS, device_labels
from profiler.devices.findings import gpu_findings
from profiler.devices.watch import GpuReading
from profiler.record.measurement import Window
from profiler.record.run import RequestError
from roofline.hardware.spec import HardwareSpec

DRAWS = 40


@pytest.mark.parametrize("tails", [None, 5.0])
def test_two_bad_units_of_forty_are_named_and_no_others(tails: float | None) -> None:
    for seed in range(DRAWS):
        found = outliers(fleet(np.random.default_rng(seed), 40, {3: SLOW_MEMORY, 17: SLOW_CLOCK}, tails))
        assert named(found) == {"GPU-3", "GPU-17"}, seed


def test_a_fleet_of_alike_units_has_no_bad_one() -> None:
    assert not any(
        named(outliers(fleet(np.random.default_rng(seed), n, {}))) for n in (5, 8, 40) for seed in range(DRAWS)
    )


@each(
    ("fault", "remarks", "cause"),
    [
        (SLOW_MEMORY, (), "slow memory"),
        (SLOW_CLOCK, (), "low clocks: power, heat or a clock limit"),
        (SLOW_CLOCK, ("power cap in 83 % of the time",), "power or heat holds it back"),
        (SLOW_MEMORY, ("3 uncorrected memory errors since the driver was loaded",), "ECC errors or lost memory"),
        (BAD_LINK, (), "a bad or narrow link"),
        ((("launch.", "host."), 2.0), (), "a slow or busy host"),
        ((("memory.", "matmul."), 0.8), (), "not known"),
        ((("matmul.", "vector."), 1.3), (), "better than its sisters: another clock, power limit or version?"),
    ],
)
def test_the_likely_cause_is_named(fault: Fault, remarks: tuple[str, ...], cause: str) -> None:
    found = outliers(fleet(np.random.default_rng(7), 40, {5: fault}, remarks={5: remarks}))
    assert found[0].unit.name == "GPU-5" and found[0].is_certain and found[0].cause == cause
    assert {off.name.partition(".")[0] + "." for off in found[0].figures if abs(off.distance) > 6} == set(fault[0])
    assert all(off.ratio == pytest.approx(fault[1], rel=0.1) for off in found[0].figures if abs(off.distance) > 6)


def test_causes_follow_from_what_measurements_remark() -> None:
    """Each remark that a cause needs is one that `hardware` writes, and a driver that tells nothing is no cause."""
    bad = GpuReading(ecc=False, ecc_uncorrected=2, remapped_rows=1, power_limit_w=500, power_default_w=700)
    notes = [found.what for found in gpu_findings(bad)]
    window = Window(start_s=0, duration_s=1, samples=1)
    held = window.model_copy(update={"event_reasons": sum({reason.bit for reason in REASONS})})
    labels = device_labels([held], bad, bad.model_copy(update={"ecc_uncorrected": 3}))
    texts = [*notes, *(label.what for label in labels)]
    for cause in causes():
        assert all(any(word in text for text in texts) for word in cause.remarks), cause.cause
    unseen = [label.what for label in device_labels([window], GpuReading(), GpuReading())]
    assert unseen and not any(word in text for text in unseen for cause in causes() for word in cause.remarks)


def test_a_small_fleet_names_a_unit_that_is_far_off_and_less_than_five_none() -> None:
    far = {1: (("memory.", "level."), 0.4)}
    assert named(outliers(fleet(np.random.default_rng(3), 8, far))) == {"GPU-1"}
    assert outliers(fleet(np.random.default_rng(3), LEAST - 1, far)) == []


def test_one_far_figure_may_be_a_bad_measurement_and_a_noisy_one_is_none() -> None:
    units = fleet(np.random.default_rng(2), 40, {5: (("level.",), 0.7)})
    assert next((o.unit.name, o.is_certain) for o in outliers(units)) == ("GPU-5", False)
    noisy = {n: Measured(f.value, f.unit, 0.3) for n, f in units[5].figures.items()}
    units[5] = Unit("GPU-5", "", noisy)
    assert "GPU-5" not in [outlier.unit.name for outlier in outliers(units)]


def test_figures_that_units_lack_and_figures_without_spread() -> None:
    units = fleet(np.random.default_rng(1), 10, {})
    units = [
        Unit(u.name, "", {**u.figures, "capacity": Measured(80e9 if i else 75e9, "B")}) for i, u in enumerate(units)
    ]
    units[4] = Unit("GPU-4", "", {})
    found = outliers(units)
    assert [outlier.unit.name for outlier in found] == ["GPU-0"] and found[0].figures[0].name == "capacity"


@each("count", [5, 8, 9, 20, 41])
def test_the_spread_is_the_standard_deviation_of_normal_figures_and_ignores_outliers(count: int) -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.normal(0, 0.01, count) for _ in range(400)]
    assert np.mean([spread(logs) for logs in drawn]) == pytest.approx(0.01, rel=0.06)
    for logs in drawn:
        logs[: count // 3] = 5.0
    assert np.median([spread(logs) for logs in drawn]) < 0.04


def test_simes() -> None:
    assert simes([]) == 1.0 and simes([0.01]) == 0.01
    assert simes([0.04, 0.03, 0.5]) == pytest.approx(0.06), "min of 0.09, 0.06, 0.5"


def test_every_cause_is_reached_by_a_name() -> None:
    assert len({row.cause for row in causes()}) == len(causes())


def specs(count: int) -> list[HardwareSpec]:
    """Units whose rates are 1 % apart."""
    spec, _, _ = hardware_samples.cpu()
    assert spec.measured is not None
    found = []
    for i in range(count):
        scale = 1 + 0.01 * (i - count // 2)
        matrix = {dtype: f.model_copy(update={"value": scale * f.value}) for dtype, f in spec.measured.matrix.items()}
        figures = [c.model_copy(update={"value": scale * c.value}) for c in spec.characteristics if c.value]
        peaks = spec.measured.model_copy(update={"matrix": matrix})
        found.append(spec.model_copy(update={"measured": peaks, "characteristics": tuple(figures)}))
    return found


def test_the_spec_of_a_model_is_the_median_of_its_units_with_the_spread_between_them() -> None:
    units = specs(9)
    whole = model_spec(units)
    middle = units[4]
    assert whole.uuid is None and whole.measured is not None and middle.measured is not None
    for dtype, figure in whole.measured.matrix.items():
        assert figure.value == pytest.approx(middle.measured.matrix[dtype].value)
        assert figure.low is not None and figure.high is not None
        assert figure.low < units[0].measured.matrix[dtype].value < figure.value < figure.high  # type: ignore[union-attr]
        assert "median of 9 units" in figure.source
    assert {c.replicates for c in whole.characteristics} == {9}
    assert HardwareSpec.model_validate_json(whole.model_dump_json()) == whole
    assert model_spec(units[:2]).measured.matrix["float32"].low is None  # type: ignore[union-attr]
    with pytest.raises(RequestError, match="no unit of this device has measured figures"):
        model_spec([middle.model_copy(update={"measured": None})])


def runs(rng: np.random.Generator, units: int, slower: float) -> tuple[list[Night], np.ndarray]:
    nights, logs = [], []
    for night in range(4):
        for unit in range(units):
            torch = "2.11" if night < 2 else "2.13"
            nights.append(Night(f"{night}-{unit}", f"2026-01-0{night}", {"device unit": f"GPU-{unit}", "torch": torch}))
            own = 0.05 * unit
            logs.append(own + rng.normal(0, 0.005) + (math.log(slower) if night >= 2 else 0.0))
    return nights, np.array(logs)


def test_an_upgrade_is_seen_although_units_differ_more_than_it_changes() -> None:
    rng = np.random.default_rng(4)
    nights, slower = runs(rng, 12, 1.03)
    same = runs(rng, 12, 1.0)[1]
    found = upgrades(nights, {(("name", "decode"),): slower, (("name", "matmul"),): same}, 0.01)
    assert [(up.name, up.what, up.units) for up in found] == [("decode", "torch 2.11 → 2.13", 12)]
    assert found[0].low < 1.03 < found[0].high and found[0].high - found[0].low < 0.02


def test_units_on_one_side_of_an_upgrade_say_nothing() -> None:
    nights, logs = runs(np.random.default_rng(5), 2, 1.2)
    assert upgrades(nights, {(("name", "a"),): logs}, 0.01) == [], "two units have no interval"
    assert upgrades(nights[:4], {(("name", "a"),): logs[:4]}, 0.01) == []
