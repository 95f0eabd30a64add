"""Predictions at the level of the machine, and the intervals of their totals."""

import json
import math

import numpy as np
import pytest
from calibrated_laws import at_priors
from graphs import GraphBuilder, peaks

from calibrate.passes.efficiency import summarise
from calibrate.passes.pass_report import TERMS, PassReport, to_json
from calibrate.passes.predicted import Array, Predicted
from profiler.record.run import Cell, CellResult, Closure, OpTimes
from roofline.graph.op import OpGraph
from roofline.hardware.spec import Chip, Figure, HardwareSpec, facts_of
from roofline.laws.fitted import LevelRatio, ReferenceLevel
from roofline.price import Prepared
from roofline.price_by_law import level_factors, waits
from roofline.workload import Workload

DECODE = Workload(batch=1, query_tokens=1, context_tokens=8, dtype="float32")
COUNT = np.array([1.0, 2.0, 1.0])
SLOWER = LevelRatio(ratio=1.5, low=1.4, high=1.7)
NONE = np.zeros((3, 3))


def predicted(shares: Array = NONE, levels: dict[str, LevelRatio] | None = None, law: tuple[int, ...] = (0, 0, 1)):
    """Three operations of 10 s ± 10 %, the second one running twice."""
    time_s = np.full(3, 10.0)
    return Predicted(time_s, 0.9 * time_s, 1.1 * time_s, np.array(law), shares, levels or {})


def test_operations_of_one_law_are_off_together_and_laws_independently() -> None:
    assert predicted(law=(0, 0, 0)).ends(COUNT) == pytest.approx((40 - 4, 40 + 4))
    assert predicted().ends(COUNT) == pytest.approx((40 - math.hypot(3, 1), 40 + math.hypot(3, 1)))
    assert predicted().ends(COUNT, [2]) == pytest.approx((9, 11))


def test_what_no_law_prices_has_no_interval() -> None:
    assert predicted(law=(0, -1, 0)).ends(COUNT) is None
    assert predicted(law=(0, -1, 0)).ends(np.array([99.0, 1.0, 0.0])) == pytest.approx((1000 - 99, 1000 + 99))


def test_what_is_not_known_of_a_level_widens_what_follows_it() -> None:
    memory = np.tile([1.0, 0.0, 0.0], (3, 1))
    found = predicted(memory, {"memory": SLOWER})
    assert found.at_level_s == pytest.approx([15, 15, 15])
    assert found.level_ends(COUNT) == pytest.approx((20 - 4, 20 + 8))
    laws = 1.5 * math.hypot(3, 1)
    assert found.ends(COUNT) == pytest.approx((60 - math.hypot(laws, 4), 60 + math.hypot(laws, 8)))


def test_gaps_are_a_law_of_their_own() -> None:
    gaps = np.ones(3)
    found = predicted().beside(gaps, (0.5 * gaps, 1.5 * gaps)).ends(np.concatenate([COUNT, COUNT]))
    assert found == pytest.approx((44 - math.hypot(3, 1, 2), 44 + math.hypot(3, 1, 2)))


MEASURED = peaks(matrix=100, vector=10, levels=(("DRAM", 1e9, 10.0),), host_s=0.5)
CHIP = Chip(units=Figure(value=1, source="test"), last_level_cache_bytes=Figure(value=1e12, source="test"))
BARE = HardwareSpec(name="test", kind="cpu", chip=CHIP, measured=MEASURED)
LAWS = tuple(at_priors(kind, "float32", facts_of(BARE)) for kind in ("matmul", "pointwise", "host_gap"))
CALIBRATION = {probe: ReferenceLevel(seconds=(0.010, 0.0101, 0.0099)) for probe in ("memory", "product", "host")}
SPEC = BARE.model_copy(update={"calibrated": LAWS, "reference": CALIBRATION})


def graph() -> OpGraph:
    b = GraphBuilder(DECODE)
    b.weight("w", 40)
    b.op("matmul", reads=["w"], writes={"a": 10}, matrix=400, path="layers.0.up", b=1, m=2, n=1, k=1)
    b.op("pointwise", reads=["a"], writes={"b": 10}, vector=10, path="layers.0")
    return b.graph()


