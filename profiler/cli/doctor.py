"""`doctor`: check the machine before measuring; exit code 4 where something makes measurements invalid."""

from pathlib import Path

import typer

from calibrate.report.document import printable
from profiler.cli.options import AsJson, DeviceName, Results
from profiler.cli.output import INVALID, print_json, print_wrapped, stdout_to_stderr_if

EXAMPLE = "Example:  python -m profiler doctor --device cuda"
STYLES = {"invalidates": "bold red", "warns": "yellow", "note": "dim"}


def doctor(device: DeviceName = "auto", results: Results = Path("results"), as_json: AsJson = False) -> None:
    """Check what on this machine would spoil a measurement.

    Each finding says why it matters and what to do about it.
    """
    with stdout_to_stderr_if(as_json):
        from profiler.devices.environment import collect, findings

        problems = findings(device, results)  # first: loading more of CUDA would count as other work
        environment = collect(device, problems)
    invalid = sum(problem.severity == "invalidates" for problem in problems)
    if as_json:
        dumped = [problem.model_dump(mode="json") for problem in problems]
        print_json(
            {"device": environment.device, "environment": environment.model_dump(mode="json"), "findings": dumped}
        )
    else:
        versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
        about = f"{environment.device}, {environment.cores} cores, {environment.threads} threads, {versions}"
        print_wrapped(printable(about))
        for problem in problems:
            print_wrapped(printable(f"{problem.severity}: {problem.what}"), STYLES[problem.severity])
            print_wrapped(f"  why: {printable(problem.why)}\n  do:  {printable(problem.mend)}", hang=5)
        if invalid:
            print_wrapped(f"findings that make measurements invalid: {invalid}; fix them first")
        if not problems:
            print_wrapped("nothing on this machine would spoil a measurement")
    if invalid:
        raise typer.Exit(INVALID)
