"""The step of one model on one engine as a surface: seconds against tokens, decoding sequences, keys and prompts.

The laws price the parts of a step on grids, once; a step is then three interpolations, so that a replay can ask for
any number of them. Time of attention is linear in keys and nearly so in sequences; that of products has steps where a
library changes its tile, which is why tokens have the finest grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roofline.laws.law import Floats
from roofline.serving import step
from roofline.serving.engine import Engine
from roofline.serving.shape import Served
from roofline.serving.step import MOVED, PARTS, PRODUCTS, Parallel, Plan, Prices, Scheme

Asked = tuple[Served, Engine, Scheme, Parallel]
PROMPTS, LAUNCHING = "prompts", "launching"
SECONDS = (*PARTS, PROMPTS, LAUNCHING)
TERMS = (*SECONDS, "step", "sequence", "stream", "reduce")
"""Terms of a step: seconds of its parts, those that the tokens of prompts add to its products and experts, and
those in which the device waits for launches; and numbers of steps, decoding sequences, streaming kernels and
all-reduces of the engine's own."""
FOR_CACHE = 0.87
"""Part of a device's memory for weights and caches: engines take 0.9 by default, of which activations need some."""
LITTLE = 0.1
"""Share of a step's seconds without a law of their own up to which a model counts as priced."""
LONG = 8192.0
"""Tokens of a sequence for which the size of its cache is taken."""

TOKENS = np.unique(np.concatenate([
    np.arange(1, 9), np.arange(10, 17, 2), np.arange(20, 33, 4), np.arange(40, 65, 8), np.arange(80, 129, 16),
    np.arange(160, 257, 32), np.arange(320, 513, 64), np.arange(640, 1025, 128), np.arange(1280, 2049, 256),
    np.arange(2560, 4097, 512), np.arange(5120, 16385, 1024),
])).astype(float)  # fmt: skip
"""Tokens of a rank in a step."""
BATCHES = np.array([1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024], dtype=float)
KEYS = np.array([64, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 32768, 65536, 131072], float)
NEW = np.array([16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384], dtype=float)
BEFORE = np.array([0, 512, 2048, 8192, 32768, 131072], dtype=float)


