import json
from pathlib import Path

import pytest
from html_page import Page
from report_runs import stored

from profiler.cli.app import main
from profiler.record.folder import RunFolder
from profiler.record.run import Cell, CellResult, Run
from roofline.hardware.spec import HardwareSpec

STORED = Path(__file__).parents[2] / "data" / "runs"
SHOWN = [
    "schema1/finished", "schema2/finished", "schema3/finished", "schema4/finished", "schema5/finished",
    "schema5-spec4/finished", "schema6/finished", "schema7/finished", "hardware-schema1/finished",
    "hardware-schema1/unfinished",
]  # fmt: skip


def page_of(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    page.check()
    return page


def test_a_run_is_written_beside_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stored(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.path.glob("*.*")}
    assert main(["report", "last", "--results", str(tmp_path)]) == 0
    assert str(folder.path / "report.html") in capsys.readouterr().out
    page = page_of(folder.path / "report.html")
    words = " ".join(page.words)
    assert words.index("The only pass is sound") < words.index("example in fp32 measured on") < words.index("wall")
    assert {"pass-0", "roofline-0", "depth-0", "block-0-0"} <= set(page.ids)
    assert before == {path.name: path.read_bytes() for path in folder.path.glob("*.*") if path.name != "report.html"}
    assert main(["report", str(folder.path), "--json"]) == 0, "it replaces the page"
    assert json.loads(capsys.readouterr().out)["bytes"] < 8e6


@pytest.mark.parametrize("name", SHOWN)
def test_every_kind_that_show_reads(tmp_path: Path, name: str) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(STORED / name), "--out", str(out)]) == 0
    page_of(out)


def test_several_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(stored(tmp_path, name=name, slower=slower).path) for name, slower in (("old", 1.0), ("new", 1.5))]
    assert main(["report", *paths]) == 2
    assert "--out runs.html" in capsys.readouterr().err
    out = tmp_path / "runs.html"
    assert main(["report", *paths, str(STORED / "hardware-schema1/finished"), "--out", str(out)]) == 0
    page = page_of(out)
    assert {"run-0", "run-1", "run-2", "run-0-pass-0", "run-1-pass-1", "walls"} <= set(page.ids)
    ratios = [cells for cells in page.rows if "1.500×" in cells]
    assert len(ratios) == 1 and ratios[0][1].endswith("new")
    assert any("slower by 50 %" in words or "ambiguous" in words for words in page.words), (
        "the second against the first"
    )


def test_what_cannot_be_shown_is_refused_in_a_line(
    tmp_path: Path, run: Run, cell: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    def folder(name: str, *results: CellResult) -> Path:
        with RunFolder.create(tmp_path, run.model_copy(update={"name": name})) as made:
            made.write_spec(HardwareSpec(name="example", kind="cpu"))
            for result in results:
                made.append(result)
        return made.path

    empty = folder("empty")
    failed = folder("failed", CellResult(cell=cell, status="failed", reason="out of memory:\n93 GB"))
    newer = folder("newer")
    text = (newer / "run.json").read_text()
    assert f'"schema_version": {run.schema_version}' in text
    (newer / "run.json").write_text(text.replace(f'"schema_version": {run.schema_version}', '"schema_version": 999'))
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    good = stored(tmp_path).path
    for arguments, why in (
        ([empty], "holds no samples"),
        ([failed], "out of memory: 93 GB"),
        ([newer], "newer"),
        ([nothing], "not a run folder"),
        ([tmp_path / "absent"], "no run folder"),
        ([good, good, "--out", tmp_path / "x.html"], "named twice"),
        ([good, "--out", good / "run.json"], "would overwrite"),
        ([good, empty, "--out", tmp_path / "x.html"], "holds no samples"),
    ):
        assert main(["report", *map(str, arguments)]) == 2, arguments
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and why in err, (arguments, err)
    assert not (tmp_path / "x.html").exists()
