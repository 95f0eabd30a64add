"""Refuses options of `predict` that would change nothing, so that none is ignored in silence."""

from collections.abc import Collection, Iterable

import typer

from profiler.cli.options import SIZES
from profiler.record.run import RequestError

NOT_OF_IMAGES = SIZES - {"--batch"} | {"--mix", "--output", "--largest", "--source", "--experts", "--cache"}
"""Options of passes over tokens, which a vision tower has not."""

OF_MODEL = frozenset(
    {"--attn", "--experts", "--cache", "--trust-remote-code", "--bits-of-checkpoint", "--source", "--part"}
)
"""Options that say how MODEL is read and traced."""

OF_ONE_MODEL = frozenset({
    "--module", "--module-seconds", "--graph", "--save-graph", "--mix", "--output", "--accounting", "--part",
    "--source",
})  # fmt: skip
"""Options that mean nothing to a file of models and workloads, beside `SIZES`."""

OF_PAPER = frozenset({"--bits", "--flash"})
NOT_OF_PAPER = frozenset({
    "--what-if", "--mix", "--output", "--draft", "--decode-hardware", "--micro-batches", "--link", "--largest",
    "--memory-utilisation", "--overhead", "--csv", "--html", "--form", "--phase", "--context", "--logits",
})  # fmt: skip
"""Options of one accounting that mean nothing to the other."""


def written_options(invocation: typer.Context) -> frozenset[str]:
    """The options that the command line has, without those left at their defaults."""
    sources = {name: invocation.get_parameter_source(name) for name in invocation.params}
    written = (name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")
    return frozenset(f"--{name.replace('_', '-')}" for name in written)


def listed(options: Iterable[str]) -> str:
    """Options in the words of a sentence."""
    return ", ".join(sorted(options))


def refuse_in_vain(written: frozenset[str], accounting: str) -> None:
    """Raise RequestError for an option that would change nothing."""
    if accounting == "paper" and (vain := written & NOT_OF_PAPER):
        raise RequestError(f"--accounting paper has no {listed(vain)}; leave it out, or use --accounting roofcal")
    if accounting != "paper" and (vain := written & OF_PAPER):
        raise RequestError(
            f"{listed(vain)} needs --accounting paper; add it, or use a what-if, as --what-if quantise:weights=4"
        )
    needed: tuple[tuple[str, Collection[str]], ...] = (
        ("--output", ("--draft", "--decode-hardware", "--micro-batches")),
        ("--draft", ("--speculate", "--acceptance")),
        ("--largest", ("--memory-utilisation", "--overhead")),
        ("--find", ("--over", "--cost")),
    )
    for option, dependants in needed:
        if option not in written and (vain := written.intersection(dependants)):
            raise RequestError(f"{listed(vain)} changes nothing without {option}; add {option}")