@dataclass(eq=False)
class Surface:
    """Seconds and numbers on the grids above; the seconds hold none of the engine's own constants."""

    tokens: Plan
    """Layers without attention and experts, shape (TOKENS,); one token gives logits."""
    logits: Plan
    """The same where every token gives logits."""
    experts: Plan
    """Experts, shape (TOKENS,), tokens of all ranks together."""
    decode: Plan
    """Attention of decoding sequences, shape (BATCHES, KEYS)."""
    prefill: Plan
    """Attention of one prompt, shape (NEW, BEFORE)."""
    spread: int
    """Ranks that have sequences of their own."""
    most_tokens: float
    """Tokens of all sequences that fit into the caches of the group."""
    launch_s: float = 0.0
    """Seconds in which the host launches all kernels of a pass with prompts; 0 where such passes are captured."""

    def __post_init__(self) -> None:
        zero, one = np.zeros_like(TOKENS), np.ones_like(TOKENS)
        # Products, bytes moved and all-reduces of the layers, and what logits add for each row.
        self._layers = np.stack([
            self.tokens.parts_s.get(PRODUCTS, zero), self.tokens.parts_s.get(MOVED, zero), self.tokens.reduces * one,
        ], axis=1)  # fmt: skip
        every = np.stack([self.logits.parts_s.get(PRODUCTS, zero), self.logits.parts_s.get(MOVED, zero)], axis=1)
        self._logits = every - self._layers[:, :2]
        self._experts_s = self.experts.total_s
        self._decode_s, self._prefill_s = self.decode.total_s, self.prefill.total_s
        self.streams = float(np.max(self.tokens.streams))

    def terms(
        self, batch: float, keys: float, new: float = 0.0, before: float = 0.0, prompts: float = 1.0
    ) -> tuple[float, ...]:
        """Return the parts of a step of the whole group, in the order of `TERMS`: `batch` decoding sequences, `keys`
        each, and `new` tokens, of `prompts` prompts that have `before` cached ones each."""
        own, added = batch / self.spread, new / min(self.spread, max(prompts, 1.0))
        together, moved, reduces = _row(self._layers, own + added)
        more_products, more_moved = _row(self._logits, own + (1.0 if new else 0.0))
        products = _row(self._layers, own)[0] if new else together
        experts = float(np.interp(batch, TOKENS, self._experts_s)) if self.experts.parts_s else 0.0
        prompts_s = together - products
        if new and self.experts.parts_s:
            prompts_s += float(np.interp(batch + new, TOKENS, self._experts_s)) - experts
        decode = _bilinear(BATCHES, KEYS, self._decode_s, own, keys) if batch else 0.0
        prefill = 0.0
        if new:
            each = max(1.0, np.ceil(prompts / self.spread))
            prefill = each * _bilinear(NEW, BEFORE, self._prefill_s, new / max(prompts, 1.0), before)
        seconds = (products + more_products, experts, decode, prefill, moved + more_moved, prompts_s)
        launching = max(0.0, self.launch_s - sum(seconds)) if new else 0.0
        return (*seconds, launching, 1.0, batch, self.streams, reduces)

    def each_term(
        self, batch: Any, keys: Any, new: Any = 0.0, before: Any = 0.0, prompts: Any = 1.0
    ) -> tuple[Floats, ...]:
        """The same for many steps at once: numbers or arrays that broadcast against each other, as do the results.

        A grid of tokens × sequences × keys is asked for with arrays of shapes (a, 1, 1), (b, 1) and (c,): then each
        part is interpolated only over what it depends on.
        """
        batch, keys, new, before, prompts = (np.asarray(size, float) for size in (batch, keys, new, before, prompts))
        own, added = batch / self.spread, new / np.minimum(self.spread, np.maximum(prompts, 1.0))
        together, moved, reduces = _rows(self._layers, own + added)
        more_products, more_moved = _rows(self._logits, own + (new > 0))
        products, experts = _rows(self._layers[:, :1], own)[0], np.zeros(())
        prompts_s = np.where(new > 0, together - products, 0.0)
        if self.experts.parts_s:
            experts = np.interp(batch, TOKENS, self._experts_s)
            prompts_s = prompts_s + np.where(new > 0, np.interp(batch + new, TOKENS, self._experts_s) - experts, 0.0)
        decode = np.where(batch > 0, _each_bilinear(BATCHES, KEYS, self._decode_s, own, keys), 0.0)
        prefill = _each_bilinear(NEW, BEFORE, self._prefill_s, new / np.maximum(prompts, 1.0), before)
        prefill = np.where(new > 0, np.maximum(1.0, np.ceil(prompts / self.spread)) * prefill, 0.0)
        seconds = (products + more_products, experts, decode, prefill, moved + more_moved, prompts_s)
        launching = np.zeros(())
        if self.launch_s:
            launching = np.where(new > 0, np.maximum(0.0, self.launch_s - sum(seconds)), 0.0)
        return (*seconds, launching, np.ones(()), batch, np.asarray(self.streams), reduces)

    def each_s(
        self, constants: Floats, batch: Any, keys: Any, new: Any = 0.0, before: Any = 0.0, prompts: Any = 1.0
    ) -> Floats:
        """Seconds of many steps at once, in the shape to which the sizes broadcast; `constants` as in `replay`."""
        shape = np.broadcast_shapes(*(np.shape(size) for size in (batch, keys, new, before, prompts)))
        total: Floats = np.zeros(())
        for constant, term in zip(constants, self.each_term(batch, keys, new, before, prompts), strict=True):
            total = total + constant * term
        return np.broadcast_to(total, shape)

    @property
    def is_whole(self) -> bool:
        """Return whether laws of their own price all kernels but a little."""
        return not (self.decode.likened or self.prefill.likened) and sum(self.bare.values()) < LITTLE

    @property
    def bare(self) -> dict[str, float]:
        """Part of all priced seconds that no law of their own priced, by kind and dtype."""
        plans = (self.tokens, self.experts, self.decode, self.prefill)
        total = sum(float(plan.total_s.sum()) for plan in plans)
        shares: dict[str, float] = {}
        for plan in plans:
            for (_, name), seconds in plan.bare.items():
                shares[name] = shares.get(name, 0.0) + seconds / total
        return shares


