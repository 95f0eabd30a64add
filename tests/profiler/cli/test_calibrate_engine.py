"""`calibrate --engine` on result files whose times a known engine gave, and on the steps of a timeline."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny

from calibrate.serving.bench import read_bench, steps_of
from profiler.cli.app import main
from profiler.models.served import served_model
from profiler.record.engine_trace import Closure, StepRow, TraceRank
from profiler.record.run import RequestError
from roofline.hardware.load import load_device
from roofline.hardware.spec import facts_of
from roofline.serving.engine import asked_engine, engine_named
from roofline.serving.predict import engine_constants
from roofline.serving.replay import Load, replay
from roofline.serving.step import Parallel, Pricer, Scheme
from roofline.serving.surface import TERMS, surfaces

ON = ("--hardware", "nvidia-h100-sxm")
ENGINE = "vllm:0.18.0"
TIMELINE = Path(__file__).parents[2] / "data" / "timelines" / "vllm_decode_graph.json.gz"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "mixture"
    tiny("qwen3_moe").save_pretrained(folder)
    return str(folder)


Write = Callable[..., list[str]]


@pytest.fixture
def results(model: str, tmp_path: Path) -> Write:
    """Results at several numbers of requests in flight, of an engine with other times for a step and a sequence."""

    def write(step_s: float, sequence_s: float, **changes: Any) -> list[str]:
        engine = engine_named(*ENGINE.split(":"))
        facts = facts_of(load_device("nvidia-h100-sxm"))
        (surface,) = surfaces([(served_model(model), engine, Scheme(), Parallel())], Pricer({}, facts), 80e9)
        true = engine_constants(engine)
        true[TERMS.index("step")], true[TERMS.index("sequence")] = step_s, sequence_s
        paths = []
        for number in (1, 2, 8, 32, 64, 128):
            done = replay(surface, Load(number, 256, 64), true, engine)
            document = {
                "backend": "vllm", "model_id": model, "num_prompts": 4 * number, "request_rate": "inf",
                "max_concurrency": number, "completed": 4 * number, "total_input_tokens": 4 * number * 256,
                "total_output_tokens": 4 * number * 64, "duration": 1.0,
                "median_tpot_ms": 1e3 * float(done.token @ true), "mean_ttft_ms": 1.0,
            }  # fmt: skip
            path = tmp_path / f"concurrency-{number}.json"
            path.write_text(json.dumps(document | changes))
            paths.append(str(path))
        return paths

    return write


def test_constants_are_found_again_and_used(ask: Any, results: Write, tmp_path: Path, model: str) -> None:
    out = tmp_path / "here.json"
    step_s, sequence_s = 6e-3, 80e-6
    assert main(["calibrate", *results(step_s, sequence_s), "--engine", ENGINE, *ON, "--out", str(out), "--json"]) == 0
    engine, doubts = asked_engine(str(out))
    assert not doubts and engine.constants["step"].value == pytest.approx(step_s, rel=0.1)
    assert engine.constants["sequence"].value == pytest.approx(sequence_s, rel=0.3)
    assert engine.constants["reduce"] == engine_named("vllm", "0.18.0").constants["reduce"], "one rank has none"
    asked = ("--phase", "decode", "--batch", "64", "--context", "288", *ON)
    before, after = (ask(model, "--engine", name, *asked)["workloads"][0] for name in (ENGINE, str(out)))
    assert after["time_s"] - before["time_s"] == pytest.approx(
        sum(after["engine_s"][name]["time_s"] - before["engine_s"][name]["time_s"] for name in after["engine_s"])
        + sum(after["kernels_s"].values()) - sum(before["kernels_s"].values())
    )  # fmt: skip
    assert after["time_s"] == pytest.approx(
        step_s + 64 * sequence_s + before["time_s"]
        - before["engine_s"]["step"]["time_s"] - before["engine_s"]["sequence"]["time_s"], rel=0.1
    )  # fmt: skip


def test_the_report_says_what_is_not_determined(
    capsys: pytest.CaptureFixture[str], results: Write, tmp_path: Path
) -> None:
    out = tmp_path / "here.json"
    assert main(["calibrate", *results(6e-3, 80e-6), "--engine", ENGINE, *ON, "--out", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "not determined by these times alone: " in shown and "starts of the engine's own all-reduces" in shown
    assert "host: a step" in shown and "no law of nvidia-h100-sxm" in shown


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"completed": 0}, "completed is 0"), ({"median_tpot_ms": "fast"}, "median_tpot_ms"),
        ({"total_output_tokens": 1}, "no time between tokens"), ({"model_id": None}, "does not name its model"),
        ({"model_id": "no/such-model"}, "no/such-model"), ({"total_input_tokens": 10**15}, "does not fit"),
    ],
)  # fmt: skip
def test_results_that_say_too_little(
    capsys: pytest.CaptureFixture[str], results: Write, changes: dict[str, Any], words: str
) -> None:
    assert main(["calibrate", *results(6e-3, 80e-6, **changes), "--engine", ENGINE, *ON]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_refusals(capsys: pytest.CaptureFixture[str], results: Write, tmp_path: Path) -> None:
    paths = results(6e-3, 80e-6)
    (tmp_path / "torn.json").write_text('{"completed": ')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "bad.json").write_text('[{"name": "x"}]')
    for arguments, words in (
        ((*paths[:2], "--engine", ENGINE, *ON), "give at least"),
        ((*paths, "--engine", ENGINE), "--hardware"),
        ((*paths, "--engine", ENGINE, *ON, "--out", paths[0]), "--out"),
        ((*paths, "--engine", ENGINE, *ON, "--points", "4"), "leave them out with --engine"),
        ((*paths, "--tp", "2"), "add --engine"),
        ((str(tmp_path / "torn.json"), "--engine", ENGINE, *ON), "no JSON of a benchmark"),
        ((str(tmp_path / "list.json"), "--engine", ENGINE, *ON), "no JSON object"),
        ((str(tmp_path / "gone.json"), "--engine", ENGINE, *ON), "gone.json"),
        ((*paths, "--engine", str(tmp_path / "bad.json"), *ON), "is damaged"),
    ):
        assert main(["calibrate", *arguments]) == 2
        assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_requests_in_flight_are_read_or_follow_from_littles_law(tmp_path: Path) -> None:
    base = {"completed": 100, "total_input_tokens": 20_000, "total_output_tokens": 5_000, "mean_tpot_ms": 10.0}
    lines = [
        base | {"max_concurrency": 8, "tp": "4"},
        base | {"request_rate": "inf", "max_concurrency": None},
        base | {"request_rate": 10.0, "duration": 20.0, "mean_e2el_ms": 2_000.0},
        base | {"request_rate": 10.0, "duration": 20.0, "mean_ttft_ms": 110.0},
    ]
    path = tmp_path / "appended.json"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = read_bench(path)
    assert [result.concurrency for result in found] == [8, 100, 10, 3]
    assert [result.ranks for result in found] == [4, None, None, None]
    assert {(result.prompt_tokens, result.output_tokens, result.tpot_s) for result in found} == {(200, 50, 0.01)}
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(RequestError, match="no JSON of a benchmark"):
        read_bench(path)


def test_steps_of_timelines_are_fitted_to(tmp_path: Path, model: str) -> None:
    files = [tmp_path / f"{number}.json.gz" for number in range(4)]
    for file in files:
        shutil.copy(TIMELINE, file)
    asked = ["calibrate", *map(str, files), "--engine", ENGINE, *ON, "--out", str(tmp_path / "here.json"), "--json"]
    assert main(asked) == 2, "a timeline does not name its model"
    assert main([*asked, "--model", model]) == 0
    engine, _ = asked_engine(str(tmp_path / "here.json"))
    assert engine.constants["step"].value > engine_named("vllm", "0.18.0").constants["step"].value


def test_steps_of_a_timeline_last_until_the_next_one() -> None:
    def step(start_s: float, **sizes: float) -> StepRow:
        return StepRow(name="", source="vLLM", sizes=sizes, host_s=2e-3, kernels=1, kernel_s=1e-3, start_s=start_s,
                       span_s=1e-3, busy_s=1e-3)  # fmt: skip

    nothing = dict.fromkeys(Closure.model_fields, 0)
    decode = {"decode_sequences": 4.0, "decode_tokens": 4.0, "decode_context": 400.0}
    prefill = {"prefill_sequences": 2.0, "prefill_tokens": 64.0, "prefill_context": 96.0}
    steps = (step(0.0, **decode), step(5e-3, **prefill), step(9e-3), step(20e-3, **decode))
    rank = TraceRank(file="a", device=0, span_s=1.0, busy_s=1.0, compute_s=1.0, exposed_collective_s=0,
                     exposed_memory_s=0, closure=Closure(**nothing), kernels=(), streams=(), steps=steps,
                     between_steps_s=0.0, modules=())  # fmt: skip
    first, second = steps_of(rank)
    assert (first.sequences, first.keys, first.new, first.time_s) == (4, 100, 0, 5e-3)
    assert (second.new, second.before, second.prompts) == (64, 16, 2) and np.isclose(second.time_s, 4e-3)
    (alone,) = steps_of(rank.model_copy(update={"steps": steps[:1]}))
    assert alone.time_s == 2e-3
