"""The results of a suite on disk: a journal that survives a kill, a table like it, and kernels that laws fit to."""

import math
from pathlib import Path

import pytest
from suite_samples import SPREAD, replicated, result

from profiler.record.files import SUITE, SUITE_JOURNAL
from profiler.record.kernel_table import read_kernels, write_kernels
from profiler.record.run import RequestError, Run
from profiler.record.suite_table import (
    KernelId,
    SuiteLog,
    count_suite_results,
    law_kernels,
    read_suite_results,
)

DIMS = {"m": 8, "n": 512, "k": 256}
LAW = ("matmul", {"m": 8.0, "n": 512.0, "k": 256.0})
RESULTS = [
    *replicated("linear", "torch", 1e-3, DIMS, law=LAW),
    *replicated("linear", "inductor", 5e-4, DIMS, law=LAW),
    *replicated("linear", "inductor", 7e-4, DIMS | {"m": 9}, law=("matmul", LAW[1] | {"m": 9.0}), cache="warm"),
    *replicated("sampling", "torch", 1e-3, {"rows": 4}),
    result("linear", "mine", None, DIMS, law=LAW, status="timeout"),
]


def test_the_table_is_what_the_journal_was(tmp_path: Path, run: Run) -> None:
    log = SuiteLog(tmp_path)
    for each in RESULTS:
        log.append(each)
    assert read_suite_results(tmp_path) == RESULTS and count_suite_results(tmp_path) == len(RESULTS)
    log.finish(run)
    assert not (tmp_path / SUITE_JOURNAL).exists() and (tmp_path / SUITE).exists()
    assert read_suite_results(tmp_path) == RESULTS and count_suite_results(tmp_path) == len(RESULTS)


def test_a_torn_line_is_dropped_and_the_rest_is_kept(tmp_path: Path) -> None:
    log = SuiteLog(tmp_path)
    for each in RESULTS[:2]:
        log.append(each)
    with (tmp_path / SUITE_JOURNAL).open("ab") as file:
        file.write(b'{"kernel":{"fam')
    assert read_suite_results(tmp_path) == RESULTS[:2]
    log = SuiteLog(tmp_path)
    log.append(RESULTS[2])
    assert read_suite_results(tmp_path) == RESULTS[:3]


def test_a_later_result_of_a_process_replaces_an_earlier_one(tmp_path: Path) -> None:
    log = SuiteLog(tmp_path)
    again = result("linear", "torch", 9e-3, DIMS, law=LAW)
    for each in (RESULTS[0], again):
        log.append(each)
    assert log.results == read_suite_results(tmp_path) == [again]
    assert log.get(again.kernel, 1) == again and log.get(again.kernel, 2) is None


def test_a_damaged_table_is_refused_in_one_line(tmp_path: Path, run: Run) -> None:
    SuiteLog(tmp_path).finish(run)
    (tmp_path / SUITE).write_bytes((tmp_path / SUITE).read_bytes()[:-20])
    with pytest.raises(RequestError, match="no whole table of a suite") as refused:
        read_suite_results(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_kernels_name_is_its_command_lines(tmp_path: Path) -> None:
    kernel = KernelId(family="linear", provider="torch", dtype="float32", dims=DIMS)
    assert kernel.shape == "m=8,n=512,k=256" and kernel.key == "linear torch float32 m=8,n=512,k=256"
    with pytest.raises(ValueError, match="size m is -1"):
        KernelId(family="linear", provider="torch", dtype="float32", dims={"m": -1})


def test_laws_are_fitted_to_torchs_time_else_to_the_fastest(tmp_path: Path) -> None:
    table = law_kernels(RESULTS, {"torch": "2.13.0"})
    assert table is not None
    write_kernels(tmp_path, table)
    rows = read_kernels(tmp_path).table.to_pylist()
    middle = math.prod(SPREAD) ** (1 / 3)
    assert [(row["kind"], row["m"], row["cold"], row["reach"]) for row in rows] == [
        ("matmul", 8.0, 1.0, 0.0),
        ("matmul", 9.0, 0.0, 0.0),
    ]
    assert [row["time_s"] for row in rows] == pytest.approx([1e-3 * middle, 7e-4 * middle])
    assert {row["group"] for row in rows} == {"n512 k256"}
    assert law_kernels([RESULTS[-1]], {}) is None
