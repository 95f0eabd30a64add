"""The rows of a suite: intervals over processes, shares of the roofline, the law's time, the fastest, and marks."""

import csv
import io
import json
import shlex
from typing import Any

import numpy as np
import pytest
import report_samples
from calibrated_laws import at_priors
from report_samples import CPU
from suite_samples import SPREAD, replicated, result

from calibrate.device.figures import interval
from calibrate.report import html, markdown
from calibrate.report.suite import family_rows, suite_document, suite_json, write_suite_csv
from calibrate.report.suite_rows import suite_rows
from profiler.record.measurement import Label
from roofline.hardware.spec import facts_of

RUN = report_samples.run("cpu")
DIMS = {"m": 8, "n": 4096, "k": 4096}
FLOPS, MOVED = 2.0 * 8 * 4096 * 4096, 4.0 * 4096 * 4096
LAW = ("matmul", {name: float(size) for name, size in DIMS.items()})


def test_a_row_is_of_processes_and_not_of_samples() -> None:
    (row,) = suite_rows(replicated("linear", "torch", 2e-3, DIMS, flops=FLOPS, moved=MOVED), CPU)
    times = [2e-3 * factor for factor in SPREAD]  # the median of each process's samples
    assert row.replicates == pytest.approx(times)
    assert row.time_s == pytest.approx(np.exp(np.mean(np.log(times))))
    assert (row.low_s, row.high_s) == pytest.approx(interval(times))
    assert row.variation == pytest.approx(np.std(times, ddof=1) / np.mean(times))
    assert row.flops_per_s == pytest.approx(FLOPS / row.time_s) and row.bytes_per_s == pytest.approx(MOVED / row.time_s)


@pytest.mark.parametrize(("flops", "moved", "bound"), [(FLOPS, MOVED, "compute"), (0.0, MOVED, "memory")])
def test_the_share_is_of_the_longer_roof_at_measured_peaks(flops: float, moved: float, bound: str) -> None:
    (row,) = suite_rows(replicated("linear", "torch", 9e-3, DIMS, flops=flops, moved=moved), CPU)
    roof_s = max(flops / 104e9, moved / 51e9)  # those of `report_samples`
    assert row.roofline_s == pytest.approx(roof_s) and row.bound == bound
    assert row.share == pytest.approx(roof_s / row.time_s) and not row.labels


def test_a_cold_row_that_beats_its_roofline_is_marked_and_a_warm_one_is_not() -> None:
    cold, warm = (
        suite_rows(replicated("linear", "torch", 1e-5, DIMS, moved=MOVED, cache=cache), CPU)[0]
        for cache in ("cold", "warm")
    )
    assert cold.share is not None and cold.share > 1 and "faster than its roofline" in cold.labels[0]
    assert warm.share is not None and warm.share > 1 and not warm.labels


def test_a_dtype_without_a_peak_is_judged_by_memory_alone_and_says_so() -> None:
    (row,) = suite_rows(replicated("linear_int8", "torch", 9e-3, DIMS, dtype="int8", flops=FLOPS, moved=MOVED), CPU)
    assert row.bound == "memory" and any("no peak of int8" in label for label in row.labels)


def test_the_laws_time_stands_beside_the_measured_one() -> None:
    law = at_priors("matmul", "float32", facts_of(CPU), m=(1, 512), n=(64, 8192), k=(64, 8192))
    spec = CPU.model_copy(update={"calibrated": (law,)})
    results = replicated("linear", "torch", 2e-3, DIMS, flops=FLOPS, moved=MOVED, law=LAW)
    (row,) = suite_rows(results, spec)
    sizes: dict[str, Any] = {name: np.array([size]) for name, size in {**LAW[1], "cold": 1.0, "reach": 0.0}.items()}
    assert row.predicted_s == pytest.approx(float(law.time_s(sizes, facts_of(spec))[0]))
    assert row.ratio == pytest.approx(row.predicted_s / row.time_s)
    assert row.predicted is not None and row.predicted[0] < row.predicted_s < row.predicted[1]
    (plain,) = suite_rows(results, CPU)
    assert plain.predicted_s is None and plain.ratio is None


