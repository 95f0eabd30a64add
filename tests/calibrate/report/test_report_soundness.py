"""What a report says of peaks and passes that cannot be trusted, in every view."""

import io
from itertools import pairwise

import pytest
import report_samples as samples
from rich.console import Console

from calibrate.passes.pass_report import PassReport
from calibrate.report import charts, html, markdown, peaks, roofs, terminal, wording
from roofline.hardware.spec import HardwareSpec


def views(report: PassReport, spec: HardwareSpec, width: int = 120) -> dict[str, str]:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    terminal.render([report], samples.run(), spec, console)
    assert isinstance(console.file, io.StringIO)
    return {
        "terminal": console.file.getvalue(),
        "markdown": markdown.render([report], samples.run(), spec).replace("\\", ""),
        "html": html.render([report], samples.run(), spec).split("</script></head>")[1],
    }


def spread(spec: HardwareSpec, low: float, high: float) -> HardwareSpec:
    """The range of the matrix rate as multiples of its value, and a figure that is missing."""
    assert spec.measured is not None
    figure = spec.measured.matrix["bfloat16"]
    wide = figure.model_copy(update={"low": low * figure.value, "high": high * figure.value})
    measured = spec.measured.model_copy(update={"matrix": {"bfloat16": wide}})
    return spec.model_copy(update={"measured": measured, "missing": {"level.L1": "merged into L2: slower"}})


def ratio(value: float) -> PassReport:
    report = samples.gpu()
    return report.model_copy(
        update={"closure": report.closure.model_copy(update={"instrumented_ratio": value}), "layers": report.layers}
    )


@pytest.mark.parametrize("status", ["inconclusive", "invalid"])
def test_a_pass_that_cannot_be_trusted_says_so_first_and_gives_no_factor(status: str) -> None:
    report = samples.gpu().model_copy(update={"status": status, "reason": "single passes vary by ± 40 %"})
    for name, text in views(report, samples.GPU).items():
        assert f"{status}: single passes vary by ± 40 %" in " ".join(text.split()), name
        assert "could take" not in text, name
        assert "× less" not in text, name
    assert wording.verdict(samples.gpu()) is None


def test_the_headline_compares_device_work_with_device_work() -> None:
    report = samples.gpu()
    assert report.rungs.ideal is not None
    assert f"({report.busy_s / report.rungs.ideal:.2f}× less)" in wording.headline(report)
    fast = report.model_copy(update={"busy_s": 0.5 * report.rungs.ideal})
    assert "above the measured time: the peaks are too low" in wording.headline(fast)
    assert "× less" not in wording.headline(fast)


def test_peaks_beside_other_work_are_warned_of() -> None:
    warning = "samples of the peaks vary (matrix bf16 by 80.0 %): other work, or a clock that changes; run again"
    for name, text in views(samples.gpu(), spread(samples.GPU, 0.3, 1.1)).items():
        assert warning in " ".join(text.split()), name
    for name, text in views(samples.gpu(), spread(samples.GPU, 0.8, 1.2)).items():
        assert "samples of the peaks vary" not in text, name


def test_ranges_and_missing_figures_are_in_every_view() -> None:
    for name, text in views(samples.gpu(), spread(samples.GPU, 0.9, 1.01)).items():
        assert peaks.RANGE in text, name
        assert "715 TFLOP/s to 802 TFLOP/s" in text, name
        assert "level.L1: merged into L2: slower" in text, name


@pytest.mark.parametrize(
    ("value", "implied"),
    [
        (1.08, "operation times carry up to 8.00 % of instrumentation"),
        (0.93, "the machine changed between passes"),
    ],
)
def test_a_profiled_time_that_does_not_match_says_what_follows(value: float, implied: str) -> None:
    for name, text in views(ratio(value), samples.GPU).items():
        assert implied in text, name
    for text in views(ratio(1.03), samples.GPU).values():
        assert implied not in text


def test_the_first_markdown_table_has_the_closure() -> None:
    for value, held in ((1.0, "holds"), (1.08, "**DOES NOT HOLD**")):
        lines = markdown.render([ratio(value)], samples.run(), samples.GPU).splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("| pass "))
        assert lines[start].endswith("| closure |")
        assert lines[start + 2].endswith(f"| {held} |")


def test_the_device_comes_before_the_passes_in_html() -> None:
    text = views(samples.gpu(), samples.GPU)["html"]
    assert text.index("<h3>Device</h3>") < text.index('<section id="pass-0">')


@pytest.mark.parametrize("make", [samples.gpu, samples.cpu, samples.gpu_calibrated])
def test_a_console_of_120_has_every_column_that_was_asked_for(make: object) -> None:
    spec = samples.CPU if make is samples.cpu else samples.GPU
    text = views(make(), spec)["terminal"]  # type: ignore[operator]
    header = next(line for line in text.splitlines() if line.startswith("layer kind"))
    for column in ("time", "share", "ideal", "predicted", "efficiency", "bound", "FLOP/s", "bytes/s"):
        assert column in header


def test_labels_of_roofs_are_apart_and_outside_the_plot() -> None:
    figure = charts.roofline_chart(samples.cpu(), samples.CPU)
    beside = [note for note in figure.layout.annotations if note.xref == "paper"]
    assert [note.x > 1 for note in beside] == [True] * 2
    low, high = figure.layout.yaxis.range
    pixels = sorted(note.y * charts.PLOT / (high - low) for note in beside)
    assert all(above - below >= roofs.LINE for below, above in pairwise(pixels))
    close = {"a": 100.0, "b": 85.0, "c": 50.0}
    assert roofs.alike(close) == [(("a", "b"), 85.0, 100.0), (("c",), 50.0, 50.0)]


def test_points_above_one_are_ringed_and_named() -> None:
    def rings(report: PassReport) -> list[str]:
        traces = charts.roofline_chart(report, samples.GPU).data
        return [text for trace in traces if trace.name == "efficiency above 1" for text in trace.text]

    assert rings(samples.gpu()) == ["! 114 %"]
    sound = samples.gpu()
    layers = tuple(layer for layer in sound.layers if (layer.efficiency or 0) <= 1)
    assert rings(sound.model_copy(update={"layers": layers})) == []
