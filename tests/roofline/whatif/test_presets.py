"""Named ways to store all weights: block layouts and mixes of GGUF files against the sizes of public ones."""

import pytest
from whatif_graphs import check, stored, traced

from profiler.models.catalogue import config_of
from profiler.models.graphs import ModelGraphs, Tracing
from roofline.whatif.presets import BASE, PRESETS, gguf
from roofline.whatif.quantise import quantise
from roofline.whatif.registry import parse
from roofline.whatif.scheme import Scheme, Weight
from roofline.workload import Workload

FILES = {
    "Q2_K": 3_179_131_904, "Q3_K_S": 3_664_499_712, "Q3_K_M": 4_018_918_400, "Q3_K_L": 4_321_956_864,
    "Q4_K_S": 4_692_669_440, "Q4_K_M": 4_920_734_272, "Q5_K_S": 5_599_294_464, "Q5_K_M": 5_732_987_904,
    "Q6_K": 6_596_006_912, "Q8_0": 8_540_771_328,
}  # fmt: skip
"""Bytes of the public GGUF files of Llama-3.1-8B."""

VOCABULARY = 7.8e6
"""Bytes of its 128,256 tokens and merges, which stand in the file before the weights; norms are fp32 there."""


def test_mixes_have_the_size_of_public_files() -> None:
    one = Workload(batch=1, query_tokens=1, context_tokens=16, dtype="bfloat16")
    graph = ModelGraphs(config_of("llama-3.1-8b"), "llama-3.1-8b", Tracing(dtype="bfloat16")).whole(one)
    for mix, size in FILES.items():
        weights = stored(quantise(graph, preset=mix), "weight")
        assert weights == pytest.approx(size - VOCABULARY, rel=2e-4), mix


BLOCKS = {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210, "IQ4_XS": 136, "Q8_0": 8 * 34, "Q4_0": 8 * 18}


def test_blocks_of_256_weights_have_their_bytes() -> None:
    graph = traced("llama", "decode")
    seen = set()
    for mix, kind in BASE.items():
        scheme = gguf(mix, graph)(Weight("model.layers.1.mlp.up_proj.weight", "linear", 256))
        assert scheme is not None
        beside = scheme.scale_bits + scheme.zero_point_bits
        assert 256 * (scheme.bits + beside / scheme.group) / 8 == BLOCKS[kind], mix
        seen.add(kind)
    assert seen == set(BLOCKS)


def bits_of(mix: str, name: str, k: int = 256, layers: str = "decode") -> int:
    scheme = gguf(mix, traced("llama", layers))(Weight(name, "linear", k))
    assert isinstance(scheme, Scheme)
    return scheme.bits


def test_columns_that_no_block_divides_get_the_type_that_llama_cpp_falls_back_to() -> None:
    up = "model.layers.1.mlp.up_proj.weight"
    assert [bits_of("Q4_K_M", up, k) for k in (512, 32)] == [4, 5]
    assert [bits_of("Q6_K", up, k) for k in (512, 32)] == [6, 8]
    assert [bits_of("Q2_K", up, k) for k in (512, 32)] == [2, 4]


def test_every_preset_makes_a_sound_graph_of_every_family() -> None:
    for name in ("llama", "qwen2", "mixtral", "gpt2", "gpt_oss"):
        graph = traced(name, "decode")
        for preset in PRESETS:
            small = quantise(graph, preset=preset)
            check(small)
            assert stored(small, "weight") < stored(graph, "weight"), (name, preset)
            assert small.options["weights"] == preset


def test_a_preset_is_one_option_and_keeps_the_cache_free() -> None:
    graph = traced("llama", "decode")
    both = parse("quantise:preset=Q4_K_M,kv=8")(graph)
    assert stored(both, "kv") < stored(graph, "kv") and stored(both, "weight") < stored(graph, "weight")
    with pytest.raises(ValueError, match=r"'Q4_K' is unknown; use one of .*Q4_K_M"):
        quantise(graph, preset="Q4_K")
    with pytest.raises(ValueError, match="leave the others out"):
        quantise(graph, preset="awq", weights=4)
