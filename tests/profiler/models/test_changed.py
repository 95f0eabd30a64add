"""Changes of real models, and mixed steps: what runs is what is said, and computes the same as parts on their own."""

from typing import Any

import pytest
import torch
from tiny import TINY, layered, tiny
from transformers import DynamicCache

from profiler.models.build import build, build_meta
from profiler.models.changed import (
    CHANGES,
    change_model,
    changed_config,
    loads,
    model_change,
    over_link,
    parsed,
)
from profiler.models.inputs import prepare
from profiler.models.mixed import MIXED, prepare_mixed
from profiler.passes.job import trace_cell
from profiler.record.run import Cell, RequestError
from roofline.graph.op import OpGraph
from roofline.hardware.load import load_device
from roofline.predict.passes import predict_pass
from roofline.workload import Workload


def workload(query: int, context: int = 0, batch: int = 1) -> Workload:
    return Workload(batch=batch, query_tokens=query, context_tokens=context, dtype="float32")


def cell(change: str, query: int = 1, context: int = 8, batch: int = 1, **more: Any) -> Cell:
    of = workload(query, context, batch)
    return Cell(model="m", workload=of, attn="default", experts="default", cache="dynamic", change=change, **more)


def graph(change: str, name: str = "llama", **sizes: Any) -> OpGraph:
    asked = cell(change, **sizes)
    model = build_meta(changed_config(tiny(name), change), "float32", MIXED if asked.beside else "default")
    change_model(model, change)
    return trace_cell(asked, model)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2"])
@pytest.mark.parametrize("context", [0, 3])
def test_a_mixed_step_gives_the_logits_of_its_parts(name: str, context: int) -> None:
    model, plain = (build(tiny(name), "cpu", "float32", attn) for attn in (MIXED, "sdpa"))
    meta = build_meta(tiny(name), "float32", MIXED)
    inputs = prepare_mixed(meta, workload(5, context), workload(1, 4, batch=2), device="cpu")
    kwargs = inputs.kwargs()
    kept = [(layer.keys.clone(), layer.values.clone()) for layer in inputs.cache.layers]  # type: ignore[union-attr]
    together = model(**kwargs).logits[0]
    ids, keys = kwargs["input_ids"][0], 5 + context

    def alone(new: torch.Tensor, start: int, tokens: int) -> torch.Tensor:
        """The last logits of one sequence, whose cached tokens lie from `start` in the buffers."""
        cache = DynamicCache()
        for i, pair in enumerate(kept):
            cache.update(*(part[:, :, start : start + tokens].clone() for part in pair), i)
        out: torch.Tensor = plain(input_ids=new[None], past_key_values=cache).logits[0, -1]
        return out

    apart = [alone(ids[:5], 0, context), alone(ids[5:6], keys, 4), alone(ids[6:], keys + 5, 4)]
    torch.testing.assert_close(together, torch.stack(apart))
    again = model(**inputs.kwargs()).logits[0]
    torch.testing.assert_close(again, together)  # a pass leaves the state as it found it


def test_what_runs_no_mixed_step_is_refused() -> None:
    for name, why in (("mistral", "not all keys"), ("mamba", "Mamba")):
        with pytest.raises(RequestError) as refused:
            prepare_mixed(build_meta(tiny(name), "float32"), workload(4), workload(1, 4))
        assert why in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(RequestError, match="one chunk"):
        prepare_mixed(build_meta(tiny("llama"), "float32", MIXED), workload(4, batch=2), workload(1, 4))


@torch.no_grad()
def test_adapters_add_their_product_to_each_linear_layer() -> None:
    plain, model = (build(tiny("llama"), "cpu", "float32") for _ in range(2))
    change_model(model, "lora:rank=3,adapters=2")
    layer, before = model.model.layers[0].mlp.down_proj, plain.model.layers[0].mlp.down_proj
    layer.up.normal_()
    x = torch.randn(2, 5, before.in_features)
    wanted = torch.stack([before(x[i]) + x[i] @ layer.down[i] @ layer.up[i] for i in range(2)])
    torch.testing.assert_close(layer(x), wanted)
    linear = sum(isinstance(module, torch.nn.Linear) for module in plain.model.layers.modules())
    more = len(graph("lora:rank=3", batch=2).ops) - len(graph("", batch=2).ops)
    assert more == 3 * linear  # two products and an addition


