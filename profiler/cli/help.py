"""How help looks: options in groups, examples a line each, and what a shell completes.

An option belongs to the group of `GROUPS` that names it, in every verb alike, or to the one that its own
`rich_help_panel` names.
"""

import os
import shlex
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand

GROUPS: dict[str, tuple[str, ...]] = {
    "Model": (
        "dtype", "layers", "weights", "attn", "experts", "cache", "compile", "cuda-graph", "part", "source",
        "bits-of-checkpoint", "trust-remote-code", "module", "module-seconds", "graph", "model", "tp",
    ),
    "Workload": (
        "phase", "prompt", "context", "batch", "logits", "mix", "output", "draft", "speculate", "acceptance", "file",
        "workloads", "largest", "memory-utilisation", "overhead",
    ),
    "Device": ("device", "hardware", "peaks", "link", "decode-hardware", "engine", "threads", "memory", "tp"),
    "Search": ("find", "over", "cost"),
    "Changes and rules of counting": ("what-if", "micro-batches", "form", "accounting", "bits", "flash"),
    "Kernels": (
        "suite", "family", "provider", "shape", "kernels", "shard", "merge", "list", "check-only", "draws",
    ),
    "Shards": ("gpu", "shards", "set", "minutes"),
    "Verdict": ("tolerance", "ignore", "spread", "allow", "pairs", "confirm", "between"),
    "Measurement": (
        "quick", "only", "plan", "seconds", "processes", "calibrate", "visits", "seed", "wait-quiet", "resume",
        "points", "kind", "score", "timeout",
    ),
    "Input and output": (
        "to", "out", "name", "results", "force", "csv", "html", "markdown", "write", "save-graph", "keep", "json",
        "port",
        "version", "debug", "help",
        "install-completion", "show-completion",
    ),
}  # fmt: skip
"""Title -> the options in it, without their dashes, in the order of the help."""

OTHER = "Other options"
COMPLETE = "_ROOFCAL_COMPLETE"
"""Set by the shell's completion script when it asks what may come next; as typer names it for a program `roofcal`."""


def group_of(name: str) -> str:
    """The group that names an option."""
    return next((title for title, names in GROUPS.items() if name in names), OTHER)


class Grouped(TyperCommand):
    """A verb whose help has its options in groups, and its examples as they can be copied."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then each group that has options."""
        arguments: list[tuple[str, str]] = []
        groups: dict[str, list[tuple[int, tuple[str, str]]]] = {title: [] for title in (*GROUPS, OTHER)}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is None:
                continue
            if parameter.param_type_name == "argument":
                arguments.append(record)
                continue
            name = max(parameter.opts, key=len).lstrip("-")  # "help" of -h, --help
            title = getattr(parameter, "rich_help_panel", None) or group_of(name)
            place = GROUPS[title].index(name) if name in GROUPS.get(title, ()) else len(groups)
            groups.setdefault(title, []).append((place, record))
        records = {"Arguments": arguments, **{title: [r for _, r in sorted(rows)] for title, rows in groups.items()}}
        for title, rows in records.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples unwrapped: a line that is broken cannot be copied."""
        if self.epilog:
            formatter.write("\n" + "\n".join(_examples(self.epilog, formatter.width)) + "\n")


def _examples(epilog: str, width: int) -> Iterable[str]:
    """The lines of the examples; a long one is continued as a shell reads it, before an option."""
    for line in filter(None, map(str.strip, epilog.splitlines())):
        title, _, command = line.rpartition("  ")
        if line.endswith(":") or title.endswith(":"):
            yield title.strip() or line
        if not line.endswith(":"):
            yield from _continued(command.strip(), width - 2)


def _continued(command: str, width: int) -> Iterable[str]:
    words, line = command.split(" "), ""
    for i, word in enumerate(words):
        following = " ".join(words[i : i + 2]) if word.startswith("--") else word
        if line and word.startswith("--") and len(line) + 1 + len(following) + 2 > width:
            yield f"  {line} \\"
            line = "    " + word
        else:
            line = f"{line} {word}" if line else word
    yield f"  {line}"


def asked_to_complete() -> list[str] | None:
    """The words on the command line that a shell wants to see completed; None where no shell asks."""
    if not os.environ.get(COMPLETE):
        return None
    written = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    try:
        return shlex.split(written)[1:]
    except ValueError:  # a quote that is not closed yet
        return written.split()[1:]


def model_names(incomplete: str = "") -> list[str]:
    """The models of the catalogue that begin so."""
    from profiler.models.catalogue import catalogue

    return [name for name in catalogue() if name.startswith(incomplete)]


def hardware_names(incomplete: str = "") -> list[str]:
    """The devices, and "last", that begin so; after a comma the next one of a list."""
    from roofline.hardware.load import device_names

    before, comma, part = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in (*device_names(), "last") if name.startswith(part)]
