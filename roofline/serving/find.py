"""The configurations of a model on an engine that serve the most tokens within a target, on several devices.

A configuration is a device, a dtype, ranks that divide the tensors, stages of a pipeline, ranks that share the experts,
and the number of requests in flight. All are estimated from their step surfaces by array arithmetic. The best of these
estimates are replayed (`roofline.serving.replay`), and the replay decides whether the target is met.

Example: ``search(lambda ranks: served_model(name, ranks), 80, engine, schemes, devices, Degrees(), target).best``
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from roofline.hardware.spec import Link
from roofline.laws.fitted import Z90
from roofline.laws.law import Floats
from roofline.serving.engine import Engine
from roofline.serving.predict import engine_constants
from roofline.serving.replay import Load, replay
from roofline.serving.shape import ELEMENT, Served
from roofline.serving.step import MOVED, Parallel, Plan, Pricer, Scheme, cache_bytes, weight_bytes
from roofline.serving.surface import FOR_CACHE, LONG, SECONDS, TERMS, TOKENS, Surface, surfaces

LAW_SPREAD = 0.10
"""Standard deviation of log predicted ÷ measured time between tokens of an unseen model, where laws price the kernels
(docs/serving.md)."""
BARE_SPREAD = 0.5
"""The same of kernels without a law: for whole tables of products and attention on an H200 and an A100, the logarithm
of predicted ÷ measured time lies between −0.83 and +0.22."""
QUEUED_SPREAD = 0.7
"""The same of the time to the first token under load, most of which is waiting (docs/serving.md)."""
SLACK = 0.8
"""Part of an estimated time that a replay may find instead: estimates above a target ÷ this are not replayed."""
REPLAYED = 96
"""Most configurations that are replayed."""
WAVES = 3
"""Requests of a replay ÷ those in flight; the first wave is left out."""


@dataclass(frozen=True)
class Target:
    """The requests, and the longest times that are wanted."""

    prompt_tokens: int
    output_tokens: int
    ttft_s: float = math.inf
    tpot_s: float = math.inf


@dataclass(frozen=True)
class Degrees:
    """The values of each degree that are combined."""

    tensor: Sequence[int] = (1, 2, 4, 8)
    stages: Sequence[int] = (1, 2, 4)
    experts: Sequence[int] = (1,)
    batch: Sequence[int] = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    """Requests in flight on one copy of the model."""


@dataclass(frozen=True)
class Seller:
    """A device with the prices of its kernels."""

    name: str
    pricer: Pricer
    memory_bytes: float
    link: Link | None
    """The link to others of its kind."""
    cost_per_hour: float | None = None
    """Cost of one device for an hour, in any currency."""


@dataclass(frozen=True)
class Place:
    """The devices that hold one copy of the model, and how they divide it."""

    device: str
    dtype: str
    tensor: int
    stages: int
    experts: int

    @property
    def devices(self) -> int:
        return max(self.tensor, self.experts) * self.stages

    @property
    def kernels(self) -> tuple[str, int, int]:
        """Return what its kernels depend on: stages run the same ones."""
        return self.dtype, self.tensor, self.experts


@dataclass(frozen=True)
class Offer:
    """One configuration; times are estimates, or medians of a replay."""

    place: Place
    batch: int
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    """Output tokens of all requests a second, of one copy of the model."""
    cost_per_hour: float | None = None
    """Cost of all its devices."""
    replayed: bool = False
    meets: bool = False
    """Whether the replay meets the target."""
    spread: float = 0.0
    """Standard deviation of the logarithm of the time between tokens."""

    @property
    def per_device(self) -> float:
        """Tokens a second of each device."""
        return self.tokens_per_s / self.place.devices

    @property
    def per_cost(self) -> float | None:
        """Tokens for one unit of the currency."""
        return None if self.cost_per_hour is None else 3600 * self.tokens_per_s / self.cost_per_hour

    @property
    def tpot_interval_s(self) -> tuple[float, float]:
        """Ends of the 90 % interval."""
        return _ends(self.tpot_s, self.spread)

    @property
    def ttft_interval_s(self) -> tuple[float, float]:
        return _ends(self.ttft_s, QUEUED_SPREAD if self.batch > 1 else self.spread)

    @property
    def per_device_interval(self) -> tuple[float, float]:
        return _ends(self.per_device, self.spread)


@dataclass(frozen=True)
class Search:
    """All that was found."""

    target: Target
    asked: int
    """Number of configurations."""
    estimates: tuple[Offer, ...]
    """All that can run, the most tokens for each device first."""
    replayed: tuple[Offer, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason -> configurations that cannot run."""
    bare: Mapping[str, float] = field(default_factory=dict)
    """Device -> largest share of the kernels' time that no law of their own priced."""

    @property
    def meeting(self) -> tuple[Offer, ...]:
        """Those that meet the target, the most tokens for each device first."""
        return tuple(sorted((offer for offer in self.replayed if offer.meets), key=lambda offer: -offer.per_device))

    @property
    def best(self) -> Offer | None:
        """The one with the most tokens for each device."""
        return next(iter(self.meeting), None)

    @property
    def best_for_cost(self) -> Offer | None:
        priced = [offer for offer in self.meeting if offer.per_cost is not None]
        return max(priced, key=lambda offer: offer.per_cost or 0.0, default=None)

    @property
    def front(self) -> tuple[Offer, ...]:
        """Replayed configurations of which no other one has both more tokens for each device and a shorter TPOT."""
        return tuple(_front(self.replayed))


