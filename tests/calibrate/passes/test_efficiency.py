import json

import numpy as np
import pytest
from calibrated_laws import at_priors
from graphs import GraphBuilder, peaks
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.passes.efficiency import summarise
from calibrate.passes.pass_report import TERMS, PassReport, Rungs, to_json, waterfall
from calibrate.passes.replicates import error_within, median_of
from calibrate.passes.table import layer_kind
from profiler.record.measurement import Window
from profiler.record.run import Cell, CellResult, Closure, OpTimes
from roofline.graph.op import OpGraph
from roofline.hardware.spec import Chip, Figure, HardwareSpec, facts_of
from roofline.workload import Workload

DECODE = Workload(batch=1, query_tokens=1, context_tokens=8, dtype="float32")
SHEET = peaks(matrix=200, vector=20, levels=(("DRAM", 1e9, 20.0),))
MEASURED = peaks(matrix=100, vector=10, levels=(("DRAM", 1e9, 10.0),), host_s=0.5)
CHIP = Chip(units=Figure(value=1, source="test"), last_level_cache_bytes=Figure(value=1e12, source="test"))
SPEC = HardwareSpec(name="test", kind="cpu", chip=CHIP, datasheet=SHEET, measured=MEASURED)
GAPS = at_priors("host_gap", "float32", facts_of(SPEC))
GAP_S = 3 * GAPS.values["operation"] + 8 * GAPS.values["module"]
"""Before three operations: three modules are entered, two are left and two entered, one is left."""
PRODUCT = {"b": 1, "m": 2, "n": 1, "k": 1}


def two_matmuls_and_an_add(count: float = 1, **fields: object) -> OpGraph:
    """All from main memory. At the measured peaks 4 s (400 FLOPs ÷ 100), 6 s (60 bytes ÷ 10), 3 s (30 ÷ 10).

    Fused, the add joins the second matmul: 50 bytes, 5 s; shared 6 to 3. The datasheet halves everything.
    """
    b = GraphBuilder(DECODE)
    b.weight("w1", 10)
    b.weight("w2", 30)
    b.op("matmul", reads=["w1"], writes={"a": 10}, matrix=400, path="layers.0.up", count=count, **PRODUCT)
    b.op("matmul", reads=["w2", "a"], writes={"b": 20}, matrix=100, path="layers.1.up", count=count, **PRODUCT)
    b.op("pointwise", reads=["b"], writes={"c": 10}, vector=10, path="layers.1", count=count)
    return b.graph(**fields)


def result(
    device=((5.0,), (8.0,), (4.0,)),
    gap=((1.0,), (0.0,), (1.0,)),
    wall=(20.0,),
    tail=(1.0,),
    unattributed=(),
    **fields: object,
) -> CellResult:
    ops = tuple(
        OpTimes(op=i, device_s=d, gap_s=g, kernels=("k",)) for i, (d, g) in enumerate(zip(device, gap, strict=True))
    )
    base = {
        "cell": Cell(model="test", workload=DECODE, attn="sdpa", experts="default", cache="dynamic"),
        "status": "done",
        "wall_s": wall,
        "profiled_wall_s": wall,
        "ops": ops,
        "tail_gap_s": tail,
        "unattributed_s": unattributed,
        "closure": Closure(attributed=1, spans_plus_gaps=1, instrumented_ratio=1),
        "clock": "profiler spans",
    }
    return CellResult.model_validate(base | fields)


def row(report: PassReport, path: str, kind: str):
    return next(layer for layer in report.layers if (layer.path, layer.kind) == (path, kind))


def total(waterfall) -> float:
    alone = [getattr(waterfall, name) for name in TERMS]
    return sum(x for x in alone if x is not None) + sum(waterfall.merged.values()) + waterfall.idle


