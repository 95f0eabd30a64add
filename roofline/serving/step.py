"""The time of a step of a serving engine, by the laws of a device, for many steps at once.

A step runs the new tokens of prompts and one token of each decoding sequence. Its kernels (`roofline.serving.shape`)
depend on the step in four ways: products on the tokens of a rank, experts on those of all ranks, attention of decoding
sequences on their number and keys, attention of prompts on the new and the cached tokens. `Plan` lists the kernels of
each part for arrays of steps, and `price` prices the plans of many models at once: a law is called once for all kernels
of its kind. What the engine's own constants multiply is counted apart: streaming kernels, and all-reduces of the
engine's own.

A kind without a law has the time of its work at `REACHED` of the datasheet, or of the nearest dtype's law; `Plan.bare`
tells its part of the time.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from roofline.dtypes import BITS
from roofline.laws.fitted import FittedLaw
from roofline.laws.kinds import LATENT_DECODE, LATENT_PREFILL, OWN_ALL_REDUCE, law_for, law_named, work_of
from roofline.laws.law import Dims, Facts, Floats
from roofline.laws.work import OPERATIONS, datasheet_s
from roofline.serving.engine import Engine
from roofline.serving.shape import ELEMENT, NORM, Served

REACHED = 0.7
"""Part of the datasheet's peaks that kernels without a law are taken to reach: large products and streams on an A100
and an H200 reach 0.6 to 0.85 of both peaks in the public tables."""
CALL_S = 4e-6
"""Least seconds of a kernel without a law."""
STREAMED = 0.8
"""Part of the memory's bandwidth that streaming kernels reach: streams of all known devices reach 0.75 to 0.95."""
LINKED = 0.75
"""Part of a link's bandwidth that an engine's own all-reduce reaches."""
USUAL_HEAD = 128.0
"""Head dim of which kernel tables have the most rows."""
SKEW = 1.2
"""Exponent of the experts' loads where no routing is known: AIConfigurator's "power_law_1.2"."""
PRODUCTS, EXPERTS, DECODE, PREFILL, MOVED = "products", "experts", "decode_attention", "prefill_attention", "moved"
PARTS = (PRODUCTS, EXPERTS, DECODE, PREFILL, MOVED)
"""Parts of a step's seconds; the last are the bytes of streaming kernels and collectives."""
MEASURED_APART = {"host": 1e-9, "row_s": 1e-12, "convert": 1e18}
"""Constants of products in 8 bits that are not the product's: the host's work for a call that is timed by itself, which
a captured graph does not wait for, and the conversion of activations, which engines do in a kernel of their own or in
the one before. Values at which their time vanishes."""

OTHERS_OWN = {"experts": {"parallel": 1e-8}, "decode_attention": {"fixed": CALL_S}}
"""Constants of kernels that belong to the engine whose kernels were measured, and their values for another engine:
launches that prepare experts on several ranks, and what a call of attention launches beside its kernel."""


@dataclass(frozen=True)
class Scheme:
    """dtypes of the parts of a served model, by the names of the kernel tables."""

    layer: str = "bfloat16"
    """Products of attention and feed-forward networks."""
    experts: str = "bfloat16"
    cache_bytes: float = 2.0
    """Bytes of a cached element."""


@dataclass(frozen=True)
class Parallel:
    """How ranks divide the experts, and the sequences where attention is not divided."""

    attention_dp: int = 1
    moe_tp: int = 1
    moe_ep: int = 1


@dataclass(eq=False)
class Plan:
    """Kernels of some steps; arrays have the shape of the steps."""

    shape: tuple[int, ...]
    kernels: list[tuple[str, str, str, Dims, Floats]] = field(default_factory=list)
    """(part, kind, dtype, sizes, number) of each kernel."""
    parts_s: dict[str, Floats] = field(default_factory=dict)
    """Seconds by part, of what needs no law or is priced already."""
    streams: Any = 0.0
    """Number of streaming kernels: an array or a number."""
    reduces: Any = 0.0
    """Number of all-reduces of the engine's own."""
    likened: bool = False
    """A kernel is priced by the law of another kind, whose bytes and FLOPs it shares."""
    bare: dict[tuple[str, str], float] = field(default_factory=dict)
    """Seconds of kernels that no law of their own priced, by part and "kind dtype", summed over the steps."""
    by_law: dict[tuple[str, str], float] = field(default_factory=dict)
    """The same of kernels that one priced."""

    def add(self, part: str, kind: str, dtype: str, dims: Mapping[str, Any], count: Any) -> None:
        """Plan a kernel of sizes that are arrays or numbers, `count` times."""
        sizes = {name: np.broadcast_to(np.asarray(size, dtype=float), self.shape) for name, size in dims.items()}
        self.kernels.append((part, kind, dtype, sizes, np.broadcast_to(np.asarray(count, dtype=float), self.shape)))

    def spend(self, part: str, seconds: Floats) -> None:
        self.parts_s[part] = self.parts_s.get(part, np.zeros(self.shape)) + seconds

    @property
    def total_s(self) -> Floats:
        return np.asarray(sum(self.parts_s.values(), np.zeros(self.shape)))


