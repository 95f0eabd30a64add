import io
import re

import hardware_samples as samples
import pytest
from rich.console import Console

from calibrate.report.hardware import terminal
from roofline.hardware.spec import Characteristic

SAMPLES = {"cpu": samples.cpu(), "gpu": samples.gpu()}


def shown(sample: samples.Sample, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    terminal.render(*sample, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def line(text: str, start: str, has: str = "") -> str:
    return next(line for line in text.splitlines() if line.startswith(start) and has in line)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_line_exceeds_the_console(name: str, width: int) -> None:
    assert max(map(len, shown(SAMPLES[name], width).splitlines())) <= width


@pytest.mark.parametrize("name", SAMPLES)
def test_every_failure_has_its_reason_and_nothing_reads_as_python(name: str) -> None:
    spec = SAMPLES[name][0]
    text = " ".join(shown(SAMPLES[name]).split())
    reasons = [figure.reason for figure in spec.characteristics if figure.value is None]
    assert reasons
    for reason in (*reasons, *spec.missing.values()):
        assert " ".join(str(reason).split()) in text
    assert not re.search(r"\b(None|nan|inf)\b", text)


def test_the_device_and_its_conditions() -> None:
    text = " ".join(shown(SAMPLES["gpu"]).split())
    assert "NVIDIA H200, 132 SMs, 141 GB" in text
    assert "UUID: GPU-3f2a-77" in text
    assert "driver 580.82" in text and "torch 2.13.0" in text
    assert "SM clock 1,590 MHz to 1,980 MHz, median 1,650 MHz; power 540 W to 700 W" in text
    assert "temperature 44 °C to 63 °C" in text
    cpu = " ".join(shown(SAMPLES["cpu"]).split())
    assert "2 cores, 2 threads, 16.0 GB" in cpu
    assert "CPU clock 2,600 MHz; taken by a hypervisor 1 %" in cpu
    assert "warning: the CPU governor is not set to performance" in cpu


def test_figures_of_the_gpu_stand_beside_the_datasheet() -> None:
    text = shown(SAMPLES["gpu"])
    # 4.52 TB/s × the geometric mean of 1, 0.99 and 1.012; of 4.8 TB/s
    assert " ".join(line(text, "read").split()) == "read fp32 4.52 TB/s ± 1.87 % 1.11 % 4.49 TB/s 4.80 TB/s 94.2 %"
    assert "90.7 % 1605 MHz" in line(text, "sustained", "bf16")
    assert line(text, "burst", "fp8").split()[-3:] == ["73.4", "%", "–"]
    assert "n = 2" in line(text, "gelu", "fp32")


def test_labels_are_footnotes_of_their_rows() -> None:
    text = shown(SAMPLES["gpu"])
    assert line(text, "sustained", "bf16").endswith(" a")
    note = " ".join(text[text.index("\na: ") :].split())
    assert note.startswith("a: power cap in 81 % of the time, SM clock 1,410–1,980 MHz, median 1,605")
    assert "alike, with other numbers: matmul.sustained fp32" in note
    assert "1 of 3 processes gave no result: CUDA error: out of memory (vector.gelu fp32)" in note


def test_one_core_and_fresh_outputs_stand_beside() -> None:
    text = shown(SAMPLES["cpu"])
    assert line(text, "main memory  ").split()[-2:] == ["one", "core"]
    assert line(text, "read").split()[-2:] == ["32.3", "GB/s"]  # 52.04 × 0.62
    assert line(text, "pointwise work").split()[-2:] == ["fresh", "output"]
    assert line(text, "add ").split()[-2:] == ["14.0", "GB/s"]
    assert not any(row.startswith("read, one core") for row in text.splitlines())


def test_long_lists_are_short() -> None:
    text = shown(SAMPLES["gpu"])
    assert "6 more sizes are in report.md" in text
    assert "pinned to device: 11 sizes, 128 MB/s at 1 KiB to 55.0 GB/s at 1 GiB" in text
    cpu = shown(SAMPLES["cpu"])
    assert "L2 read 1 MiB, best of 2 sizes" in cpu
    assert "read fp32: 13 sizes, 150 GB/s at 256 KiB to 50.0 GB/s at 1 GiB" in cpu
    assert "fp32 besides: silu 17.0 GFLOP/s, softmax 9.0" in cpu


def test_what_the_words_mean_is_there_where_they_are_used() -> None:
    text = " ".join(shown(SAMPLES["gpu"]).split())
    for words in ("as in STREAM", "median of the second half of the load", "10th percentile", "a multiply-add is 2"):
        assert words in text
    assert "with a single thread" not in text
    assert "with a single thread" in " ".join(shown(SAMPLES["cpu"]).split())


def test_nothing_measured_says_so() -> None:
    spec, _, run = SAMPLES["cpu"]
    text = shown((spec.model_copy(update={"characteristics": ()}), [], run))
    assert "no figure has been measured in this run" in text


def test_an_unknown_figure_is_a_dash_and_no_zero() -> None:
    spec, _, run = SAMPLES["cpu"]
    figures = (
        Characteristic(name="memory.read", unit="B/s", value=1e9, replicates=3, low=9e8, high=1.1e9, datasheet=2e9),
        Characteristic(name="memory.triad", unit="B/s", value=2e9, replicates=3),
    )
    text = shown((spec.model_copy(update={"characteristics": figures}), [], run))
    assert line(text, "triad").split() == ["triad", "2.00", "GB/s", "–", "–", "–"]