def test_the_fastest_provider_is_marked_and_what_is_as_fast() -> None:
    results = [
        *replicated("linear", "fast", 1.00e-3, DIMS),
        *replicated("linear", "close", 1.01e-3, DIMS),
        *replicated("linear", "slow", 2.00e-3, DIMS),
        *replicated("rms_norm", "alone", 1e-3, {"rows": 1, "width": 64}),
        result("linear", "wrong", None, DIMS, status="wrong numbers"),
    ]
    marks = {row.kernel.provider: row.best for row in suite_rows(results, CPU)}
    assert marks == {"fast": "best", "close": "tied", "slow": "", "alone": "", "wrong": ""}


def test_one_bad_process_makes_the_kernel_wrong() -> None:
    good = replicated("linear", "torch", 1e-3, DIMS)
    (row,) = suite_rows([*good[:2], result("linear", "torch", None, DIMS, process=3, status="non-deterministic")], CPU)
    assert row.status == "non-deterministic" and row.is_wrong and row.time_s is None


def test_the_command_of_a_row_names_all_that_chooses_it() -> None:
    first = result("linear", "oneDNN packed", 1e-3, DIMS, file="/tmp/my kernels.py")
    (row,) = suite_rows([first], CPU, "cpu")
    assert shlex.split(row.command) == [
        *("python", "-m", "profiler", "kernels", "--family", "linear", "--provider", "oneDNN packed"),
        *("--dtype", "float32", "--shape", "m=8,n=4096,k=4096", "--kernels", "/tmp/my kernels.py", "--device", "cpu"),
    ]


RESULTS = [
    *replicated("linear", "torch", 2e-3, DIMS, flops=FLOPS, moved=MOVED, models=("llama-3.1-8b",)),
    *replicated("linear", "inductor", 3e-3, DIMS, flops=FLOPS, moved=MOVED),
    result("rms_norm", "mine", None, {"rows": 1, "width": 64}, status="wrong numbers"),
    result("rms_norm", "flashinfer", None, {"rows": 1, "width": 64}, status="not installed"),
    result("swiglu", "torch", None, {"rows": 1, "width": 64}),
    *replicated(
        "geglu", "torch", 1e-3, {"rows": 1, "width": 64}, labels=(Label(severity="warns", what="hot", share=1),)
    ),
]


def test_families_together() -> None:
    rows = {row.family: row for row in family_rows(suite_rows(RESULTS, CPU))}
    linear = rows["linear"]
    assert (linear.kernels, linear.right, linear.wrong) == (1, 2, 0)
    assert linear.time_s == pytest.approx(2e-3 * np.prod(SPREAD) ** (1 / 3))  # of the fastest provider alone
    assert linear.roofline_s == pytest.approx(FLOPS / 104e9)
    assert linear.spread == pytest.approx(np.std(SPREAD, ddof=1) / np.mean(SPREAD))
    assert rows["rms_norm"].wrong == 1 and "swiglu" not in rows


def test_json_and_csv_hold_every_kernel_with_the_same_figures() -> None:
    rows = suite_rows(RESULTS, CPU, "cpu")
    document = json.loads(json.dumps(suite_json("somewhere", RUN, rows, CPU), allow_nan=False))
    file = io.StringIO()
    write_suite_csv(rows, file)
    lines = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert len(document["rows"]) == len(lines) == len(rows) == 6
    for row, line, plain in zip(rows, lines, document["rows"], strict=True):
        assert line["command"] == plain["command"] == row.command and line["status"] == plain["status"] == row.status
        assert plain["time_s"] == row.time_s and (float(line["time_s"]) if line["time_s"] else None) == row.time_s
        assert line["dims"] == row.kernel.shape and plain["dims"] == row.kernel.dims
    assert document["peaks"]["source"] == "measured"
    assert [row["best"] for row in document["rows"]].count(True) == 1


def test_every_view_says_what_is_wrong_first_and_how_to_repeat_a_row() -> None:
    rows = suite_rows(RESULTS, CPU, "cpu")
    report = suite_document(RUN, rows, CPU)
    text = markdown.render(report)
    assert "1 wrong or failed" in text and text.index("wrong numbers") < text.index("Families")
    assert all(row.command in text for row in rows if row.time_s is not None)
    assert "flashinfer: not installed" in text and "hot" in text and "best" in text
    assert "linear" in html.render(report)
    bare = markdown.render(suite_document(RUN, suite_rows(RESULTS, None), None))
    assert "shares of the roofline are not known" in bare
