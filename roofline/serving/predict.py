"""The time of single steps of an engine, each kernel priced at its own sizes, and what of it no law and no kernel is.

A step is a pass of the engine: chunks of prompts, decoding sequences, or both where the engine mixes them; more new
tokens than a chunk holds are several passes. Beside the kernels' seconds stand the engine's own, which no kernel table
holds: their constants are the priors of `roofline/engines`, with the intervals that these state.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from roofline.laws.fitted import Z90
from roofline.laws.law import Floats
from roofline.serving.engine import Engine
from roofline.serving.replay import Load, replay
from roofline.serving.shape import Served
from roofline.serving.step import (
    DECODE,
    EXPERTS,
    MOVED,
    PARTS,
    PREFILL,
    PRODUCTS,
    Parallel,
    Plan,
    Prices,
    Scheme,
    cache_bytes,
    plan_decode,
    plan_experts,
    plan_prefill,
    plan_tokens,
    price,
    weight_bytes,
)
from roofline.serving.surface import SECONDS, TERMS, kernels, surfaces
from roofline.workload import Workload

LAUNCH = "launch"
OWN = ("step", "sequence", "stream", "reduce", LAUNCH)
"""The engine's constants: host time of a step and of a sequence, starts of streaming kernels and of all-reduces, and
the host's launches of kernels where that takes longer than the kernels."""
HOST = ("step", "sequence", LAUNCH)
"""Those that are time of the host."""

MOST_SEQUENCES = 8192
"""Sequences of a step or in flight: several times what the engines take by default (256 to 2,048)."""


@dataclass(frozen=True)
class Own:
    """Seconds of one of the engine's constants in a step."""

    time_s: float
    low_s: float
    high_s: float
    """Ends of the 90 % interval of its prior."""
    times: float
    """How often it counts."""


@dataclass
class EngineStep:
    """One workload on all ranks of a group."""

    workloads: tuple[Workload, ...]
    passes: int = 0
    parts_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    """Seconds of kernels by their part of the step."""
    by_law: dict[str, float] = field(default_factory=dict)
    """Seconds of kernels that a law of their own priced, by kind and dtype."""
    likened: dict[str, float] = field(default_factory=dict)
    """Seconds of kernels with the price of the nearest law or the datasheet, by kind and dtype of what they are, or of
    the law that they are likened to."""
    sources: dict[str, dict[str, float]] = field(default_factory=dict)
    """Seconds of each part by what priced them."""
    own: dict[str, Own] = field(default_factory=dict)
    cache_bytes: float = 0.0
    """Bytes of a rank's cache after the step."""

    @property
    def kernels_s(self) -> float:
        return sum(self.parts_s.values())

    @property
    def host_s(self) -> float:
        return sum(self.own[name].time_s for name in HOST)

    @property
    def time_s(self) -> float:
        return self.kernels_s + sum(own.time_s for own in self.own.values())

    @property
    def interval_s(self) -> tuple[float, float]:
        """Ends of the 90 % interval by the engine's constants alone, independent of each other."""
        below, above = (
            float(np.sqrt(sum((end(own) - own.time_s) ** 2 for own in self.own.values())))
            for end in (lambda own: own.low_s, lambda own: own.high_s)
        )
        return self.time_s - below, self.time_s + above

    @property
    def without_law(self) -> float:
        """Share of the step's kernels that no law of their own priced."""
        return 1 - sum(self.by_law.values()) / self.kernels_s if self.kernels_s else 0.0