def _row(table: Floats, tokens: float) -> list[float]:
    """A row of a table over `TOKENS`, linear between and beyond them."""
    i = int(np.clip(np.searchsorted(TOKENS, tokens) - 1, 0, len(TOKENS) - 2))
    x = max(0.0, (tokens - TOKENS[i]) / (TOKENS[i + 1] - TOKENS[i]))
    return list(table[i] * (1 - x) + table[i + 1] * x)


def _rows(table: Floats, tokens: Floats) -> list[Floats]:
    """The same for many numbers of tokens: an array for each column of the table."""
    i, x = _place(TOKENS, tokens)
    return [column[i] + np.diff(column, append=0.0)[i] * x for column in table.T]


def _each_bilinear(rows: Floats, columns: Floats, values: Floats, row: Floats, column: Floats) -> Floats:
    """The same as `_bilinear` for many places."""
    (i, x), (j, y) = _place(rows, row), _place(columns, column)
    flat, place = values.ravel(), i * values.shape[1] + j
    near = flat[place] * (1 - y) + flat[place + 1] * y
    place = place + values.shape[1]
    return np.asarray(near * (1 - x) + (flat[place] * (1 - y) + flat[place + 1] * y) * x)


def _place(axis: Floats, sizes: Floats) -> tuple[NDArray[np.int_], Floats]:
    """The interval of an axis in which each size lies, and how far within it: 0 below the axis, above 1 beyond it."""
    i = np.clip(np.searchsorted(axis, sizes) - 1, 0, len(axis) - 2)
    return i, np.maximum(0.0, (sizes - axis[i]) / np.diff(axis)[i])


def _bilinear(rows: Floats, columns: Floats, values: Floats, row: float, column: float) -> float:
    """Interpolation on a grid, constant below it and linear beyond."""
    i = int(np.clip(np.searchsorted(rows, row) - 1, 0, len(rows) - 2))
    j = int(np.clip(np.searchsorted(columns, column) - 1, 0, len(columns) - 2))
    x = max(0.0, (row - rows[i]) / (rows[i + 1] - rows[i]))
    y = max(0.0, (column - columns[j]) / (columns[j + 1] - columns[j]))
    near = values[i, j] * (1 - y) + values[i, j + 1] * y
    far = values[i + 1, j] * (1 - y) + values[i + 1, j + 1] * y
    return float(near * (1 - x) + far * x)


def surfaces(asked: Sequence[Asked], pricer: Prices, memory_bytes: float) -> list[Surface]:
    """Surfaces of many models, engines and parallel sizes, priced together, on devices of `memory_bytes`."""
    batch, keys = np.meshgrid(BATCHES, KEYS, indexing="ij")
    new, before = np.meshgrid(NEW, BEFORE, indexing="ij")
    made = []
    for model, engine, scheme, parallel in asked:
        plans = (
            step.plan_tokens(model, engine, scheme, parallel, TOKENS, np.ones_like(TOKENS), pricer),
            step.plan_tokens(model, engine, scheme, parallel, TOKENS, TOKENS, pricer),
            step.plan_experts(model, scheme, parallel, TOKENS),
            step.plan_decode(model, scheme, batch, keys, pricer),
            step.plan_prefill(model, scheme, new, before, pricer),
        )
        free = FOR_CACHE * memory_bytes - step.weight_bytes(model, scheme, parallel)
        a_token = step.cache_bytes(model, scheme, LONG) / LONG
        most = parallel.attention_dp * max(free, 0.0) / a_token if a_token else np.inf
        launch_s = 0.0 if engine.captures_prompts else kernels(model, engine) * engine.constants["launch"].value
        made.append((plans, parallel.attention_dp, float(most), launch_s))
    step.price([plan for plans, *_ in made for plan in plans], pricer)
    return [Surface(*plans, spread, most, launch_s) for plans, spread, most, launch_s in made]


def kernels(model: Served, engine: Engine) -> float:
    """Number of kernels of a step."""
    anchors = sum(
        kernel.count
        for parts in (model.products, model.attentions, model.experts, model.collectives)
        for kernel in parts
    )
    return anchors + sum(engine.streams.get(stream.role, 1.0) * stream.count for stream in model.streams)
