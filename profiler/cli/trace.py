"""`trace`: where the time of a real engine went, from its own timeline. Wiring only; no torch, no device."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from profiler.cli import output
from profiler.cli.options import AsJson
from profiler.record.files import replacing, require_separate, write_text

EXAMPLE = """
Examples:\n
python -m profiler trace rank0.pt.trace.json.gz rank1.pt.trace.json.gz --csv kernels.csv\n
python -m profiler trace report.sqlite --json > report.json\n
To make report.sqlite:\n
nsys export --type sqlite report.nsys-rep
"""


def trace(
    files: Annotated[
        list[Path],
        Argument(metavar="FILE", help="Traces of torch.profiler (.json, .gz) or exports of Nsight Systems (.sqlite)."),
    ],
    csv: Annotated[Path | None, Option(help="Also write CSV: a row for each kernel.")] = None,
    html: Annotated[Path | None, Option(help="Also write an HTML page with all rows of all tables.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which kernels ran in an engine's timeline, in which steps and modules.

    It also shows what remains unexplained. Give one file for each rank. The metadata of a file is never copied.
    """
    require_separate({"--csv": csv, "--html": html}, files)
    from calibrate.report.engine_trace import trace_document, trace_json, write_trace_csv
    from profiler.attribution.engine import read_ranks
    from profiler.record.engine_trace import EngineTrace

    with output.stdout_to_stderr_if(as_json), output.progress(len(files)) as step:
        ranks = []
        for done, path in enumerate(files):
            step(path.name, done)
            ranks += read_ranks(path)
    read = EngineTrace(ranks=tuple(ranks))
    if csv is not None:
        with replacing(csv) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            write_trace_csv(read, file)
    if html is not None:
        from calibrate.report.html import render

        write_text(html, render(trace_document(read)))
    output.show(as_json, lambda: trace_json(read), lambda: trace_document(read))