@dataclass(frozen=True)
class EngineRequest:
    """Requests at a constant number in flight, from a replay."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float
    end_to_end_s: float
    """Medians over the requests."""
    tokens_per_s: float
    """Output of all requests ÷ time."""


def engine_constants(engine: Engine) -> Floats:
    """Seconds of one of each of `TERMS`, and factors on those that are seconds."""
    factors = {name: prior.value for name, prior in engine.factors.items()}
    return np.array([factors.get(name, 1.0) if name in SECONDS else engine.constants[name].value for name in TERMS])


def steps(
    model: Served, engine: Engine, scheme: Scheme, parallel: Parallel,
    asked: Sequence[Sequence[Workload]], pricer: Prices,
) -> list[EngineStep]:  # fmt: skip
    """Return each of `asked` is one workload, or several that arrive together; batches are of all ranks of the group.

    Raises ValueError for more sequences than an engine holds.
    """
    for workloads in asked:
        _check_number(sum(workload.batch for workload in workloads))
    made: list[tuple[EngineStep, list[Plan], int, bool]] = []
    for workloads in asked:
        step = EngineStep(tuple(workloads))
        sequences, prompts = 0, list[tuple[int, int]]()
        decoding = list[Workload]()
        for workload in workloads:
            if workload.phase == "decode":
                sequences, decoding = sequences + workload.batch, [*decoding, workload]
            else:
                prompts += [(workload.query_tokens, workload.context_tokens)] * workload.batch
            tokens = workload.query_tokens + workload.context_tokens
            step.cache_bytes += workload.batch / parallel.attention_dp * cache_bytes(model, scheme, tokens)
        chunks = list(_chunks(prompts, engine, parallel, sequences))
        alone = bool(decoding) and (not chunks or not engine.mixes)
        for i, chunk in enumerate([*chunks, *([[]] if alone else [])]):
            with_them = decoding if (alone and not chunk) or (engine.mixes and i == 0) else []
            plans = _pass(model, engine, scheme, parallel, with_them, chunk, pricer)
            batch = sum(workload.batch for workload in with_them)
            made.append((step, plans, batch, bool(chunk) and not engine.captures_prompts))
    price([plan for _, plans, *_ in made for plan in plans], pricer)
    launch_s = kernels(model, engine) * engine.constants[LAUNCH].value
    found: dict[int, EngineStep] = {}
    times: dict[int, dict[str, float]] = {}
    for step, plans, batch, launched in made:
        found[id(step)] = step
        counts = times.setdefault(id(step), dict.fromkeys(OWN, 0.0))
        before = step.kernels_s
        for plan in plans:
            _scale(plan, engine)
            _add(step, plan)
        step.passes += 1
        counts["step"] += 1
        counts["sequence"] += batch
        counts["stream"] += float(np.max(plans[0].streams))
        counts["reduce"] += float(np.max(plans[0].reduces))
        if launched:
            counts[LAUNCH] += max(0.0, launch_s - (step.kernels_s - before)) / engine.constants[LAUNCH].value
    for place, step in found.items():
        step.own = {name: _own(engine, name, count) for name, count in times[place].items()}
    return list(found.values())


def _check_number(sequences: int) -> None:
    if sequences > MOST_SEQUENCES:
        raise ValueError(f"{sequences} sequences are more than an engine holds; use at most {MOST_SEQUENCES}")


def _own(engine: Engine, name: str, count: float) -> Own:
    prior = engine.constants[name]
    value, factor = count * prior.value, float(np.exp(Z90 * prior.spread))
    return Own(value, value / factor, value * factor, count)


def _chunks(
    prompts: Sequence[tuple[int, int]], engine: Engine, parallel: Parallel, sequences: int
) -> Iterator[list[tuple[int, int]]]:
    """Passes over prompts, each a list of (new tokens, tokens before them), of all ranks together."""
    room = full = max(1, parallel.attention_dp * engine.chunk_tokens - (sequences if engine.mixes else 0))
    chunk: list[tuple[int, int]] = []
    for new, before in prompts:
        done = 0
        while done < new:
            part = min(new - done, room)
            chunk.append((part, before + done))
            done, room = done + part, room - part
            if not room:
                yield chunk
                chunk, room = [], full
    if chunk:
        yield chunk


def _pass(
    model: Served, engine: Engine, scheme: Scheme, parallel: Parallel,
    decoding: Sequence[Workload], chunk: Sequence[tuple[int, int]], pricer: Prices,
) -> list[Plan]:  # fmt: skip
    """The kernels of one pass on the busiest rank: prompts are dealt out whole."""
    spread = parallel.attention_dp
    batch, new = sum(workload.batch for workload in decoding), sum(part for part, _ in chunk)
    ranks = min(spread, max(len(chunk), 1))
    own = np.array([batch / spread + new / ranks])
    rows = np.array([batch / spread + len(chunk) / ranks])
    every = np.array([float(batch + new)])
    plans = [
        plan_tokens(model, engine, scheme, parallel, own, rows, pricer),
        plan_experts(model, scheme, parallel, every),
    ]
    for workload in decoding:
        size = np.array([workload.batch / spread])
        plans.append(plan_decode(model, scheme, size, np.array([workload.context_tokens + 1.0]), pricer))
    if chunk:
        query, before = np.array(chunk, dtype=float).T
        distinct, counts = np.unique(np.stack([query, before]), axis=1, return_counts=True)
        plan = plan_prefill(model, scheme, distinct[0], distinct[1], pricer)
        share = counts / ranks
        plan.kernels = [(part, kind, dtype, dims, count * share) for part, kind, dtype, dims, count in plan.kernels]
        plans.append(plan)
    return plans


def _scale(plan: Plan, engine: Engine) -> None:
    """Multiply the seconds of parts for which the engine has a factor."""
    for part, factor in engine.factors.items():
        if part in plan.parts_s:
            plan.parts_s[part] = plan.parts_s[part] * factor.value
        for spent in (plan.by_law, plan.bare):
            spent.update({place: factor.value * seconds for place, seconds in spent.items() if place[0] == part})


def _add(step: EngineStep, plan: Plan) -> None:
    for part, seconds in plan.parts_s.items():
        whole = float(np.sum(seconds))
        step.parts_s[part] += whole
        left = whole
        # Latent attention without a law has that of attention with as many bytes, which is not its own.
        own = ("near", step.likened) if plan.likened else ("law of", step.by_law)
        for (words, to), of in ((own, plan.by_law), (("near", step.likened), plan.bare)):
            for (of_part, name), spent in of.items():
                if of_part == part:
                    _count(to, name, spent)
                    _count(step.sources.setdefault(part, {}), f"{words} {name}", spent)
                    left -= spent
        if left > 1e-6 * whole:
            _count(step.sources.setdefault(part, {}), "datasheet", left)


def _count(to: dict[str, float], name: str, seconds: float) -> None:
    to[name] = to.get(name, 0.0) + seconds


def requests(
    model: Served, engine: Engine, scheme: Scheme, parallel: Parallel,
    asked: Sequence[tuple[int, int, int]], pricer: Prices, memory_bytes: float,
) -> list[EngineRequest]:  # fmt: skip
    """Requests of (number in flight, prompt tokens, output tokens), each answered one followed by the next.

    Raises ValueError where not even one fits beside the weights, or for more than an engine holds.
    """
    (surface,) = surfaces([(model, engine, scheme, parallel)], pricer, memory_bytes)
    constants, found = engine_constants(engine), []
    for batch, prompt, output in asked:
        _check_number(batch)
        if prompt + output > surface.most_tokens:
            raise ValueError(
                f"a request of {prompt + output} tokens does not fit beside the weights: the cache of the group holds "
                f"{surface.most_tokens:.0f} tokens; use more ranks or fewer bits"
            )
        done = replay(surface, Load(batch, prompt, output), constants, engine)
        first, token, whole = (float(np.median(seconds)) for seconds in (done.first_s, done.token_s, done.request_s))
        rate = batch * output / float(np.mean(done.request_s))  # Little's law
        found.append(EngineRequest(batch, prompt, output, first, token, whole, rate))
    return found


def limits(
    model: Served, scheme: Scheme, parallel: Parallel, found: Sequence[EngineStep], memory_bytes: float
) -> list[str]:
    """Sentences on what a prediction leaves out, and on what does not fit."""
    notes = []
    if model.unknown:
        named: Mapping[str, float] = model.unknown
        names = ", ".join(f"{count:.0f} × {name}" for name, count in named.items())
        notes.append(f"no kernel of a serving graph stands for {names}: all times are too short by them")
    weights = weight_bytes(model, scheme, parallel)
    for step in found:
        if (needed := weights + step.cache_bytes) > memory_bytes:
            sizes = ", ".join(workload.key for workload in step.workloads)
            notes.append(f"{sizes} needs {needed / 1e9:.3g} GB a rank of {memory_bytes / 1e9:.3g} GB and does not fit")
    return notes


PART_NAMES = {
    PRODUCTS: "products with weights",
    EXPERTS: "experts",
    DECODE: "attention of decoding sequences",
    PREFILL: "attention of prompts",
    MOVED: "collectives, bytes of streaming kernels",
}
OWN_NAMES = {
    "step": "host: a step",
    "sequence": "host: each decoding sequence",
    LAUNCH: "host: launches that the device waits for",
    "stream": "starts of streaming kernels",
    "reduce": "starts of the engine's own all-reduces",
}
