"""`kernels` as a user calls it: a short real run, what it leaves behind, its shards, an interruption, refusals."""

import csv
import json
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_samples import CPU
from suite_samples import replicated
from waiting import until

from profiler.cli.app import main
from profiler.devices.environment import collect
from profiler.record.files import SUITE_JOURNAL
from profiler.record.folder import SUITE_OPTION, RunFolder, find_run
from profiler.record.kernel_table import has_kernels, write_kernels
from profiler.record.run import Run
from profiler.record.suite_table import SuiteLog, law_kernels, read_suite_results
from roofline.hardware.spec import facts_of
from roofline.laws.kinds import law_for

KERNELS = """
import time
import torch

def right(x, weight, eps):
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight

def wrong(x, weight, eps):
    return right(x, weight, eps) * 1.5

KERNELS = [("rms_norm", right), ("rms_norm", wrong)]
"""
SHAPE = ("--family", "rms_norm", "--shape", "rows=8,width=256", "--dtype", "float32", "--device", "cpu")
QUICK = ("--seconds", "0.02", "--draws", "1", "--threads", "1")


def device_run(base: Path, **more: object) -> RunFolder:
    """A run of this machine whose peaks are made up, so that no test waits for them to be measured."""
    options: dict[str, Any] = {"device": "cpu", **more}
    environment = collect("cpu", ()).model_copy(update={"threads": 1})
    run = Run(
        name="device",
        started="2026-01-01T00:00:00+00:00",
        command=(),
        environment=environment,
        cells=(),
        options=options,
    )
    folder = RunFolder.create(base, run)
    folder.write_spec(CPU.model_copy(update={"name": environment.device}))
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("results")
    with device_run(base) as folder:
        folder.finish()
    return base


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(KERNELS)
    return str(path)


@pytest.fixture(scope="module")
def done(out: Path, file: str) -> Iterator[tuple[Path, int]]:
    """A real run of torch's kernel, one of the user's that is right, and one that is wrong; and its exit code."""
    files = "--csv", str(out / "rows.csv"), "--markdown", str(out / "report.md")
    code = main(["kernels", *SHAPE, *QUICK, "--kernels", file, *files, "--out", str(out), "--name", "mine"])
    yield find_run("last", out).path, code


