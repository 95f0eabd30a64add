"""Counts what a pass does by torch's own counters, and makes inputs of passes that need more than token ids.

`counted_flops` and `used_parameters` run the pass under torch's `FlopCounterMode`, and with autograd.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from profiler.models.attention import operands
from profiler.models.inputs import PassInputs, batched_experts, prepare
from profiler.models.meta import known_values
from profiler.models.module import Example
from profiler.models.trace import Inputs
from roofline.workload import Workload


class WholeText:
    """A pass that also has the ids of its context."""

    def __init__(self, model: PreTrainedModel, inputs: PassInputs, workload: Workload) -> None:
        tokens = workload.context_tokens + workload.query_tokens
        whole = workload.model_copy(update={"query_tokens": tokens, "context_tokens": 0})
        self.ids = prepare(model, whole).kwargs()["input_ids"]
        self.cache_tensors, self.restore, self.kwargs = inputs.cache_tensors, inputs.restore, inputs.kwargs

    def call(self, model: nn.Module) -> Any:
        return model(**{**self.kwargs(), "input_ids": self.ids})


def draft_inputs(model: PreTrainedModel, workload: Workload) -> Example:
    """Inputs of a draft model: states of the large model's last layer, and keys and values of its last layers."""
    text = model.config.get_text_config()
    shape = (workload.batch, workload.query_tokens)
    shared = {}
    for layer in model.model.layers:
        heads = text.num_attention_heads // layer.self_attn.num_key_value_groups
        size = (workload.batch, heads, workload.context_tokens + workload.query_tokens, layer.self_attn.head_dim)
        keys = torch.empty(size, dtype=model.dtype, device="meta")
        shared[text.layer_types[layer.self_attn.layer_idx]] = (keys, torch.empty_like(keys))
    states = torch.empty((*shape, 2 * model.config.backbone_hidden_size), dtype=model.dtype, device="meta")
    positions = torch.zeros(shape, dtype=torch.long, device="meta")
    return Example((), {"inputs_embeds": states, "position_ids": positions, "shared_kv_states": shared})


def counted_flops(model: PreTrainedModel, inputs: Inputs) -> int:
    """FLOPs that `FlopCounterMode` counts without `scaled_dot_product_attention`."""
    model.requires_grad_(False)  # the counter hooks tensors that require a gradient, even where there is no graph
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), batched_experts(model), known_values(), _NoAttention(), counter:
        inputs.call(model)
    return int(counter.get_total_flops())


class _NoAttention(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, _, value, *_ = operands(args, kwargs)
            if query.device.type == "cpu":  # later work may depend on the values
                with _disable_current_modes():
                    return func(*args, **kwargs)
            return query.new_zeros(*query.shape[:-1], value.shape[-1])
        return func(*args, **kwargs)


def used_parameters(model: PreTrainedModel, inputs: Inputs) -> set[str]:
    """Parameters that get a gradient, or go to a torch function, in one pass."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    handed = _Handed()
    with torch.enable_grad(), batched_experts(model), known_values(), handed:
        out = inputs.call(model)
    return {names[key] for key in (handed.seen | _differentiated(out)) if key in names}


def _differentiated(out: Any) -> set[int]:
    """Leaves of the autograd graph of a result, which `backward` would give a gradient."""
    todo = [leaf.grad_fn for leaf in tree_leaves(dict(out)) if isinstance(leaf, Tensor)]
    seen: set[Any] = set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    return {id(node.variable) for node in seen if hasattr(node, "variable")}


class _Handed(TorchFunctionMode):
    """Notes the parameters that torch functions get; reading an attribute does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in ("__get__", "size", "dim", "numel", "stride", "is_floating_point"):
            self.seen.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, nn.Parameter))
        return func(*args, **kwargs)
