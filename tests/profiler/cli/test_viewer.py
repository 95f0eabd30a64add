"""The viewer without a browser: what an address may say, the numbers, the files, and who may ask."""

import csv
import io
import json
import string
from dataclasses import fields, replace
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from graphs import figure
from hypothesis import given
from hypothesis import strategies as st
from report_views import as_page

from profiler.cli.app import main
from profiler.cli.viewer import app as viewer
from profiler.cli.viewer.answers import Answers
from profiler.cli.viewer.seen import document
from profiler.cli.viewer.state import Setting, query, read
from profiler.record.folder import RunFolder
from profiler.record.run import CellResult, RequestError, Run
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec, Level, Peaks

PEAKS = Peaks(
    matrix={"float32": figure(1e11)},
    vector={"float32": figure(1e10)},
    levels=(Level(name="DRAM", capacity_bytes=8e9, bandwidth=figure(1e10)),),
)
TEXTS = st.text(string.ascii_letters + string.digits + " :=,&?#+%;/.-_<>\"'|é", min_size=1, max_size=40).map(
    lambda text: " ".join(text.split()) or "x"
)
SETTINGS = st.builds(
    Setting,
    **{field.name: TEXTS for field in fields(Setting) if field.name != "what_if"},  # type: ignore[arg-type]
    what_if=st.lists(TEXTS, max_size=3).map(tuple),
)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Without a run."""
    return Answers(tmp_path_factory.mktemp("results"))


@given(st.lists(SETTINGS, min_size=1, max_size=2).map(tuple))
def test_an_address_gives_back_what_it_was_made_of(view: tuple[Setting, ...]) -> None:
    assert read(query(view)) == view


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("colour=red", "names 'colour', which is nothing"),
        ("<script>=1", "names '<script>'"),
        ("batch=1&batch=2", "has batch twice"),
        ("model=" + "x" * 500, "at most 400 characters"),
        ("model=a%00b", "no text of at most"),
        ("model=a%1b[2J", "no text of at most"),
        ("model=%ff", "cannot be read"),
        ("batch", "cannot be read"),
        ("&".join("what-if=a" for _ in range(99)), "cannot be read"),
        ("model=" + "&" * 5000, "has 5006 characters"),
    ],
)
def test_a_hostile_address_is_refused_in_one_line(address: str, line: str) -> None:
    with pytest.raises(RequestError, match=line) as refused:
        read(address)
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value) and len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("model", "someone/on-the-hub", "no model 'someone/on-the-hub' in the catalogue, and no folder"),
        ("model", "/etc/passwd", "no model"),
        ("hardware", "../../etc/passwd", "no device"),
        ("phase", "prefill,decode", "one value at a time"),
        ("batch", "1,2", "one value at a time"),
        ("batch", "0", "whole numbers from 1"),
        ("context", str(2**41), "beyond any memory"),
        ("output", "1e9", "whole numbers"),
        ("dtype", "int8", "--dtype takes"),
        ("what_if", ("quantise:bits=4",), "not one of its options"),
    ],
)
def test_a_setting_that_predict_would_not_take_is_refused(answers: Answers, field: str, value: str, line: str) -> None:
    with pytest.raises(RequestError, match=line):
        answers.answer(replace(Setting(), **{field: value}))  # type: ignore[arg-type]


CASES = (
    {},
    {"phase": "prefill", "batch": "3", "prompt": "40", "output": "9", "dtype": "float16", "hardware": "nvidia-l4"},
    {"phase": "chunk", "batch": "2", "prompt": "8", "context": "33", "form": "executed"},
    {
        "batch": "5",
        "context": "90",
        "what_if": ("tensor_parallel:degree=2", "quantise:weights=4"),
        "peaks": "datasheet",
    },
)


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_page_the_file_and_the_command_have_the_same_numbers(
    answers: Answers, llama: str, capsys: pytest.CaptureFixture[str], changes: dict[str, str]
) -> None:
    setting = replace(Setting(model=llama), **changes)  # type: ignore[arg-type]
    assert main([*setting.arguments(answers.results), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    client = viewer.application(answers).server.test_client()
    sent = client.get(f"/export/prediction.json{query([setting])}", base_url="http://127.0.0.1:8050")
    assert json.loads(sent.text) == printed
    shown = answers.answer(setting).prediction
    (step,), (request,) = printed["workloads"], printed["requests"]
    assert shown.passes[0].time_s == pytest.approx(step["total"]["time_s"], rel=1e-12)
    assert shown.passes[0].bytes.model_dump() == pytest.approx(step["total"]["bytes"], rel=1e-12)
    is_whole = shown.form == "fused"  # of an executed graph, folding loses when a layer's activations are freed
    assert shown.passes[0].memory.model_dump() == pytest.approx(step["memory"], rel=1e-12 if is_whole else 0.15)
    assert shown.passes[0].memory.kv_cache == step["memory"]["kv_cache"]
    for name in ("ttft_s", "tpot_s", "end_to_end_s", "tokens_per_s"):
        assert getattr(shown.requests[0], name) == pytest.approx(request[name], rel=1e-12)
    assert [*shown.notes] == printed["notes"]


def test_files_of_two_settings(answers: Answers, llama: str) -> None:
    view = (Setting(model=llama, context="50"), Setting(model=llama, context="50", batch="4"))
    client = viewer.application(answers).server.test_client()

    def get(name: str) -> str:
        return client.get(f"/export/{name}{query(view)}", base_url="http://localhost:8050").text

    rows = list(csv.DictReader(io.StringIO(get("prediction.csv"))))
    assert [row["batch"] for row in rows] == ["1", "4"]
    assert len(json.loads(get("prediction.json"))["predictions"]) == 2
    assert "Layer kinds, A and B" in get("report.html")
    page = as_page(document([answers.answer(setting) for setting in view]))
    (ratio,) = [row[3] for row in page.rows if row[0] == "KV cache" and len(row) == 4 and row[3].endswith("×")]
    assert ratio == "4×"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8050"}, 200),
        ({"Host": "localhost:8050", "Origin": "http://localhost:8050"}, 200),
        ({"Host": "roofcal.example:8050"}, 403),
        ({"Host": "127.0.0.1.roofcal.example"}, 403),
        ({"Host": "127.0.0.1:8050", "Origin": "https://roofcal.example"}, 403),
        ({"Host": "127.0.0.1:8050", "Origin": "null"}, 403),
    ],
)
def test_only_this_machine_is_answered(answers: Answers, headers: dict[str, str], status: int) -> None:
    for path in ("/", "/_dash-layout", "/export/prediction.json?batch=x", "/assets/view.js"):
        sent = viewer.application(answers).server.test_client().get(path, headers=headers)
        assert sent.status_code == (400 if status == 200 and "export" in path else status), path
        assert "http" not in sent.headers["Content-Security-Policy"]
        sent.close()


def test_a_file_that_cannot_be_made_is_one_line(answers: Answers) -> None:
    client = viewer.application(answers).server.test_client()
    for bad in (f"model={quote_plus('<img onerror=alert(1)>')}", "nonsense=1"):
        sent = client.get(f"/export/report.html?{bad}", base_url="http://127.0.0.1")
        assert sent.status_code == 400 and sent.mimetype == "text/plain" and sent.text.count("\n") == 1
    assert client.get("/export/app.py", base_url="http://127.0.0.1").status_code == 404


def test_what_ifs_to_choose_from_are_what_ifs() -> None:
    for text in viewer.WHAT_IFS:
        replace(Setting(), what_if=(text,)).check(())


@pytest.fixture
def run_folder(tmp_path: Path, run: Run, result: CellResult, graph: OpGraph, llama: str) -> RunFolder:
    """A finished run of the tiny llama, with the figures of its device."""
    cell = result.cell.model_copy(update={"model": llama})
    named = run.model_copy(update={"cells": (cell,)})
    with RunFolder.create(tmp_path / "results", named) as folder:
        folder.write_spec(HardwareSpec(name=run.environment.device, kind="cpu", measured=PEAKS))
        folder.append(result.model_copy(update={"cell": cell, "graph": folder.write_graph(cell, graph)}))
        folder.finish()
    return folder


def test_measured_passes_stand_beside_the_prediction(run_folder: RunFolder, llama: str) -> None:
    answers = Answers(run_folder.path.parent.parent)
    (name,) = answers.specs
    first = answers.first(name)
    assert (first.model, first.hardware, first.phase, first.prompt, first.dtype) == (
        llama, name, "prefill", "4", "float32",
    )  # fmt: skip
    page = as_page(document([answers.answer(first)]))
    assert any(words.startswith("Measured: ") for words in page.words)
    other = answers.answer(replace(first, prompt="9"))
    assert not other.measured and other.elsewhere == (first,)


def test_an_unreadable_run_is_a_line(run_folder: RunFolder) -> None:
    (run_folder.path / "run.json").write_text('{"schema_version": 99}')
    answers = Answers(run_folder.path.parent.parent)
    assert answers.specs == {} and "newer" in answers.unreadable[0]