def test_every_rung_and_term_of_a_pass_by_hand():
    report = summarise(result(), two_matmuls_and_an_add(), SPEC, np.array([4.5, 7.0, 3.5]))
    rungs = report.rungs
    assert (rungs.ideal, rungs.achieved, rungs.executed, rungs.calibrated, rungs.measured) == pytest.approx(
        (4.5, 9, 13, 15, 17)
    )
    fall = report.waterfall
    assert (fall.ideal, fall.peak_derate, fall.extra_work, fall.shape_loss, fall.idle) == pytest.approx(
        (4.5, 4.5, 4, 2, 3)
    )
    assert (fall.level, fall.residual, fall.merged) == (None, None, {"level+residual": 2})
    assert (report.wall_s, report.busy_s, report.status) == (20, 17, "done")
    assert (report.ideal_peaks, report.prediction) == ("datasheet", "calibrated")
    assert (report.predicted_busy_s, report.predicted_wall_s) == (15, None)  # no law of the host's gaps
    spec = SPEC.model_copy(update={"calibrated": (GAPS,)})
    known = summarise(result(), two_matmuls_and_an_add(), spec, np.array([4.5, 7.0, 3.5]))
    assert known.predicted_wall_s == pytest.approx(15 + GAP_S, abs=1e-9)
    assert report.warnings == ()


def test_every_figure_of_a_layer_kind_by_hand():
    report = summarise(result(), two_matmuls_and_an_add(), SPEC)
    up = row(report, "layers.*.up", "matmul")
    assert (up.count, up.measured_s, up.median_s, up.matrix_flops, up.bytes) == (2, 13, 6.5, 500, 80)
    assert up.spread_s == pytest.approx(3 * 0.9 / 2)  # 5 and 8 s: 5–95 % of the range between them, halved
    assert up.rungs.ideal == pytest.approx(2 + 2.5 * 6 / 9)
    assert up.rungs.achieved == pytest.approx(4 + 5 * 6 / 9)
    assert up.rungs.executed == up.predicted_s == 10
    assert up.efficiency == pytest.approx((2 + 2.5 * 6 / 9) / 13)
    assert up.bound == "DRAM"  # 6 of its 10 s
    assert up.kernels == ("k",)
    add = row(report, "layers.*", "pointwise")
    # idle 3 s by gaps of 1 s before either; the tail's goes along
    assert (up.waterfall.idle, add.waterfall.idle) == (1.5, 1.5)
    assert add.waterfall.merged == pytest.approx({"shape_loss+level+residual": 4 - 3})


def test_layers_add_up_to_the_pass():
    report = summarise(result(unattributed=(0.5,)), two_matmuls_and_an_add(), SPEC)
    assert sum(layer.measured_s for layer in report.layers) == report.busy_s == 17.5
    for name in ("ideal", "peak_derate", "extra_work"):
        layers = [getattr(layer.waterfall, name) for layer in report.layers]
        assert sum(x for x in layers if x is not None) == pytest.approx(getattr(report.waterfall, name))
    assert sum(total(layer.waterfall) for layer in report.layers) == pytest.approx(report.wall_s)


def test_unattributed_time_is_a_row_of_its_own():
    report = summarise(result(unattributed=(0.4, 0.5, 9.0)), two_matmuls_and_an_add(), SPEC)
    lost = row(report, "(unattributed)", "other")
    assert (lost.ideal_s, lost.efficiency, lost.waterfall.idle) == (None, None, 0)
    assert lost.measured_s == pytest.approx((0.4 + 0.5 + 9.0) / 3)  # of one round
    assert lost.waterfall.merged == {"ideal+peak_derate+extra_work+shape_loss+level+residual": lost.measured_s}


