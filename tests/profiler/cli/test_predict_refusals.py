"""How `predict` refuses: one line on stderr that says what to do, and exit code 2."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from each import each

from profiler.cli.app import main
from roofline.graph.op import GRAPH_SCHEMA

WriteSpec = Callable[..., str]
ON = ("--hardware", "nvidia-h200-sxm")
SHORT = ("--prompt", "24", "--context", "40")
MODULE = "example_module:tiny_mlp"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    code = main(["predict", *arguments])
    shown = capsys.readouterr()
    assert code == 2, shown
    assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("error: "), shown.err
    return shown.err


@each(
    ("arguments", "says"),
    [
        (["--batch", "-1"], "--batch takes whole numbers from 1"),
        (["--batch", "0"], "from 1"),
        (["--prompt", "0"], "--prompt takes whole numbers from 1"),
        (["--context", "-5"], "--context takes whole numbers from 1"),
        (["--prompt", "many"], "--prompt takes whole numbers separated by commas, as 128,2048; not 'many'"),
        (["--prompt", "1e3"], "whole numbers"),
        (["--prompt", ""], "whole numbers"),
        (["--batch", "1,,2"], "whole numbers"),
        (["--prompt", str(10**15)], "beyond any memory; use less than"),
        (["--prompt", str(2**39), "--batch", "8"], "beyond any memory; ask for fewer"),
        (["--output", "0"], "--output takes whole numbers from 1"),
        (["--output", "100000000"], "beyond any request; use at most 16777216"),
        (["--mix", "512"], "--mix takes SEQUENCESxNEW@CACHED"),
        (["--mix", "0x1@4"], "--mix takes"),
        (["--mix", "1x1@-4"], "--mix takes"),
        (["--phase", "training"], "--phase takes prefill, decode, chunk; not 'training'"),
        (["--form", "ideal"], "--form takes auto, fused, executed"),
        (["--accounting", "mine"], "--accounting takes roofcal, paper"),
        (["--peaks", "best"], "--peaks takes auto, datasheet, measured"),
        (["--peaks", "measured"], "has no measured peaks; use --peaks auto"),
        (["--largest", "--memory-utilisation", "0"], "a share of the memory above 0, as 0.9"),
        (["--largest", "--overhead", "two"], "--overhead takes a size, as 2GiB or 500MB; not 'two'"),
        (["--overhead", "2GiB"], "--overhead changes nothing without --largest"),
        (["--dtype", "float8"], "use float64, float32, bfloat16, float16"),
        (["--attn", "flash_attention_9"], "flash_attention_9"),
        (["--cache", "paged"], "--cache paged is unknown; use dynamic or static"),
        (["--frobnicate"], "No such option: --frobnicate"),
        (["--what-if", "quantize:weights=4"], "no what-if 'quantize'; did you mean quantise?"),
        (["--what-if", "quantise:bits=4"], "'bits=4' is not one of its options; write quantise:weights=,"),
        (["--what-if", "quantise:weights=4,weights=8"], "weights is given twice"),
        (["--what-if", "quantise:weights=four"], "should be a valid number; write quantise:"),
        (["--what-if", "quantise:weights=7"], "7"),
        (["--what-if", "tensor_parallel"], "needs degree; write tensor_parallel:degree=,link="),
        (["--what-if", "tensor_parallel:degree=3"], "3"),
        (["--what-if", "tensor_parallel:degree=0"], "0"),
        (["--what-if", "pipeline_stage:stages=9,stage=0"], "only 2 repeated layers"),
        (["--what-if", "offload:weights=2"], "2"),
        (["--what-if", "quantise"], "quantise changes nothing; give weights=4"),
        (["--what-if", "tensor_parallel:degree=2,link=ici"], "no link ici (its links: nvlink, pcie)"),
        (["--link", "network=50"], "no link has such a bandwidth"),
        (["--link", "network"], "--link takes NAME=BYTES_PER_S,SECONDS, as network=50e9,5e-6"),
        (["--output", "4", "--micro-batches", "2"], "--micro-batches changes nothing without a pipeline"),
        (["--what-if", "offload:weights=nan"], "nan"),
        (["--what-if", "expert_parallel:degree=2"], "use a mixture of experts"),
        (["--draft", "gpt2"], "--draft changes nothing without --output; add --output"),
        (["--decode-hardware", "nvidia-l4"], "--decode-hardware changes nothing without --output"),
        (["--acceptance", "0.5"], "--acceptance changes nothing without --draft"),
        (["--output", "4", "--draft", "gpt2", "--acceptance", "1.5"], "'--acceptance'"),
        (["--output", "4", "--draft", "gpt2", "--acceptance", "-0.1"], "'--acceptance'"),
        (["--output", "4", "--draft", "gpt2", "--speculate", "0"], "'--speculate'"),
        (["--output", "4", "--decode-hardware", "nvidia-h2000"], "no device"),
        (["--bits", "4,4,4"], "--bits needs --accounting paper"),
        (["--largest", "--mix", "1x4"], "ask without --mix"),
        (["--what-if", "unfuse_attention"], "add --form executed"),
        (["--what-if", "fuse_attention"], "there is nothing to fuse"),
        (["--what-if", "send_kv"], "use it on a prefill or chunk"),
        (["--accounting", "paper", "--bits", "4,4"], "--bits WEIGHTS,ACTIVATIONS,KV"),
        (["--accounting", "paper", "--bits", "0"], "--bits takes whole numbers from 1"),
        (["--accounting", "paper", "--bits", "32"], "32"),
        (["--accounting", "paper", "--prompt", "16,32"], "takes one --prompt"),
        (["--accounting", "paper", "--what-if", "sparsify_2_4"], "--accounting paper has no --what-if"),
        (["--accounting", "paper", "--html", "page.html"], "--accounting paper has no --html"),
    ],
)  # fmt: skip
def test_one_line_and_exit_code_2(
    arguments: list[str], says: str, llama: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused([llama, *ON, *arguments], capsys)


@each(
    ("arguments", "says"),
    [
        (["gpt2"], "name a device with --hardware (--hardware list lists them)"),
        ([*ON], "name one of MODEL, --module, --graph; got none"),
        (["gpt2", "--module", MODULE, *ON], "got MODEL and --module"),
        (["gpt3", *ON], "nearest: gpt2"),
        (["no/such-model", *ON], "not in the catalogue"),
        (["gpt2", "--hardware", "nvidia-h21"], "no device or JSON file 'nvidia-h21'"),
        (["gpt2", "--hardware", "rtx 4090"], "did you mean nvidia-rtx-4090?"),
        (["gpt2", "--hardware", "nowhere.json"], "cannot read nowhere.json: No such file or directory"),
        (["--module", "no.such.module:factory", *ON], "cannot import no.such.module"),
        (["--module", "json", *ON], "write it as package.module:factory"),
        (["--module", "json:loads_of", *ON], "json has no factory loads_of"),
        (["--module", "json:dumps", *ON], "the factory failed"),
        (["--graph", "nowhere.json", *ON], "cannot read nowhere.json: No such file or directory"),
        (["--module", "json:dumps", "--attn", "eager", *ON], "--attn says how MODEL is traced"),
        (["--graph", "nowhere.json", "--save-graph", "x.json", *ON], "cannot read nowhere.json"),
    ],
)  # fmt: skip
def test_what_is_predicted_and_where(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert says in refused(arguments, capsys)


@each(
    ("change", "says"),
    [
        ({"frobs": 1}, "frobs: unknown field"),
        ({"nmae": "x"}, "did you mean name?"),
        ({"kind": "abacus"}, "kind"),
        ({"schema_version": 99}, "newer roofcal"),
        ({"datasheet": None, "measured": None}, "a device needs one of them"),
    ],
)
def test_a_device_file_that_is_wrong(
    spec_file: WriteSpec,
    change: dict[str, Any],
    says: str,
    llama: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert says in refused([llama, "--hardware", spec_file(tmp_path / "spec.json", **change)], capsys)


@each(
    ("value", "says"),
    [(-1e12, "greater than 0"), (0, "greater than 0"), (4800, "4800 GB/s is 4.8e12; give bytes/s"), ("fast", "number")],
)
def test_a_figure_that_is_wrong(
    spec_file: WriteSpec, value: Any, says: str, llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(spec_file(tmp_path / "spec.json"))
    document = json.loads(path.read_text())
    document["datasheet"]["levels"][0]["bandwidth"]["value"] = value
    path.write_text(json.dumps(document))
    line = refused([llama, "--hardware", str(path)], capsys)
    assert says in line and "datasheet.levels.0.bandwidth.value" in line


def test_graph_files_that_are_wrong(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "graph.json"
    whole = json.loads(Path(saved).read_text())
    for text, says in (
        (Path(saved).read_text()[:1000], "is half-written or damaged"),
        ("[]", "has no schema_version; save it again with --save-graph"),
        ("7", "has no schema_version"),
        (json.dumps(whole | {"schema_version": GRAPH_SCHEMA + 1}), "from a newer roofcal"),
        (json.dumps(whole | {"regimes": 3}), "not a valid StoredGraphs: regimes"),
        (json.dumps(whole | {"frobs": 3}), "frobs"),
        (json.dumps({"schema_version": 1, "model": "x"}), "not a valid OpGraph"),
    ):
        path.write_text(text)
        assert says in refused(["--graph", str(path), *ON], capsys)
    assert "Is a directory" in refused(["--graph", str(tmp_path), *ON], capsys)
    assert "saved in bfloat16, not in float32" in refused(["--graph", saved, *ON, "--dtype", "float32"], capsys)


@each("options", [["--batch", "8"], ["--prompt", "17"], ["--phase", "decode"], ["--mix", "1x4"], ["--output", "4"]])
def test_a_graph_of_another_workload(options: list[str], one_graph: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["--graph", one_graph, *ON, *options], capsys)
    assert "the graph holds prefill-b2-q16-c0-float32 alone, not " in line


def test_a_module_has_the_sizes_of_its_inputs(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds prefill-b3-q1-c0-float32 alone" in refused(["--module", module, *ON, "--batch", "8"], capsys)
    assert "has no factory not_a_factory; it has tiny_mlp" in refused(
        ["--module", "example_module:not_a_factory", *ON], capsys
    )


@each("option", ["--csv", "--html", "--save-graph"])
def test_a_place_that_cannot_be_written(
    option: str, llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "inside", tmp_path)[: 1 if option == "--save-graph" else 2]:
        line = refused([llama, *ON, *SHORT, option, str(place)], capsys)
        assert f"cannot write {place}" in line
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@each("model", ["qwen3_moe", "mamba"])
def test_the_paper_knows_no_such_model(model: str, folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused([folders[model], *ON, "--accounting", "paper", "--prompt", "32"], capsys)
    assert "use the default accounting" in line


def test_outputs_that_overwrite_each_other_or_an_input_are_refused(saved: str, tmp_path: Path, capsys: Any) -> None:
    ask = ["predict", "--graph", saved, "--hardware", "nvidia-h100-sxm"]
    same, before = str(tmp_path / "x"), Path(saved).read_bytes()
    for more, said in (
        (["--csv", same, "--html", same], "would overwrite what --csv writes"),
        (["--csv", saved], "which is read"),
        (["--html", ""], "names no file"),
        (["--csv", "/dev/full"], "No space left"),
    ):
        assert main([*ask, *more]) == 2, more
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, (more, err)
    assert not Path(same).exists() and Path(saved).read_bytes() == before
    assert main([*ask, "--csv", "/dev/null", "--html", "/dev/null"]) == 0