class Prices(Protocol):
    """A way to price kernels."""

    facts: Facts

    def prices(self, kind: str) -> bool: ...
    def time_s(self, kind: str, dtype: str, dims: Dims) -> tuple[Floats, bool]: ...


class Pricer:
    """Laws of one device by (kind, dtype); those of the `foreign` kinds were fitted to another engine's kernels.

    Products of the dtypes `by_main_library` then take as long as 16-bit ones of as many bytes, of half the depth.
    """

    def __init__(
        self,
        laws: Mapping[tuple[str, str], FittedLaw],
        facts: Facts,
        foreign: Collection[str] = (),
        by_main_library: Collection[str] = (),
    ) -> None:
        self.laws = {key: law for key, law in laws.items() if law.is_usable}
        self.facts = facts
        self._apart = {kind: values for kind, values in OTHERS_OWN.items() if kind in foreign}
        self._halved = frozenset(by_main_library if "matmul" in foreign else ())

    def prices(self, kind: str) -> bool:
        """Return whether there is a law of that kind, of any dtype."""
        return any(name == kind for name, _ in self.laws)

    def time_s(self, kind: str, dtype: str, dims: Dims) -> tuple[Floats, bool]:
        """Seconds of each kernel, and whether a law of its own priced them."""
        main = self.laws.get((kind, "bfloat16"))
        if kind == "matmul" and dtype in self._halved and main is not None:
            return self._of_law(main, {**dims, "k": dims["k"] / 2}), False
        law = self.laws.get((kind, dtype))
        if law is not None:
            return self._of_law(law, dims), True
        own = self._datasheet_s(kind, dtype, dims)
        near = self._nearest(kind, dtype)
        if near is None:
            return own / REACHED + CALL_S, False
        other = self._datasheet_s(kind, near.dtype, dims)
        return self._of_law(near, dims) * own / np.maximum(other, np.finfo(float).tiny), False

    def _of_law(self, law: FittedLaw, dims: Dims) -> Floats:
        """Seconds by a law, less what is not the kernel's own time (`MEASURED_APART`)."""
        time_s = law.time_s(dims, self.facts)
        known = MEASURED_APART | self._apart.get(law.kind, {})
        apart = {name: value for name, value in known.items() if name in law.values}
        if not apart:
            return time_s
        plain = self.laws.get((law.kind, "bfloat16"))
        if law.kind not in self._apart and plain is not None and "fixed" in plain.values:
            apart["fixed"] = min(law.values["fixed"], plain.values["fixed"])
        formula = law_named(law.law)
        whole, part = (
            formula.time_s(dims, self.facts, law.arithmetic, values) for values in (law.values, law.values | apart)
        )
        return np.asarray(time_s * part / whole)

    def _nearest(self, kind: str, dtype: str) -> FittedLaw | None:
        """The law of the same kind whose weights have the nearest number of bits."""
        there = [law for (name, _), law in self.laws.items() if name == kind]
        return min(there, key=lambda law: abs(BITS.get(law.dtype, 16) - BITS.get(dtype, 16)), default=None)

    def _datasheet_s(self, kind: str, dtype: str, dims: Dims) -> Floats:
        _, arithmetic = law_for(kind, dtype, self.facts)
        return datasheet_s(work_of(kind, dims, dtype), self.facts, arithmetic)


