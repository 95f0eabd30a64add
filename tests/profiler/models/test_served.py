"""The kernels that an engine runs for a model, against sizes worked out from its public config by hand."""

import pytest

from profiler.models.served import native_dtypes, served_model, served_name
from profiler.record.run import RequestError
from roofline.serving.shape import INNER_NORM, NORM, Served


def products(model: Served) -> dict[str, tuple[str, int, int, float]]:
    return {p.name.rpartition("*.")[2]: (p.where, p.n, p.k, p.count) for p in model.products}


def test_a_dense_model_has_four_joined_products_a_layer() -> None:
    # Llama-3.1-70B: 80 layers, hidden 8192, inner 28672, 64 query and 8 key-value heads of 128; 8 ranks
    model = served_model("llama-3.1-70b", 8)
    assert products(model) == {
        "self_attn.q_proj+k_proj+v_proj": ("layer", (64 + 2 * 8) * 128 // 8, 8192, 80),
        "self_attn.o_proj": ("layer", 8192, 64 * 128 // 8, 80),
        "mlp.gate_proj+up_proj": ("layer", 2 * 28672 // 8, 8192, 80),
        "mlp.down_proj": ("layer", 8192, 28672 // 8, 80),
        "lm_head": ("head", 128256 // 8, 8192, 1),
    }
    (attention,) = model.attentions
    assert (attention.heads, attention.kv_heads, attention.head_dim, attention.window) == (8, 1, 128, 0)
    reduces = {c.where: (c.count, c.token_bytes) for c in model.collectives if c.operation == "all_reduce"}
    assert reduces == {"embedding": (1, 2 * 8192), "layer": (160, 2 * 8192)}
    assert sum(s.count for s in model.streams if s.role == NORM) == 161
    assert not model.unknown


def test_layers_that_differ_are_counted_apart() -> None:
    # gpt-oss-120b: 36 layers, every other one with a window of 128; 128 experts of 2880, 4 a token, on every layer
    model = served_model("gpt-oss-120b", 2)
    assert {(a.window, a.count) for a in model.attentions} == {(128, 18), (0, 18)}
    (experts,) = model.experts
    assert (experts.hidden, experts.inner, experts.experts, experts.topk) == (2880, 2880 // 2, 128, 4)
    assert experts.count == 36
    # DeepSeek-V3: 3 dense layers of 61, a latent vector of 512 and a key of 64 for the position
    latent = served_model("deepseek-v3", 8)
    (attention,) = latent.attentions
    assert (attention.latent, attention.rope, attention.heads, attention.count) == (512, 64, 128 // 8, 61)
    assert (attention.head_dim, attention.value_dim) == (192, 128)
    assert products(latent)["self_attn.q_a_proj+kv_a_proj_with_mqa"] == ("layer", 1536 + 576, 7168, 61)
    assert products(latent)["mlp.gate_proj+up_proj"] == ("layer", 2 * 18432 // 8, 7168, 3)
    assert latent.experts[0].count == 58
    assert sum(s.count for s in latent.streams if s.role == INNER_NORM) == 2 * 61


def test_hub_names_of_one_shape_are_one_model() -> None:
    assert served_name("meta-llama/Llama-3.1-8B-Instruct") == "llama-3.1-8b"
    assert served_name("deepseek-ai/DeepSeek-R1-0528") == "deepseek-v3"
    assert served_name("nvidia/Llama-3.3-70B-Instruct-FP8") == "llama-3.1-70b"
    assert served_name("nvidia/Kimi-K2.5-NVFP4") == "kimi-k2"
    assert served_name("meta-llama/Llama-4-Scout-17B-16E-Instruct") == "llama-4-scout"
    assert served_name("Qwen/Qwen3-32B-FP8-Static-PerTensor") == "qwen3-32b"
    assert served_name("somebody/unheard-of-7b") == "somebody/unheard-of-7b"
    assert native_dtypes("gpt-oss-120b") == ("bfloat16", "w4a16_mxfp4")
    assert native_dtypes("llama-3.1-8b") is None


def test_ranks_that_do_not_divide_the_heads_are_refused() -> None:
    with pytest.raises(RequestError, match=r"llama-3\.1-8b on 3 ranks: .*do not divide"):
        served_model("llama-3.1-8b", 3)
