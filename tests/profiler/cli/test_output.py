import io
from contextlib import suppress
from pathlib import Path

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
