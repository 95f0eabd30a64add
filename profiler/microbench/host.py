"""Host time to issue one operation in eager mode, independent of the model that is profiled later.

A tiny Llama decodes one token after another; its device work is negligible, so that its wall time is Python,
dispatch and launches. Divided by the operations it executes: no views, no allocations, attention as one. On a CPU
the operations' own fixed costs are in it, as they are in any model.

Example: ``measure(torch.device("cpu"), "float32", budget_s=1.5).seconds_per_op``
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from profiler.microbench.undisturbed import collect, fastest_s
from profiler.models.operators import is_metadata
from profiler.timing.clock import HostClock
from profiler.timing.sampler import Samples

CONTEXT = 8
"""Tokens before the decoded one: enough to have a cache, too few to be work."""


@dataclass(frozen=True, slots=True)
class HostCost:
    """Wall time of a pass and the operations in it."""

    operations: int
    samples: Samples

    @property
    def seconds_per_op(self) -> float:
        return fastest_s(self.samples) / self.operations


class _Attention(TorchFunctionMode):
    """Counts attention as one operation and hides what it calls."""

    def __init__(self, counter: "_Counter") -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self._counter.operations += 1
        self._counter.counting = False
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._counter.counting = True


class _Counter(TorchDispatchMode):
    """Counts the operations that make device work."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.counting = True
        self._attention = _Attention(self)

    def __enter__(self) -> "_Counter":
        self._attention.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, trace)
        self._attention.__exit__(kind, value, trace)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += self.counting and not is_metadata(func)
        return func(*args, **(kwargs or {}))


def tiny_llama(device: torch.device, dtype: str) -> LlamaForCausalLM:
    """Eight layers of width 64: about 0.1 MFLOP a layer and token."""
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype)).eval()


def measure(device: torch.device, dtype: str, *, budget_s: float) -> HostCost:
    """Host seconds an operation: the fastest tenth of decode passes, each on a fresh cache of the same length.

    The host's clock, with the device synchronised at the end of each sample.
    """
    model = tiny_llama(device, dtype)
    prompt = torch.arange(CONTEXT, device=device)[None]
    token = prompt[:, :1]

    def decode(cache: Any) -> None:
        model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)

    with torch.no_grad():
        cache = model(input_ids=prompt, use_cache=True).past_key_values
        filled = [(layer, layer.keys, layer.values) for layer in cache.layers]

        def step() -> None:
            for layer, keys, values in filled:
                layer.keys, layer.values = keys, values
            decode(cache)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        step()
        for layer, keys, values in filled:
            layer.keys, layer.values = keys, values
        with _Counter() as counter:
            decode(cache)
        samples = collect(step, HostClock(), budget_s=budget_s, min_sample_s=0.0)
    return HostCost(counter.operations, samples)
