import io

from profiler.cli.output import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_piped_it_is_a_line_a_unit() -> None:
    stream = io.StringIO()
    with progress(4, stream) as step:
        step("weights", 0)
        step("gpt2: prefill", 1)
        step("gpt2: prefill, pass 5", 1.5)
        step("gpt2: decode", 3)
    assert stream.getvalue() == "[1/4] weights\n[2/4] gpt2: prefill\n[4/4] gpt2: decode\n"


def test_on_a_terminal_it_is_a_bar() -> None:
    stream = Terminal()
    with progress(8, stream) as step:
        step("weights", 0)
        step("gpt2: [decode]", 2)
    shown = stream.getvalue()
    assert "25 %" in shown
    assert "gpt2: [decode]" in shown
