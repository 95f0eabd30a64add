"""A processor that exists on paper: products that take a made-up time on a clock that only they move.

Example: ``paper = SlowProducts(monkeypatch, {("bfloat16", "k×n"): 1e9, ("bfloat16", "n×k"): 20e9})``
"""

from collections.abc import Mapping

import pytest
import torch
from pretended import Quiet

from profiler.microbench import matmul, peak
from profiler.microbench.bench import Bench
from profiler.microbench.matmul import Shape, flops, layouts
from profiler.timing.clocks import Call
from profiler.timing.engine import Case

TWO_CORES = {
    ("float32", "k×n"): 150e9, ("float32", "n×k"): 150e9,
    ("bfloat16", "k×n"): 1e9, ("bfloat16", "n×k"): 20e9,
    ("float16", "k×n"): 1e9, ("float16", "n×k"): 1e9,
}  # fmt: skip
"""As measured on two cores with AVX2 and no bfloat16 instructions."""


class PaperClock:
    """Time passes in calls alone."""

    name, replays = "paper", False

    def __init__(self) -> None:
        self.at_s = 0.0

    def now(self) -> float:
        return self.at_s

    def time(self, call: Call, repeats: int) -> float:
        began = self.at_s
        for _ in range(repeats):
            call()
        return self.at_s - began + 1e-9  # a call that does nothing takes some time too


class SlowProducts:
    """Products that run at these rates, FLOP/s by type and layout; a type that is not named has no product."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rates: Mapping[tuple[str, str], float]) -> None:
        self.clock = PaperClock()
        self.rates = rates
        self.calls: list[tuple[str, Shape, str]] = []
        for module in (matmul, peak):
            monkeypatch.setattr(module, "product_case", self.product_case)

    def product_case(self, dtype: str, shape: Shape, device: torch.device, layout: str | None = None) -> Case[int]:
        layout = layout or layouts(dtype)[0]
        if (dtype, layout) not in self.rates:
            raise NotImplementedError(f"no {dtype} product")

        def run(operand: int) -> None:
            self.clock.at_s += flops(shape) / self.rates[dtype, layout]
            self.calls.append((dtype, shape, layout))

        return Case(lambda: 0, run, 64)

    def bench(self, **given: object) -> Bench:
        made = Bench(torch.device("cpu"), **given)  # type: ignore[arg-type]
        made.clock, made.watch = self.clock, Quiet()
        return made
