"""Operators of a timeline made again on meta tensors, against FlopCounterMode and amounts worked out by hand."""

from typing import Any

import pytest
import torch
from tiny import tiny
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from profiler.attribution.timeline import read_timeline
from profiler.models.recorded import Recorded
from roofline.graph.op import Kind, Op, Traffic

KERNELS = {"aten::mm", "aten::add", "aten::mul", "aten::rsqrt", "aten::mean", "aten::silu",
           "aten::_scaled_dot_product_flash_attention_for_cpu"}  # fmt: skip
"""Operators of the tiny Llama that have kernels of their own on a CPU."""


def operations(operator: str, dims: Any, types: Any, kind: str | None = None, **others: Any) -> list[Op]:
    recorded = Recorded()
    step = others.pop("step", {})
    inputs = {"Input Dims": dims, "Input type": types, **{name.replace("_", " "): of for name, of in others.items()}}
    recorded.add(operator, inputs, "layer", kind, step)
    return list(recorded.graph("test").ops)


def moved(op: Op) -> float:
    return sum(access.bytes for access in (*op.reads, *op.writes))


def test_flops_of_a_profiled_model_are_those_that_torch_counts(tmp_path: Any) -> None:
    model = AutoModelForCausalLM.from_config(tiny("llama")).eval()
    tokens = torch.randint(0, 16, (2, 7))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(tokens, use_cache=False)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as session:
        model(tokens, use_cache=False)
    session.export_chrome_trace(str(tmp_path / "trace.json"))
    host = read_timeline(tmp_path / "trace.json").host
    recorded = Recorded()
    for event in (event for event in host if event.name in KERNELS):
        recorded.add(event.name, event.inputs or {}, "", None, {})
    ops = recorded.graph("test").ops
    products = sum(op.matrix_flops for op in ops if op.kind is Kind.MATMUL)
    assert products == counter.get_total_flops() > 0  # it does not know the attention of CPUs
    attention = [op for op in ops if op.kind is Kind.ATTENTION]
    sizes = attention[0].dims
    assert sizes["pairs"] == 7 * 8 / 2
    assert sum(op.matrix_flops for op in attention) == len(attention) * 4 * 28 * 2 * sizes["heads"] * sizes["head_dim"]
    assert {op.name for op in ops} == KERNELS


def test_a_call_keeps_sizes_strides_scalars_and_its_module() -> None:
    (op,) = operations("aten::addmm", [[8], [4, 16], [16, 8], [], []], [*["float"] * 3, "Scalar", "Scalar"],
                       Input_Strides=[[1], [16, 1], [1, 16], [], []],
                       Concrete_Inputs=["", "", "", "1", "1"])  # fmt: skip
    assert (op.path, op.kind, op.dtype, op.matrix_flops) == ("layer", Kind.MATMUL, "float32", 2 * 4 * 16 * 8)
    assert moved(op) == 4 * (8 + 4 * 16 + 16 * 8 + 4 * 8)
    (cat,) = operations("aten::cat", [[[2, 3], [2, 5]], []], ["TensorList", "Scalar"], Concrete_Inputs=["", "-1"])
    assert moved(cat) == 2 * 4 * 16  # in float32, as nothing else is known
    (mean,) = operations("aten::mean", [[4, 8], [], [], []], ["c10::BFloat16", "ScalarList", "Scalar", ""],
                         Concrete_Inputs=["", "[-1]", "True", ""])  # fmt: skip
    assert moved(mean) == 2 * (32 + 4)


@pytest.mark.parametrize(
    ("operator", "dims", "bytes_"),
    [
        ("aiter::rmsnorm", [[64, 128], [64, 128], [128]], 2 * (2 * 64 * 128 + 128)),  # output, input, weight
        ("sgl_kernel::silu_and_mul", [[64, 128], [64, 256]], 2 * 64 * (128 + 256)),
        (
            "sglang::store_cache",
            [[64, 32], [64, 32], [9999, 32], [9999, 32]],
            2 * 4 * 64 * 32,
        ),  # as many rows as are new
    ],
)
def test_an_operator_of_an_engine_moves_each_of_its_tensors_once(operator: str, dims: Any, bytes_: int) -> None:
    (op,) = operations(operator, dims, ["c10::BFloat16"] * len(dims), "norm")
    assert (moved(op), op.matrix_flops, op.counted) == (bytes_, 0, False)
    assert operations(operator, dims, ["c10::BFloat16"] * len(dims), None) == []
    assert operations(operator, dims, ["c10::BFloat16"] * len(dims), "matmul") == []


