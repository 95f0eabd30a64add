"""The reports of a calibration: errors, regions, doubts and what was skipped, in every view."""

from types import SimpleNamespace

import numpy as np
import pytest
from calibrate_samples import FACTS, products
from calibrated_laws import at_priors
from report_views import every_view

from calibrate.kernels.score import DECODING, Calibrated, Calibration, Score, Skipped
from calibrate.report.kernels import calibration_document
from calibrate.report.residuals import residuals, roofline
from roofline.hardware.load import load_device

ERRORS = Score(rows=30, mape=0.051, median=0.03, p90=0.11, time_weighted=0.04, bias=-0.012, coverage=0.9)


def calibrated(kind: str, undetermined: tuple[str, ...] = ()) -> Calibrated:
    law = {"kind": kind, "dtype": "bfloat16", "points": 20, "undetermined": undetermined}
    fitted = SimpleNamespace(**law, doubts=("the start is far from its prior",))
    worse = Score(rows=30, mape=0.4, median=0.3, p90=0.8, time_weighted=0.5, bias=-0.4, coverage=None)
    return Calibrated(fitted, ERRORS, worse, worse, {DECODING: ERRORS}, None)


def test_a_calibration_shows_its_errors_and_its_doubts_in_every_view() -> None:
    skipped = Skipped("conv", "bfloat16", "conv bfloat16: no law")
    calibration = Calibration((calibrated("matmul", ("slope",)), calibrated("decode_attention")), (skipped,))
    for width in (80, 120):
        for view, text in every_view(calibration_document(calibration), width).items():
            for words in ("held out from the fit", "5.10 %", "4.00 %", "matmul bfloat16, as in decode (at most",
                          "decode_attention bfloat16, as in decode (at least", "bias −1.20 %",
                          "doubtful: the start is far from its prior", "the points do not determine slope",
                          "not calibrated: conv bfloat16: no law"):  # fmt: skip
                assert words in text, (view, width, words)


def test_each_kernel_of_a_calibration_has_its_place_on_the_roofline() -> None:
    kernels = products()
    spec = load_device("nvidia-a100-sxm-80gb").model_copy(
        update={"calibrated": (at_priors("matmul", "bfloat16", FACTS),)}
    )
    figure = roofline(residuals({("matmul", "bfloat16"): kernels}, spec), spec)
    (points,) = [trace for trace in figure.data if trace.mode == "markers"]
    m, n, k = (kernels.dims[name] for name in ("m", "n", "k"))
    assert points.x == pytest.approx(2 * m * n * k / (2 * (m * k + k * n + m * n)))  # two bytes an element
    assert points.y == pytest.approx(2 * m * n * k / kernels.time_s)
    assert max(np.array(points.y)) < max(max(trace.y) for trace in figure.data if trace.mode == "lines")
