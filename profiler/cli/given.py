"""Which options were written on the command line, and those of them that would change nothing.

What a command line asks for in vain is refused, rather than left out in silence.

Example: ``refuse_in_vain(given_options(context), "paper")`` raises RequestError after ``--mix 1x512@0``
"""

from collections.abc import Iterable

import typer

from profiler.record.errors import RequestError

SIZES = frozenset({"--phase", "--prompt", "--context", "--batch", "--logits"})
"""Options that say which passes are asked for."""

OF_PAPER = frozenset({"--bits", "--flash"})
NOT_OF_PAPER = frozenset({
    "--what-if", "--mix", "--output", "--draft", "--decode-hardware", "--largest", "--csv", "--html", "--form",
    "--phase", "--context", "--logits",
})  # fmt: skip
"""Of the two accountings each has options that mean nothing to the other."""


def given_options(invocation: typer.Context) -> frozenset[str]:
    """The options that were written down."""
    written = (name for name in invocation.params if _is_written(invocation, name))
    return frozenset(f"--{name.replace('_', '-')}" for name in written)


def _is_written(invocation: typer.Context, name: str) -> bool:
    source = invocation.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def listed(options: Iterable[str]) -> str:
    """Options as a sentence has them."""
    return ", ".join(sorted(options))


def refuse_in_vain(given: frozenset[str], accounting: str) -> None:
    """Options that would change nothing are refused, rather than left out in silence."""
    if accounting == "paper" and (vain := given & NOT_OF_PAPER):
        raise RequestError(f"--accounting paper has no {listed(vain)}; leave it out, or use --accounting roofcal")
    if accounting != "paper" and (vain := given & OF_PAPER):
        raise RequestError(f"{listed(vain)} is of --accounting paper; here use --what-if, as quantise:weights=4")
    for options, needed in (
        ({"--draft", "--decode-hardware"}, "--output"),
        ({"--speculate", "--acceptance"}, "--draft"),
    ):
        if needed not in given and (vain := given & options):
            raise RequestError(f"{listed(vain)} changes nothing without {needed}; add {needed}")
