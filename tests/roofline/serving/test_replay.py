"""Steps and replays of a made-up surface whose times are known, by laws of queueing that hold for any of them."""

import numpy as np
import pytest

from roofline.serving.engine import Engine, engine_named, engine_names
from roofline.serving.replay import Drafts, Load, Replayed, replay
from roofline.serving.step import DECODE, EXPERTS, MOVED, PREFILL, PRODUCTS, Plan
from roofline.serving.surface import BATCHES, BEFORE, KEYS, NEW, PROMPTS, SECONDS, TERMS, TOKENS, Surface

STEP_S, TOKEN_S, KEY_S = 5e-3, 2e-5, 1e-9
"""Seconds of a step, of each token in it, and of each key that a sequence reads."""
ONES = np.where(np.isin(TERMS, SECONDS), 1.0, 0.0)


def made(spread: int = 1, most: float = np.inf) -> Surface:
    def plan(part: str, seconds: np.ndarray) -> Plan:
        return Plan(seconds.shape, parts_s={part: seconds})

    layers = plan(PRODUCTS, STEP_S + TOKEN_S * TOKENS)
    return Surface(
        tokens=layers,
        logits=layers,
        experts=Plan(TOKENS.shape),
        decode=plan(DECODE, KEY_S * BATCHES[:, None] * KEYS[None]),
        prefill=plan(PREFILL, np.zeros((len(NEW), len(BEFORE)))),
        spread=spread,
        most_tokens=most,
    )


def engine(mixes: bool = True, **more: object) -> Engine:
    return engine_named("vllm").model_copy(update={"mixes": mixes, **more})


def run(load: Load, how: Engine, surface: Surface | None = None, constants: np.ndarray = ONES) -> Replayed:
    return replay(surface or made(), load, constants, how)


def test_a_step_is_the_sum_of_what_it_depends_on() -> None:
    terms = dict(zip(TERMS, made().terms(100, 3000, 500, 0, 1), strict=True))
    assert terms[PRODUCTS] == pytest.approx(STEP_S + TOKEN_S * 100)
    assert terms[PRODUCTS] + terms[PROMPTS] == pytest.approx(STEP_S + TOKEN_S * 600)
    assert terms[DECODE] == pytest.approx(KEY_S * 100 * 3000)
    assert (terms[EXPERTS], terms[PREFILL], terms[MOVED]) == (0, 0, 0)
    assert (terms["step"], terms["sequence"]) == (1, 100)
    spread = dict(zip(TERMS, made(spread=4).terms(100, 3000), strict=True))
    assert spread[PRODUCTS] == pytest.approx(STEP_S + TOKEN_S * 25)


@pytest.mark.parametrize("spread", [1, 4])
def test_many_steps_at_once_are_the_steps_one_by_one(spread: int) -> None:
    """Random surfaces and steps, some without sequences, some without prompts, some beyond the grids."""
    draw = np.random.default_rng(7)

    def plan(*shape: int) -> Plan:
        parts = {part: 1e-3 * draw.random(shape) for part in (PRODUCTS, MOVED)}
        return Plan(shape, parts_s=parts, streams=3.0, reduces=draw.random(shape))

    layers, logits, experts = (plan(len(TOKENS)) for _ in range(3))
    surface = Surface(layers, logits, experts, plan(len(BATCHES), len(KEYS)), plan(len(NEW), len(BEFORE)), spread, 1e9,
                      launch_s=2e-3)  # fmt: skip
    constants = draw.random(len(TERMS))
    limits = (1500, 2e5, 30_000, 2e5, 9)
    steps = np.array([[draw.random() * limit * draw.integers(0, 2) for limit in limits] for _ in range(300)])
    one_by_one = [np.array(surface.terms(*step)) @ constants for step in steps]
    assert surface.each_s(constants, *steps.T) == pytest.approx(one_by_one, rel=1e-9)
    batch, keys, new = (steps[:size, i] for i, size in ((0, 5), (1, 6), (2, 7)))
    grid = surface.each_s(constants, batch[:, None], keys, new[:, None, None])
    assert grid.shape == (7, 5, 6)
    assert grid[3, 2, 4] == pytest.approx(np.array(surface.terms(batch[2], keys[4], new[3])) @ constants, rel=1e-9)


def test_one_request_alone_takes_its_prompt_and_its_tokens() -> None:
    done = run(Load(1, 1024, 101, waves=1), engine())
    assert done.first_s == pytest.approx([STEP_S + TOKEN_S * 1024])
    keys = 1024 + 1 + np.arange(100) + 0.5
    assert done.token_s == pytest.approx([STEP_S + TOKEN_S + KEY_S * keys.mean()], rel=1e-6)


