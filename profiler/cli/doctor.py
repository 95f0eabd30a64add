"""`doctor`: look at the machine before measuring; 0 where it can be trusted, 4 where something invalidates."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from profiler.cli.output import INVALID, console, print_json, stdout_to_stderr_if

EXAMPLE = "Example:  python -m profiler doctor --device cuda"
STYLES = {"invalidates": "bold red", "warns": "yellow", "note": "dim"}


def doctor(
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto.")] = "auto",
    results: Annotated[Path, typer.Option(help="Folder that will hold the runs.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on stdout.")] = False,
) -> None:
    """Say what about this machine would spoil a measurement, why it matters, and what to do about it."""
    with stdout_to_stderr_if(as_json):
        from profiler.devices.environment import collect, findings

        found = findings(device, results)  # first: loading more of CUDA would be seen as somebody's work
        environment = collect(device, found)
    invalid = sum(finding.severity == "invalidates" for finding in found)
    if as_json:
        shown = [finding.model_dump(mode="json") for finding in found]
        print_json(
            {"device": environment.device, "environment": environment.model_dump(mode="json"), "findings": shown}
        )
    else:
        out = console(soft_wrap=True, highlight=False)
        versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
        out.print(Text(f"{environment.device}, {environment.cores} cores, {environment.threads} threads, {versions}"))
        for finding in found:
            out.print(Text(f"{finding.severity}: {finding.what}", STYLES[finding.severity]))
            out.print(Text(f"  why: {finding.why}"))
            out.print(Text(f"  do:  {finding.mend}"))
        if invalid:
            out.print(f"{invalid} of these must be mended before measurements here can be trusted")
        if not found:
            out.print("nothing found that would spoil a measurement")
    if invalid:
        raise typer.Exit(INVALID)