def price(plans: Sequence[Plan], pricer: Prices) -> None:
    """Turn the kernels of all plans into seconds of their parts."""
    by_law: dict[tuple[str, str, tuple[str, ...]], list[tuple[Plan, str, Dims, Floats]]] = defaultdict(list)
    for plan in plans:
        for part, kind, dtype, dims, count in plan.kernels:
            by_law[kind, dtype, tuple(sorted(dims))].append((plan, part, dims, count))
        plan.kernels.clear()
    for (kind, dtype, names), kernels in by_law.items():
        sizes = {name: np.concatenate([dims[name].ravel() for _, _, dims, _ in kernels]) for name in names}
        rows = np.stack(list(sizes.values()), axis=1)
        distinct, places = np.unique(rows, axis=0, return_inverse=True)
        seconds, own = pricer.time_s(kind, dtype, dict(zip(names, distinct.T, strict=True)))
        seconds, start = seconds[places.ravel()], 0
        for plan, part, _, count in kernels:
            size = int(np.prod(plan.shape))
            spent = seconds[start : start + size].reshape(plan.shape) * count
            plan.spend(part, spent)
            to = plan.by_law if own else plan.bare
            place = part, f"{kind} {dtype}"
            to[place] = to.get(place, 0.0) + float(spent.sum())
            start += size


def plan_tokens(
    model: Served, engine: Engine, scheme: Scheme, parallel: Parallel, tokens: Floats, rows: Floats, pricer: Prices
) -> Plan:
    """Return all but attention and experts: `tokens` of a rank go through the layers, `rows` of them give logits."""
    plan, facts = Plan(tokens.shape), pricer.facts
    tokens, rows = np.maximum(tokens, 1.0), np.maximum(rows, 1.0)
    for product in model.products:
        head = product.where == "head"
        dtype = scheme.layer if product.where in ("layer", "shared") else "bfloat16"
        plan.add(
            PRODUCTS, "matmul", dtype, {"m": rows if head else tokens, "n": product.n, "k": product.k}, product.count
        )
        if dtype != "bfloat16":
            _stream(plan, engine, "quantise", 1.5 * ELEMENT * product.k * tokens, product.count, facts)
    for attention in model.attentions:
        role = "latent" if attention.latent else "attention"
        width = 2 * ELEMENT * (attention.heads + attention.kv_heads) * attention.head_dim
        _stream(plan, engine, role, width * tokens, attention.count, facts)
    for experts in model.experts:
        _stream(plan, engine, "experts", 2 * ELEMENT * experts.hidden * tokens, experts.count, facts)
    reduced = sum(c.count for c in model.collectives if c.operation == "all_reduce" and model.ranks > 1)
    for stream in model.streams:
        joined = reduced if stream.role == NORM and engine.fuses_all_reduce else 0.0
        _stream(plan, engine, stream.role, stream.token_bytes * tokens, max(0.0, stream.count - joined), facts)
    _collectives(plan, model, engine, parallel, tokens, rows, pricer)
    return plan


def _stream(plan: Plan, engine: Engine, role: str, moved: Floats, count: float, facts: Facts) -> None:
    kernels = engine.streams.get(role, 1.0) * count
    plan.streams = plan.streams + kernels
    plan.spend(MOVED, min(kernels, count) * moved / (STREAMED * facts.bandwidth_bytes_per_s))


def plan_decode(model: Served, scheme: Scheme, batch: Floats, keys: Floats, pricer: Prices) -> Plan:
    """Attention of `batch` sequences of a rank, each to `keys`."""
    plan = Plan(batch.shape)
    for attention in model.attentions:
        sizes: dict[str, Any] = {
            "batch": np.maximum(batch, 1.0), "kv": np.maximum(keys, 1.0), "window": attention.window,
            "kv_bytes": scheme.cache_bytes, "heads": attention.heads, "kv_heads": attention.kv_heads,
            "head_dim": attention.head_dim,
        }  # fmt: skip
        if attention.latent:
            width = (attention.latent + attention.rope) / 2
            # The latent vector is key and value of one head for all; keys that carry the position are read beside it.
            # Heads of usual width with as many cached bytes stand in for it where it has no law: those of a law are
            # fitted to no head of that width, whose output would not fit into registers.
            sizes |= {"kv_heads": 1, "head_dim": width}
            if not pricer.prices(LATENT_DECODE):
                sizes |= {"kv_heads": width / USUAL_HEAD, "head_dim": USUAL_HEAD}
            unpack = ((attention.latent, attention.head_dim - attention.rope), (attention.value_dim, attention.latent))
            for n, k in unpack:
                product = {"batch": attention.heads, "m": np.maximum(batch, 1.0), "n": n, "k": k}
                plan.add(DECODE, "batched_matmul", "bfloat16", product, attention.count)
        latent = attention.latent > 0 and pricer.prices(LATENT_DECODE)
        plan.add(DECODE, LATENT_DECODE if latent else "decode_attention", "bfloat16", sizes, attention.count)
        plan.likened |= attention.latent > 0 and not latent
    return plan