def divided(model: Served, experts: int) -> Parallel:
    """How ranks divide a model of `model.ranks` tensor ranks whose experts `experts` ranks share (1: none does).

    Raises ValueError, one line, for degrees that do not divide.
    """
    if experts == 1:
        return Parallel(moe_tp=model.ranks)
    if experts % model.ranks:
        raise ValueError(
            f"expert_parallel of {experts} does not divide into groups of {model.ranks} ranks; use a multiple"
        )
    check_experts(model, experts)
    return Parallel(attention_dp=experts // model.ranks, moe_ep=experts)


def check_experts(model: Served, ranks: int) -> None:
    """Raise ValueError, one line, where the experts of a model do not divide by so many ranks."""
    if ranks > 1 and not model.experts:
        raise ValueError(f"{model.model} has no experts to spread; use tensor_parallel")
    for experts in model.experts:
        if experts.experts % ranks:
            fits = ", ".join(str(n) for n in range(1, experts.experts + 1) if experts.experts % n == 0)
            raise ValueError(f"{experts.experts} experts do not divide by {ranks} ranks; use one of {fits}")


def search(
    model_of: Callable[[int], Served], layers: int, engine: Engine, schemes: Mapping[str, Scheme],
    sellers: Sequence[Seller], degrees: Degrees, target: Target,
) -> Search:  # fmt: skip
    """Estimate all configurations and replay the best.

    `model_of` gives one of so many tensor ranks, and raises ValueError where the model does not divide; `layers` is the
    number of layers, of which each stage has as many; `schemes` has a name for each dtype.
    """
    left_out: Counter[str] = Counter()
    offers: list[tuple[Offer, Surface]] = []
    bare: dict[str, float] = {}
    constants = engine_constants(engine)
    batches = np.array(degrees.batch, dtype=float)
    for seller in sellers:
        places = list(_places(model_of, layers, schemes, seller, degrees, left_out))
        asked_of = {place.kernels: (model, engine, scheme, parallel) for place, model, scheme, parallel in places}
        priced = surfaces(list(asked_of.values()), seller.pricer, seller.memory_bytes)
        found = dict(zip(asked_of, priced, strict=True))
        bare[seller.name] = max((sum(surface.bare.values()) for surface in priced), default=0.0)
        for place, model, scheme, parallel in places:
            surface = _staged(found[place.kernels], place, model, scheme, parallel, seller)
            for offer in _estimates(surface, place, engine, constants, batches, target, seller, left_out):
                offers.append((offer, surface))
    offers.sort(key=lambda pair: -pair[0].per_device)
    replayed = [_replayed(offer, surface, engine, constants, target) for offer, surface in _chosen(offers, target)]
    asked = len(sellers) * len(schemes) * math.prod(
        len(values) for values in (degrees.tensor, degrees.stages, degrees.experts, degrees.batch)
    )  # fmt: skip
    return Search(target, asked, tuple(offer for offer, _ in offers), tuple(replayed), dict(left_out), bare)


def _places(
    model_of: Callable[[int], Served], layers: int, schemes: Mapping[str, Scheme], seller: Seller, degrees: Degrees,
    left_out: Counter[str],
) -> Iterator[tuple[Place, Served, Scheme, Parallel]]:  # fmt: skip
    each = len(degrees.batch)
    for tensor in degrees.tensor:
        try:
            model = model_of(tensor)
        except ValueError as error:
            left_out[str(error)] += each * len(schemes) * len(degrees.stages) * len(degrees.experts)
            continue
        for experts in degrees.experts:
            try:
                parallel = divided(model, experts)
            except ValueError as error:
                left_out[str(error)] += each * len(schemes) * len(degrees.stages)
                continue
            for stages in degrees.stages:
                group = model.ranks * parallel.attention_dp * stages
                if layers % stages:
                    left_out[f"{layers} layers do not divide by {stages} stages"] += each * len(schemes)
                elif group > 1 and (seller.link is None or seller.link.bytes_per_s(group) is None):
                    left_out[f"{seller.name} has no link that joins {group} of its kind"] += each * len(schemes)
                else:
                    for name, scheme in schemes.items():
                        yield Place(seller.name, name, tensor, stages, experts), model, scheme, parallel


def _staged(
    surface: Surface, place: Place, model: Served, scheme: Scheme, parallel: Parallel, seller: Seller
) -> Surface:
    """The surface of a step through all stages, each of which has its part of the weights and of the cache.

    As many groups of sequences as there are stages take turns; a group has its part of the tokens that fit. Between
    two stages the hidden state of each token is sent.
    """
    free = FOR_CACHE * seller.memory_bytes * place.stages - weight_bytes(model, scheme, parallel)
    a_token = cache_bytes(model, scheme, LONG) / LONG
    most = parallel.attention_dp * max(free, 0.0) / a_token / place.stages if a_token else math.inf
    if place.stages == 1:
        return replace(surface, most_tokens=most)
    link = seller.link
    rate = link.bytes_per_s(2) if link else None
    message_s = link.latency_s.value if link and link.latency_s else 0.0
    hidden = next((product.k for product in model.products if product.where == "layer"), 0)
    sent_s = (place.stages - 1) * (message_s + ELEMENT * hidden * TOKENS / (rate or math.inf))

    def sends(plan: Plan) -> Plan:
        parts = dict(plan.parts_s)
        parts[MOVED] = parts.get(MOVED, np.zeros_like(TOKENS)) + sent_s
        return replace(plan, parts_s=parts)

    return replace(surface, tokens=sends(surface.tokens), logits=sends(surface.logits), most_tokens=most)


def _estimates(
    surface: Surface, place: Place, engine: Engine, constants: Floats, batches: Floats, target: Target, seller: Seller,
    left_out: Counter[str],
) -> Iterator[Offer]:  # fmt: skip
    """Estimates for each number of requests in flight that fits."""
    prompt, output = target.prompt_tokens, target.output_tokens
    own = np.ceil(batches / place.stages)  # sequences of the group that runs
    few, full = batches < place.stages * surface.spread, own * (prompt + output) > surface.most_tokens
    nothing = prompt + output > surface.most_tokens
    left_out["fewer requests in flight than stages or ranks with requests of their own"] += int(np.sum(few & ~full))
    if nothing:
        left_out["the memory holds the weights, but not one request" if surface.most_tokens else
                 "the weights do not fit into the memory"] += int(full.sum())  # fmt: skip
    else:
        left_out["the cache does not hold so many requests"] += int(full.sum())
    kept = ~few & ~full
    if not kept.any():
        return
    batch, own = batches[kept], own[kept]
    keys, together = prompt + output / 2, np.minimum(surface.spread, own)
    room = np.maximum(1.0, engine.chunk_tokens * surface.spread - (own if engine.mixes else 0))
    passes = np.ceil(together * prompt / room)
    before = prompt * (passes - 1) / (2 * passes)
    beside = own - 1 if engine.mixes else np.zeros_like(own)
    decode_s = surface.each_s(constants, own, keys)
    pass_s = surface.each_s(constants, beside, keys, together * prompt / passes, before, together)
    prompt_s = passes * pass_s
    added_s = prompt_s - (passes * decode_s if engine.mixes else 0.0)
    tpot_s = decode_s + (own - 1) / together * np.maximum(added_s, 0.0) / output
    rate = batch * output / (prompt_s + (output - 1) * tpot_s)
    cost = None if seller.cost_per_hour is None else seller.cost_per_hour * place.devices
    for at, first_s, token_s, tokens in zip(batch, prompt_s, tpot_s, rate, strict=True):
        yield Offer(place, int(at), float(first_s), float(token_s), float(tokens), cost)


def _chosen(offers: Sequence[tuple[Offer, Surface]], target: Target) -> list[tuple[Offer, Surface]]:
    """The estimates to replay: each device's front and, in turns, the most tokens for each device and for the cost."""
    near = [
        pair for pair in offers
        if SLACK * pair[0].tpot_s <= target.tpot_s and SLACK * pair[0].ttft_s <= target.ttft_s
    ]  # fmt: skip
    fronts = [
        id(offer)
        for name in dict.fromkeys(offer.place.device for offer, _ in offers)
        for offer in _front([offer for offer, _ in near if offer.place.device == name])
    ]
    by_cost = sorted(near, key=lambda pair: -(pair[0].per_cost or 0.0))
    wanted = dict.fromkeys(id(offer) for pair in zip(near, by_cost, strict=True) for offer, _ in pair)
    order = {place: at for at, place in enumerate(dict.fromkeys([*_spread_out(fronts, REPLAYED // 2), *wanted]))}
    return sorted(near, key=lambda pair: order[id(pair[0])])[:REPLAYED]


def _spread_out(places: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly chosen."""
    return [places[i] for i in np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).astype(int))]


def _front(offers: Sequence[Offer]) -> list[Offer]:
    """Offers of which no other one has both more tokens for each device and a shorter time between tokens."""
    front: list[Offer] = []
    for offer in sorted(offers, key=lambda offer: (-offer.per_device, offer.tpot_s)):
        if not front or offer.tpot_s < front[-1].tpot_s:
            front.append(offer)
    return front


def _replayed(offer: Offer, surface: Surface, engine: Engine, constants: Floats, target: Target) -> Offer:
    """The offer with the times of a replay."""
    own = math.ceil(offer.batch / offer.place.stages)
    done = replay(surface, Load(own, target.prompt_tokens, target.output_tokens, waves=WAVES), constants, engine)
    first_s, token_s = float(np.median(done.first_s)), float(np.median(done.token_s))
    rate = own * offer.place.stages * target.output_tokens / float(np.mean(done.request_s))  # Little's law
    parts = done.token * constants
    share = parts / parts.sum()
    kernels, without = float(share[: len(SECONDS)].sum()), sum(surface.bare.values())
    spreads = [kernels * ((1 - without) * LAW_SPREAD + without * BARE_SPREAD)]
    spreads += [share[i] * engine.constants[name].spread for i, name in enumerate(TERMS) if name not in SECONDS]
    return replace(
        offer, ttft_s=first_s, tpot_s=token_s, tokens_per_s=min(rate, offer.batch / token_s), replayed=True,
        meets=first_s <= target.ttft_s and token_s <= target.tpot_s, spread=float(np.sqrt(np.sum(np.square(spreads)))),
    )  # fmt: skip


def _ends(value: float, spread: float) -> tuple[float, float]:
    return value * math.exp(-Z90 * spread), value * math.exp(Z90 * spread)
