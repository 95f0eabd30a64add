"""From steps to requests: a replay of continuous batching with a constant number of requests in flight.

Each client sends its next request when the last one is answered. An engine that mixes runs chunks of waiting prompts in
the pass of the decoding sequences; another runs the prompts first, in passes of their own, while decoding sequences
wait. Between two arrivals nothing changes but the keys, so that a run of decoding steps is one event, and a replay of
some thousand requests takes a fraction of a second.

What each request is exposed to between its first and its last token is kept as a sum of terms, so that constants of an
engine can be fitted to measured times without replaying again.
"""

import heapq
from dataclasses import dataclass, field

import numpy as np

from roofline.laws.law import Floats
from roofline.serving.engine import Engine
from roofline.serving.step import DECODE
from roofline.serving.surface import TERMS, Surface


@dataclass(frozen=True)
class Load:
    """Requests as a benchmark sends them."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    least: float = 1.0
    """Shortest length ÷ longest: lengths are uniform between them (`--random-range-ratio` of the common benchmarks);
    1 where all are equal."""
    waves: int = 4
    """Requests ÷ concurrency."""
    steady: bool = True
    """The first of several waves has outputs of any length, as requests in flight do, and is left out of the results;
    otherwise all clients send their first request at once, as benchmarks do, and every request counts."""


@dataclass(frozen=True)
class Drafts:
    """Speculative decoding: a step verifies some drafted tokens of each sequence, which it has drafted before."""

    tokens: int
    """Drafts of a sequence that a step verifies."""
    accepted: float
    """Tokens that a sequence gains in a step, on average; 1 where no draft is accepted."""
    cost: float
    """Time of all drafts ÷ a pass of the model with a token of each sequence."""


@dataclass(frozen=True, eq=False)
class Replayed:
    """Terms and seconds of the requests."""

    token: Floats
    """Terms between two tokens of the requests in the middle fifth by time; shape (terms,)."""
    first_s: Floats
    """Seconds to the first token of each request."""
    token_s: Floats
    """Mean seconds between two tokens of each request."""
    request_s: Floats
    """Seconds of each request, from its arrival to its last token."""
    answered: int
    """Requests that were answered, those left out among them."""
    seconds: float
    """Length of the replay."""


def replay(
    surface: Surface, load: Load, constants: Floats, engine: Engine, drafts: Drafts | None = None, seed: int = 0
) -> Replayed:
    """Replay a load; deterministic for a seed.

    Args: `constants` has the seconds of one of each of `TERMS`, about 1 for those that are seconds.
    """
    requests = _Requests.drawn(load, seed)
    run = _Run(surface, engine, requests, load.concurrency, drafts or Drafts(0, 1.0, 0.0))
    while run.waiting or run.running:
        if run.admits():
            run.prompts_step()
        else:
            run.decode_steps()
    skipped = load.concurrency if load.steady and load.waves > 1 else 0
    kept = list(range(skipped, len(requests.prompts)))
    to_first = np.array([run.first[i] - run.sent[i] for i in kept]) @ constants
    a_token = np.array([(run.last[i] - run.first[i]) / max(requests.outputs[i] - 1, 1) for i in kept])
    whole = np.array([run.last[i] - run.sent[i] for i in kept]) @ constants
    seconds = a_token @ constants
    order = np.argsort(seconds)
    middle = order[int(0.4 * len(order)) : max(int(0.6 * len(order)), int(0.4 * len(order)) + 1)]
    end_s = float(run.now @ constants)
    return Replayed(a_token[middle].mean(axis=0), to_first, seconds, whole, len(run.last), end_s)


@dataclass(frozen=True)
class _Requests:
    prompts: list[int]
    outputs: list[int]

    @classmethod
    def drawn(cls, load: Load, seed: int) -> "_Requests":
        draw = np.random.default_rng(seed)
        count = load.concurrency * load.waves

        def lengths(longest: int, least: int, number: int) -> list[int]:
            return [int(length) for length in draw.integers(max(1, least), longest + 1, number)]

        prompts = lengths(load.prompt_tokens, round(load.least * load.prompt_tokens), count)
        outputs = lengths(load.output_tokens, round(load.least * load.output_tokens), count)
        if load.steady and load.waves > 1:
            outputs[: load.concurrency] = lengths(load.output_tokens, 1, load.concurrency)
        return cls(prompts, outputs)


@dataclass
class _Run:
    """The state of a replay; `now` is the sum of all terms so far."""

    surface: Surface
    engine: Engine
    requests: _Requests
    concurrency: int
    drafts: Drafts
    now: Floats = field(default_factory=lambda: np.zeros(len(TERMS)))
    sent: dict[int, Floats] = field(default_factory=dict)
    first: dict[int, Floats] = field(default_factory=dict)
    last: dict[int, Floats] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)
    """Requests whose prompt has not run, the next one last."""
    running: list[tuple[int, int]] = field(default_factory=list)
    """A heap of (decoding step at which it ends, request)."""
    keys: float = 0.0
    """Cached tokens of the running sequences."""
    reserved: float = 0.0
    """Tokens that they will have at their end."""
    steps: int = 0
    """Decoding steps so far."""
    begun: int = 0
    """Tokens of the next prompt that have run in earlier chunks."""
    gathered: int = 0
    """Decoding steps for which prompts have waited for those of other ranks."""

    def __post_init__(self) -> None:
        for _ in range(self.concurrency):
            self._send()

    def admits(self) -> bool:
        """Return whether the next step runs prompts."""
        if not self.waiting:
            return False
        if not self.running:
            return True
        few = len(self.waiting) < self.surface.spread and self.gathered < self.engine.balance_steps
        return not few and self._fits(self.waiting[-1], 0.0)

    def prompts_step(self) -> None:
        """Return one step with as many tokens of waiting prompts as a chunk holds, and with the decoding sequences
        where the engine mixes."""
        batch = len(self.running) if self.engine.mixes else 0
        room = max(1, self.engine.chunk_tokens * self.surface.spread - batch)
        taken, prompts, before, ended = 0, 0, self.begun, list[int]()
        while self.waiting and taken < room:
            i = self.waiting[-1]
            if (self.running or ended) and not self._fits(i, taken):
                break
            part = min(self.requests.prompts[i] - self.begun, room - taken)
            taken, prompts, self.begun = taken + part, prompts + 1, self.begun + part
            if self.begun == self.requests.prompts[i]:
                self.begun, self.gathered = 0, 0
                self.reserved += self.requests.prompts[i] + self.requests.outputs[i]
                ended.append(self.waiting.pop())
        self._spend(1, batch, taken, before if prompts == 1 else 0, prompts)
        if batch:
            self._decoded(1)
        for i in ended:
            self.first[i] = self.now.copy()
            self.keys += self.requests.prompts[i] + 1
            heapq.heappush(self.running, (self.steps + round((self.requests.outputs[i] - 1) / self.drafts.accepted), i))
        self._finish()

    def decode_steps(self) -> None:
        """Decoding steps until a sequence ends, or until prompts have waited long enough."""
        times = max(1, self.running[0][0] - self.steps)
        if self.waiting and self.gathered < self.engine.balance_steps:
            times = min(times, self.engine.balance_steps - self.gathered)
            self.gathered += times
        self._spend(times, len(self.running), 0, 0, 0)
        self._decoded(times)
        self._finish()

    def _spend(self, times: int, batch: int, new: int, before: int, prompts: int) -> None:
        keys = self.keys / batch + times * self.drafts.accepted / 2 if batch else 0.0
        self.now = self.now + times * self._terms(batch, keys, new, before, max(prompts, 1))

    def _terms(self, batch: int, keys: float, new: int, before: int, prompts: int) -> Floats:
        """A step that verifies drafts has their tokens too, but each sequence's keys are read once."""
        terms = np.array(self.surface.terms(batch, keys, new, before, prompts))
        if not self.drafts.tokens or not batch:
            return terms
        wide = np.array(self.surface.terms(batch * (1 + self.drafts.tokens), keys, new, before, prompts))
        once = np.isin(TERMS, (DECODE, "sequence"))
        alone = np.array(self.surface.terms(batch, keys)) * ~np.isin(TERMS, ("step", "sequence"))
        return np.where(once, terms, wide) + self.drafts.cost * alone

    def _decoded(self, times: int) -> None:
        self.steps += times
        self.keys += times * self.drafts.accepted * len(self.running)

    def _finish(self) -> None:
        while self.running and self.running[0][0] <= self.steps:
            _, i = heapq.heappop(self.running)
            self.last[i] = self.now.copy()
            tokens = self.requests.prompts[i] + self.requests.outputs[i]
            self.keys, self.reserved = self.keys - tokens, self.reserved - tokens
            self._send()

    def _send(self) -> None:
        """The next request, where one is left."""
        i = len(self.sent)
        if i < len(self.requests.prompts):
            self.sent[i] = self.now.copy()
            self.waiting.insert(0, i)

    def _fits(self, i: int, taken: float) -> bool:
        need = self.requests.prompts[i] + (
            self.reserved + self.requests.outputs[i] if self.engine.reserves_output else self.keys + taken
        )
        return need <= self.surface.most_tokens
