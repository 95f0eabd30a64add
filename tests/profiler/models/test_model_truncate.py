"""A model cut to its first layers is a whole model of fewer layers."""

import pytest
import torch
from tiny import TINY, tiny
from transformers import Gemma3Config

from profiler.models.truncate import layer_count, truncate
from profiler.models.weights import build_meta
from profiler.record.run import RequestError


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


@pytest.mark.parametrize("layers", [0, -1, 3])
def test_layers_that_the_model_does_not_have(layers: int) -> None:
    with pytest.raises(RequestError, match="use 1 to 2"):
        truncate(tiny("llama"), layers)


def test_the_first_layers_compute_the_same() -> None:
    from profiler.models.weights import build

    whole = build(tiny("llama"), "cpu", "float32")
    cut = build(truncate(tiny("llama"), 1), "cpu", "float32")
    cut.load_state_dict({name: value for name, value in whole.state_dict().items() if ".layers.1." not in name})
    ids = torch.arange(6)[None]
    with torch.no_grad():
        hidden = whole(ids, output_hidden_states=True, use_cache=False).hidden_states[1]
        assert torch.equal(whole.model.norm(hidden), cut.model(ids, use_cache=False).last_hidden_state)