def test_offloaded_weights_are_copied_before_each_use() -> None:
    weights = sum(p.numel() * 4 for p in build_meta(tiny("llama"), "float32").model.layers[0].parameters())
    assert all(op.name != "aten::copy_" for op in graph("").ops)
    for share, layers in ((0.5, 1), (1.0, 2)):
        copies = [op for op in graph(f"offload:weights={share:g}").ops if op.name == "aten::copy_"]
        assert sum(write.bytes for op in copies for write in op.writes) == layers * weights


def test_what_a_gpu_copies_in_crosses_its_link_to_the_host() -> None:
    device = load_device("nvidia-h100-sxm")
    for change in ("offload:weights=1", "load:what=weights"):
        here = graph(change)
        moved = over_link(here, change)
        crossing = [op for op in moved.ops if op.link]
        assert [op.name for op in moved.ops] == [op.name for op in here.ops]
        assert {op.name for op in crossing} == {"aten::copy_"}
        size = sum(op.link_bytes for op in crossing)
        assert size == sum(p.numel() * 4 for p in build_meta(tiny("llama"), "float32").model.layers.parameters())
        priced = predict_pass(moved, device, device.datasheet)
        time_s = sum(op.time_s for op in priced.ops if op.link_bytes)
        pcie = device.datasheet.links["pcie"]
        assert time_s == pytest.approx(size / pcie.bandwidth.value + len(crossing) * pcie.latency_s.value)
    assert over_link(here, "lora:rank=1") is here


@torch.no_grad()
def test_offloading_leaves_the_results_alone() -> None:
    model, meta = build(tiny("llama"), "cpu", "float32"), build_meta(tiny("llama"), "float32")
    inputs = prepare(meta, workload(4), device="cpu")
    before = model(**inputs.kwargs()).logits
    change_model(model, "offload:weights=1")
    inputs.restore()
    torch.testing.assert_close(model(**inputs.kwargs()).logits, before)


@torch.no_grad()
@pytest.mark.parametrize(("what", "elements"), [("kv", 2 * 2 * 8 * 2 * 8), ("adapter,rank=3", None), ("weights", None)])
def test_a_load_copies_what_it_says(what: str, elements: int | None) -> None:
    model, meta = build(tiny("llama"), "cpu", "float32"), build_meta(tiny("llama"), "float32")
    inputs = prepare(meta, workload(1, 8), device="cpu")
    if elements is None:
        linear = [m for m in meta.model.layers.modules() if isinstance(m, torch.nn.Linear)]
        of_weights = sum(p.numel() for p in meta.model.layers.parameters())
        elements = of_weights if what == "weights" else sum(3 * (m.in_features + m.out_features) for m in linear)
    copied = graph(f"load:what={what}")
    assert {op.name for op in copied.ops} == {"aten::copy_"}
    assert sum(write.bytes for op in copied.ops for write in op.writes) == 4 * elements
    module, nothing = loads(model, inputs, f"load:what={what}")
    assert torch.isfinite(module(**nothing.kwargs()).logits).all()


def test_an_early_exit_runs_the_first_layers() -> None:
    kinds = {op.path.split(".")[2] for op in graph("early_exit:after_layers=1").ops if ".layers." in op.path}
    assert kinds == {"0"}
    assert changed_config(layered("gemma3", 6), "early_exit:after_layers=3").num_hidden_layers == 3


def test_changes_that_cannot_be_are_one_line() -> None:
    assert set(CHANGES) == {"early_exit", "lora", "offload", "load", "fresh"}
    assert parsed("lora:rank=4") == ("lora", {"rank": 4, "adapters": 1})
    assert [model_change(text) for text in ("", "load:what=kv", "fresh:processes=1")] == ["", "", ""]
    for change, why in (
        ("early_exit:after_layers=9", "the model has 2"),
        ("early_exit:after_layers=0", "use 1 to 2"),
        ("load:what=disk", "should be"),
        ("exit", "no change"),
    ):
        with pytest.raises(RequestError) as refused:
            changed_config(tiny("llama"), change)
            parsed(change)
        assert why in str(refused.value) and "\n" not in str(refused.value)
    assert "mamba" in TINY
    with pytest.raises(RequestError, match="nothing to load"):
        loads(
            build_meta(tiny("llama"), "float32"),
            prepare(build_meta(tiny("llama"), "float32"), workload(4)),
            "load:what=kv",
        )
