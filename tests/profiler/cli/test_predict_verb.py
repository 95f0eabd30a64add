"""`predict` as a user runs it: what it says in JSON and what it writes; it refuses as test_predict_refusals.py says."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from each import each
from tiny import tiny

from profiler.cli.app import main
from profiler.models.graphs import ModelGraphs, Tracing
from roofline.hardware.load import load_device

ROOT = Path(__file__).parents[3]
WriteSpec = Callable[..., str]
ON = ("--hardware", "nvidia-h200-sxm")
SHORT = ("--prompt", "24", "--context", "40")
BYTES = ("weight_read", "activation_read", "activation_write", "kv_read", "kv_write")
MODULE = "example_module:tiny_mlp"


def summed(ops: list[dict[str, Any]], name: str) -> float:
    return sum(op[name] for op in ops)


def test_the_contract_of_json(ask: Any, llama: str) -> None:
    found = ask(llama, *ON, *SHORT, "--phase", "prefill,decode,chunk", "--batch", "2")
    assert {"model", "hardware", "accounting", "workloads", "memory"} <= set(found)
    assert (found["model"], found["hardware"], found["accounting"]) == (llama, "nvidia-h200-sxm", "roofcal")
    sizes = [(w["phase"], w["batch"], w["query_tokens"], w["context_tokens"]) for w in found["workloads"]]
    assert sizes == [("prefill", 2, 24, 0), ("decode", 2, 1, 40), ("chunk", 2, 24, 40)]
    for step in found["workloads"]:
        total, ops = step["total"], step["ops"]
        for op in ops:
            assert {"path", "kind", "count", "matrix_flops", "vector_flops", "bytes", "time_s", "bound"} <= set(op)
            assert set(op["bytes"]) == set(BYTES)
        for name in ("count", "matrix_flops", "vector_flops", "time_s"):
            assert total[name] == pytest.approx(summed(ops, name), rel=1e-12)
        for name in BYTES:
            assert total["bytes"][name] == pytest.approx(summed([op["bytes"] for op in ops], name), rel=1e-12)
        assert total["tokens_per_s"] == pytest.approx(2 * step["query_tokens"] / total["time_s"])
        assert {"weights", "kv_cache", "activations"} <= set(step["memory"]) and step["fits"] is True
        projections = [op for op in ops if op["path"].endswith("up_proj")]
        flops = 2 * 2 * step["query_tokens"] * 32 * 48  # batch × tokens × hidden × intermediate
        assert sum(op["matrix_flops"] for op in projections) == 2 * flops  # two layers; amounts are of all executions
    assert {"weights", "kv_cache", "activations"} <= set(found["memory"])
    assert found["parameters"] == sum(
        p.numel() for p in ModelGraphs(tiny("llama"), "", Tracing("float32")).model.parameters()
    )


@pytest.mark.starts_product
def test_a_whole_process_keeps_stdout_for_json(llama: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "profiler", "predict", llama, *ON, *SHORT, "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and len(json.loads(done.stdout)["workloads"]) == 2


def test_every_combination_is_a_workload_and_many_are_a_sweep(ask: Any, llama: str) -> None:
    found = ask(
        llama, *ON, "--phase", "prefill,chunk", "--prompt", "16,24,24", "--context", "32,64", "--batch", "1,4,4"
    )
    sizes = [(w["batch"], w["query_tokens"], w["context_tokens"]) for w in found["workloads"]]
    assert len(sizes) == len(set(sizes)) == 2 * 2 + 2 * 2 * 2
    assert all(step["ops"] == [] and step["total"]["time_s"] > 0 for step in found["workloads"])
    one = ask(llama, *ON, "--phase", "chunk", "--prompt", "24", "--context", "64", "--batch", "4")["workloads"][0]
    same = next(w for w in found["workloads"] if (w["batch"], w["query_tokens"], w["context_tokens"]) == (4, 24, 64))
    assert same["total"]["time_s"] == pytest.approx(one["total"]["time_s"], rel=1e-9)


def test_logits_of_all_new_tokens(ask: Any, llama: str) -> None:
    chunk = [llama, *ON, "--phase", "chunk,decode", "--prompt", "5", "--context", "64"]
    (last, decode), (every, same) = (ask(*chunk, "--logits", which)["workloads"] for which in ("last", "all"))
    assert (last["logits"], every["logits"], same["logits"]) == ("last", "all", "last")
    assert every["total"]["matrix_flops"] - last["total"]["matrix_flops"] == 4 * 2 * 32 * 128
    assert same == decode


def test_mixed_steps(ask: Any, llama: str) -> None:
    found = ask(llama, *ON, "--mix", "1x24@0,4x1@40", "--mix", "2x8")
    both, alone = found["workloads"]
    assert [(p["batch"], p["query_tokens"], p["context_tokens"]) for p in both["parts"]] == [(1, 24, 0), (4, 1, 40)]
    assert (alone["batch"], alone["query_tokens"], alone["context_tokens"]) == (2, 8, 0)
    assert both["total"]["time_s"] == pytest.approx(summed(both["ops"], "time_s"))


def test_requests_and_what_fits(ask: Any, llama: str) -> None:
    found = ask(llama, *ON, *SHORT, "--output", "1,8", "--batch", "2", "--largest")
    one, eight = found["requests"]
    prefill, decode = (w["total"]["time_s"] for w in found["workloads"])
    assert one["ttft_s"] == one["end_to_end_s"] == pytest.approx(prefill) and one["tpot_s"] is None
    assert eight["end_to_end_s"] == pytest.approx(eight["ttft_s"] + 7 * eight["tpot_s"])
    assert eight["tpot_s"] < decode  # at contexts of 24 to 30 tokens, not of 40
    assert found["largest_batch"] > 1 and found["largest_context"] > 40


def eleven_megabytes(path: Path) -> str:
    """A device with next to no memory."""
    spec = load_device("nvidia-h200-sxm")
    assert spec.datasheet is not None
    small = spec.datasheet.levels[-1].model_copy(update={"capacity_bytes": 1.1e7})
    rates = spec.datasheet.model_copy(update={"levels": (small,)})
    path.write_text(spec.model_copy(update={"name": "small", "datasheet": rates}).model_dump_json())
    return str(path)


def test_an_answer_of_largest_fits_and_one_more_does_not(ask: Any, llama: str, tmp_path: Path) -> None:
    on = ("--hardware", eleven_megabytes(tmp_path / "small.json"), "--phase", "decode")
    found = ask(llama, *on, "--context", "40", "--batch", "3", "--largest")
    batch, context = found["largest_batch"], found["largest_context"]
    for option, value in (("--batch", batch), ("--context", context)):
        other = ("--context", "40") if option == "--batch" else ("--batch", "3")
        fits = [ask(llama, *on, *other, option, str(value + more))["workloads"][0]["fits"] for more in (0, 1)]
        assert fits == [True, False], option


def test_the_servers_share_and_its_overhead_bound_the_largest(ask: Any, llama: str) -> None:
    on = (*ON, "--phase", "decode", "--context", "40", "--largest")
    whole = ask(llama, *on)
    part = ask(llama, *on, "--memory-utilisation", "0.5", "--overhead", "2GiB", "--dtype", "bf16")
    assert part["budget_bytes"] == whole["capacity_bytes"] / 2 - 2 * 2**30
    assert 0 < part["cache_tokens"] < whole["cache_tokens"] / 2
    assert part["workloads"][0]["dtype"] == "bfloat16"  # written as bf16


def test_forms(ask: Any, llama: str) -> None:
    fused, executed = (ask(llama, *ON, *SHORT, "--form", form)["workloads"] for form in ("fused", "executed"))
    for ideal, ran in zip(fused, executed, strict=True):
        assert ideal["total"]["count"] < ran["total"]["count"]
        assert ideal["total"]["time_s"] < ran["total"]["time_s"]


def test_speculation(ask: Any, folders: dict[str, str]) -> None:
    asked = (folders["llama"], *ON, *SHORT, "--output", "8")
    plain = ask(*asked)["requests"][0]["tpot_s"]
    drafting = ("--draft", folders["gpt2"], "--speculate", "3")
    never, always = (
        ask(*asked, *drafting, "--acceptance", acceptance)["requests"][0]["tpot_s"] for acceptance in ("0", "1")
    )
    assert never == pytest.approx(4 * always) and never > plain


def test_decode_on_other_hardware(ask: Any, llama: str) -> None:
    sending = ("--what-if", "send_kv:link=nvlink")
    asked = (llama, *ON, "--phase", "prefill", "--prompt", "24", "--output", "8")
    alone, sent = ask(*asked)["requests"][0], ask(*asked, *sending, "--decode-hardware", "nvidia-l4")["requests"][0]
    there = ask(llama, "--hardware", "nvidia-l4", *SHORT, "--output", "8")["requests"][0]
    assert sent["tpot_s"] == pytest.approx(there["tpot_s"]) and sent["ttft_s"] >= alone["ttft_s"]


def test_the_paper_to_the_last_digit(ask: Any) -> None:
    vectors = json.loads((ROOT / "tests/data/paper/llm-viewer.json").read_text("utf-8"))["vectors"]
    wanted = next(v for v in vectors if v["model"] == "Llama-2-7b-hf" and v["seqlen"] == 2048 and v["w_bit"] == 16)
    found = ask("llama-2-7b", "--hardware", "nvidia-rtx-a6000", "--accounting", "paper", "--prompt", "2048")
    assert found["accounting"] == "paper"
    for step in found["workloads"]:
        rows = {op["name"]: op for op in step["ops"]}
        expected = wanted["results"][step["phase"]]
        assert set(rows) == set(expected)
        for name, row in expected.items():
            for key, value in row.items():
                assert rows[name][key] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value)
        for key, value in wanted["results"]["total_results"][step["phase"]].items():
            assert step["total"][key] == pytest.approx(value, rel=1e-12)


def test_the_paper_as_a_table(llama: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", llama, *ON, "--accounting", "paper", "--prompt", "32", "--flash", "--bits", "4,16,16"]) == 0
    shown = capsys.readouterr().out
    assert "arXiv 2402.16363" in shown and "fused_attention" in shown and "weights 4, activations 16" in shown


def test_a_module(ask: Any, module: str) -> None:
    found = ask("--module", module, *ON)
    (step,) = found["workloads"]
    assert (step["batch"], step["query_tokens"], step["dtype"]) == (3, 1, "float32")
    assert step["total"]["matrix_flops"] == 2 * 3 * (8 * 16 + 16 * 4)
    assert found["memory"]["weights"] == 4 * (8 * 16 + 16 + 16 * 4 + 4)
    assert found["parameters"] == 8 * 16 + 16 + 16 * 4 + 4


def test_a_diffusion_transformer(ask: Any) -> None:
    found = ask("--module", "profiler.models.examples.dit:dit_xl_2", *ON)
    assert found["parameters"] == pytest.approx(675e6, rel=0.01)  # arXiv 2212.09748, table 4: DiT-XL/2
    flops = found["workloads"][0]["total"]["matrix_flops"] / found["workloads"][0]["batch"]
    assert flops / 2 == pytest.approx(118.6e9, rel=0.02)  # the same table, which counts a multiply-add as 1


WITHOUT_TORCH = (
    "import sys\n"
    "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'pynvml')))\n"  # None: importing it is an error
    "from profiler.cli.app import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


def without_torch(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "predict", *arguments, "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@each(
    "options",
    [
        (*SHORT, "--phase", "prefill,decode,chunk", "--output", "40", "--batch", "2"),
        ("--phase", "decode", "--context", "32,40,64,90,100,128,200", "--batch", "1,3"),
    ],
)
def test_a_saved_graph_needs_no_torch(options: tuple[str, ...], ask: Any, llama: str, saved: str) -> None:
    alone, model = without_torch("--graph", saved, *ON, *options), ask(llama, *ON, *options)
    assert alone["parameters"] == model["parameters"]
    for here, there in zip(alone["workloads"], model["workloads"], strict=True):
        assert here["fits"] == there["fits"] and here["phase"] == there["phase"]
        for name, value in there["total"].items():
            assert here["total"][name] == (pytest.approx(value, rel=1e-9) if value is not None else None), name
        assert here["memory"]["weights"] == there["memory"]["weights"]
        assert here["memory"]["kv_cache"] == there["memory"]["kv_cache"]
    for here, there in zip(alone["requests"], model["requests"], strict=True):
        for name in ("ttft_s", "tpot_s", "end_to_end_s"):
            assert here[name] == pytest.approx(there[name], rel=1e-9)


def test_the_graph_of_a_run(ask: Any, one_graph: str) -> None:
    found = without_torch("--graph", one_graph, *ON)
    (step,) = found["workloads"]
    assert (step["phase"], step["batch"], step["query_tokens"], step["dtype"]) == ("prefill", 2, 16, "float32")
    assert found["memory"]["weights"] > 0 and step["total"]["matrix_flops"] > 0
    same = ask("--graph", one_graph, *ON, "--phase", "prefill", "--prompt", "16", "--batch", "2")
    assert same["workloads"] == found["workloads"]


def test_csv_has_a_row_an_operation_or_a_workload(llama: str, tmp_path: Path, ask: Any) -> None:
    path = tmp_path / "deep" / "rows.csv"
    found = ask(llama, *ON, *SHORT, "--csv", str(path))
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(step["ops"]) for step in found["workloads"])
    times = [float(row["time_s"]) for row in rows]
    assert sum(times) == pytest.approx(sum(step["total"]["time_s"] for step in found["workloads"]))
    found = ask(llama, *ON, "--phase", "decode", "--context", "32", "--batch", "1,2,3,4,5,6,7", "--csv", str(path))
    with path.open(encoding="utf-8", newline="") as file:
        assert [float(row["batch"]) for row in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6, 7]
    assert [one.name for one in path.parent.iterdir()] == ["rows.csv"]


def test_html_is_one_page_that_opens_offline(llama: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert main(["predict", llama, *ON, *SHORT, "--html", str(path)]) == 0
    page = path.read_text("utf-8")
    assert "<html" in page and "self_attn.q_proj" in page and 'src="http' not in page


def test_a_file_of_ones_own_with_measured_peaks(spec_file: WriteSpec, ask: Any, llama: str, tmp_path: Path) -> None:
    mine = spec_file(tmp_path / "spec.json")
    measured, sheet = (ask(llama, "--hardware", mine, *SHORT, "--peaks", which) for which in ("auto", "datasheet"))
    assert (measured["hardware"], measured["peaks"], sheet["peaks"]) == ("mine", "measured", "datasheet")
    for here, there in zip(measured["workloads"], sheet["workloads"], strict=True):
        assert here["total"]["time_s"] > there["total"]["time_s"]
        assert here["total"]["wall_s"] > here["total"]["time_s"] and there["total"]["wall_s"] is None
        assert {op["bound"] for op in here["ops"]} & {"L2"}
    swept = ask(llama, "--hardware", mine, "--phase", "decode", "--context", "40", "--batch", "1,2,3,4,5,6,7")
    assert all(step["total"]["time_s"] > 0 for step in swept["workloads"])


def test_what_does_not_fit_is_priced_and_flagged(
    ask: Any, llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on = ("--hardware", eleven_megabytes(tmp_path / "small.json"), "--phase", "decode")
    asked = (llama, *on, "--context", "200", "--batch", "1000")
    (step,) = ask(*asked)["workloads"]
    assert step["fits"] is False and step["total"]["time_s"] > 0
    # sequences × tokens × layers × keys and values × (2 heads of 8) × 2 bytes
    assert step["memory"]["kv_cache"] == 1000 * 201 * 2 * 2 * 16 * 2
    assert main(["predict", *asked]) == 0
    assert "does not fit" in capsys.readouterr().out


@each("options", [("--prompt", "300"), ("--mix", "1x300@0"), (*SHORT, "--output", "300"), ("--prompt", "200,300")])
def test_beyond_the_models_context_is_priced_with_a_note(options: tuple[str, ...], ask: Any, llama: str) -> None:
    found = ask(llama, *ON, "--context", "40", *options)
    assert any("beyond the 256 that the model was made for" in note for note in found["notes"])


def test_within_the_models_context_there_is_no_note(ask: Any, llama: str) -> None:
    assert ask(llama, *ON, *SHORT)["notes"] == []
    assert ask(llama, *ON, "--mix", "1x24@0")["notes"] == []  # the default prompt is not what is asked
