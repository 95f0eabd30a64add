"""Sent keys and values: the closed form of their bytes a token, for each family."""

import pytest
from each import each
from graphs import figure
from tiny import tiny
from whatif_graphs import check_rank, flops, linked_peaks, traced, transfers

from roofline.graph.op import Kind, OpGraph, layer_of
from roofline.hardware.spec import Link, Peaks
from roofline.price import price
from roofline.whatif.disaggregate import send_kv
from roofline.whatif.quantise import quantise
from roofline.whatif.tensor_parallel import tensor_parallel


def token_bytes(name: str) -> float:
    """Of one sequence, all layers: keys and values, or latents."""
    config = tiny(name)
    if name == "deepseek_v3":
        return config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim) * 2
    heads = 1 if name == "falcon" else getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers * 2 * heads * width * 2


@each("by_layer", [True, False])
@each(("phase", "tokens"), [("prefill", 12), ("chunk", 4)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "mixtral", "qwen3_moe", "deepseek_v3"])
def test_all_that_is_new_is_sent(name: str, phase: str, tokens: int, by_layer: bool) -> None:
    graph = traced(name, phase)
    sent = send_kv(graph, link="network", by_layer=by_layer)
    check_rank(sent)
    messages = transfers(sent, "send_kv")
    assert len(messages) == (tiny(name).num_hidden_layers if by_layer else 1)
    assert sum(op.link_bytes for op in messages) == graph.workload.batch * tokens * token_bytes(name)
    assert sum(op.messages for op in messages) == len(messages)
    assert flops(sent) == flops(graph)
    assert by_layer or sent.ops[-1] == messages[0]


def test_a_layer_is_sent_when_it_is_written() -> None:
    sent = send_kv(traced("llama", "prefill"))
    places = [i for i, op in enumerate(sent.ops) if op in transfers(sent)]
    for i in places:
        assert sent.ops[i - 1].path == sent.ops[i].path  # the append
        read = {a.tensor for a in sent.ops[i].reads}
        writers = [j for j, op in enumerate(sent.ops) if read & {a.tensor for a in op.writes}]
        assert max(writers) == i - 1


def test_a_layer_is_sent_beside_operations() -> None:
    """A layer takes the longer of its work and its message; all at once is waited for."""
    graph = traced("llama", "prefill")
    for bandwidth in (1e-3, 1.0, 1e3):
        device = linked_peaks().model_copy(update={"links": {"nvlink": Link(bandwidth=figure(bandwidth))}})

        def seconds(changed: OpGraph, device: Peaks = device) -> float:
            return float(price(changed, device, "cold").time_s.sum())

        apart = send_kv(graph, overlap=False)
        layers, sent = [0.0, 0.0], [0.0, 0.0]
        for op, time_s in zip(apart.ops, price(apart, device, "cold").time_s, strict=True):
            place = layer_of(op.path)
            if op.kind is Kind.TRANSFER and place:
                sent[place.layer] += op.link_bytes / bandwidth
                layers[place.layer] += sum(a.bytes for a in op.reads) / device.levels[0].bandwidth.value
            elif place:
                layers[place.layer] += time_s
        outside = seconds(graph) - sum(seconds_of(graph, device))
        expected = outside + sum(max(pair) for pair in zip(layers, sent, strict=True))
        assert seconds(send_kv(graph)) == pytest.approx(expected, rel=1e-9)
        assert seconds(send_kv(graph, by_layer=False)) >= seconds(send_kv(graph)) * (1 - 1e-9)


def seconds_of(graph: OpGraph, device: Peaks) -> list[float]:
    """Of operations in layers."""
    priced = zip(graph.ops, price(graph, device, "cold").time_s.tolist(), strict=True)
    return [time_s for op, time_s in priced if layer_of(op.path)]


def test_of_a_window_only_what_a_later_token_sees_is_sent() -> None:
    graph = traced("gemma3", "prefill")  # a window of 8 in three layers of four
    sent = [op.link_bytes for op in transfers(send_kv(graph))]
    token = 2 * 2 * 8 * 2
    assert sent == [7 * token, 7 * token, 12 * token, 7 * token]


def test_a_state_goes_whole() -> None:
    graph = traced("mamba", "prefill")
    sent = sum(op.link_bytes for op in transfers(send_kv(graph)))
    assert sent == sum(t.storage_bytes for t in graph.tensors if t.role == "kv")


def test_it_composes() -> None:
    graph = traced("llama", "prefill")

    def sent(changed: OpGraph) -> float:
        return sum(op.link_bytes for op in transfers(send_kv(changed)))

    assert sent(tensor_parallel(graph, 2)) == sent(graph) / 2
    assert sent(quantise(graph, kv=8)) == sent(graph) * (8 * 8 + 16) / (16 * 8)  # a scale for each head of 8


def test_a_decode_is_refused() -> None:
    with pytest.raises(ValueError, match="this pass is a decode; use it on a prefill or chunk"):
        send_kv(traced("llama", "decode"))
    with pytest.raises(ValueError, match="are sent already"):
        send_kv(send_kv(traced("llama", "prefill")))