def test_attention_of_an_engine_has_the_lengths_that_its_step_states() -> None:
    dims, types = [[32, 8, 64], [999, 2, 64], [999, 2, 64], [33]], ["c10::BFloat16"] * 3 + ["int"]
    step = {"decode_sequences": 32.0, "decode_tokens": 32.0, "decode_context": 3200.0, "decode_attention": 3200.0}
    (op,) = operations("vllm::unified_attention", dims, types, "attention", step=step)
    assert {name: op.dims[name] for name in ("batch", "query", "kv", "heads", "kv_heads", "head_dim")} == {
        "batch": 32, "query": 1, "kv": 100, "heads": 8, "kv_heads": 2, "head_dim": 64,
    }  # fmt: skip
    assert op.matrix_flops == 4 * 3200 * 8 * 64
    assert moved(op) == 2 * 64 * (2 * 32 * 8 + 2 * 3200 * 2)
    assert operations("vllm::unified_attention", dims, types, "attention") == []


@pytest.mark.parametrize(
    ("dims", "types", "scalars"),
    [
        ([[2**40, 2**40], [2, 2]], ["float"] * 2, ["", ""]),
        ([[-1, 2], [2, 2]], ["float"] * 2, ["", ""]),
        ([[True, 2], [2, 2]], ["float"] * 2, ["", ""]),
        ([[2, 3], [2, 2]], ["float"] * 2, ["", ""]),
        ([["2", 3], [3, 2]], ["float"] * 2, ["", ""]),
        ("no list", ["float"] * 2, ["", ""]),
        ([[2, 3], [3, 2]], ["float"], [""]),
        ([[2, 3], [3, 2], []], ["float"] * 2 + ["Scalar"], ["", "", "(" * 5000]),
        ([{"a": 1}, [3, 2]], ["float"] * 2, ["", ""]),
    ],
)
def test_arguments_that_no_call_has_give_nothing(dims: Any, types: Any, scalars: Any) -> None:
    assert operations("aten::mm", dims, types, "norm", Concrete_Inputs=scalars, Input_Strides=None) == []
    assert operations("aten::no_such_operator", dims, types, Concrete_Inputs=scalars) == []


def test_operators_without_a_tensor_are_not_run(tmp_path: Any) -> None:
    """They would run on the host, with the arguments that a file of others has: a file's name, a size, a seed."""
    target, seed = tmp_path / "written", torch.initial_seed()
    scalars = [str(target), "True", "64", "6", "", "", ""]
    kinds = ["", "Scalar", "Scalar", "Scalar", "", "", ""]
    assert operations("aten::from_file", [[]] * 7, kinds, Concrete_Inputs=scalars, Input_Strides=[[]] * 7) == []
    assert operations("aten::manual_seed", [[]], ["Scalar"], Concrete_Inputs=[str(seed + 1)]) == []
    assert not target.exists() and torch.initial_seed() == seed


def test_traffic_has_its_classes() -> None:
    (op,) = operations("aten::mm", [[2, 3], [3, 2]], ["float"] * 2)
    recorded = Recorded()
    recorded.add("aten::mm", {"Input Dims": [[2, 3], [3, 2]], "Input type": ["float"] * 2}, "", None, {})
    (traffic,) = recorded.graph("test").traffic
    assert isinstance(traffic, Traffic) and traffic.activation_read + traffic.activation_write == moved(op)


@pytest.mark.parametrize(
    ("operator", "dims", "strides", "types", "scalars", "single"),
    [
        ("aten::mul", [[8, 4], [8, 4]], [[4, 1], [4, 1]], ["float"] * 2, ["", ""], False),
        ("aten::mul", [[8, 4], [8, 4]], [[1, 8], [1, 8]], ["float"] * 2, ["", ""], False),
        ("aten::mul", [[8, 4], [8, 4]], [[4, 1], [1, 8]], ["float"] * 2, ["", ""], True),
        ("aten::mul", [[8, 4], [8, 1]], [[4, 1], [1, 1]], ["float"] * 2, ["", ""], True),
        ("aten::neg", [[8, 4]], [[8, 1]], ["c10::BFloat16"], [""], True),
        ("aten::copy_", [[8, 4], [8, 4], []], [[4, 1], [4, 1], []], ["float", "c10::BFloat16", "Scalar"],
         ["", "", "False"], True),
        ("aten::copy_", [[8, 4], [8, 4], []], [[4, 1], [4, 1], []], ["c10::BFloat16", "float", "Scalar"],
         ["", "", "False"], False),
        ("aten::mm", [[8, 4], [4, 2]], [[4, 1], [1, 4]], ["float"] * 2, ["", ""], False),
    ],
)  # fmt: skip
def test_operands_that_no_vector_load_takes_are_marked(operator, dims, strides, types, scalars, single) -> None:
    (op,) = operations(operator, dims, types, Input_Strides=strides, Concrete_Inputs=scalars)
    assert op.dims.get("strided", 0) == single