def result(**reference: tuple[float, ...]) -> CellResult:
    ops = tuple(OpTimes(op=i, device_s=(9.0, 9.1, 8.9), gap_s=(1.0,) * 3) for i in range(2))
    return CellResult(
        cell=Cell(model="test", workload=DECODE, attn="sdpa", experts="default", cache="dynamic"),
        status="done",
        wall_s=(20.0, 20.1, 20.2),
        profiled_wall_s=(20.0, 20.1, 20.2),
        ops=ops,
        closure=Closure(attributed=1, spans_plus_gaps=1, instrumented_ratio=1),
        reference=reference,
    )


def total(report: PassReport) -> float:
    fall = report.waterfall
    known = [getattr(fall, name) for name in TERMS if getattr(fall, name) is not None]
    return math.fsum([*known, *fall.merged.values(), fall.idle])


def test_a_slower_machine_is_a_term_of_its_own() -> None:
    slow = {"memory": (0.0200, 0.0201, 0.0199), "host": (0.0151, 0.0150, 0.0149)}
    report = summarise(result(**slow), graph(), SPEC)
    plain = summarise(result(), graph(), SPEC)
    assert report.level.keys() == {"memory", "host"}
    assert report.rungs.calibrated == plain.rungs.calibrated == report.predicted_busy_calibrated_s
    laws = summarise(result(), graph(), SPEC).layers
    by_path = {layer.path: layer.rungs.calibrated for layer in laws}
    factors = level_factors(waits(Prepared(graph()), MEASURED, "cpu"), report.level)
    expected = by_path["layers.*.up"] * factors[0] + by_path["layers.*"] * factors[1]
    assert report.rungs.calibrated_at_level == report.predicted_busy_s == pytest.approx(expected)
    assert report.waterfall.level == pytest.approx(expected - report.rungs.calibrated)
    assert report.waterfall.residual == pytest.approx(report.busy_s - expected)
    assert total(report) == pytest.approx(report.wall_s)
    gaps = plain.predicted_wall_s - plain.predicted_busy_s
    assert report.predicted_wall_calibrated_s == plain.predicted_wall_s == plain.predicted_wall_calibrated_s
    assert report.predicted_wall_s == pytest.approx(expected + gaps * report.level["host"].ratio)
    assert report.waterfall_low["level"] < report.waterfall.level < report.waterfall_high["level"]
    assert report.predicted_wall_s_low < report.predicted_wall_s < report.predicted_wall_s_high
    sum_of_layers = sum(layer.waterfall.level for layer in report.layers)
    assert sum_of_layers == pytest.approx(report.waterfall.level)
    assert to_json(report)["level"]["memory"].keys() == {"ratio", "low", "high"}


def test_without_probes_the_level_is_part_of_the_residual() -> None:
    report = summarise(result(), graph(), SPEC)
    assert (report.level, report.waterfall.level, report.waterfall.residual) == ({}, None, None)
    assert report.waterfall.merged["level+residual"] == pytest.approx(report.busy_s - report.rungs.calibrated)
    residual = report.waterfall.merged["level+residual"]
    above = report.predicted_busy_s_high - report.predicted_busy_s
    wide = math.hypot(report.busy_s - report.busy_s_low, above)
    assert report.waterfall_low["level+residual"] == pytest.approx(residual - wide)


def test_the_residual_is_what_neither_laws_nor_level_explain() -> None:
    """A pass that is slower in everything by the same factor, as its probes are, leaves the same residual share."""
    slower = result(**dict.fromkeys(CALIBRATION, (0.02, 0.0201, 0.0199)))
    doubled = slower.model_copy(
        update={
            "ops": tuple(
                OpTimes(op=one.op, device_s=tuple(2 * s for s in one.device_s), gap_s=one.gap_s) for one in slower.ops
            ),
            "wall_s": (40.0, 40.1, 40.2),
            "profiled_wall_s": (40.0, 40.1, 40.2),
        }
    )
    before, after = summarise(result(), graph(), SPEC), summarise(doubled, graph(), SPEC)
    assert after.predicted_busy_s / after.busy_s == pytest.approx(before.predicted_busy_s / before.busy_s, rel=0.01)
    assert after.predicted_busy_calibrated_s == before.predicted_busy_s


def test_runs_of_the_schema_before_are_read() -> None:
    old = json.loads(result().model_dump_json())
    del old["reference"]
    spec = json.loads(SPEC.model_dump_json())
    del spec["reference"]
    spec["schema_version"] = 2
    read = CellResult.model_validate_json(json.dumps(old)), HardwareSpec.model_validate_json(json.dumps(spec))
    assert read[0] == result()
    report = summarise(read[0], graph(), read[1])
    assert (report.level, report.predicted_busy_s) == ({}, report.predicted_busy_calibrated_s)
