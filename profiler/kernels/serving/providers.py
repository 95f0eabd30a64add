"""Parts that families' providers have in common: plain torch, Inductor, onnxruntime, imports of other libraries.

A kernel is a function of sizes and operands. `torch_and_inductor` makes two providers of one: as torch runs it
operation by operation, and as `torch.compile` fuses it. Libraries for one kind of device are imported when a kernel is
bound, never before.
"""

import importlib
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from profiler.devices.backend import CUDA
from profiler.kernels.serving.contract import EVERYWHERE, Dims, Kernel, Provider, Result, Tensors, Unsupported

Function = Callable[[Dims, Tensors], Result]
"""A kernel before its sizes are bound."""
Sizes = tuple[tuple[str, int], ...]


def torch_and_inductor(function: Function, devices: tuple[str, ...] = EVERYWHERE) -> tuple[Provider, Provider]:
    """Return the function as torch runs it, and as Inductor compiles it."""
    return (
        Provider("torch", "torch", lambda dims, dtype, operands: lambda t: function(dims, t), devices=devices),
        Provider(
            "inductor", "torch", lambda dims, dtype, operands: _compiled(function, dims, operands), devices=devices
        ),
    )


def eager(name: str, function: Function) -> Provider:
    """Return the function as torch runs it, under a name of its own."""
    return Provider(name, "torch", lambda dims, dtype, operands: lambda t: function(dims, t))


def _compiled(function: Function, dims: Dims, operands: Tensors) -> Kernel:
    kernel = _compiled_for(function, tuple(sorted(dims.items())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of what torch deprecates
        kernel({name: operand.clone() for name, operand in operands.items()})  # compiles; a cache is not appended to
    return kernel


@lru_cache(maxsize=256)
def _compiled_for(function: Function, sizes: Sizes) -> Kernel:
    dims = dict(sizes)

    def run(t: Tensors) -> Result:
        return function(dims, t)

    # Dynamo counts recompilations by code object and gives up after some: each set of sizes has its own.
    own = FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)
    compiled: Kernel = torch.compile(own, fullgraph=True, dynamic=False)
    return compiled


def in_library(
    package: str,
    module: str,
    bind: Callable[[Any, Dims, str, Tensors], Kernel],
    *,
    name: str | None = None,
    devices: tuple[str, ...] = (CUDA.type,),
    dtypes: tuple[str, ...] = (),
    writes: tuple[str, ...] = (),
) -> Provider:
    """Return a provider in a module of another package, which `bind` gets; 16-byte operands, as vector loads need.

    Raises Unsupported when bound where the module, or what `bind` wants of it, is not as this version expects.
    """

    def imported(dims: Dims, dtype: str, operands: Tensors) -> Kernel:
        try:
            return bind(importlib.import_module(module), dims, dtype, operands)
        except (ImportError, AttributeError, OSError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise Unsupported(f"{package} cannot be used: {lines[0]}") from error

    return Provider(name or package, package, imported, (module,), devices, dtypes, writes, alignment_bytes=16)


OPSET, CONTRIB = 21, "com.microsoft"
"""Version of ONNX's operators in the graphs (onnxruntime ≥ 1.20 reads it), and the domain of onnxruntime's own."""


def onnx_kernel(
    operator: str,
    attributes: Mapping[str, Any],
    inputs: Mapping[str, Tensor | None],
    constants: Mapping[str, Tensor],
    results: Mapping[str, Tensor],
) -> Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]:
    """Return one contrib operator as a session on the host, with as many threads as torch has.

    Args: `inputs`, by name in the operator's order, an example of each, None where it is a constant or left out
    (names that are in neither); `constants`, weights packed beforehand; `results`, an example of each output, whose
    sizes it keeps, under a blank name where it is not wanted. Raises Unsupported where onnxruntime refuses the graph.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    types = {
        torch.float32: TensorProto.FLOAT,
        torch.uint8: TensorProto.UINT8,
        torch.int32: TensorProto.INT32,
        torch.int64: TensorProto.INT64,
    }

    def info(name: str, tensor: Tensor) -> Any:
        return helper.make_tensor_value_info(name, types[tensor.dtype], list(tensor.shape))

    given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    places = [name if name in given or name in constants else "" for name in inputs]
    node = helper.make_node(operator, places, [name.strip() for name in results], domain=CONTRIB, **attributes)
    graph = helper.make_graph(
        [node],
        operator,
        [info(name, tensor) for name, tensor in given.items()],
        [info(name, tensor) for name, tensor in results.items() if name.strip()],
        [numpy_helper.from_array(tensor.contiguous().numpy(), name) for name, tensor in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    try:
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.checker.check_model(model)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class but this
        raise Unsupported(f"onnxruntime refuses {operator}: {str(error).splitlines()[0][:200]}") from error
    names = [name for name in results if name.strip()]

    def run(operands: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        feeds = {name: operands[name].contiguous().numpy() for name in given}
        return tuple(torch.from_numpy(result) for result in session.run(names, feeds))

    return run