def test_a_run_keeps_every_result_and_says_that_a_kernel_is_wrong(
    done: tuple[Path, int], out: Path, capsys: Any
) -> None:
    folder, code = done
    assert code == 4
    results = read_suite_results(folder)
    counts: dict[str, int] = {}
    for result in results:
        counts[result.kernel.provider] = counts.get(result.kernel.provider, 0) + 1
    assert counts == {"torch": 3, "mine:right": 3, "mine:wrong": 1}
    capsys.readouterr()
    assert main(["show", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["provider"]: row for row in document["rows"]}
    assert rows["mine:wrong"]["status"] == "wrong numbers" and rows["mine:wrong"]["time_s"] is None
    for name in ("torch", "mine:right"):
        row = rows[name]
        assert row["status"] == "passed" and len(row["replicates_s"]) == 3
        assert row["low_s"] < row["time_s"] < row["high_s"] and row["share"] > 0 and row["versions"]["torch"]
    assert {rows["torch"]["best"], rows["mine:right"]["best"]} == {True, False}
    assert (folder / "report.md").is_file() and (folder / "report.html").is_file() and has_kernels(folder)
    with (out / "rows.csv").open() as written:
        assert [row["provider"] for row in csv.DictReader(written)] == [row["provider"] for row in document["rows"]]
    assert "wrong numbers" in (out / "report.md").read_text()


def test_the_command_of_a_row_selects_that_row_alone(done: tuple[Path, int], capsys: Any) -> None:
    capsys.readouterr()
    main(["show", str(done[0]), "--json"])
    for row in json.loads(capsys.readouterr().out)["rows"]:
        words = shlex.split(row["command"])
        assert words[:4] == ["python", "-m", "profiler", "kernels"]
        assert main([*words[3:], "--list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2 and all(word in lines[0] for word in (row["family"], row["provider"], "width=256"))


def test_the_run_is_listed_and_shown_on_a_terminal(done: tuple[Path, int], out: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert main(["list", "--results", str(out)]) == 0
    assert "serving kernels, 7 results" in capsys.readouterr().out
    assert main(["show", str(done[0])]) == 0
    shown = capsys.readouterr().out
    assert "1 wrong or failed" in shown and "repeat a row: python -m profiler kernels --family rms_norm" in shown
    assert main(["kernels", "--resume", str(done[0])]) == 2
    assert "is finished" in capsys.readouterr().err


def test_shards_do_not_overlap_and_are_merged_by_naming_them(out: Path, tmp_path: Path, capsys: Any) -> None:
    chosen = ["kernels", "--family", "rms_norm,linear", "--provider", "torch", "--device", "cpu"]

    def listed(*more: str) -> list[str]:
        capsys.readouterr()
        assert main([*chosen, *more, "--list"]) == 0
        return capsys.readouterr().out.splitlines()[:-1]

    whole = listed()
    parts = [listed("--shard", f"{i}/2") for i in (1, 2)]
    assert len(whole) >= 2 and sorted([*parts[0], *parts[1]]) == sorted(whole)
    shapes = ("rows=2,width=64", "rows=3,width=64")
    both = [word for shape in shapes for word in ("--shape", shape)]
    with device_run(tmp_path) as folder:
        folder.finish()
    for i in (1, 2):
        arguments = ["kernels", "--family", "rms_norm", "--provider", "torch", *both, "--shard", f"{i}/2"]
        assert main([*arguments, *QUICK, "--check-only", "--processes", "1", "--out", str(tmp_path)]) == 0
    runs = sorted(tmp_path.glob("*/*-kernels"))
    capsys.readouterr()
    assert main(["kernels", "--merge", str(runs[0]), "--merge", str(runs[1]), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [f"rows={row['dims']['rows']},width={row['dims']['width']}" for row in rows] == list(shapes)


@pytest.mark.starts_product
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_keeps_what_it_has_and_goes_on(
    number: signal.Signals, out: Path, tmp_path: Path, capsys: Any
) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    user = tmp_path / "held.py"
    user.write_text(
        KERNELS.split("def wrong")[0]
        + "from pathlib import Path\n"
        + "def held(x, weight, eps):\n"
        + f"    while Path({str(hold)!r}).exists():\n        time.sleep(0.05)\n"
        + "    return right(x, weight, eps)\n"
        + 'KERNELS = [("rms_norm", right), ("rms_norm", held)]\n'
    )
    arguments = ["kernels", *SHAPE, *QUICK, "--kernels", str(user), "--check-only", "--processes", "1"]
    arguments += ["--seed", str(seed_with_the_held_kernel_later()), "--out", str(tmp_path / "results")]
    with device_run(tmp_path / "results") as made:
        made.finish()
    child = subprocess.Popen(
        [sys.executable, "-m", "profiler", *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )

    def journals() -> list[Path]:
        return list((tmp_path / "results").glob(f"*/*/{SUITE_JOURNAL}"))

    try:
        until(lambda: journals() and journals()[0].read_bytes().count(b"\n") >= 1, child)
        before = read_suite_results(journals()[0].parent)
        child.send_signal(number)
    except BaseException:
        child.kill()
        raise
    finally:
        said = child.communicate()[1]
    folder = journals()[0].parent
    if number == signal.SIGINT:
        assert child.returncode == 130 and f"kernels --resume {folder}" in said
    assert main(["list", "--results", str(tmp_path / "results")]) == 0
    assert "unfinished" in capsys.readouterr().out
    hold.unlink()
    assert main(["kernels", "--resume", str(folder)]) == 0
    after = read_suite_results(folder)
    assert {result.kernel.provider for result in after} == {"torch", "held:right", "held:held"}
    assert after[: len(before)] == before and not (folder / SUITE_JOURNAL).exists()


def seed_with_the_held_kernel_later() -> int:
    """A seed by which the held kernel is not the first one to run: the tests wait for a result before it."""
    for seed in range(100):
        order = ["held:held", "held:right", "torch"]  # as a plan sorts them
        random.Random((seed << 8) + 1).shuffle(order)  # as `run_tasks` does
        if order[0] != "held:held":
            return seed
    raise AssertionError("no seed will do")


BAD = (
    (["--suite", "smokee"], "smoke"),
    (["--model", "llama-3.1-8c"], "llama-3.1-8b"),
    (["--family", "rms_nrom"], "no kernel family 'rms_nrom'; did you mean rms_norm"),
    (["--family", "rms_norm", "--provider", "torhc"], "did you mean torch"),
    (["--shard", "3/2"], "--shard 3/2: the number goes from 1"),
    (["--shard", "x"], "--shard takes a number of how many, as 1/4"),
    (["--family", "rms_norm", "--shape", "rows=8"], "rms_norm also needs width"),
    (["--family", "rms_norm", "--shape", "rows=8,wdth=3"], "did you mean width"),
    (["--family", "rms_norm", "--shape", "rows=x,width=3"], "rows is a whole number, not 'x'"),
    (["--shape", "rows=8,width=3"], "--shape is of one family; name it with --family"),
    (["--suite", "smoke", "--model", "llama-3.1-8b"], "--suite and --model exclude each other"),
    (["--family", "linear", "--shape", "m=9999999,n=9999999,k=64"], "its operands are"),
    (["--family", "rms_norm", "--dtype", "int8", "--shape", "rows=8,width=64"], "no dtype of rms_norm 'int8'"),
    (["--kernels", "no_such_file.py"], "no_such_file.py"),
    (["--phase", "decod"], "--phase takes prefill, decode, chunk"),
    (["--cache", "hot"], "--cache takes cold, warm"),
    (["--merge", "no-such-run"], "no run 'no-such-run'"),
    (["--resume", "no-such-run"], "no run folder at no-such-run"),
    (["--memory", "0"], "--memory takes a size in GiB above 0"),
)


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_what_cannot_be_done_is_one_line(arguments: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["kernels", *arguments, "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and not shown.out
    assert not list(tmp_path.iterdir())


def test_calibrate_fits_laws_to_a_suites_run(tmp_path: Path, capsys: Any) -> None:
    """Times are a law's whose rate is a fifth of the peak: the roofline is far off, and the fitted law is not."""
    facts = facts_of(CPU)
    law, _ = law_for("matmul", "float32", facts)
    constants = {each.name: each.prior for each in law.constants(facts, "float32")} | {"rate": 104e9 / 5}
    with device_run(tmp_path, **{SUITE_OPTION: "{}"}) as folder:
        log = SuiteLog(folder.path)
        for m in (1, 4, 16, 64, 128, 256):
            for n, k in ((512, 512), (512, 2048), (2048, 512), (1024, 1024), (768, 3072), (2048, 2048)):
                sizes = {"m": float(m), "n": float(n), "k": float(k)}
                arrays = {name: np.array([size]) for name, size in {**sizes, "cold": 1.0, "reach": 0.0}.items()}
                time_s = float(law.time_s(arrays, facts, "float32", constants)[0])
                work = {"flops": 2.0 * m * n * k, "moved": 4.0 * (m * n + n * k + m * k)}
                dims = {"m": m, "n": n, "k": k}
                for each in replicated("linear", "torch", time_s, dims, law=("matmul", sizes), **work):
                    log.append(each)
        log.finish(folder.run)
        table = law_kernels(log.results, {})
        assert table is not None
        write_kernels(folder.path, table)
        folder.finish()
    assert main(["calibrate", str(folder.path)]) == 0
    capsys.readouterr()
    assert main(["show", str(folder.path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    ratios = np.array([row["predicted_ratio"] for row in rows])
    shares = np.array([row["share"] for row in rows])
    assert np.median(np.abs(np.log(ratios))) < 0.1 < np.median(np.abs(np.log(shares)))
    model = ["predict", "gpt2", "--prompt", "64", "--dtype", "float32", "--phase", "prefill", "--json"]
    assert main([*model, "--hardware", str(folder.path)]) == 0
    fitted = json.loads(capsys.readouterr().out)
    assert main([*model, "--hardware", str(folder.path), "--peaks", "measured"]) == 0
    roofline = json.loads(capsys.readouterr().out)

    def time_of(document: dict[str, Any]) -> float:
        return float(document["workloads"][0]["total"]["time_s"])

    assert time_of(fitted) > 2 * time_of(roofline)