@pytest.mark.parametrize(
    ("spec", "merged", "ideal_s", "origin", "prediction"),
    [
        ({"measured": MEASURED}, {"ideal+peak_derate": 9, "shape_loss+level+residual": 4}, 9, "achieved", "executed"),
        ({"datasheet": SHEET}, {"peak_derate+extra_work+shape_loss+level+residual": 12.5}, 4.5, "datasheet", None),
        ({}, {"ideal+peak_derate+extra_work+shape_loss+level+residual": 17}, None, None, None),
    ],
)
def test_unknown_rungs_are_merged_never_zero(spec, merged, ideal_s, origin, prediction):
    report = summarise(result(), two_matmuls_and_an_add(), HardwareSpec(name="test", kind="cpu", **spec))
    assert report.waterfall.merged == pytest.approx(merged)
    assert (report.ideal_peaks, report.prediction) == (origin, prediction)
    ideals = [layer.ideal_s for layer in report.layers]
    assert (None if None in ideals else pytest.approx(sum(ideals))) == ideal_s
    assert total(report.waterfall) == pytest.approx(20)
    assert {layer.bound for layer in report.layers} == ({""} if origin is None else {"DRAM"})


def test_a_dtype_without_a_peak_makes_its_rungs_unknown_and_says_so():
    b = GraphBuilder(DECODE)
    b.op("matmul", reads={"x": 10}, writes={"y": 10}, matrix=100, dtype="bfloat16", path="a")
    b.op("matmul", reads=["y"], writes={"z": 10}, matrix=100, path="b")
    report = summarise(result(((5.0,), (5.0,)), ((0.0,), (0.0,))), b.graph(), SPEC)
    assert (report.rungs.ideal, report.rungs.executed, report.predicted_wall_s) == (None, None, None)
    assert row(report, "a", "matmul").rungs.executed is None
    assert row(report, "b", "matmul").rungs.executed == 2
    assert [w for w in report.warnings if "matrix bfloat16" in w and "measured" in w]
    assert total(report.waterfall) == pytest.approx(report.wall_s)


def test_layers_that_did_not_run_scale_busy_and_wall():
    graph = two_matmuls_and_an_add(count=4, layers=(1, 4))
    report = summarise(result(), graph, SPEC)
    # ran: 17 + 2 gaps + 1 tail = 20; whole model: 4 × 19 + 1 = 77
    assert (report.wall_s, report.busy_s) == pytest.approx((77, 68))
    assert report.rungs.executed == pytest.approx(52)
    assert report.scaled_from_layers == (1, 4)
    assert row(report, "layers.*.up", "matmul").count == 8
    assert sum(total(layer.waterfall) for layer in report.layers) == pytest.approx(77)


def test_medians_are_taken_of_the_passes():
    measured = result(((1.0, 5.0, 90.0), (8.0, 7.0, 9.0), (4.0, 4.0, 4.0)), wall=(19.0, 20.0, 50.0))
    report = summarise(measured, two_matmuls_and_an_add(), SPEC)
    assert (report.busy_s, report.wall_s) == (17, 20)
    assert report.noise == pytest.approx((47 - 19.1) / 2 / 20)
    assert (report.passes, report.rounds) == ((3, 3), 3)


def in_rounds(rounds, walls, device, **fields):
    """A result of rounds of as many passes as there are numbers for each."""
    windows = tuple(Window(start_s=i, duration_s=1, samples=1) for i in range(rounds))
    gaps = tuple((0.0,) * len(device[0]) for _ in device)
    return result(device, gaps, walls, tail=(), windows=windows, **fields)


def test_the_round_is_what_is_repeated():
    walls = (20.0, 20.1, 20.2, 22.0, 22.1, 22.2, 23.7, 24.0, 24.3)  # means 20.1, 22.1, 24.0
    device = ((5.0,) * 9, (7.0, 7.0, 7.0, 8.0, 8.5, 7.5, 9.0, 9.0, 9.0), (4.0,) * 9)
    report = summarise(in_rounds(3, walls, device), two_matmuls_and_an_add(), SPEC)
    assert report.rounds == 3
    assert (report.wall_s, report.busy_s) == pytest.approx((22.1, 17))
    assert (report.wall_s_low, report.wall_s_high) == pytest.approx(median_of([20.1, 22.1, 24.0]).interval())
    assert (report.busy_s_low, report.busy_s_high) == pytest.approx(median_of([16, 17, 18]).interval())
    up = row(report, "layers.*.up", "matmul")
    assert (up.measured_s_low, up.measured_s_high) == pytest.approx(median_of([12, 13, 14]).interval())
    idle = median_of([20.1 - 16, 22.1 - 17, 24 - 18])
    assert report.waterfall_low["idle"] == pytest.approx(5.1 - idle.half())
    name = "shape_loss+level+residual"  # from a roofline, which has no interval
    assert report.waterfall_high[name] == pytest.approx(report.waterfall.merged[name] + report.busy_s_high - 17)
    add = row(report, "layers.*", "pointwise")
    assert add.measured_s_low == add.measured_s == add.measured_s_high == 4


