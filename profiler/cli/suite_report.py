"""The reports of runs of `kernels`: written, shown, and several runs as one."""

from collections.abc import Sequence
from pathlib import Path

from profiler.cli import output
from profiler.record.files import write_text
from profiler.record.folder import RunFolder, find_run
from profiler.record.run import RequestError


def merged(names: Sequence[str], out: Path, csv: Path | None, markdown: Path | None, as_json: bool) -> int:
    """Show several runs as one and return the exit code. Raises RequestError for runs of different devices."""
    folders = [find_run(name, out) for name in names]
    for folder in folders:
        if folder.content != "suite":
            raise RequestError(f"{folder.path} is not a run of `kernels`; see: python -m profiler list")
    first = folders[0].run.environment
    for folder in folders[1:]:
        if folder.run.environment.device != first.device:
            raise RequestError(
                f"{folder.path} is of {folder.run.environment.device}, and {folders[0].path} of {first.device}; "
                "merge runs of one kind of device"
            )
    return show_suites(folders, as_json, csv, markdown)


def show_suites(
    folders: Sequence[RunFolder],
    as_json: bool,
    csv: Path | None = None,
    markdown: Path | None = None,
    *,
    write: bool = False,
) -> int:
    """Write and show the reports; return the exit code."""
    import io

    from calibrate.report import markdown as markdown_of
    from calibrate.report.suite import suite_document, suite_json, write_suite_csv
    from calibrate.report.suite_rows import suite_rows
    from profiler.record.suite_table import read_suite_results

    first = folders[0]
    spec = next((spec for folder in folders if (spec := folder.read_spec()) is not None), None)
    results = [result for folder in folders for result in read_suite_results(folder.path)]
    rows = suite_rows(results, spec, str(first.run.options["device"]))
    report = suite_document(first.run, rows, spec)
    if write:
        output.write_reports(first, report)
    if csv is not None:
        text = io.StringIO()
        write_suite_csv(rows, text)
        write_text(csv, text.getvalue())
    if markdown is not None:
        write_text(markdown, markdown_of.render(report))
    path = ", ".join(str(folder.path) for folder in folders)
    kept = first.path if write else None
    output.show(as_json, lambda: suite_json(path, first.run, rows, spec), lambda: report, kept=kept)
    if any(row.is_wrong for row in rows):
        return output.INVALID
    states = {result.measurement.status for result in results if result.measurement is not None}
    return output.INCONCLUSIVE if states - {"done"} else output.GOOD
