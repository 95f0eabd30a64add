"""The reports of a calibration: errors, regions, doubts and what was skipped, in every view."""

from types import SimpleNamespace

from report_views import every_view

from calibrate.kernels.score import DECODING, Calibrated, Calibration, Score, Skipped
from calibrate.report.kernels import calibration_document

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
