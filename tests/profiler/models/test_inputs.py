"""A pass can be run again and again from the same state, on a device and on meta, and that state is a real one."""

from functools import cache
from typing import Any

import pytest
import torch
from each import each
from tiny import TINY, tiny
from transformers import AutoConfig, DynamicCache, PreTrainedModel

from profiler.models.build import build, build_meta
from profiler.models.inputs import MASK_ALIGNMENT, PassInputs, max_cache_len, prepare
from profiler.record.run import RequestError
from roofline.workload import Workload

WORKLOADS = [(2, 12, 0), (1, 1, 20), (2, 5, 6)]
"""(batch, query, context): a prefill, a decode beyond the tiny models' window of 8, a chunk that crosses it."""

ALIKE = {"qwen2", "phi", "phi3", "opt", "mistral", "deepseek_v2", "llama4_text", "jetmoe", "dbrx"}
"""They keep their caches as one of the others does."""
FAMILIES = sorted(
    TINY.keys() - ALIKE - {"deepseek_v32"}
)  # that one's index of keys has a cache of its own: traced only

# Batched experts run in float32 on meta, which grouped ones do not.
EXPERTS = "batched_mm"


def work(batch: int, query: int, context: int) -> Workload:
    return Workload(batch=batch, query_tokens=query, context_tokens=context, dtype="float32")


@cache
def on_meta(name: str) -> PreTrainedModel:
    return build_meta(tiny(name), "float32", experts=EXPERTS)


@cache
def on_cpu(name: str) -> PreTrainedModel:
    return build(tiny(name), "cpu", "float32", experts=EXPERTS)


def shapes(inputs: PassInputs) -> list[tuple[int, str, tuple[int, ...], torch.dtype]]:
    return [(layer, name, tuple(tensor.shape), tensor.dtype) for layer, name, tensor in inputs.cache_tensors()]


def run(model: PreTrainedModel, inputs: PassInputs) -> Any:
    with torch.no_grad():
        return model(**inputs.kwargs()).logits


@each("cache_kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", FAMILIES)
def test_passes_repeat_exactly(name: str, cache_kind: str) -> None:
    for workload in (work(*sizes) for sizes in WORKLOADS):
        inputs = prepare(on_meta(name), workload, cache=cache_kind, device="cpu")
        before = shapes(inputs)
        first = run(on_cpu(name), inputs)
        after = shapes(inputs)
        inputs.restore()
        assert shapes(inputs) == before, workload.key
        second = run(on_cpu(name), inputs)
        assert shapes(inputs) == after, workload.key
        assert torch.isfinite(first).all()
        assert torch.equal(first, second), workload.key


@pytest.mark.parametrize("name", FAMILIES)
def test_meta_passes_have_the_shapes_of_real_ones(name: str) -> None:
    for workload in (work(*sizes) for sizes in WORKLOADS):
        pretend, real = (prepare(on_meta(name), workload, device=device) for device in ("meta", "cpu"))
        assert shapes(pretend) == shapes(real)
        assert run(on_meta(name), pretend).shape == run(on_cpu(name), real).shape
        assert shapes(pretend) == shapes(real), workload.key
        assert {tensor.device.type for _, _, tensor in pretend.cache_tensors()} == {"meta"}


@pytest.mark.parametrize("name", FAMILIES)
@each("context", [5, 20])
def test_a_filled_cache_is_what_a_prefill_leaves(name: str, context: int) -> None:
    """All but the values: attributes, lengths, shapes, types and devices."""
    filled = prepare(on_meta(name), work(2, 1, context), device="cpu").kwargs()
    ours = next(value for value in filled.values() if isinstance(value, DynamicCache))
    theirs = DynamicCache(config=tiny(name))
    argument = next(key for key, value in filled.items() if value is ours)
    with torch.no_grad():
        on_cpu(name)(torch.zeros((2, context), dtype=torch.long), **{argument: theirs}, use_cache=True)
    assert [state(layer) for layer in ours.layers] == [state(layer) for layer in theirs.layers]


def state(layer: Any) -> dict[str, Any]:
    def outline(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: outline(one) for key, one in value.items()}
        if isinstance(value, torch.Tensor):
            content = None if value.is_floating_point() else value.tolist()
            return tuple(value.shape), value.dtype, value.device, content
        return value

    return {"class": type(layer), **{name: outline(value) for name, value in vars(layer).items()}}


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
@each("context", [5, 7, 8, 20])
def test_a_static_cache_is_what_a_prefill_leaves(name: str, context: int) -> None:
    model = on_cpu(name)
    ours = prepare(on_meta(name), work(2, 1, context), cache="static", device="cpu").kwargs()["past_key_values"]
    theirs = prepare(on_meta(name), work(2, 1 + context, 0), cache="static", device="cpu").kwargs()["past_key_values"]
    with torch.no_grad():
        model(torch.zeros((2, context), dtype=torch.long), past_key_values=theirs, use_cache=True)
    assert [state(layer) for layer in ours.layers] == [state(layer) for layer in theirs.layers]


