"""References that share code with a provider, against implementations that we did not write."""

import torch
import torch.nn.functional as F
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from profiler.kernels.serving.contract import Draw, Tensors
from profiler.kernels.serving.families import family_named

CPU = torch.device("cpu")


def drawn(name: str, dtype: str = "float32", check: int = 1) -> tuple[dict[str, int], Tensors, Tensors]:
    """Sizes, operands and the reference's outputs of a family."""
    family = family_named(name)
    dims = family.checks[check]
    t = family.operands(dims, dtype, Draw(CPU, seed=3))
    return dims, t, family.reference(dims, t)


def test_rope_is_that_of_llama() -> None:
    _, t, made = drawn("rope")
    cos, sin = (part.double().repeat(1, 2)[None] for part in t["angles"].chunk(2, -1))
    q, k = (t[name].double().transpose(0, 1)[None] for name in ("q", "k"))
    expected = apply_rotary_pos_emb(q, k, cos, sin)
    for name, wanted in zip(("q_rotated", "k_rotated"), expected, strict=True):
        torch.testing.assert_close(made[name], wanted[0].transpose(0, 1))


def test_the_gated_delta_rule_is_that_of_qwen() -> None:
    _, t, made = drawn("gated_delta_rule", check=2)
    key_dim = t["q"].shape[-1]
    expected, state = torch_recurrent_gated_delta_rule(
        t["q"] * key_dim**0.5,  # it divides queries by the root of their width
        t["k"],
        t["v"],
        t["decay"],
        t["beta"],
        initial_state=t["state"].clone(),
        output_final_state=True,
    )
    torch.testing.assert_close(made["y"].float(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made["state"].float(), state, rtol=1e-4, atol=1e-4)


def test_a_convolution_is_a_sum_over_taps() -> None:
    dims, t, made = drawn("causal_conv1d", check=2)
    x = torch.cat((t["state"].transpose(1, 2), t["x"]), 1).double()
    taps = sum(x[:, i : i + dims["tokens"]] * t["weight"][:, i].double() for i in range(dims["taps"]))
    torch.testing.assert_close(made["y"], F.silu(taps + t["bias"].double()))
    torch.testing.assert_close(made["state"], x[:, -(dims["taps"] - 1) :].transpose(1, 2))


def test_a_scan_is_a_sum_over_the_past() -> None:
    """y_i = D x_i + Σ_{j≤i} e^(a Σ_{j<l≤i} Δ_l) (c_i·b_j) Δ_j x_j, and the first state's share (2405.21060, 3.1)."""
    dims, t, made = drawn("state_space_scan", check=2)
    x, step, b, c = (t[name].double() for name in ("x", "step", "b", "c"))
    total = step.cumsum(1) * t["rate"].double()
    for i in range(dims["tokens"]):
        decay = total[:, i].exp()[..., None]
        y = t["skip"].double()[:, None] * x[:, i] + decay * torch.einsum("bhpn,bn->bhp", t["state"].double(), c[:, i])
        for j in range(i + 1):
            share = (total[:, i] - total[:, j]).exp() * step[:, j] * (c[:, i] * b[:, j]).sum(-1)[:, None]
            y = y + share[..., None] * x[:, j]
        torch.testing.assert_close(made["y"][:, i], y)


def test_samplers_keep_the_tokens_that_transformers_keeps() -> None:
    for name, key, warper in (("sample_top_k", "k", TopKLogitsWarper), ("sample_top_p", "p", TopPLogitsWarper)):
        _, t, made = drawn(name)
        for row in range(len(t["logits"])):
            logits = TemperatureLogitsWarper(float(t["temperature"][row]))(None, t["logits"][row : row + 1])
            kept = warper(t[key][row].item())(None, logits)
            assert int((kept.softmax(-1) / t["noise"][row]).argmax()) == int(made["token"][row]), name


def test_quantised_rows_are_within_half_a_step() -> None:
    for name in ("quantise_int8", "quantise_fp8"):
        _, t, made = drawn(name)
        restored = made["q"] * made["scale"]
        half = 0.5 if name.endswith("int8") else 1e-9  # the fp8 reference is not rounded
        assert float(((restored - t["x"].double()).abs() / made["scale"]).max()) <= half + 1e-9
        assert torch.equal(
            (made["q"].abs().amax(-1) * 1e6).round() / 1e6, torch.full((7,), 127.0 if half > 0.1 else 448.0)
        )


def test_gates_and_appended_keys_lie_where_they_should() -> None:
    _, t, made = drawn("swiglu")
    width = t["x"].shape[-1] // 2
    gate, up = t["x"].double()[:, :width], t["x"].double()[:, width:]
    torch.testing.assert_close(made["y"], gate / (1 + (-gate).exp()) * up)
    dims, t, made = drawn("kv_append")
    for i, length in enumerate(t["lengths"].tolist()):
        torch.testing.assert_close(made["keys"][i, length : length + dims["query"]], t["k"][i].double())
        assert made["keys"][i, :length].isnan().all() and made["keys"][i, length + dims["query"] :].isnan().all()
    _, t, made = drawn("kv_append_paged")
    flat = made["values"].flatten(0, 1)
    for slot, new in zip(t["slots"].tolist(), t["v"], strict=True):
        assert torch.equal(flat[slot], new.double())
    assert int((~flat.isnan()).sum()) == t["v"].numel()
