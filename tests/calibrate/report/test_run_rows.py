from itertools import pairwise

import pytest
import report_samples as samples
from calibrated_laws import at_priors

from calibrate.passes.pass_report import Rungs
from calibrate.report import run, run_rows, run_tables
from roofline import units
from roofline.hardware.load import load_device
from roofline.hardware.spec import facts_of

REPORTS = [
    samples.gpu(),
    samples.gpu_calibrated(),
    samples.cpu(),
    samples.no_peaks(),
    samples.many_layers(),
    samples.with_unattributed(),
]


def test_layer_rows_are_sorted_and_add_up_to_the_busy_time() -> None:
    for report in REPORTS:
        rows = run_rows.layer_rows(report)
        assert len(rows) == len(report.layers)
        assert sum(row.time_s for row in rows) == pytest.approx(report.busy_s, rel=1e-12)
        assert [row.time_s for row in rows] == sorted((row.time_s for row in rows), reverse=True)
        assert run_rows.unclosed(report) == ()


def test_folding_keeps_every_sum() -> None:
    for report in REPORTS:
        for keep in (1, 5, 20):
            rows = run_rows.layer_rows(report)
            folded = run_rows.fold(rows, report.wall_s, keep=keep)
            whole, part = (run_rows.total_row(some, report.wall_s, "busy") for some in (rows, folded))
            for figure in ("count", "time_s", "flops", "bytes", "ideal_s", "predicted_s", "efficiency", "share"):
                found, expected = getattr(part, figure), getattr(whole, figure)
                assert found == (None if expected is None else pytest.approx(expected, rel=1e-9)), (
                    report.model,
                    keep,
                    figure,
                )
            assert len(folded) <= keep + 1
            assert folded[-1].path == f"{len(rows) - len(folded) + 1} others"


def test_folding_spares_a_single_row_and_small_shares_go() -> None:
    rows = run_rows.layer_rows(samples.gpu())
    assert run_rows.fold(rows, samples.gpu().wall_s, keep=len(rows) - 1, smallest=0) == rows
    shown = run_rows.fold(rows, samples.gpu().wall_s, keep=1000, smallest=0.05)
    assert all((row.share or 0) >= 0.05 for row in shown[:-1])


def test_an_unknown_figure_stays_unknown_in_a_sum() -> None:
    total = run_rows.total_row(run_rows.layer_rows(samples.no_peaks()), 1.0, "busy")
    assert total.ideal_s is None
    assert total.efficiency is None
    assert total.predicted_s is None


def test_rates_and_efficiency_by_hand() -> None:
    report = samples.gpu()
    row = next(row for row in run_rows.layer_rows(report) if row.path == "lm_head")
    layer = next(layer for layer in report.layers if layer.path == "lm_head")
    assert row.flops_per_s == (layer.matrix_flops + layer.vector_flops) / layer.measured_s
    assert row.bytes_per_s == layer.bytes / layer.measured_s
    assert row.share == layer.measured_s / report.wall_s
    assert row.spread_s is None, "lm_head is not repeated"


def test_waterfall_rows_add_up_to_the_wall() -> None:
    for report in REPORTS:
        rows = run_rows.waterfall_rows(report.waterfall, report.wall_s)
        assert sum(row.time_s or 0 for row in rows) == pytest.approx(report.wall_s, rel=1e-12)
        assert [term for row in rows for term in row.terms] == list(run_rows.TERMS)
        for before, after in pairwise(rows):
            assert after.start_s == pytest.approx(before.start_s + (before.time_s or 0))


def test_unknown_rungs_are_one_term() -> None:
    labels = [row.label for row in run_rows.waterfall_rows(samples.cpu().waterfall, 1.0)]
    assert labels == ["ideal + peak derate", "extra work", "shape loss … residual", "idle"]
    assert run_rows.waterfall_rows(samples.no_peaks().waterfall, 1.0)[0].label == "ideal … residual"


def test_a_term_that_takes_away_moves_the_next_one_back() -> None:
    rungs = Rungs(ideal=1, achieved=3, executed=2, calibrated=2.5, measured=4)
    rows = run_rows.waterfall_rows(samples.waterfall(rungs, 5), 5)
    assert [row.time_s for row in rows] == [1, 2, -1, 0.5, 1.5, 1]
    assert [row.start_s for row in rows] == [0, 1, 3, 2, 2.5, 4]
    assert [row.share for row in rows] == [0.2, 0.4, -0.2, 0.1, 0.3, 0.2]


