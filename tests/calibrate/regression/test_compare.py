"""Verdicts of comparisons, on rows made by hand and on simulated noise."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.regression.compare import Key, Row, Side, Verdict, compare, merged
from profiler.record.run import RequestError

HERE = {"device": "NVIDIA H200", "driver": "550.54", "method version": "2"}
RANDOM = np.random.default_rng(5)


def key(name: str) -> Key:
    return (("kernel", name), ("dtype", "bfloat16"))


def times(middle: float, spread: float = 0.002, count: int = 8) -> tuple[float, ...]:
    return tuple(float(x) for x in middle * np.exp(RANDOM.normal(0, spread, count)))


def side(name: str, rows: Mapping[str, tuple[float, ...] | Row], **conditions: str) -> Side:
    made = [row if isinstance(row, Row) else Row(key(kernel), row) for kernel, row in rows.items()]
    return Side(name, tuple(made), {**HERE, **conditions})


def verdicts(base: Side, new: Side, **options: float | bool) -> dict[str, Verdict]:
    result = compare(base, new, **options)  # type: ignore[arg-type]
    return {row.key[0][1]: row.verdict for row in result.comparisons}


def test_every_verdict() -> None:
    steady = {f"same{i}": times(1e-3) for i in range(4)}
    base = side("base", {**steady, "slow": times(1e-3), "fast": times(1e-3), "noisy": times(1e-3, 0.2),
                         "gone": times(1), "broken": times(1), "unit": times(1)})  # fmt: skip
    new = side("new", {**{name: times(1e-3) for name in steady}, "slow": times(1.05e-3), "fast": times(0.9e-3),
                       "noisy": times(1e-3, 0.2), "fresh": times(1), "broken": Row(key("broken"), failed="it crashed"),
                       "unit": Row(key("unit"), times(1), unit="J")})  # fmt: skip
    found = verdicts(base, new)
    assert found == {**dict.fromkeys(steady, "same"), "slow": "slower", "fast": "faster", "noisy": "ambiguous",
                     "gone": "missing", "fresh": "new", "broken": "failed", "unit": "incomparable"}  # fmt: skip
    assert next(iter(found)) == "slow", "the most urgent first"


def test_the_sentence_names_the_device() -> None:
    base = side("base", {"k": Row(key("k"), times(1e-3), share=0.71)})
    new = side("new", {"k": Row(key("k"), times(1.061e-3), share=0.67)})
    (row,) = compare(base, new).slower
    assert row.sentence.startswith("slower by 6.") and row.sentence.endswith(": 71 → 67 % of the device")
    assert row.low is not None and row.high is not None and row.low < 1.061 < row.high


def test_a_tolerance_hides_what_does_not_matter() -> None:
    base, new = side("base", {"k": times(1)}), side("new", {"k": times(1.02)})
    assert verdicts(base, new) == {"k": "slower"}
    assert verdicts(base, new, tolerance=0.05) == {"k": "same"}


def test_one_process_proves_nothing_unless_the_spread_is_known() -> None:
    base, new = side("base", {"k": (1.0,)}), side("new", {"k": (1.5,)})
    (row,) = compare(base, new).comparisons
    assert row.verdict == "ambiguous" and row.low is None and "one process only" in row.reason
    assert verdicts(base, new, spread=0.01) == {"k": "slower"}
    assert verdicts(base, new, spread=0.5) == {"k": "ambiguous"}


def test_few_discoveries_are_false() -> None:
    """Of 400 unchanged kernels 20 would be different at 5 %; beside 100 slower ones, few of those found are false."""
    base = side("base", {str(i): times(1, 0.005, 6) for i in range(500)})
    new = side("new", {str(i): times(1.02 if i < 100 else 1, 0.005, 6) for i in range(500)})
    found = [name for name, verdict in verdicts(base, new, tolerance=0.0).items() if verdict in ("slower", "faster")]
    assert sum(int(name) < 100 for name in found) >= 95
    assert sum(int(name) >= 100 for name in found) <= 0.1 * len(found)


@pytest.mark.parametrize(
    ("conditions", "why"),
    [({"device": "NVIDIA A100"}, "device NVIDIA H200 and NVIDIA A100"), ({"driver": "560.28"}, "driver 550.54 and"),
     ({"method version": "3"}, "method version 2 and 3"), ({"clock policy": "1,200 MHz"}, "clock policy unknown and")],
)  # fmt: skip
def test_other_conditions_are_refused_or_shown_as_incomparable(conditions: dict[str, str], why: str) -> None:
    base, new = side("base", {"k": times(1)}), side("new", {"k": times(2)}, **conditions)
    with pytest.raises(RequestError, match=why):
        compare(base, new)
    (row,) = compare(base, new, allow=True).comparisons
    assert row.verdict == "incomparable" and why in row.reason and row.ratio == pytest.approx(2, rel=0.05)


def test_bad_sides_are_refused_in_one_line() -> None:
    good = side("good", {"k": times(1)})
    for bad, why in (
        (side("empty", {}), "nothing to compare"),
        (side("other", {"j": times(1)}), "share no row"),
        (Side("twice", (*good.rows, *good.rows), HERE), "twice"),
        (side("zero", {"k": (1.0, 0.0)}), "not positive"),
        (side("nan", {"k": (math.nan,)}), "not positive"),
    ):
        with pytest.raises(RequestError, match=why) as refusal:
            compare(good, bad)
        assert "\n" not in str(refusal.value)


def test_runs_of_a_side_are_its_processes() -> None:
    runs = [side(f"run{i}", {"k": (1.0 + i / 1000,), **({"j": (2.0,)} if i else {})}) for i in range(4)]
    together = {row.key: row.seconds for row in merged("base", runs).rows}
    assert together == {key("k"): (1.0, 1.001, 1.002, 1.003), key("j"): (2.0, 2.0, 2.0)}
    with pytest.raises(RequestError, match="no one side"):
        merged("base", [*runs, side("elsewhere", {"k": (1.0,)}, device="cpu")])


@given(st.floats(1e-9, 1e3), st.floats(0.2, 5))
def test_units_and_direction_do_not_matter(scale: float, ratio: float) -> None:
    a, b = times(1.0, 0.01, 5), times(ratio, 0.01, 5)
    there = compare(side("a", {"k": a}), side("b", {"k": b})).comparisons[0]
    back = compare(side("b", {"k": b}), side("a", {"k": a})).comparisons[0]
    scaled = compare(side("a", {"k": tuple(scale * x for x in a)}), side("b", {"k": tuple(scale * x for x in b)}))
    turned = {"slower": "faster", "faster": "slower"}
    assert back.verdict == turned.get(there.verdict, there.verdict)
    assert there.ratio is not None and back.ratio is not None and scaled.comparisons[0].ratio is not None
    assert there.ratio * back.ratio == pytest.approx(1)
    assert scaled.comparisons[0].ratio == pytest.approx(there.ratio)
    assert scaled.comparisons[0].verdict == there.verdict