def test_a_decode_sees_all_of_its_context() -> None:
    """With the keys and values of a real prefill put in, the decode's logits are those of the whole sequence."""
    model = on_cpu("llama")
    ids = torch.randint(128, (1, 21), generator=torch.Generator().manual_seed(0))
    inputs = prepare(on_meta("llama"), work(1, 1, 20), device="cpu")
    kwargs = inputs.kwargs()
    with torch.no_grad():
        real = model(ids[:, :20], use_cache=True).past_key_values
        for ours, theirs in zip(kwargs["past_key_values"].layers, real.layers, strict=True):
            ours.keys, ours.values = theirs.keys, theirs.values
        decoded = model(**{**kwargs, "input_ids": ids[:, 20:]}).logits[0, -1]
        whole = model(ids, use_cache=True).logits[0, -1]
    torch.testing.assert_close(decoded, whole)


def test_a_state_that_a_pass_replaces_is_put_back() -> None:
    inputs = prepare(on_meta("mamba"), work(1, 1, 20), device="cpu")
    layer = inputs.kwargs()["cache_params"].layers[0]
    state, values = layer.recurrent_states[0], layer.recurrent_states[0].clone()
    layer.recurrent_states[0] = state.zero_() + 1
    inputs.restore()
    assert layer.recurrent_states[0] is state
    assert torch.equal(state, values)


def test_logits_of_the_last_token_alone_where_the_model_can() -> None:
    assert prepare(on_meta("llama"), work(1, 12, 0)).kwargs()["logits_to_keep"] == 1
    assert prepare(on_meta("llama"), work(1, 5, 20)).kwargs()["logits_to_keep"] == 1
    assert "logits_to_keep" not in prepare(on_meta("llama"), work(1, 1, 20)).kwargs()
    drafted = work(1, 5, 20).model_copy(update={"logits": "all"})
    assert "logits_to_keep" not in prepare(on_meta("llama"), drafted).kwargs()
    assert run(on_cpu("llama"), prepare(on_meta("llama"), work(2, 12, 0), device="cpu")).shape == (2, 1, 128)


def test_each_prefill_gets_an_empty_cache() -> None:
    inputs = prepare(on_meta("llama"), work(1, 12, 0), device="cpu")
    first, second = (inputs.kwargs()["past_key_values"] for _ in range(2))
    assert first is not second
    assert second.get_seq_length() == 0
    assert list(inputs.cache_tensors()) == []


def test_tokens_and_context_come_from_the_seed() -> None:
    def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = prepare(on_meta("llama"), work(2, 5, 20), device="cpu", seed=seed)
        return inputs.kwargs()["input_ids"], next(tensor for _, _, tensor in inputs.cache_tensors())

    (ids, keys), (same_ids, same_keys), (other_ids, other_keys) = drawn(1), drawn(1), drawn(2)
    assert torch.equal(ids, same_ids)
    assert torch.equal(keys, same_keys)
    assert not torch.equal(ids, other_ids)
    assert not torch.equal(keys, other_keys)
    assert keys.std().item() == pytest.approx(1, rel=0.1)


@each(("query", "context"), [(1, 20), (12, 0), (5, 19), (1, 23)])
def test_a_static_cache_holds_the_pass_and_little_more(query: int, context: int) -> None:
    length = max_cache_len(work(1, query, context))
    assert length % MASK_ALIGNMENT == 0
    assert query + context <= length < query + context + MASK_ALIGNMENT
    assert prepare(on_meta("llama"), work(1, query, context), cache="static").max_cache_len == length
    assert prepare(on_meta("llama"), work(1, query, context)).max_cache_len is None


def test_the_implementations_of_the_model_stay_as_they_are() -> None:
    model = build_meta(tiny("mixtral"), "float32", experts="eager")
    prepare(model, work(1, 1, 20), device="cpu")
    assert model.config._experts_implementation == "eager"


def test_an_unknown_cache() -> None:
    with pytest.raises(RequestError, match="use dynamic or static"):
        prepare(on_meta("llama"), work(1, 1, 5), cache="paged")


def test_a_state_of_a_models_own_goes_from_prefill_to_decode_and_is_put_back() -> None:
    config = AutoConfig.for_model("rwkv", vocab_size=64, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16)
    model = build_meta(config, "float32")
    inputs = prepare(model, work(2, 1, 12), device="cpu")
    shapes = [tuple(tensor.shape) for _, _, tensor in inputs.cache_tensors()]
    assert shapes and all(shape == (2, 16, 2) for shape in shapes)
    real = build(config, "cpu", "float32")
    with torch.no_grad():
        first = inputs.call(real).logits
        inputs.restore()
        torch.testing.assert_close(inputs.call(real).logits, first)


def test_a_model_that_keeps_nothing_has_no_decode() -> None:
    model = build_meta(AutoConfig.for_model("openai-gpt", n_layer=1, n_embd=24, n_head=2), "float32")
    assert prepare(model, work(2, 12, 0)).kwargs().keys() == {"input_ids", "logits_to_keep"}
    with pytest.raises(RequestError, match="keeps nothing from pass to pass"):
        prepare(model, work(2, 1, 12))