def test_a_term_that_nothing_joins_is_unknown_and_the_sum_is_said_not_to_close() -> None:
    good = samples.gpu_calibrated()
    broken = good.model_copy(update={"waterfall": good.waterfall.model_copy(update={"residual": None})})
    row = next(row for row in run_rows.waterfall_rows(broken.waterfall, broken.wall_s) if row.terms == ("residual",))
    assert row.time_s is None
    assert "does not close" in run.warnings(broken)[0]


def test_terms_that_do_not_exist_are_refused() -> None:
    rungs = Rungs(ideal=1, achieved=None, executed=2, calibrated=3, measured=4)
    waterfall = samples.waterfall(rungs, 5).model_copy(update={"merged": {"peak_derate+luck": 1.0}})
    with pytest.raises(ValueError, match="luck"):
        run_rows.waterfall_rows(waterfall, 5)


def test_layers_that_do_not_add_up_are_said() -> None:
    good = samples.gpu()
    broken = good.model_copy(update={"busy_s": good.busy_s * 1.01})
    assert any("the layers' times add up to" in sentence for sentence in run.warnings(broken))


def test_efficiency_above_one_is_marked_and_explained() -> None:
    report = samples.gpu()
    cell = next(column for column in run_tables.LAYER_COLUMNS if column.header == "efficiency").cell
    marked = [row for row in run_rows.layer_rows(report) if cell(row).bad]
    assert [row.path for row in marked] == ["model.layers.*.post_attention_layernorm"]
    assert sum("warm cache" in sentence for sentence in run.warnings(report)) == 1
    assert all("!" not in cell(row).text for row in run_rows.layer_rows(samples.no_peaks()))


def test_the_closure_is_judged() -> None:
    report = samples.gpu()
    assert all(fact.holds for fact in run_rows.closure(report, "cuda"))
    bad = {"attributed": 0.98, "spans_plus_gaps": 1.006, "instrumented_ratio": 1.06, "kernels": 932}
    for name, value in bad.items():
        broken = report.model_copy(update={"closure": report.closure.model_copy(update={name: value})})
        assert [fact.holds for fact in run_rows.closure(broken, "cuda")].count(False) == 1, name
    overfull = report.model_copy(update={"wall_s": report.busy_s / 1.03})
    assert [fact.name for fact in run_rows.closure(overfull, "cuda") if fact.holds is False] == ["busy ÷ wall"]
    assert len(run_rows.closure(samples.cpu(), "cpu")) == 4
    silent = report.model_copy(update={"closure": report.closure.model_copy(update={"kernels": 0, "launches": 0})})
    assert False in [fact.holds for fact in run_rows.closure(silent, "cuda")], "no kernel was seen at all"


def test_what_ideal_uses_is_said_plainly() -> None:
    assert run.ideal_uses(samples.gpu(), samples.GPU) == "ideal: the fused graph at datasheet peaks"
    said = "achieved peaks: no datasheet describes this device"
    assert said in run.ideal_uses(samples.cpu(), samples.CPU)
    assert "the datasheet lacks" in run.ideal_uses(samples.cpu(), samples.GPU)
    assert "–" in run.ideal_uses(samples.no_peaks(), samples.BARE)


def test_layer_terms_add_up_to_each_layers_time() -> None:
    for report in REPORTS:
        _, rows = run_rows.layer_terms(report)
        for row, (label, kind, values) in zip(run_rows.layer_rows(report), rows, strict=True):
            assert (row.label, row.kind) == (label, kind)
            assert sum(value or 0 for value in values) == pytest.approx(row.time_s)


def test_a_layer_that_knows_more_or_less_than_the_pass_keeps_its_sum() -> None:
    fine, coarse = samples.gpu_calibrated(), samples.gpu()
    mixed = coarse.model_copy(update={"layers": fine.layers})
    labels, rows = run_rows.layer_terms(mixed)
    assert labels[3] == "shape loss … residual"
    for layer, (_, _, values) in zip(sorted(fine.layers, key=lambda x: -x.measured_s), rows, strict=True):
        terms = layer.waterfall.shape_loss, layer.waterfall.level, layer.waterfall.residual
        assert values[3] == pytest.approx(sum(term or 0 for term in terms))
    _, rows = run_rows.layer_terms(samples.with_unattributed())
    values = next(values for label, _, values in rows if label == "(unattributed)")
    assert values[:3] == (None, None, None)
    assert values[3] == pytest.approx(0.01 * coarse.busy_s)


def test_the_busy_row_has_the_figures_of_the_pass() -> None:
    report = samples.with_unattributed()
    row = run_rows.busy_row(report)
    assert row.time_s == pytest.approx(report.busy_s)
    assert row.ideal_s == report.rungs.ideal
    assert row.predicted_s == report.predicted_busy_s
    assert row.efficiency == pytest.approx((report.rungs.ideal or 0) / report.busy_s)
    assert run_rows.busy_row(samples.cpu()).ideal_s == samples.cpu().rungs.achieved


