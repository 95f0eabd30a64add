import io
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from profiler.cli import output
from profiler.cli.output import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_piped_it_is_a_line_in_ten_seconds_at_most_and_it_only_goes_up() -> None:
    stream, clock = io.StringIO(), [0.0]
    with progress(4, stream, now=lambda: clock[0], unit_s=[20.0] * 4) as step:
        for at, text, done in (
            (0, "weights", 0.0),
            (5, "gpt2: trace", 1.0),  # within ten seconds
            (20, "gpt2: prefill", 1.0),
            (35, "gpt2: prefill, pass 5", 1.5),  # the same unit
            (40, "gpt2: decode", 2.0),
            (60, "gpt2: again", 1.0),  # progress never goes back
            (100, "gpt2: again, on and on", 2.0),  # a minute without a word
        ):
            clock[0] = at
            step(text, done)
    assert stream.getvalue().splitlines() == [
        "[1/4] weights (about 80 s left)",
        "[2/4] gpt2: prefill (about 60 s left)",
        "[3/4] gpt2: decode (about 40 s left)",
        "[3/4] gpt2: again, on and on (about 1 min 40 s left)",
    ]


def test_units_weigh_what_they_are_estimated_to_take() -> None:
    stream, clock = io.StringIO(), [0.0]
    with progress(3, stream, now=lambda: clock[0], unit_s=[80.0, 10.0, 10.0]) as step:
        clock[0] = 120.0  # later than all was to take: the pace alone tells
        step("calibration", 0.5)
        clock[0] = 240.0
        step("gpt2: decode", 1.0)
    assert stream.getvalue().splitlines() == [
        "[1/3] calibration (about 3 min 0 s left)",
        "[2/3] gpt2: decode (about 60 s left)",
    ]


def test_a_log_that_cannot_be_written_stops_no_measurement() -> None:
    with Path("/dev/full").open("w") as full, progress(4, full) as step:
        step("weights", 0)
        step("more", 1)
        with suppress(OSError):
            full.close()


def test_on_a_terminal_it_is_a_bar() -> None:
    stream = Terminal()
    with progress(8, stream) as step:
        step("weights", 0)
        step("gpt2: [decode]", 2)
    shown = stream.getvalue()
    assert "25 %" in shown
    assert "gpt2: [decode]" in shown


def told(unit_s: list[float], took_s: list[float], before: int = 0) -> list[tuple[float, float]]:
    """(part that is done, seconds left as they are told ÷ as they come) as each unit ends, from a tenth on."""
    stream, clock, found = io.StringIO(), [0.0], []
    whole_s = sum(took_s[before:])
    try:
        output.set_volume(output.VERBOSE)
        with progress(len(unit_s), stream, now=lambda: clock[0], unit_s=unit_s, before=before) as step:
            for done in range(before + 1, len(unit_s)):
                clock[0] += took_s[done - 1]
                step(f"unit {done}", done)
                left = re.search(r"about (?:(\d+) min )?(?:(\d+) s )?left", stream.getvalue().splitlines()[-1])
                if left and clock[0] >= whole_s / 10:
                    minutes, seconds = (int(number or 0) for number in left.groups())
                    found.append((clock[0] / whole_s, (60 * minutes + seconds) / (whole_s - clock[0])))
    finally:
        output.set_volume(output.NORMAL)
    return found


@pytest.mark.parametrize("slower", [0.3, 0.7, 1.0, 1.6, 4.0])
def test_after_a_tenth_the_time_left_is_right_within_a_third(slower: float) -> None:
    """On a machine of any speed, with units of any length whose times scatter by 30 %: nine times in ten."""
    draw, ratios = np.random.default_rng(7), []
    for _ in range(30):
        unit_s = draw.lognormal(4, 1, size=40)
        took_s = slower * unit_s * draw.lognormal(0, 0.3, size=40)
        ratios += [ratio for part, ratio in told([*unit_s], [*took_s]) if part < 0.9]  # then whole seconds count
    assert np.mean([2 / 3 <= ratio <= 4 / 3 for ratio in ratios]) > 0.9


def test_what_an_earlier_process_has_done_says_nothing_of_the_pace() -> None:
    (first, *_) = told([60.0] * 20, [100.0] * 20, before=10)
    assert first == pytest.approx((0.1, 1.0))


def test_quiet_prints_no_progress_and_verbose_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    for volume, lines in ((output.QUIET, 0), (output.NORMAL, 1), (output.VERBOSE, 3)):
        stream = io.StringIO()
        try:
            output.set_volume(volume)
            with progress(3, stream) as step:
                for text in ("a: 1", "a: 2", "a: 3"):
                    step(text, 0)
            output.remark("by the way")
        finally:
            output.set_volume(output.NORMAL)
        assert stream.getvalue().count("\n") == lines
        assert capsys.readouterr().err == ("by the way\n" if volume != output.QUIET else "")
