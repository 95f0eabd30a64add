"""Changes of a real model, so that what a technique costs is measured and not only priced.

They are written as what-ifs are: "early_exit:after_layers=6", "lora:rank=16,adapters=4", "offload:weights=0.5",
"load:what=kv", "fresh:processes=3". A change is a row of `CHANGES`. What it needs of the model is decided here: a cut
config, other modules, or another module in the place of the model.

- `offload` copies the weights of a layer to buffers on the device before each run of the layer, one after the other.
- `load` replaces the model: one pass copies tensors from the host's memory to the device. On a CPU both are the same
  memory, and the copy takes what a copy within it takes.
- `lora` puts two products and an addition beside each linear layer of the repeated ones.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from profiler.devices.backend import backend_of
from profiler.models.resolve import layer_count, truncate
from profiler.models.trace import NoInputs
from profiler.record.run import RequestError
from roofline.graph.op import Kind, OpGraph, layer_of
from roofline.written import Written

TO_HOST = "pcie"
"""Name of the link to the host in the devices' files (`Peaks.links`)."""
What = Literal["kv", "weights", "adapter"]
ADAPTER_WEIGHT = 1e-3
"""Value of all weights of adapters: so small that the logits stay finite; times do not depend on it."""


def early_exit(model: PreTrainedModel, *, after_layers: int) -> None:
    """The model ends after its first repeated layers; its config was cut already."""


def fresh(model: PreTrainedModel, *, processes: int) -> None:
    """The model is run in new processes too, which changes nothing of it."""


@torch.no_grad()
def lora(model: PreTrainedModel, *, rank: int, adapters: int = 1) -> None:
    """Each linear layer of the repeated ones has adapters of this rank: one for all sequences, or one for each."""
    for parent, name, linear in _linears(model):
        setattr(parent, name, WithAdapters(linear, rank, adapters))


@torch.no_grad()
def offload(model: PreTrainedModel, *, weights: float) -> None:
    """The first repeated layers, as many as this part of them, have their weights in the memory of the host."""
    layers = _repeated(model)
    for layer in layers[: max(1, round(weights * len(layers)))]:
        kept = {id(p): p for p in layer.parameters()}
        pairs = [(parameter, _on_host(parameter)) for parameter in kept.values()]

        def bring(module: nn.Module, inputs: Any, pairs: Sequence[tuple[Tensor, Tensor]] = pairs) -> None:
            for here, there in pairs:
                here.data.copy_(there, non_blocking=True)

        layer.register_forward_pre_hook(bring)


def load(model: PreTrainedModel, *, what: What, share: float = 1.0, rank: int = 1) -> None:
    """A pass copies the tensors to the device instead of running the model (`Loads`)."""


CHANGES: dict[str, Callable[..., None]] = {
    "early_exit": early_exit,
    "lora": lora,
    "offload": offload,
    "load": load,
    "fresh": fresh,
}
_WRITTEN = Written("change", CHANGES)


def parsed(change: str) -> tuple[str, dict[str, Any]]:
    """Return a change's name and all its options. Raises RequestError, one line, for one that is not known."""
    try:
        name, options = _WRITTEN.parse(change)
    except ValueError as error:
        raise RequestError(str(error)) from None
    parameters = _WRITTEN.parameters(name).values()
    return name, {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty} | options


def changed_config(config: PretrainedConfig, change: str) -> PretrainedConfig:
    """Return the config of the model that runs. Raises RequestError for a change that the model cannot have."""
    if not change:
        return config
    name, options = parsed(change)
    if name != "early_exit":
        return config
    after, layers = options["after_layers"], layer_count(config)
    if not 1 <= after <= layers:
        raise RequestError(f"leaving after {after} layers: the model has {layers} repeated layers; use 1 to {layers}")
    return truncate(config, after)


def change_model(model: PreTrainedModel, change: str) -> None:
    """Change a model in place, on `meta` or with its weights."""
    if change:
        name, options = parsed(change)
        CHANGES[name](model, **options)


def model_change(change: str) -> str:
    """Return the change if it is of the model, not of its pass or its process: cells with one share a model."""
    return "" if not change or parsed(change)[0] in ("load", "fresh") else change