def plan_prefill(model: Served, scheme: Scheme, query: Floats, before: Floats, pricer: Prices) -> Plan:
    """Attention of `query` new tokens of one prompt after `before` cached ones."""
    plan = Plan(query.shape)
    query = np.maximum(query, 1.0)
    for attention in model.attentions:
        head_dim: float = attention.head_dim
        if attention.latent:
            width = attention.heads * (attention.head_dim - attention.rope + attention.value_dim)
            product = {"m": query + before, "n": width, "k": attention.latent}
            plan.add(PREFILL, "matmul", "bfloat16", product, attention.count)
            head_dim = (attention.head_dim + attention.value_dim) / 2  # of the same FLOPs
        sizes = {
            "batch": 1.0, "query": query, "context": before, "kv": query + before, "window": attention.window,
            "kv_bytes": scheme.cache_bytes, "heads": attention.heads, "kv_heads": attention.kv_heads,
            "head_dim": head_dim,
        }  # fmt: skip
        latent = attention.latent > 0 and pricer.prices(LATENT_PREFILL)
        plan.add(PREFILL, LATENT_PREFILL if latent else "prefill_attention", "bfloat16", sizes, attention.count)
    return plan


def plan_experts(model: Served, scheme: Scheme, parallel: Parallel, tokens: Floats) -> Plan:
    """Experts of one rank for `tokens` of all ranks together, which has a share of the experts or of their width."""
    plan = Plan(tokens.shape)
    for experts in model.experts:
        dims = {
            "tokens": np.maximum(tokens, 1.0), "hidden": experts.hidden, "inner": experts.inner * model.ranks,
            "topk": experts.topk, "experts": experts.experts, "tp": parallel.moe_tp, "ep": parallel.moe_ep,
            "skew": SKEW, "weight_bits": BITS.get(scheme.experts, 16),
        }  # fmt: skip
        plan.add(EXPERTS, "experts", scheme.experts, dims, experts.count)
    return plan


def cache_bytes(model: Served, scheme: Scheme, tokens: float) -> float:
    """Bytes of a rank's cache for a sequence of so many tokens."""
    total = 0.0
    for attention in model.attentions:
        width = attention.latent + attention.rope or 2 * attention.kv_heads * attention.head_dim
        kept = min(tokens, attention.window) if attention.window else tokens
        total += attention.count * width * scheme.cache_bytes * kept
    return total


def weight_bytes(model: Served, scheme: Scheme, parallel: Parallel) -> float:
    """Bytes of a rank's weights."""
    total = 0.0
    for product in model.products:
        bits = BITS.get(scheme.layer, 16) if product.where in ("layer", "shared") else 16
        total += product.count * product.n * product.k * bits / 8 * (2 if product.where == "head" else 1)
    for experts in model.experts:
        share = experts.experts / (parallel.moe_tp * parallel.moe_ep)
        whole = 3 * experts.hidden * experts.inner * model.ranks
        total += experts.count * share * whole * BITS.get(scheme.experts, 16) / 8
    return total


def _collectives(
    plan: Plan, model: Served, engine: Engine, parallel: Parallel, tokens: Floats, rows: Floats, pricer: Prices
) -> None:
    link = pricer.facts.link_bytes_per_s or np.inf
    measured = pricer.prices(OWN_ALL_REDUCE)
    n = model.ranks
    for collective in model.collectives if n > 1 else ():
        size = collective.token_bytes * (rows if collective.where == "head" else tokens)
        own = (size <= engine.all_reduce_bytes) & (collective.operation == "all_reduce")
        at_once = tokens <= engine.one_shot_tokens
        moved = np.where(at_once, n - 1, np.minimum(n - 1, 2 * (n - 1) / n)) * size / (LINKED * link)
        dims = {"bytes": size, "ranks": n, "operation": OPERATIONS.index(collective.operation)}
        if measured:
            plan.add(MOVED, OWN_ALL_REDUCE, "float16", dims, collective.count * own)
        else:
            plan.spend(MOVED, collective.count * np.where(own, moved, 0.0))
            plan.reduces = plan.reduces + collective.count * own
        plan.add(MOVED, "collective", "float16", dims, collective.count * ~own)
    spread = parallel.attention_dp
    for experts in model.experts if spread > 1 else ():
        share = 1.0 if engine.exchange == "all_gather" else min(1.0, experts.topk / spread)
        size = ELEMENT * experts.hidden * tokens * (spread - 1) * share
        plan.spend(MOVED, 2 * experts.count * size / (LINKED * link))  # to the experts and back
        plan.reduces = plan.reduces + 2 * experts.count
