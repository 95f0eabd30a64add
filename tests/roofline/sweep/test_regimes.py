from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from parametric_graphs import workload

from roofline.sweep.polynomial import _inverse, powers
from roofline.sweep.regimes import EDGE, Regime, monomials, regime_of, samples
from roofline.workload import Workload

windows = st.lists(st.integers(64, 4096), max_size=2, unique=True).map(sorted)
workloads = st.builds(workload, st.integers(1, 8), st.integers(1, 9000), st.sampled_from([0, 1, 5, 700, 5000, 10**5]))


def test_phase_batch_and_sides_of_windows_decide() -> None:
    found = {
        regime_of(workload(batch, query, context), (100,))
        for batch in (1, 2, 9)
        for query, context in ((20, 0), (90, 0), (300, 0), (1, 50), (1, 400), (1, 9999), (5, 50), (90, 50), (7, 500))
    }
    sides = {"prefill": (0, 1), "decode": (0, 2), "chunk": (0, 1, 2)}
    assert found == {
        Regime(phase=phase, batched=batched, sides=(side,))
        for phase, possible in sides.items()
        for side in possible
        for batched in (False, True)
    }


@given(windows, workloads)
def test_the_edge_of_a_window_is_in_no_regime(windows: list[int], w: Workload) -> None:
    ends = w.context_tokens, w.context_tokens + w.query_tokens
    on_an_edge = any(abs(end - window) <= EDGE for end in ends for window in windows)
    assert (regime_of(w, windows) is None) == (on_an_edge or ends == (0, 1))


def test_logits_decide_and_samples_want_the_same() -> None:
    every = workload(2, 5, 50).model_copy(update={"logits": "all"})
    regime = regime_of(every, ())
    assert regime is not None and regime != regime_of(workload(2, 5, 50), ())
    assert {sample.logits for sample in samples(regime, (), "bfloat16") or ()} == {"all"}
    assert every.key == f"{workload(2, 5, 50).key}-all-logits"


def test_a_lone_token_is_in_no_regime() -> None:
    assert regime_of(workload(4, 1, 0), ()) is None


@given(windows, workloads, st.sampled_from([1, 64, 256]), st.booleans(), st.booleans())
def test_samples_are_in_the_regime_and_determine_its_monomials(
    windows: list[int], w: Workload, chunk: int, filled: bool, near: bool
) -> None:
    regime = regime_of(w, windows)
    if regime is None:
        return
    start = (w.query_tokens, w.context_tokens) if near else (0, 0)
    filled = filled and chunk > 1
    points = samples(regime, windows, "bfloat16", chunk=chunk, filled=filled, start=start)
    wanted = monomials(regime, chunk > 1 and not filled)
    if points is None:
        assert windows  # no room between two windows
        return
    assert len(points) == len(wanted) == len(set(points))
    assert all(regime_of(point, windows) == regime for point in points)
    rows = [powers(point, wanted, chunk) for point in points]
    inverse = _inverse(rows)
    size = range(len(rows))
    product = [[sum(rows[i][k] * inverse[k][j] for k in size) for j in size] for i in size]
    assert product == [[Fraction(int(i == j)) for j in size] for i in size]
    if chunk > 1 and regime.phase != "decode":
        assert all(point.query_tokens >= 5 * chunk for point in points)  # several chunks, so that they fold
        assert {point.query_tokens % chunk == 0 for point in points} == {filled}


def test_samples_are_small() -> None:
    regime = regime_of(workload(4, 512, 10**5), ())
    assert regime is not None
    assert max(w.query_tokens + w.context_tokens for w in samples(regime, (), "bfloat16") or ()) < 64


def test_samples_can_start_anywhere() -> None:
    regime = regime_of(workload(1, 512, 10**5), ())
    assert regime is not None
    points = samples(regime, (), "bfloat16", start=(512, 10**5)) or []
    assert points and all(p.query_tokens > 512 and p.context_tokens > 10**5 for p in points)


def test_no_room_between_windows_is_none() -> None:
    regime = regime_of(workload(1, 12, 0), (10, 15))
    assert regime == Regime(phase="prefill", batched=False, sides=(1, 0))
    assert samples(regime, (10, 15), "bfloat16") is None


def test_a_batch_doubles_the_monomials() -> None:
    for query, context in [(512, 0), (1, 512), (64, 512)]:
        one, many = (regime_of(workload(batch, query, context), ()) for batch in (1, 2))
        assert one is not None and many is not None, (query, context)
        assert 2 * len(monomials(one, False)) == len(monomials(many, False)), (query, context)
        assert {e[0] for e in monomials(one, True)} == {0}, (query, context)