@pytest.mark.parametrize("mixes", [True, False])
@pytest.mark.parametrize("least", [0.5, 1.0])
def test_requests_in_flight_are_throughput_times_latency(mixes: bool, least: float) -> None:
    """Little's law, over all requests: one client each is always waiting for its answer until requests run out."""
    load = Load(24, 700, 300, least, waves=30)
    done = run(load, engine(mixes))
    assert done.answered == 24 * 30  # every request ends, each once
    in_flight = len(done.request_s) / done.seconds * done.request_s.mean()
    assert in_flight == pytest.approx(24, rel=0.06)
    assert (done.request_s >= done.first_s).all()


def test_terms_give_the_seconds_of_the_middle_requests() -> None:
    constants = ONES + np.where(np.array(TERMS) == "step", 1e-3, 0) + np.where(np.array(TERMS) == "sequence", 2e-5, 0)
    done = run(Load(16, 512, 256, 0.8), engine(), constants=constants)
    assert float(done.token @ constants) == pytest.approx(float(np.median(done.token_s)), rel=0.02)
    assert done.token[TERMS.index("step")] == pytest.approx(1, rel=0.05)


def test_tokens_are_conserved() -> None:
    """Sequences read what they hold, a prompt and on average half an answer, however many requests have gone before."""
    for waves in (4, 20):
        done = run(Load(16, 512, 256, waves=waves), engine())
        assert done.token[TERMS.index(DECODE)] == pytest.approx(KEY_S * 16 * (512 + 128), rel=0.06)
        assert done.token[TERMS.index("sequence")] == pytest.approx(16, rel=0.05)


def test_prompts_of_others_delay_tokens_and_more_so_in_passes_of_their_own() -> None:
    load = Load(32, 2000, 100, 0.8)
    alone = run(Load(1, 2000, 100, 0.8), engine()).token_s.mean()
    mixed, apart = (run(load, engine(mixes)).token_s.mean() for mixes in (True, False))
    # 31 prompts of 1,800 tokens in 90 steps, less those that wait with it, in passes that the tokens share or in others
    assert mixed == pytest.approx(alone + 31 * TOKEN_S + 31 / 90 * TOKEN_S * 1800, rel=0.15)
    assert apart > mixed + 0.5 * 31 / 90 * STEP_S


def test_a_full_cache_makes_requests_wait_and_not_tokens() -> None:
    load = Load(64, 1000, 1000, 0.8)
    free, full = (run(load, engine(), made(most=most)) for most in (np.inf, 20_000.0))
    assert np.median(full.first_s) > 10 * np.median(free.first_s)
    assert np.median(full.token_s) < np.median(free.token_s)
    assert full.answered == free.answered


def test_clients_that_begin_together_wait_for_each_others_prompts() -> None:
    """One prompt a pass: the last of the first wave waits for all passes; every request counts."""
    load = Load(8, 1024, 400, waves=6, steady=False)
    done = run(load, engine(mixes=False, chunk_tokens=1024))
    assert len(done.first_s) == 8 * 6
    a_pass = STEP_S + TOKEN_S * 1024
    assert done.first_s[:8] == pytest.approx(a_pass * np.arange(1, 9))
    assert done.request_s[:8].min() > 399 * STEP_S  # none is cut short


def test_drafts_make_steps_longer_and_fewer() -> None:
    load, constants = Load(1, 1024, 101, waves=1), ONES + np.where(np.array(TERMS) == "step", 1e-3, 0)
    plain, drafted = (replay(made(), load, constants, engine(), drafts) for drafts in (None, Drafts(3, 2.5, 0.05)))
    alone_s = STEP_S + TOKEN_S + KEY_S * (1025 + 50)
    assert plain.token_s == pytest.approx([alone_s + 1e-3], rel=1e-3)
    # four tokens are verified, keys are read once, and drafting is a twentieth of a pass without the host's time
    assert drafted.token_s == pytest.approx([(alone_s + 3 * TOKEN_S + 1e-3 + 0.05 * alone_s) / 2.5], rel=1e-3)
    assert drafted.first_s == pytest.approx(plain.first_s)


def test_longer_prompts_run_in_chunks() -> None:
    done = run(Load(1, 8192, 2, waves=1), engine(chunk_tokens=1024))
    assert done.first_s == pytest.approx([8 * (STEP_S + TOKEN_S * 1024)])


def test_engines_are_described_by_version() -> None:
    assert engine_names() == ("sglang", "trtllm", "vllm")
    for name in engine_names():
        assert set(engine_named(name).constants) >= set(TERMS[len(SECONDS) :])
    old, new = (engine_named("vllm", version).constants["step"].value for version in ("0.11.2", "0.18.0rc1"))
    assert new < old
    assert engine_named("vllm", "unknown") == engine_named("vllm", "0.11.2")
    with pytest.raises(ValueError, match="no engine 'tgi'; known: sglang, trtllm, vllm"):
        engine_named("tgi")