def loads(model: PreTrainedModel, inputs: Any, change: str) -> tuple[nn.Module, Any]:
    """Return the module and inputs of the pass: the model with its own, or the copy that stands in its place."""
    if not change or parsed(change)[0] != "load":
        return model, inputs
    options = parsed(change)[1]
    return Loads(list(_loaded(model, inputs, **options))), NoInputs()


def _loaded(model: PreTrainedModel, inputs: Any, what: What, share: float, rank: int) -> Iterator[Tensor]:
    """Tensors on the device whose values come from the host."""
    if what == "kv":
        yield from (tensor for _, _, tensor in inputs.cache_tensors() if tensor.numel())
    elif what == "weights":
        layers = _repeated(model)
        for layer in layers[: max(1, round(share * len(layers)))]:
            yield from (parameter.data for parameter in layer.parameters())
    else:
        for _, _, linear in _linears(model):
            weight = linear.weight
            yield weight.new_zeros(rank, linear.in_features)
            yield weight.new_zeros(linear.out_features, rank)


def over_link(graph: OpGraph, change: str) -> OpGraph:
    """Return the graph of a device that is not the host: what a change copies in crosses the link to the host.

    In a trace on `meta` it is a copy within the device, whose bandwidth is another.
    """
    if not change or parsed(change)[0] not in ("load", "offload"):
        return graph
    roles = [tensor.role for tensor in graph.tensors]
    is_load = parsed(change)[0] == "load"
    ops = []
    for op in graph.ops:
        if op.name == "aten::copy_" and (is_load or all(roles[write.tensor] == "weight" for write in op.writes)):
            size = round(sum(write.bytes for write in op.writes))
            crosses = {"link": TO_HOST, "link_bytes": size, "messages": 1, "dims": {"bytes": size, "ranks": 2}}
            op = op.model_copy(update={"kind": Kind.TRANSFER, "reads": (), **crosses})
        ops.append(op)
    return graph.model_copy(update={"ops": tuple(ops)})


class Loads(nn.Module):
    """A pass that copies tensors from the host's memory to the device, as a model whose logits are one of them."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        if not tensors:
            raise RequestError("there is nothing to load: the model keeps no such tensors; choose another scenario")
        self.pairs = [(torch.empty_like(tensor), _on_host(tensor)) for tensor in tensors]
        self.config = None

    def forward(self) -> SimpleNamespace:
        for here, there in self.pairs:
            here.copy_(there, non_blocking=True)
        return SimpleNamespace(logits=self.pairs[0][0])


class WithAdapters(nn.Module):
    """A linear layer with low-rank adapters beside it (LoRA, arXiv 2106.09685)."""

    def __init__(self, linear: nn.Linear, rank: int, adapters: int) -> None:
        super().__init__()
        self.linear = linear
        weight = linear.weight
        own = (adapters,) if adapters > 1 else ()
        self.down = nn.Parameter(weight.new_full((*own, linear.in_features, rank), ADAPTER_WEIGHT))
        self.up = nn.Parameter(weight.new_full((*own, rank, linear.out_features), ADAPTER_WEIGHT))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.matmul(torch.matmul(x, self.down), self.up)


def _on_host(tensor: Tensor) -> Tensor:
    """A copy of a tensor in the memory of the host, pinned where the device copies faster from such memory."""
    if tensor.device.type == "meta":
        return torch.empty_like(tensor)
    copy = tensor.detach().to("cpu", copy=True)
    return copy if backend_of(tensor.device).is_host else copy.pin_memory()


def _repeated(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated layers of the model, in order."""
    count = layer_count(model.config)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists:
        raise RequestError("the repeated layers of this model are not one list, so that none can be offloaded")
    return list(lists[0])


def _linears(model: PreTrainedModel) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Linear layers within the repeated ones, with the module that holds each."""
    found = []
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and layer_of(path) is not None:
            parent, _, name = path.rpartition(".")
            found.append((model.get_submodule(parent), name, module))
    if not found:
        raise RequestError("the repeated layers hold no linear layer, so that adapters have no place; leave them out")
    return found
