"""What a user may type as a model, and what is said where it cannot be had; models cut to their first layers."""

import json
import logging
import os
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from each import each
from huggingface_hub import constants
from tiny import TINY, tiny
from transformers import Gemma3Config

from profiler.models import resolve as resolving
from profiler.models.build import build_meta
from profiler.models.resolve import layer_count, resolve, truncate
from profiler.record.run import RequestError

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "torch_dtype": "bfloat16",
    "rope_theta": 500000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def folder(path: Path, config: Any = LLAMA) -> str:
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "config.json").write_text(text)
    return str(path)


def refusal(name: str, **options: bool) -> str:
    with pytest.raises(RequestError) as caught:
        resolve(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and an endpoint that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


class Hub(BaseHTTPRequestHandler):
    """Serves the config of acme/tiny, as the hub does, and of acme/half, whose other files it refuses."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        found = self.path in ("/", "/acme/tiny/resolve/main/config.json", "/acme/half/resolve/main/config.json")
        content = json.dumps(LLAMA).encode() if found else b""
        self.send_response(200 if found else 401 if "/acme/half/" in self.path else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"abc"')
        self.send_header("X-Repo-Commit", "0" * 40)
        if not found:
            kind = "EntryNotFound" if "/acme/tiny/" in self.path else "RepoNotFound"
            self.send_header("X-Error-Code", "GatedRepo" if "secret" in self.path else kind)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serving(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_catalogue_name_or_its_repository() -> None:
    by_name, by_repository = resolve("GPT2"), resolve("openai-community/gpt2")
    assert by_name.name == by_repository.name == "gpt2"
    assert (by_name.source, by_name.location) == ("catalogue", "openai-community/gpt2")
    assert by_name.config.n_embd == 768
    assert "mxfp4" in resolve("gpt-oss-20b").notes[0]


def test_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = resolve(folder(tmp_path))
    assert (found.source, found.location) == ("folder", str(tmp_path))
    assert found.config.hidden_size == 64
    assert found.config.rope_parameters["rope_theta"] == 500000.0
    assert found.notes == ()
    assert capfd.readouterr() == ("", "")


def test_a_config_that_speaks_of_odd_tokens_makes_no_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    resolve(folder(tmp_path, LLAMA | {"eos_token_id": 5000}))
    assert capfd.readouterr() == ("", "")


def test_what_transformers_logs_beside_an_error_is_not_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [caplog.handler])
    said = refusal(folder(tmp_path, LLAMA | {"use_return_dict": True}))
    assert "use_return_dict in config.json is True" in said
    assert not caplog.records
    logging.getLogger("roofcal").setLevel(logging.DEBUG)  # as --debug does
    try:
        refusal(str(tmp_path))
    finally:
        logging.getLogger("roofcal").setLevel(logging.NOTSET)
    assert "Can't set use_return_dict" in caplog.text


def test_quantised_weights_are_taken_in_their_shape(tmp_path: Path) -> None:
    found = resolve(folder(tmp_path, LLAMA | {"quantization_config": {"quant_method": "fp8"}}))
    assert "fp8" in found.notes_in_full[0]
    assert found.quantisation == {"quant_method": "fp8"}
    assert not hasattr(found.config, "quantization_config")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    assert "no config.json" in refusal(str(tmp_path))
    assert "not valid JSON" in refusal(folder(tmp_path, "{"))
    assert "no model_type" in refusal(folder(tmp_path, "[1]"))
    assert "no model_type" in refusal(folder(tmp_path, {"hidden_size": 4}))
    assert "'llama9'; update transformers" in refusal(folder(tmp_path, {"model_type": "llama9"}))
    assert "hidden_size" in refusal(folder(tmp_path, LLAMA | {"hidden_size": "wide"}))
    assert "is not a folder" in refusal(str(tmp_path / "config.json"))
    assert "is not a folder" in refusal("./nowhere")


@each(
    "config",
    [
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        {"model_type": "bert"},
        {"model_type": "vit", "architectures": ["ViTForImageClassification"]},
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        {"model_type": "bart", "architectures": ["BartForCausalLM"]},
    ],
)
def test_what_is_not_a_causal_model(tmp_path: Path, config: dict[str, Any]) -> None:
    assert "is not a causal language model" in refusal(folder(tmp_path, config))


def test_a_decoder_whose_config_can_be_an_encoder_elsewhere(tmp_path: Path) -> None:
    assert resolve(folder(tmp_path, {"model_type": "gpt_neox"})).config.model_type == "gpt_neox"
    as_decoder = {"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True}
    assert resolve(folder(tmp_path, as_decoder)).config.is_decoder


def test_code_from_a_repository_runs_only_when_asked_for(tmp_path: Path) -> None:
    own = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnModel"}
    path = folder(tmp_path, {"model_type": "own-decoder", "auto_map": own})
    (tmp_path / "code.py").write_text("raise SystemExit('this ran')\n")
    assert "--trust-remote-code" in refusal(path)
    with pytest.raises(SystemExit, match="this ran"):
        resolve(path, trust_remote_code=True)


@pytest.mark.usefixtures("hub")
def test_an_unknown_name_gets_the_nearest_ones() -> None:
    assert "nearest: llama-3.1-8b" in refusal("lama-3.1-8b")
    assert "could not be reached" in refusal("lama-3.1-8b")


@pytest.mark.usefixtures("hub")
def test_a_name_that_cannot_be_a_repository() -> None:
    assert "not on the hub" in refusal("no such model!")


@pytest.mark.usefixtures("hub")
def test_a_hub_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "HUB_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "could not be reached" in refusal("acme/tiny")


@pytest.mark.usefixtures("serving")
def test_from_the_hub_then_from_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve("acme/tiny")
    assert (found.source, found.location, found.config.hidden_size) == ("hub", "acme/tiny", 64)
    assert found.notes == ()  # the hub said that it has no other file
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("acme/tiny").config.hidden_size == 64
    assert "HF_HUB_OFFLINE is set" in refusal("acme/other")


@pytest.mark.usefixtures("serving")
def test_what_the_hub_does_not_give() -> None:
    assert "not on the hub" in refusal("acme/other")
    assert "gated" in refusal("acme/secret")


@pytest.mark.usefixtures("serving")
def test_a_file_beside_the_config_that_the_hub_refuses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    (note,) = resolve("acme/half").notes
    assert note.startswith("hf_quant_config.json, quantize_config.json, quant_config.json could not be read (401")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (note,) = resolve("acme/half").notes
    assert "not in the hub's cache" in note


@pytest.mark.parametrize("name", TINY)
def test_the_cut_model_has_the_first_layers(name: str) -> None:
    config = tiny(name)
    before, total = config.to_dict(), layer_count(config)
    cut = truncate(config, 1)
    assert config.to_dict() == before
    assert layer_count(cut) == 1
    whole = dict(build_meta(config, "float32").named_parameters())
    for path, parameter in build_meta(cut, "float32").named_parameters():
        assert parameter.shape == whole[path].shape
    assert layer_count(truncate(config, total)) == total


def test_lists_with_one_value_a_layer_are_cut() -> None:
    config = tiny("gemma3")
    assert truncate(config, 3).layer_types == config.layer_types[:3]
    config.eos_token_id = [1, 2, 3, 4]
    assert truncate(config, 3).eos_token_id == [1, 2, 3, 4]


def test_the_decoder_inside_a_larger_config_is_cut() -> None:
    outer = Gemma3Config(text_config=tiny("gemma3").to_dict())
    cut = truncate(outer, 2)
    assert (cut.text_config.num_hidden_layers, len(cut.text_config.layer_types)) == (2, 2)
    assert outer.text_config.num_hidden_layers == 4


@each("layers", [0, -1, 3])
def test_layers_that_the_model_does_not_have(layers: int) -> None:
    with pytest.raises(RequestError, match="use 1 to 2"):
        truncate(tiny("llama"), layers)


def test_the_first_layers_compute_the_same() -> None:
    from profiler.models.build import build

    whole = build(tiny("llama"), "cpu", "float32")
    cut = build(truncate(tiny("llama"), 1), "cpu", "float32")
    cut.load_state_dict({name: value for name, value in whole.state_dict().items() if ".layers.1." not in name})
    ids = torch.arange(6)[None]
    with torch.no_grad():
        hidden = whole(ids, output_hidden_states=True, use_cache=False).hidden_states[1]
        assert torch.equal(whole.model.norm(hidden), cut.model(ids, use_cache=False).last_hidden_state)


def test_sizes_that_no_model_has_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    for name, value, why in (
        ("num_hidden_layers", 10**9, "num_hidden_layers in config.json is 1000000000"),
        ("num_hidden_layers", 0, "num_hidden_layers in config.json is 0"),
        ("num_hidden_layers", True, "num_hidden_layers in config.json is True"),
        ("num_hidden_layers", 2.5, "num_hidden_layers in config.json is 2.5"),
        ("hidden_size", -64, "hidden_size in config.json is -64"),
        ("hidden_size", "64", "hidden_size"),
        ("hidden_size", 10**15, "to 16777216"),
        ("vocab_size", 0, "vocab_size in config.json is 0"),
        ("vocab_size", 10**30, "vocab_size in config.json is a number of 31 digits"),
        ("intermediate_size", 10**12, "to 16777216"),
        ("num_attention_heads", 10**9, "to 65536"),
        ("num_local_experts", 10**9, "to 4096"),
        ("text_config", {"num_hidden_layers": -1}, "text_config.num_hidden_layers in config.json is -1"),
        ("vision_config", {"num_layers": 10**9}, "vision_config.num_layers in config.json is 1000000000"),
    ):
        assert why in refusal(folder(tmp_path, LLAMA | {name: value})), (name, value)
    for text in (
        '{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"a":' * 500,
        "\ufeff{}",
    ):
        assert "is not valid JSON" in refusal(folder(tmp_path, text))
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to(tmp_path / "config.json")
    assert "has no config.json" in refusal(str(tmp_path))
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    assert "it is a pipe or a device" in refusal(str(tmp_path))


def test_names_that_no_folder_can_have(hub: Path) -> None:
    assert "there is no such home folder" in refusal("~no-such-user-here/model")
    for name in ("n" * 5000, "./" + "n" * 5000, "a\0b", "/a/" * 3000):
        assert refusal(name)
