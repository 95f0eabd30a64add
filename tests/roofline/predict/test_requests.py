"""Requests against sums that a plain loop makes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from roofline.graph.memory import Footprint
from roofline.predict.requests import Draft, Pipeline, request
from roofline.workload import Workload


class Linear:
    """A device on which a pass costs a second, and more for each new and each cached token."""

    def __init__(self, scale: float = 1.0, capacity_bytes: float = 1e9, weights: float = 100.0, work: int = 7) -> None:
        self.scale, self.capacity_bytes, self.weights, self.work = scale, capacity_bytes, weights, work

    def pass_s(self, workload: Workload) -> float:
        return self.scale * workload.batch * (1 + 2 * workload.query_tokens + 3 * workload.context_tokens)

    def seconds(self, workload: Workload) -> NDArray[np.float64]:
        return self.pass_s(workload) * np.array([1, 0.75, 1.5])

    def growing_s(self, like: Workload, contexts: range) -> NDArray[np.float64]:
        each = [self.seconds(like.model_copy(update={"context_tokens": c})) for c in contexts]
        return np.array(each).reshape(-1, 3).T

    def memory(self, workload: Workload) -> Footprint:
        cache = float(workload.batch * (workload.query_tokens + workload.context_tokens))
        return Footprint(
            weights=self.weights, kv_cache=cache, activations=self.work, peak=self.weights + cache + self.work
        )


def steps(device: Linear, batch: int, prompt: int, output: int, query: int = 1) -> float:
    total = 0.0
    for generated in range(1, output):
        total += device.pass_s(
            Workload(batch=batch, query_tokens=query, context_tokens=prompt + generated - 1, dtype="bfloat16")
        )
    return total


@given(batch=st.integers(1, 5), prompt=st.integers(1, 50), output=st.integers(1, 40))
def test_sum_over_the_steps(batch: int, prompt: int, output: int) -> None:
    found = request(Linear(), batch=batch, prompt=prompt, output=output, dtype="bfloat16")
    decoding = steps(Linear(), batch, prompt, output)
    assert found.ttft_s == batch * (1 + 2 * prompt)
    assert found.end_to_end_s == pytest.approx(found.ttft_s + decoding, rel=1e-12)
    assert found.tokens_per_s == pytest.approx(batch * output / found.end_to_end_s)
    for name, ends in found.intervals.items():  # passes are off together
        assert ends == pytest.approx((0.75 * getattr(found, name), 1.5 * getattr(found, name))), name
    assert set(found.intervals) == {"ttft_s", "end_to_end_s"} | ({"tpot_s"} if output > 1 else set())
    if output == 1:
        assert found.tpot_s is None
    else:
        assert found.tpot_s == pytest.approx(decoding / (output - 1))
    # the last pass reads what all before it have cached, and adds one token: prompt + output − 1 in all
    assert found.peak_bytes == 100 + 7 + batch * (prompt + output - 1)


@settings(max_examples=30)
@given(tokens=st.integers(1, 8), acceptance=st.floats(0, 1))
def test_tokens_of_a_pass_are_the_expected_run_of_accepted_drafts(tokens: int, acceptance: float) -> None:
    runs = sum(acceptance**i for i in range(tokens + 1))
    assert Draft(Linear(), tokens, acceptance).tokens_per_pass == pytest.approx(runs, rel=1e-9)


@pytest.mark.parametrize(("acceptance", "yields"), [(0.0, 1), (1.0, 5), (0.5, 1.9375)])
def test_speculation(acceptance: float, yields: float) -> None:
    draft, model = Linear(0.01, weights=10), Linear()
    found = request(model, batch=2, prompt=10, output=9, dtype="bfloat16", draft=Draft(draft, 4, acceptance))
    drafted, verified = 4 * steps(draft, 2, 10, 9), steps(model, 2, 10, 9, query=5)
    assert found.ttft_s == pytest.approx(1.01 * 2 * 21)
    assert found.tpot_s == pytest.approx((drafted + verified) / yields / 8)


def test_memory_holds_both_models() -> None:
    draft = Draft(Linear(0.01, weights=10, work=1), 4, 0.8)
    found = request(Linear(), batch=2, prompt=10, output=9, dtype="bfloat16", draft=draft)
    # the verifying pass: context 17 and 5 new tokens, beside the draft's weights and cache of 18 tokens
    assert found.peak_bytes == (100 + 2 * 22 + 7) + (10 + 2 * 18)
    for capacity, fits in ((197, True), (196, False)):
        other = request(Linear(1, capacity), batch=2, prompt=10, output=9, dtype="bfloat16", draft=draft)
        assert other.fits is fits


def test_decode_elsewhere() -> None:
    slow = Linear(10, capacity_bytes=200)
    found = request(Linear(), batch=1, prompt=10, output=5, dtype="bfloat16", decode=slow)
    assert found.ttft_s == 21
    assert found.end_to_end_s == pytest.approx(21 + steps(slow, 1, 10, 5))
    assert found.fits and found.peak_bytes == 100 + 14 + 7
    small = Linear(capacity_bytes=110)
    assert request(small, batch=1, prompt=10, output=5, dtype="bfloat16", decode=slow).fits is False
    assert request(slow, batch=1, prompt=10, output=5, dtype="bfloat16", decode=small).fits is False


def test_what_is_not_known_stays_so() -> None:
    found = request(Linear(math.nan), batch=1, prompt=4, output=4, dtype="bfloat16")
    assert (found.ttft_s, found.tpot_s, found.end_to_end_s, found.tokens_per_s) == (None, None, None, None)


def test_a_request_goes_through_all_stages_of_a_pipeline() -> None:
    """Against a schedule in which each stage takes the next micro-batch as soon as both are free."""
    stages = [Linear(scale=scale, weights=weights) for scale, weights in ((1.0, 100), (3.0, 300), (2.0, 200))]

    def schedule(workload: Workload, parts: int, steps: int) -> float:
        """When the last of `steps` equal passes of all micro-batches is out; the next pass of one follows its last."""
        micro = workload.model_copy(update={"batch": workload.batch // parts})
        free, ready = [0.0] * len(stages), [0.0] * parts
        for _ in range(steps):
            for part in range(parts):
                for at, stage in enumerate(stages):
                    ready[part] = free[at] = max(ready[part], free[at]) + stage.pass_s(micro)
        return max(ready)

    for parts in (1, 2, 4, 8):
        pipeline = Pipeline(stages, parts)
        prefill = Workload(batch=8, query_tokens=20, context_tokens=0, dtype="bfloat16")
        assert pipeline.seconds(prefill)[0] == pytest.approx(schedule(prefill, parts, 1)), parts
        step = prefill.model_copy(update={"query_tokens": 1, "context_tokens": 20})
        apart = (schedule(step, parts, 60) - schedule(step, parts, 40)) / 20
        assert pipeline.growing_s(step, range(20, 21))[0, 0] == pytest.approx(apart), parts
        held = pipeline.memory(step)
        assert (held.weights, held.kv_cache, held.peak) == (300, 8 * 21, 300 + 8 * 21 + 7), parts
    whole = request(Pipeline(stages, 1), batch=8, prompt=20, output=12, dtype="bfloat16")
    alone = [request(stage, batch=8, prompt=20, output=12, dtype="bfloat16") for stage in stages]
    assert whole.ttft_s == pytest.approx(sum(one.ttft_s or 0 for one in alone))
    assert whole.end_to_end_s == pytest.approx(sum(one.end_to_end_s or 0 for one in alone))
    with pytest.raises(ValueError, match="a batch of 8 does not divide into 3 micro-batches"):
        Pipeline(stages, 3).seconds(prefill)
