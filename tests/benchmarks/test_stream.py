"""Our bandwidth of main memory beside a STREAM compiled from C with OpenMP, turn by turn on the same machine.

Both take the best that they see of operands of the same size: STREAM its fastest iteration, we the fastest call on the
middle one of our sets of operands, in a fresh process. The ratio of a round is ours ÷ the mean of the STREAM before and
after it.
Prints figures and judges nothing. Run: ``python -m pytest -s tests/benchmarks/test_stream.py``
"""

import statistics
import subprocess
from pathlib import Path

import pytest

from profiler.microbench.memory import OPERAND_BYTES
from profiler.microbench.processes import characterise, make_plan
from profiler.record.hardware_table import HardwareLog

SETTLING, ROUNDS, ITERATIONS = 2, 9, 20
"""Rounds that are not counted: a virtual machine gives more at first than it does for long."""
KERNELS = ("copy", "scale", "add", "triad")


def stream(program: Path) -> dict[str, float]:
    """Bytes/s of each kernel."""
    arguments = [str(program), str(OPERAND_BYTES.host // 8), str(ITERATIONS)]
    lines = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name: float(rate) for name, rate in (line.split() for line in lines)}


def ours(folder: Path) -> dict[str, float]:
    """Bytes/s of each kernel, from one fresh process."""
    log = HardwareLog(folder)
    characterise(make_plan("cpu", ("float32",), replicates=1, only=frozenset({"memory"})), log)
    return {one.case: one.value() for one in log.measurements if one.has_value}


def test_memory_beside_stream(tmp_path: Path) -> None:
    program = tmp_path / "stream"
    source = Path(__file__).with_name("stream.c")
    command = ["gcc", "-O3", "-march=native", "-fopenmp", str(source), "-o", str(program)]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        pytest.skip("needs gcc")
    before = stream(program)
    ratios: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
    for i in range(SETTLING + ROUNDS):
        (folder := tmp_path / str(i)).mkdir()
        here, after = ours(folder), stream(program)
        for kernel in KERNELS if i >= SETTLING else ():
            ratios[kernel].append(here[kernel] / ((before[kernel] + after[kernel]) / 2))
        print(
            f"\nround {i + 1 - SETTLING}: "
            + ", ".join(f"{k} {here[k] / 1e9:.2f} / {(before[k] + after[k]) / 2e9:.2f} GB/s" for k in KERNELS),
            end="",
        )
        before = after
    for kernel, found in ratios.items():
        middle = statistics.median(found)
        print(f"\n{kernel:6} ours ÷ STREAM: {middle:.3f} ({min(found):.3f}–{max(found):.3f})", end="")
    print()
