"""Models that are built: requests that are refused, random weights, pretrained weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from each import each
from tiny import TINY, tiny
from transformers import AutoModelForCausalLM

from profiler.models.build import (
    build,
    build_meta,
    check_request,
    context_limit,
    implementations,
    initial_std,
    parse_dtype,
    require_weights,
)
from profiler.models.resolve import resolve
from profiler.passes.job import Choices, Shapes, plan
from profiler.record.run import RequestError
from roofline.dtypes import MODEL_DTYPES
from roofline.workload import Workload


def work(query: int = 1, context: int = 0) -> Workload:
    return Workload(batch=1, query_tokens=query, context_tokens=context, dtype="float32")


def refusal(**asked: object) -> str:
    defaults = {"device": "cpu", "dtype": "float32", "workload": work()}
    with pytest.raises(RequestError) as caught:
        check_request(tiny("llama"), **{**defaults, **asked})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@each("dtype", ["float32", "bfloat16", torch.float16])
def test_what_a_cpu_can_do(dtype: str | torch.dtype) -> None:
    check_request(tiny("llama"), device="cpu", dtype=dtype, workload=work(6, 250))


def test_dtypes_that_no_model_is_built_in() -> None:
    assert refusal(dtype="float8_e4m3fn") == (
        f"--dtype float8_e4m3fn is not a type that models are built in; use {', '.join(MODEL_DTYPES)}"
    )
    assert "--dtype bf16 is unknown" in refusal(dtype="bf16")
    assert "int8 is not a type" in refusal(dtype="int8")
    assert parse_dtype(torch.bfloat16) is torch.bfloat16


def test_devices_that_are_not_here() -> None:
    assert "is unknown" in refusal(device="gpu")
    assert "not measured" in refusal(device="meta")
    if not torch.cuda.is_available():
        assert "--device cpu" in refusal(device="cuda")


def test_a_context_beyond_the_models() -> None:
    assert refusal(workload=work(7, 250)).startswith("257 tokens (250 of context, 7 new) are beyond the 256")
    with pytest.raises(RequestError, match="256"):
        check_request(tiny("gpt2"), device="cpu", dtype="float32", workload=work(257))
    check_request(tiny("mamba"), device="cpu", dtype="float32", workload=work(1, 10**6))
    assert context_limit(tiny("mamba")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_a_gpu_can_do() -> None:
    check_request(tiny("llama"), device="cuda", dtype="float16", workload=work())
    assert "GPUs here" in refusal(device="cuda:99")


PEAK = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from tiny import tiny
from transformers import AutoConfig
from profiler.models.build import build

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

build(tiny("llama"), "cpu", "float32")
before = peak_bytes()
config = AutoConfig.for_model(
    "llama", vocab_size=120_000, hidden_size=640, intermediate_size=2048, num_hidden_layers=4,
    num_attention_heads=10, num_key_value_heads=10, tie_word_embeddings=True,
)
model = build(config, "cpu", "float32")
weights = sum(p.numel() * p.element_size() for p in model.parameters())
layer = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
print(peak_bytes() - before, weights, layer)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of its memory from /proc")
def test_building_takes_the_weights_and_one_layer_at_most() -> None:
    root = Path(__file__).parents[3]
    script = PEAK.format(tests=str(root / "tests"), root=str(root))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    grown, weights, layer = map(int, done.stdout.split())
    assert weights > 350e6
    # 16 MiB for the modules themselves and the allocator; an untied copy of the vocabulary would be 300 MB.
    assert 0.9 * weights < grown <= weights + layer + 16 * 2**20


@pytest.mark.parametrize("name", TINY)
def test_same_parameters_types_ties_and_buffers_as_transformers_makes(name: str) -> None:
    ours = build(tiny(name), "cpu", "bfloat16")
    theirs = AutoModelForCausalLM.from_config(tiny(name), dtype=torch.bfloat16)
    assert [(path, p.shape, p.dtype) for path, p in ours.named_parameters()] == [
        (path, p.shape, p.dtype) for path, p in theirs.named_parameters()
    ]
    buffers = dict(theirs.named_buffers())
    assert dict(ours.named_buffers()).keys() == buffers.keys()
    for path, buffer in ours.named_buffers():
        assert torch.equal(buffer, buffers[path]), path
    assert not ours.training


@pytest.mark.parametrize("name", TINY)
@each("dtype", ["float32", "bfloat16"])
def test_logits_are_finite(name: str, dtype: str) -> None:
    with torch.no_grad():
        logits = build(tiny(name), "cpu", dtype)(torch.arange(12)[None] % 128, use_cache=True).logits
    assert logits.shape == (1, 12, 128)
    assert torch.isfinite(logits).all()


def test_tied_weights_are_one_tensor() -> None:
    model = build(tiny("qwen2"), "cpu", "float32")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert build(tiny("llama"), "cpu", "float32").lm_head.weight is not model.model.embed_tokens.weight


def test_values_are_normal_with_the_models_own_deviation() -> None:
    config = tiny("llama")
    config.initializer_range = 0.05
    config.attention_bias = True
    model = build(config, "cpu", "float32")
    assert model.lm_head.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert model.lm_head.weight.mean().item() == pytest.approx(0, abs=0.005)
    assert model.model.norm.weight.mean().item() == pytest.approx(1, abs=0.05)
    assert model.model.layers[0].self_attn.q_proj.bias.abs().max() < 0.5
    assert initial_std(tiny("opt")) == 0.02
    assert initial_std(tiny("mamba")) == 0.1


def test_a_seed_names_the_weights() -> None:
    first, again = (build(tiny("llama"), "cpu", "float32", seed=1).lm_head.weight for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, build(tiny("llama"), "cpu", "float32", seed=2).lm_head.weight)


def test_the_config_stays_as_it_is() -> None:
    config = tiny("mixtral")
    before = config.to_dict()
    build(config, "cpu", "bfloat16", "eager", "eager")
    build_meta(config, "bfloat16", "eager", "eager")
    assert config.to_dict() == before
    assert config._attn_implementation is None


def test_other_modules_register_parameters_as_ever() -> None:
    build(tiny("llama"), "cpu", "float32")
    with pytest.raises(RequestError):
        build(tiny("llama"), "cpu", "float32", "nonsense")
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


def test_implementations_are_those_asked_for() -> None:
    model = build_meta(tiny("mixtral"), "bfloat16", "eager", "batched_mm")
    assert implementations(model) == {"attn": "eager", "experts": "batched_mm"}
    assert implementations(build_meta(tiny("llama"), "bfloat16", experts="eager")) == {"attn": "sdpa"}
    assert implementations(build_meta(tiny("gpt_oss"), "bfloat16"))["attn"] == "eager"


def test_implementations_that_a_model_refuses() -> None:
    with pytest.raises(RequestError, match=r"--attn sdpa .* Mamba here; use eager$"):
        build_meta(tiny("mamba"), "bfloat16", "sdpa")
    with pytest.raises(RequestError, match=r"--attn quick .* Llama here; use eager or sdpa"):
        build_meta(tiny("llama"), "bfloat16", "quick")
    with pytest.raises(RequestError, match="--experts quick is unknown; use default, eager"):
        build_meta(tiny("mixtral"), "bfloat16", experts="quick")


def test_meta_models_hold_no_memory() -> None:
    model = build_meta(tiny("llama"), "float16")
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_pretrained_weights_are_loaded(tmp_path: Path) -> None:
    stored = build(tiny("qwen2"), "cpu", "float32", seed=3)
    stored.save_pretrained(tmp_path)
    loaded = build(tiny("qwen2"), "cpu", "bfloat16", weights="pretrained", name=str(tmp_path))
    assert loaded.dtype is torch.bfloat16
    assert not loaded.training
    assert torch.equal(loaded.lm_head.weight, stored.lm_head.weight.bfloat16())


def test_pretrained_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(RequestError, match="use --weights random"):
        build(tiny("llama"), "cpu", "float32", weights="pretrained", name="acme/none")
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="use --weights random"):
        build(tiny("llama"), "cpu", "float32", weights="pretrained", name=str(tmp_path))


def test_pretrained_weights_that_are_stored_quantised(tmp_path: Path) -> None:
    config = tiny("llama")
    config.quantization_config = {"quant_method": "fp8"}
    config.save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="stored quantised"):
        build(tiny("llama"), "cpu", "float32", weights="pretrained", name=str(tmp_path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(tiny("llama"), "cpu", "float32").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_weights_of_a_folder(folder: Path) -> None:
    require_weights(str(folder))
    config = resolve(str(folder)).config
    model = build(config, "cpu", "float32", weights="pretrained", name=str(folder))
    want = build(tiny("llama"), "cpu", "float32")
    assert torch.equal(model.lm_head.weight, want.lm_head.weight)


def test_a_folder_without_weights_is_refused_before_anything_runs(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(RequestError, match=r"has no weights .* use --weights random"):
        plan([str(folder)], torch.device("cpu"), Shapes(dtypes=("float32",)), Choices(weights="pretrained"))


def test_damaged_weights_are_one_line(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RequestError, match="are damaged") as refused:
        build(resolve(str(folder)).config, "cpu", "float32", weights="pretrained", name=str(folder))
    assert "\n" not in str(refused.value)


def test_too_few_layers_are_refused_before_anything_runs() -> None:
    with pytest.raises(RequestError, match="--layers 4 or more"):
        shapes = Shapes(phases=("decode",), contexts=(8,), dtypes=("bfloat16",))
        plan(["deepseek-v3"], torch.device("cpu"), shapes, Choices(layers=3))
