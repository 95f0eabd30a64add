"""Seconds of processor time for a million steps of a serving engine, as scattered points and as a grid.

Prints figures and judges nothing. Run: ``python -m pytest -s tests/benchmarks/test_step_surface.py``
"""

import time

import numpy as np

from roofline.hardware.load import load_device
from roofline.hardware.spec import facts_of
from roofline.laws.law import Floats
from roofline.serving.engine import engine_named
from roofline.serving.shape import Attention, Collective, Experts, Product, Served, Stream
from roofline.serving.step import Parallel, Pricer, Scheme
from roofline.serving.surface import TERMS, Surface, surfaces

MODEL = Served(
    "mixture", 2, (Product("qkv", "layer", 2048, 2048, 48), Product("lm_head", "head", 76_000, 2048, 1)),
    (Attention(16, 2, 128, 128, 0, 0, 0, 48),), (Experts(2048, 384, 128, 8, 48),),
    (Collective("all_reduce", "layer", 4096.0, 97),), (Stream("norm", 16_384.0, 97),),
)  # fmt: skip
POINTS = 10**6


def test_a_million_steps() -> None:
    facts = facts_of(load_device("nvidia-h100-sxm"))
    asked = (MODEL, engine_named("sglang"), Scheme(), Parallel(moe_tp=2))
    (surface,) = surfaces([asked], Pricer({}, facts), 80e9)
    draw = np.random.default_rng(0)
    scattered = (draw.integers(1, 1024, POINTS), draw.integers(1, 131_072, POINTS), draw.integers(0, 16_384, POINTS))
    grid = (np.arange(1.0, 101)[:, None], np.linspace(64, 131_072, 100), np.linspace(0, 16_384, 100)[:, None, None])
    for name, (batch, keys, new) in (("scattered points", scattered), ("a grid of 100 x 100 x 100", grid)):
        seconds, used_s = timed(surface, batch, keys, new)
        print(f"\n{seconds.size:,} steps, {name}: {used_s:.3f} s of processor time, one thread")


def timed(surface: Surface, batch: Floats, keys: Floats, new: Floats) -> tuple[Floats, float]:
    """The result and the least of three times."""
    used = []
    for _ in range(3):
        began = time.process_time()
        seconds = surface.each_s(np.ones(len(TERMS)), batch, keys, new, 512.0)
        used.append(time.process_time() - began)
    return seconds, min(used)
