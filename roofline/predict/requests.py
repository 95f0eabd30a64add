"""Whole requests: a prefill, then one decode step a token over a context that grows by one each time.

The steps are priced as arrays over the growing context, so their sum is exact and takes no loop. Time to first token
(TTFT) is the prefill; time per output token (TPOT) the mean of the decode steps; end to end is both. Speculative
decoding (Leviathan et al., arXiv 2211.17192) replaces a step by `tokens` steps of a draft model and one pass of the
model over the drafted tokens and one more, with the logits of all of them, which yields (1 − a^(k+1)) / (1 − a) tokens
on average where each draft is accepted with probability a. All of them are priced at the context at which the pass
starts.

A pipeline of stages (Huang et al., arXiv 1811.06965) works on micro-batches one behind the other. With t_s the time of
stage s for one of m micro-batches, its transfer to the next stage included, a prefill takes Σ t_s + (m − 1)·max t_s:
the first micro-batch goes through all stages, the others follow at the pace of the slowest. A decode step takes
max(Σ t_s, m·max t_s): a sequence's next token starts once its last one has come out, and the slowest stage has all
micro-batches to do. The way of the sampled token back to the first stage is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roofline.graph.memory import Footprint
from roofline.host import known
from roofline.predict.passes import RequestPrediction
from roofline.workload import Workload


class Passes(Protocol):
    """The methods that a request needs of a model on a device, or on the devices of a pipeline."""

    capacity_bytes: float
    """Bytes of memory of one device."""

    def seconds(self, workload: Workload) -> NDArray[np.float64]:
        """Seconds of one pass, and the ends of their 90 % interval: shape (3,). NaN where a peak that it needs is not
        known, or where there is no interval."""

    def growing_s(self, like: Workload, contexts: range) -> NDArray[np.float64]:
        """The same of a pass at each of `contexts`, all else as in `like`: shape (3, contexts)."""

    def memory(self, workload: Workload) -> Footprint:
        """Memory of one pass."""


class Pipeline:
    """All stages of a pipeline as one model, each on a device of its own."""

    def __init__(self, stages: Sequence[Passes], micro_batches: int) -> None:
        self.stages, self.micro_batches = stages, micro_batches
        self.capacity_bytes = stages[0].capacity_bytes

    def seconds(self, workload: Workload) -> NDArray[np.float64]:
        stage_s = np.stack([stage.seconds(self._micro(workload)) for stage in self.stages])
        times: NDArray[np.float64] = stage_s.sum(axis=0) + (self.micro_batches - 1) * stage_s.max(axis=0)
        return times

    def growing_s(self, like: Workload, contexts: range) -> NDArray[np.float64]:
        stage_s = np.stack([stage.growing_s(self._micro(like), contexts) for stage in self.stages])
        times: NDArray[np.float64] = np.maximum(stage_s.sum(axis=0), self.micro_batches * stage_s.max(axis=0))
        return times

    def memory(self, workload: Workload) -> Footprint:
        """Memory of the stage that needs most: the cache of the whole batch, activations of one micro-batch."""
        return max((self._held(stage, workload) for stage in self.stages), key=lambda held: held.peak)

    def _held(self, stage: Passes, workload: Workload) -> Footprint:
        micro = stage.memory(self._micro(workload))
        others = (self.micro_batches - 1) * micro.kv_cache
        return micro.model_copy(update={"kv_cache": micro.kv_cache + others, "peak": micro.peak + others})

    def _micro(self, workload: Workload) -> Workload:
        batch, rest = divmod(workload.batch, self.micro_batches)
        if rest:
            raise ValueError(
                f"a batch of {workload.batch} does not divide into {self.micro_batches} micro-batches; use a divisor"
            )
        return workload.model_copy(update={"batch": batch})


@dataclass(frozen=True)
class Draft:
    """A draft model that proposes tokens; it runs on the device where the model decodes."""

    passes: Passes
    tokens: int
    """Tokens drafted before each pass of the model."""
    acceptance: float
    """Probability that a drafted token is accepted, given that all before it were."""
    shared_bytes: float = 0.0
    """Bytes of its weights that are the model's own."""

    @property
    def tokens_per_pass(self) -> float:
        """Expected tokens that a pass of the model yields."""
        a, k = self.acceptance, self.tokens
        return k + 1.0 if a == 1 else (1 - a ** (k + 1)) / (1 - a)


def request(
    passes: Passes,
    *,
    batch: int,
    prompt: int,
    output: int,
    dtype: str,
    decode: Passes | None = None,
    draft: Draft | None = None,
) -> RequestPrediction:
    """A batch of equal requests, one after the other in each phase; the prefill yields the first of `output` tokens.

    Args:
        passes: of the device that does the prefill, and decodes unless `decode` does.
        decode: of another device that decodes (prefill-decode disaggregation: the prefill's graph then has the
            transfer of its cache).
        draft: with it each pass of the model verifies the drafted tokens; its own prefill counts in TTFT.
    """
    prefill = Workload(batch=batch, query_tokens=prompt, context_tokens=0, dtype=dtype)
    step = Workload(batch=batch, query_tokens=1, context_tokens=prompt, dtype=dtype)
    decoder, contexts = decode or passes, range(prompt, prompt + output - 1)
    ttft = passes.seconds(prefill) + (draft.passes.seconds(prefill) if draft else 0.0)  # (time, low, high)
    if draft is None or not contexts:
        step_s = decoder.growing_s(step, contexts)
    else:
        drafted = draft.tokens * draft.passes.growing_s(step, contexts)
        step_s = (drafted + decoder.growing_s(_verify(step, draft), contexts)) / draft.tokens_per_pass
    decoding = step_s.sum(axis=1)  # laws are off together in all steps: ends add up
    times = {"ttft_s": ttft, "end_to_end_s": ttft + decoding}
    if contexts:
        times["tpot_s"] = decoding / len(contexts)
    whole = float(times["end_to_end_s"][0])
    last = step.model_copy(update={"context_tokens": prompt + output - 2}) if output > 1 else prefill
    at_first = _together(passes, draft if decode is None else None, prefill)
    at_last = _together(decoder, draft, last)
    return RequestPrediction(
        batch=batch,
        prompt_tokens=prompt,
        output_tokens=output,
        **{
            name: known(float(times[name][0])) if name in times else None
            for name in ("ttft_s", "tpot_s", "end_to_end_s")
        },
        intervals={name: (float(row[1]), float(row[2])) for name, row in times.items() if np.isfinite(row).all()},
        tokens_per_s=known(batch * output / whole),
        peak_bytes=at_last if decode else max(at_first, at_last),
        fits=at_first <= passes.capacity_bytes and at_last <= decoder.capacity_bytes,
    )


def _verify(step: Workload, draft: Draft) -> Workload:
    return step.model_copy(update={"query_tokens": draft.tokens + 1, "logits": "all"})


def _together(passes: Passes, draft: Draft | None, workload: Workload) -> float:
    """Most bytes in use while one model runs beside the weights and the cache of the other."""
    if draft is None:
        return passes.memory(workload).peak
    decodes = workload.query_tokens == 1 and workload.context_tokens > 0
    model = passes.memory(_verify(workload, draft) if decodes else workload)
    other = draft.passes.memory(workload)
    both = max(model.peak + other.weights + other.kv_cache, other.peak + model.weights + model.kv_cache)
    return both - draft.shared_bytes
