from dataclasses import dataclass

import numpy as np
import pytest
from law_checks import columns, fitted_to, one_by_one, price

from roofline.laws.eager_modules import MODULES, EagerModules, operations
from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.laws.streams import Streaming

LLAMA = {
    "hidden": 4096,
    "inner": 14336,
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "vocab": 128256,
    "context": 0,
    "tp": 1,
}


@dataclass(frozen=True)
class Work:
    """FLOPs of a product, or of causal attention, at one peak."""

    name: str
    dims: tuple[str, ...] = ()

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        return (Constant("peak", "FLOP/s", 1e12, 1e15, 5e14, 0.5, "of its arithmetic"),)

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        if self.name == "matmul":
            return 2 * dims["m"] * dims["n"] * dims["k"] / values["peak"]
        pairs = dims["query"] * (dims["context"] + (dims["query"] + 1) / 2)
        return 4 * dims["heads"] * dims["head_dim"] * pairs / values["peak"]


LAW = EagerModules({"matmul": Work("matmul"), "pointwise": Streaming(), "prefill_attention": Work("prefill_attention")})


def step(module: str, tokens: float = 64, **sizes: float) -> dict[str, np.ndarray]:
    return columns(1, module=list(MODULES).index(module), tokens=tokens, **LLAMA | sizes)


def test_products_have_the_shapes_of_the_weights() -> None:
    found = {
        name: operations(name, step(name))[0][1] for name in ("q_proj", "k_proj", "o_proj", "down_proj", "lm_head")
    }
    shapes = {name: (dims["n"][0], dims["k"][0]) for name, dims in found.items()}
    assert shapes == {
        "q_proj": (4096, 4096),
        "k_proj": (1024, 4096),
        "o_proj": (4096, 4096),
        "down_proj": (4096, 14336),
        "lm_head": (128256, 4096),
    }


def test_an_eager_norm_is_eight_kernels_one_of_which_reduces() -> None:
    kernels = [dims for _, dims in operations("input_layernorm", step("input_layernorm"))]
    assert sum(dims["kernels"][0] for dims in kernels) == 8
    assert sum(dims.get("reductions", np.zeros(1))[0] for dims in kernels) == 1
    moved = sum(dims["bytes_read"][0] + dims["bytes_written"][0] for dims in kernels)
    assert moved == pytest.approx(36 * 64 * 4096, rel=0.01)


def test_a_module_costs_the_sum_of_its_operations() -> None:
    parts = [price(Streaming(), dims) for _, dims in operations("rope", step("rope"))]
    assert price(LAW, step("rope")) == pytest.approx(sum(parts))
    assert price(LAW, step("lm_head")) == pytest.approx(2 * 64 * 128256 * 4096 / 5e14)


def test_attention_sees_what_is_in_the_cache() -> None:
    fresh, cached = (price(LAW, step("attn", 1, context=tokens)) for tokens in (0, 999))
    assert cached == pytest.approx(1000 * fresh)


def test_attention_multiplies_masked_pairs_too() -> None:
    assert price(LAW, step("attn", 64)) == pytest.approx(4 * 32 * 128 * 64 * 64 / 5e14)


def test_more_tokens_and_a_larger_model_take_longer() -> None:
    twice = {name: 2 * size for name, size in LLAMA.items() if name != "tp"}
    for module in MODULES:
        small = price(LAW, step(module))
        assert 0 < small < price(LAW, step(module, 4096)), module
        assert small < price(LAW, step(module, **twice)), module


def test_ranks_share_matrices_and_heads_but_not_the_residual_stream() -> None:
    half = {name: LLAMA[name] // 2 for name in ("inner", "heads", "kv_heads", "vocab")}
    for module in MODULES:
        assert price(LAW, step(module, tp=2)) == price(LAW, step(module, **half))
    assert price(LAW, step("k_proj", tp=64)) == price(LAW, step("k_proj", kv_heads=1, heads=1))
    assert price(LAW, step("input_layernorm", tp=2)) == price(LAW, step("input_layernorm"))


def every() -> dict[str, np.ndarray]:
    tokens = np.tile(np.geomspace(1, 8192, 12).round(), len(MODULES))
    return columns(len(tokens), module=np.repeat(np.arange(len(MODULES)), 12), tokens=tokens, **LLAMA)


def test_columns_are_priced_as_each_alone() -> None:
    assert np.allclose(price(LAW, every()), one_by_one(LAW, every()), rtol=1e-12)


def test_constants_fitted_on_one_model_price_another() -> None:
    """Products at 300 TFLOP/s, and activations by two kernels of 4 µs that move 10 bytes an element at 2 TB/s."""

    def times(model: dict[str, float]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        tokens = np.tile(np.geomspace(1, 8192, 12).round(), 3)
        names = np.repeat(["q_proj", "down_proj", "act_fn"], 12)
        weights = np.where(names == "q_proj", model["hidden"] ** 2, model["hidden"] * model["inner"])
        activation_s = 2 * 4e-6 + 10 * tokens * model["inner"] / 2e12
        time_s = np.where(names == "act_fn", activation_s, 2 * tokens * weights / 300e12)
        module = np.array([list(MODULES).index(name) for name in names], dtype=float)
        return columns(len(tokens), module=module, tokens=tokens, **model), time_s

    found = fitted_to(LAW, *times(LLAMA)).values
    dims, expected_s = times(LLAMA | {"hidden": 5120, "inner": 13824, "heads": 40})
    assert found["matmul.peak"] == pytest.approx(300e12, rel=0.02)
    predicted_s = price(LAW, dims, **found)
    assert predicted_s == pytest.approx(expected_s, rel=0.15)
    assert predicted_s[expected_s > 1e-4] == pytest.approx(expected_s[expected_s > 1e-4], rel=0.05)


def test_an_unknown_module_is_refused() -> None:
    with pytest.raises(ValueError, match="q_proj"):
        operations("router", step("q_proj"))