def test_one_footnote_for_the_mark() -> None:
    said = "efficiency above 1 in 1 layer kinds, most in lm_head"
    report = samples.gpu().model_copy(update={"warnings": (said,)})
    assert run.warnings(report) == (f"! {said}",)


def test_the_laws_of_a_spec_are_one_line_with_their_errors_on_unseen_groups() -> None:
    facts = facts_of(load_device("nvidia-h200-sxm"))
    laws = [at_priors(kind, "bfloat16", facts) for kind in ("matmul", "aten::mul", "aten::add")]
    laws = [law.model_copy(update={"unseen": off}) for law, off in zip(laws, (0.05, 0.02, 0.04), strict=True)]
    spec = load_device("nvidia-h200-sxm")
    assert run_tables.laws(spec) is None
    said = run_tables.laws(spec.model_copy(update={"calibrated": tuple(laws)}))
    errors = "3 calibrated laws; mean error on kernels held out from the fit: matmul 5.00 %, streaming operators 3.00 %"
    older = "; calibrate again for matmul: an older roofcal fitted other laws"  # it has no bounds
    assert said == errors + older
    streams = run_tables.laws(spec.model_copy(update={"calibrated": tuple(laws[1:])}))
    assert streams == "2 calibrated laws; mean error on kernels held out from the fit: streaming operators 3.00 %"


def test_intervals_are_shown_as_half_their_width() -> None:
    report = samples.gpu_calibrated()
    halves = {row.terms: row.half_s for row in run_rows.pass_terms(report)}
    shown = [halves[(name,)] for name in ("level", "residual", "idle")]
    assert shown == pytest.approx([0.01 * report.wall_s] * 3)
    assert halves[("shape_loss",)] is None
    row = run_rows.layer_rows(report)[0]
    cells = {column.header: getattr(column.cell(row), "text", "") for column in run_tables.LAYER_COLUMNS}
    assert (cells["±"], cells["predicted ±"]) == ("3 %", "10 %")
    assert run_rows.total_row([row, row], report.wall_s, "2 others").time_s_low is None
    assert run.headline(report).startswith(f"{units.seconds(report.wall_s)} wall ± 1.2 %, ")
    assert " ± 10 % (error " in run.predicted(report)


def test_what_is_compared_with_what_is_said() -> None:
    by_laws, plain = samples.gpu_calibrated(), samples.gpu()
    said = run.compared(by_laws)
    measured = "measured times are the mean of the middle half of 4 rounds, each the mean of 3 passes; "
    assert said == measured + "the laws are fitted to kernels summarised in the same way"
    assert "at the machine's speed of this run: busy" in run.predicted(by_laws)
    assert "speed of the calibration: busy" in run.predicted(by_laws.model_copy(update={"level": {}}))
    assert "achieved peaks are those of the fastest tenth" in run.compared(plain)
    single = run.compared(plain.model_copy(update={"rounds": 1}))
    assert "1 round, each the mean of 12 passes, without an interval" in single
    assert "memory 1.06× (1.02–1.10)" in run.level(by_laws)[0] and run.level(plain) == ()


def test_a_ratio_holds_unless_its_whole_interval_lies_outside() -> None:
    good = samples.gpu()

    def holds(name: str, **changes: float) -> bool | None:
        facts = run_rows.closure(good.model_copy(update=changes), "cuda")
        return next(fact.holds for fact in facts if fact.name == name)

    name = "profiled ÷ unprofiled wall"
    assert holds(name, instrumented_ratio_low=0.9, instrumented_ratio_high=0.96)
    assert holds(name, instrumented_ratio_low=1.04, instrumented_ratio_high=1.2)
    assert holds(name, instrumented_ratio_low=1.06, instrumented_ratio_high=1.2) is False
    assert holds(name, instrumented_ratio_low=0.8, instrumented_ratio_high=0.94) is False
    assert holds("busy ÷ wall", excess_low=-0.02, excess_high=0.2)
    assert holds("busy ÷ wall", excess_low=0.03, excess_high=0.2) is False


def test_modules_in_a_line() -> None:
    for modules, line in (
        (["a.b.act", "a.b", "a.b.up"], "a.b.act + a.b + a.b.up"),
        (["layers.*.norm", "layers.*.attn.q", ""], "layers.*.norm + …attn.q + (model)"),
        (["layers.*.mlp.up", "layers.*.mlp.act"], "layers.*.mlp.up + …act"),
        (["up"], "up"),
    ):
        assert run_rows.fold_modules(modules) == line
