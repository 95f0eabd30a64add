"""Host time to issue one operation in eager mode, independent of the model that is profiled later.

A tiny Llama decodes one token after another; its device work is negligible, so that its wall time is Python, dispatch
and launches. The wall time is divided by the number of operations: views and allocations do not count, attention
counts as one. On a CPU it includes the operations' own fixed costs, as in any model.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from profiler.devices.backend import backend_of
from profiler.microbench.bench import Bench
from profiler.models.aten import is_metadata
from profiler.models.build import build
from profiler.record.measurement import Measurement
from profiler.timing.clocks import HostClock
from profiler.timing.engine import Case

CONTEXT = 8
"""Tokens before the decoded one: enough to fill a cache, too few to be work."""
WIDTH = 64
"""Width of the residual stream: about 0.1 MFLOP a layer and token."""
LAYERS = 8


class _Counter(TorchDispatchMode):
    """Counts the operations that make device work; attention is one, whatever it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.hidden = False
        self._functions = _AttentionAsOne(self)

    def __enter__(self) -> "_Counter":
        self._functions.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._functions.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not self.hidden and not is_metadata(func)
        return func(*args, **(kwargs or {}))


class _AttentionAsOne(TorchFunctionMode):
    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_attention = func is functional.scaled_dot_product_attention
        self._counter.operations += is_attention
        self._counter.hidden = is_attention
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._counter.hidden = False


def host_cost(bench: Bench) -> Iterator[Measurement]:
    """Time decode passes, each on a fresh cache of the same length; the device is synchronised after each."""
    dtype = next((d for d in bench.dtypes if d in ("bfloat16", "float16", "float32")), "float32")
    step: Step | None = None

    def build() -> Case[Step]:
        nonlocal step
        step = Step(bench.device, dtype)
        return Case(lambda: step, lambda s: s.run(), step.touched_bytes, lambda s, logits: s.check(logits))

    timed = bench.time("host", "operation", build, unit="s", work=1, dtype=dtype, cache="in place", clock=HostClock())
    operations = step.operations if step is not None else 1
    yield timed.model_copy(update={"work": float(operations), "parameters": {"operations": operations}})


class Step:
    """A decode pass of the tiny model that can be repeated from the same cache."""

    def __init__(self, device: torch.device, dtype: str, width: int = WIDTH, layers: int = LAYERS) -> None:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        sizes = {"vocab_size": 128, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
        self.model = build(LlamaConfig(max_position_embeddings=128, **sizes, **heads), device, dtype)
        self._device = device
        prompt = torch.arange(CONTEXT, device=device)[None]
        self._token = prompt[:, :1]
        with torch.no_grad():
            self._cache = self.model(input_ids=prompt, use_cache=True).past_key_values
            self._filled = [(layer, layer.keys, layer.values) for layer in self._cache.layers]
            self.run()  # lazy initialisation happens before the count
            self._restore()
            with _Counter() as counter:
                self._decode()
        self.operations = counter.operations
        self.touched_bytes = sum(p.nbytes for p in self.model.parameters())

    def run(self) -> Any:
        self._restore()
        logits = self._decode()
        backend_of(self._device).synchronize(self._device)
        return logits

    def check(self, logits: Any) -> None:
        if not bool(torch.isfinite(logits).all()):
            raise ArithmeticError("the logits of the tiny model are not finite")

    def _decode(self) -> Any:
        return self.model(input_ids=self._token, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits

    def _restore(self) -> None:
        for layer, keys, values in self._filled:
            layer.keys, layer.values = keys, values
