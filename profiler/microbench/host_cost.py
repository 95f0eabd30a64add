"""Fixed costs of starting work: an eager operation, a call, a kernel, a graph's replay, a wait; and what clocks add.

- Eager: a tiny Llama decodes token after token; wall time ÷ operations, where views and allocations do not count and
  attention is one. On a CPU it includes the operations' own fixed costs, as in any model.
- "call": host time to issue one operation on one element with a given output. On a CPU this is the whole operation.
- "back to back", "graph N": device time from one tiny kernel to the next in a full queue, or from one replay to the
  next of a graph of N dependent kernels. A line over N gives a replay and a node (`calibrate.device.costs`).
- "synchronize": host time to wait for an idle device.
- The same kernels timed by events, kernel spans and graph replay: all but spans include the gap of some 2 µs.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from profiler.devices.backend import Graph, backend_of
from profiler.microbench.bench import Bench
from profiler.microbench.matmul import product_case
from profiler.microbench.memory import case, normal
from profiler.models.aten import is_metadata
from profiler.models.build import build
from profiler.record.measurement import Measurement
from profiler.timing.clocks import Call, Clock, GraphClock, HostClock, KernelClock, capture
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


NODES = (1, 4, 16, 64, 256)
"""Numbers of kernels in a graph; a decode step of a small model has some hundred."""
ELEMENT_BYTES = 4
TOLERANCE = 1e-5
"""Relative error of a sum of a few hundred float32: a rounding (6e-8) each."""


class IssueClock(HostClock):
    """Times how long the host takes to enqueue calls: the device is idle before, and is not waited for.

    A sample must hold fewer launches than the device's queue (1024), which otherwise fills.
    """

    name = "monotonic clock, device not waited for"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def time(self, call: Call, repeats: int) -> float:
        backend_of(self._device).synchronize(self._device)
        return super().time(call, repeats)


@dataclass(frozen=True, slots=True)
class Chain:
    """A captured chain of additions: value i + 1 is value i plus 1."""

    values: Tensor
    """float32, shape (nodes + 1,)"""
    graph: Graph


def launch(bench: Bench) -> Iterator[Measurement]:
    """Time every case in seconds; a CPU has only the call."""

    def time(name: str, case: Case[Any], clock: Clock | None = None, **parameters: int | float | str) -> Measurement:
        about: dict[str, Any] = {"cache": "in place", "parameters": parameters, "clock": clock}
        return bench.time("launch", name, lambda: case, unit="s", work=1, **about)

    device, backend = bench.device, bench.backend
    yield time("call", addition(device), IssueClock(device) if backend.runs_ahead_of_host else None)
    if not backend.captures_graphs:
        yield bench.missing("launch", "graph", unit="s", reason="CUDA graphs need a GPU")
        return
    yield time("back to back", addition(device))
    for nodes in NODES:
        yield time(f"graph {nodes}", replay(nodes, device), nodes=nodes)
    yield time("synchronize", Case(lambda: None, lambda _: backend.synchronize(device), 0), HostClock())


def addition(device: torch.device) -> Case[tuple[Tensor, ...]]:
    """The case a + b of one element, into a given output."""

    def check(operands: tuple[Tensor, ...], result: object) -> None:
        a, b, out = (float(tensor) for tensor in operands)
        _agree(out, a + b)

    return Case(
        lambda: (normal(1, device), normal(1, device), torch.full((1,), math.nan, device=device)),
        lambda operands: torch.add(operands[0], operands[1], out=operands[2]),
        3 * ELEMENT_BYTES,
        check,
    )


def replay(nodes: int, device: torch.device) -> Case[Chain]:
    """The case of one replay of a graph of `nodes` kernels."""

    def make() -> Chain:
        values = torch.full((nodes + 1,), math.nan, device=device)
        steps = [(values[i], values[i + 1]) for i in range(nodes)]

        def add() -> None:
            for before, after in steps:
                torch.add(before, 1.0, out=after)

        graph = capture(add, 1, device)
        values[0].copy_(normal(1, device)[0])  # the rest is still NaN until the graph has run
        return Chain(values, graph)

    def check(chain: Chain, result: object) -> None:
        _agree(float(chain.values[-1]), float(chain.values[0]) + nodes)

    return Case(make, lambda chain: chain.graph.replay(), (nodes + 1) * ELEMENT_BYTES, check)


def _agree(written: float, expected: float) -> None:
    if not abs(written - expected) <= TOLERANCE * max(1.0, abs(expected)):  # NaN is refused too
        raise ArithmeticError(f"the kernels gave {written:g}, not {expected:g}")


TRIADS = (16 << 20, 64 << 20, 256 << 20)
"""Sizes of a triad's operand in bytes; the triad takes 10 to 200 µs at 4 TB/s."""
SQUARES = (2048, 4096)
"""Sides of square bf16 products, which take 20 to 200 µs at 800 TFLOP/s."""
SPANS_BUDGETS = 4
"""Kernel spans get so many budgets of a case: each sample is a profiler session of some tenths of a second."""


def clocks(bench: Bench) -> Iterator[Measurement]:
    """Time each kernel with each clock, in seconds; a CPU has only one clock."""
    if not bench.backend.captures_graphs:
        yield bench.missing("clock", "all", unit="s", reason="a CPU has one clock: its calls return when they are done")
        return
    builds: dict[str, Callable[[], Case[Any]]] = {
        f"triad {size}": partial(case, "triad", size, bench.device) for size in TRIADS
    }
    builds |= {f"product {n}": partial(product_case, "bfloat16", (n, n, n), bench.device) for n in SQUARES}
    for name, make in builds.items():
        for clock in (bench.clock, GraphClock(bench.device), KernelClock(bench.device)):
            budget_s = bench.budget_s * (SPANS_BUDGETS if isinstance(clock, KernelClock) else 1)
            label = f"{name}, {clock.name}"
            yield bench.time("clock", label, make, unit="s", work=1, cache="in place", clock=clock, budget_s=budget_s)
