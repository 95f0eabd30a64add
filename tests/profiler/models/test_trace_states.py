"""Passes of models that carry something else than a cache of `transformers`, or nothing."""

import pytest
import torch
from transformers import AutoConfig

from profiler.models.inputs import prepare
from profiler.models.weights import build, build_meta
from profiler.record.run import RequestError
from roofline.workload import Workload


def work(batch: int, query: int, context: int) -> Workload:
    return Workload(batch=batch, query_tokens=query, context_tokens=context, dtype="float32")


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
