"""`doctor`: look at the machine before measuring; 0 where it can be trusted, 4 where something invalidates."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from profiler.cli.output import INVALID, console, print_json, stdout_to_stderr_if

EXAMPLE = "Example:  python -m profiler doctor --device cuda"
STYLES = {"invalidates": "bold red", "warns": "yellow", "note": "dim"}


def doctor(
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; cuda where there is one.")] = None,
    results: Annotated[Path, typer.Option(help="Folder that will hold the runs.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on stdout.")] = False,
) -> None:
    """What about this machine would spoil a measurement, and how to mend it."""
    with stdout_to_stderr_if(as_json):
        import torch

        from profiler.environment import collect, findings

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        found = findings(device, results)  # first: loading more of CUDA would be seen as somebody's work
        environment = collect(device, found)
    if as_json:
        print_json(
            {
                "device": environment.device,
                "environment": environment.model_dump(mode="json"),
                "findings": [finding.model_dump(mode="json") for finding in found],
            }
        )
    else:
        out = console(soft_wrap=True, highlight=False)
        versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
        out.print(Text(f"{environment.device}, {environment.cores} cores, {environment.threads} threads, {versions}"))
        for finding in found:
            out.print(Text(f"{finding.severity}: {finding.what}", STYLES[finding.severity]))
            out.print(Text(f"  → {finding.mend}"))
        if not found:
            out.print("nothing found that would spoil a measurement")
    if any(finding.severity == "invalidates" for finding in found):
        raise typer.Exit(INVALID)
