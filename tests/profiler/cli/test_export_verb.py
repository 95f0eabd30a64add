import json
import subprocess
import sys
from pathlib import Path

import hardware_samples as samples
import pytest
from each import each

from calibrate.exchange.formats import EXPORTS
from profiler.cli.app import main
from profiler.record.folder import RunFolder
from profiler.record.hardware_table import HardwareLog


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here: Path) -> Path:
    """A finished characterisation of a GPU."""
    spec, measurements, run = samples.gpu()
    with RunFolder.create(here / "results", run.model_copy(update={"finished": None})) as folder:
        log = HardwareLog(folder.path)
        for one in measurements:
            log.append(one)
        folder.write_spec(spec)
        log.finish(folder.run)
        folder.finish()
    return folder.path


def test_a_datasheet_becomes_a_file_here(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "nvidia-h200-sxm", "--to", "llm-viewer", "--peaks", "datasheet"]) == 0
    written = here / capsys.readouterr().out.strip()
    assert written.name == "nvidia-h200-sxm-roofcal-datasheet.llm_viewer.py"
    assert "'bandwidth': 4800000000000.0" in written.read_text()


def test_out_names_the_file_and_what_lies_beside_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "nvidia-h200-sxm", "--to", "llm-analysis", "--peaks", "datasheet", "--out", "a/h200.json"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == ["a/h200.json", "a/h200.json.provenance.json"]
    assert found["peaks"] == "datasheet"
    assert "peak_i4_TFLOPS" in found["left_out"]
    assert all((here / file).exists() for file in found["files"])


def test_tables_go_to_a_folder_and_what_is_left_out_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["export", "nvidia-h200-sxm", "--to", "aiconfigurator", "--peaks", "datasheet", "--out", "systems"]) == 0
    )
    said = capsys.readouterr()
    assert said.out == "systems: 4 files\n"
    assert "left out: node.num_gpus_per_node" in said.err
    assert (here / "systems" / "nvidia-h200-sxm-roofcal-datasheet.yaml").exists()
    assert len(list((here / "systems" / "data").rglob("*.parquet"))) == 3


@each("how", ["folder", "last", "end of its name", "spec.json"])
def test_a_run_says_with_what_it_was_taken(run: Path, here: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"folder": str(run), "last": "last", "end of its name": run.name, "spec.json": str(run / "spec.json")}
    assert main(["export", given[how], "--to", "llm-analysis", "--out", "gpu.json"]) == 0, capsys.readouterr().err
    found = json.loads((here / "gpu.json.provenance.json").read_text())
    environment = RunFolder.open(run).run.environment
    assert found["driver_name"] == environment.device
    assert found["versions"] == environment.versions
    assert found["run"].endswith(run.name)
    assert found["clocks"].startswith("SM ")
    assert found["peaks"] == "measured"


@each(
    ("arguments", "said"),
    [
        (["export", "nvidia-h200-sxm", "--to", "genz"], "has no measured peaks; export its datasheet with --peaks"),
        (["export", "nvidia-h200-sxm", "--to", "gens"], "no format 'gens' to export to; did you mean genz"),
        (["export", "nvidia-h200-sxm"], "say which format with --to; known: llm-viewer"),
        (["export", "--to", "genz"], "name a SPEC"),
        (["export", "nvidia-h200-sxm", "--to", "genz", "--peaks", "best"], "--peaks takes measured, datasheet"),
        (["export", "nvidia-h201", "--to", "genz"], "did you mean"),
        (["export", "here.json", "--to", "genz"], "cannot read here.json"),
    ],
)
def test_a_wrong_request_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_list_names_the_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--to", "list"]) == 0
    assert "genz " in capsys.readouterr().out
    assert main(["export", "--to", "list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["formats"]) == 10


def test_no_torch_is_loaded(here: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'transformers')))\n"
        "from profiler.cli.app import main\n"
        "assert main(['export', 'nvidia-h200-sxm', '--to', 'vidur', '--peaks', 'datasheet']) == 0\n"
    )
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=here,
        env={"PYTHONPATH": root, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_doubted_figure_is_exported_only_by_force_and_with_its_doubt(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((run / "spec.json").read_text())
    content["measured"]["levels"][-1]["bandwidth"]["doubt"] = "measured beside other work"
    wide = next(iter(content["measured"]["matrix"].values()))
    wide |= {"low": wide["value"] * 0.07, "high": wide["value"] * 15.1}
    (run / "spec.json").write_text(json.dumps(content))
    arguments = ["export", "last", "--to", "genz", "--out", "figures.py"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "2 figures" in said and "--force" in said and said.count("\n") == 1
    assert not Path("figures.py").exists()
    assert main([*arguments, "--force"]) == 0
    written = Path("figures.py").read_text()
    assert "measured beside other work" in written and "between 0.07 and 15 times" in written
    capsys.readouterr()
    assert main(["predict", "llama-3.1-8b", "--hardware", "last", "--phase", "decode", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert sum("is doubted" in note for note in notes) == 2


def test_hardware_is_found_by_any_of_its_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("last", str(run), run.name, str(run / "spec.json"))
    found = set()
    for name in names:
        assert main(["predict", "gpt2", "--hardware", name, "--phase", "decode", "--json"]) == 0, name
        found.add(json.loads(capsys.readouterr().out)["workloads"][0]["total"]["time_s"])
    assert len(found) == 1


def test_all_formats_at_once_are_those_of_each_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "nvidia-h200-sxm", "--to", "all", "--peaks", "datasheet", "--out", "all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["format"] for one in found["exports"]] + list(found["refused"]) == [form.name for form in EXPORTS]
    assert len(found["exports"]) >= 5
    for one in found["exports"]:
        alone = ["export", "nvidia-h200-sxm", "--to", one["format"], "--peaks", "datasheet", "--out"]
        is_folder = next(form.folder for form in EXPORTS if form.name == one["format"])
        start = "all" if not is_folder else f"all/{one['format']}"
        target = Path("alone") if is_folder else Path("alone") / Path(one["files"][0]).name
        assert main([*alone, str(target)]) == 0
        names = {str(Path(file).relative_to(start)) for file in one["files"]}
        assert all((here / "alone" / name).is_file() and (here / start / name).is_file() for name in names)
    capsys.readouterr()
    assert main(["export", "nvidia-h200-sxm", "--to", "genz, blis", "--peaks=datasheet"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["export", "nvidia-h200-sxm", "--to", "genz,vidurr"]) == 2
    assert "did you mean vidur?" in capsys.readouterr().err