def test_rounds_that_agree_by_chance_have_the_interval_of_their_passes():
    walls = (16.0, 20.0, 24.0, 20.0, 16.0, 24.0, 24.0, 20.0, 16.0)  # each round's mean is 20
    report = summarise(in_rounds(3, walls, ((5.0,) * 9, (7.0,) * 9, (4.0,) * 9)), two_matmuls_and_an_add(), SPEC)
    assert report.wall_s_high - report.wall_s > error_within(walls, 3) > 1


def test_one_round_has_no_interval():
    report = summarise(result(), two_matmuls_and_an_add(), SPEC)
    assert (report.wall_s_low, report.busy_s_high, report.waterfall_low) == (None, None, {})


def test_busy_time_beyond_the_wall_is_judged_with_the_rounds_that_say_so():
    assert summarise(result(wall=(16.7,)), two_matmuls_and_an_add(), SPEC).status == "done"  # 1.8 % more
    report = summarise(result(wall=(16.0,)), two_matmuls_and_an_add(), SPEC)
    assert report.status == "inconclusive" and "so few rounds cannot tell from noise" in report.reason
    assert report.waterfall.idle == pytest.approx(-1)
    steady = result(((5.0,) * 4, (8.0,) * 4, (4.0,) * 4), ((0.0,) * 4,) * 3, wall=(16.0, 16.1, 16.0, 15.9), tail=())
    report = summarise(steady, two_matmuls_and_an_add(), SPEC)
    assert report.status == "invalid" and report.reason.startswith("busy is more than the wall by 6 % (99 % interval: ")
    assert report.excess == pytest.approx(1 / 16)
    assert 0.02 < report.excess_low < report.excess < report.excess_high
    noisy = steady.model_copy(update={"wall_s": (16.0, 18.0, 15.0, 16.0)})
    assert summarise(noisy, two_matmuls_and_an_add(), SPEC).status == "inconclusive"


def test_other_work_is_said_once():
    """As the reason of an inconclusive pass, or else as a warning."""
    for share, status in ((0.4, "inconclusive"), (0.1, "done")):
        report = summarise(result().model_copy(update={"other_work": share}), two_matmuls_and_an_add(), SPEC)
        said = [report.reason, *report.warnings]
        assert report.status == status
        assert sum("other work took" in (words or "") for words in said) == 1, said


def test_an_efficiency_above_one_is_marked():
    report = summarise(result(((1.0,), (8.0,), (4.0,))), two_matmuls_and_an_add(), SPEC)
    assert report.warnings == ()  # the layer kind as a whole is below 1
    report = summarise(result(((1.0,), (1.0,), (4.0,))), two_matmuls_and_an_add(), SPEC)
    assert row(report, "layers.*.up", "matmul").efficiency > 1
    assert "layers.*.up matmul (1.83)" in report.warnings[0]


def test_operations_that_were_not_measured_are_named():
    measured = result()
    report = summarise(measured.model_copy(update={"ops": measured.ops[:2]}), two_matmuls_and_an_add(), SPEC)
    assert "1 operations were not measured" in report.warnings[0] and "layers.1 " in report.warnings[0]


def test_dropped_events_are_named():
    closure = Closure(attributed=1, spans_plus_gaps=1, instrumented_ratio=1, launches=9, kernels=8)
    assert "9 launches but 8 kernels" in summarise(result(closure=closure), two_matmuls_and_an_add(), SPEC).warnings[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "failed", "reason": "out of memory"},
        {"wall_s": ()},
        {"closure": None},
        {"ops": (OpTimes(op=3, device_s=(1.0,), gap_s=(0.0,)),)},
        {"ops": (OpTimes(op=0, device_s=(1.0,), gap_s=(0.0,)),) * 2},
    ],
)
def test_what_cannot_be_summarised_says_why(wrong):
    with pytest.raises(ValueError, match="test-decode"):
        summarise(result(**wrong), two_matmuls_and_an_add(), SPEC)


def test_json_has_the_documented_shape():
    out = json.loads(json.dumps(to_json(summarise(result(unattributed=(0.5,)), two_matmuls_and_an_add(), SPEC))))
    assert {
        "model",
        "phase",
        "batch",
        "query_tokens",
        "context_tokens",
        "dtype",
        "wall_s",
        "busy_s",
        "attributed",
        "instrumented_ratio",
        "waterfall",
        "predicted_busy_s",
        "predicted_wall_s",
        "noise",
        "layers",
    } <= out.keys()
    assert (out["phase"], out["context_tokens"], out["predicted_busy_s"]) == ("decode", 8, 13)
    assert out["waterfall"].keys() == {*TERMS, "idle", "merged"}
    assert out["waterfall"]["shape_loss"] is None
    assert {
        "path",
        "kind",
        "count",
        "ideal_s",
        "predicted_s",
        "measured_s",
        "efficiency",
        "bound",
        "rungs",
        "median_s",
        "spread_s",
    } <= out["layers"][0].keys()
    assert sum(layer["measured_s"] for layer in out["layers"]) == pytest.approx(out["busy_s"])


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("model.layers.12.mlp.experts.3.up", "model.layers.*.mlp.experts.*.up"),
        ("h.0", "h.*"),
        ("0.a1.b", "*.a1.b"),
        ("", ""),
    ],
)
def test_indices_of_repeated_modules_are_folded(path, kind):
    assert layer_kind(path) == kind


seconds = st.floats(0, 1e3)


@given(*[st.none() | seconds] * 5, seconds, seconds)
@settings(deadline=None)
def test_terms_always_add_up_to_the_wall(ideal, achieved, executed, calibrated, at_level, measured, idle):
    rungs = Rungs(
        ideal=ideal,
        achieved=achieved,
        executed=executed,
        calibrated=calibrated,
        calibrated_at_level=at_level,
        measured=measured,
    )
    fall = waterfall(rungs, idle)
    known = [name for name in TERMS if getattr(fall, name) is not None]
    assert total(fall) == pytest.approx(measured + idle, abs=1e-9)
    assert sorted([*known, *(name for names in fall.merged for name in names.split("+"))]) == sorted(TERMS)


@given(
    st.lists(st.tuples(seconds, seconds), min_size=3, max_size=3),
    st.floats(1e-3, 1e4),
    seconds,
    st.sampled_from([1, 2.5, 16]),
    st.booleans(),
    st.booleans(),
)
@settings(deadline=None)
def test_waterfalls_close_on_the_wall_whatever_was_measured(times, wall, lost, count, sheet, achieved):
    spec = HardwareSpec(
        name="test", kind="cuda", datasheet=SHEET if sheet else None, measured=MEASURED if achieved else None
    )
    measured = result([(d,) for d, _ in times], [(g,) for _, g in times], (wall,), unattributed=(lost,))
    report = summarise(measured, two_matmuls_and_an_add(count), spec)
    assert total(report.waterfall) == pytest.approx(report.wall_s, rel=1e-9, abs=1e-6)
    assert sum(total(layer.waterfall) for layer in report.layers) == pytest.approx(report.wall_s, rel=1e-9, abs=1e-6)
    assert sum(layer.measured_s for layer in report.layers) == pytest.approx(report.busy_s)
