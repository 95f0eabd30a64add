"""Comparisons in the formats that CI systems and dashboards read; a new format is a function and a row of `DASHBOARDS`.

    junit        JUnit XML, as Ant, Jenkins, GitLab and GitHub actions read it (windyroad/JUnit-Schema)
    markdown     a job summary of GitHub or GitLab
    bencher      Bencher Metric Format (bencher.dev/docs/reference/bencher-metric-format)
    hud          benchmark records v3 of PyTorch's dashboard (pytorch/test-infra)
    gha          `customSmallerIsBetter` of benchmark-action/github-action-benchmark
    otava        CSV of Apache Otava: a line for each side, a column for each row of the comparison

Names come from files: characters that XML, Markdown or a terminal would obey are replaced. Times are in nanoseconds
where a format has a usual unit (Bencher's latency), else in seconds; a figure that is no time keeps its unit.
"""

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree as Xml

from calibrate.exchange.figures import plain
from calibrate.regression.compare import CONDITIONS, Comparison, Result

LONGEST_BENCHER = 1024
"""Characters of a benchmark's name (Bencher's reference)."""
NANOSECONDS = 1e9


def junit(result: Result) -> str:
    """A test case for each row: slower and missing are failures, failed is an error, what nobody can say is skipped."""
    cases, counts = [], {"failure": 0, "error": 0, "skipped": 0}
    outcomes = {"slower": "failure", "missing": "failure", "failed": "error", "ambiguous": "skipped",
                "incomparable": "skipped"}  # fmt: skip
    for row in result.comparisons:
        case = Xml.Element("testcase", name=plain(row.name), classname=plain(row.key[0][1]), time=_decimal(row))
        outcome = outcomes.get(row.verdict)
        if outcome == "skipped":
            Xml.SubElement(case, outcome, message=plain(row.sentence))
        elif outcome is not None:
            told = Xml.SubElement(case, outcome, message=plain(row.sentence), type=row.verdict)
            told.text = plain(row.sentence)
        if outcome is not None:
            counts[outcome] += 1
        cases.append(case)
    root = Xml.Element("testsuites")
    suite = Xml.SubElement(
        root,
        "testsuite",
        package="roofcal",
        id="0",
        name=plain(f"{result.base.name} against {result.new.name}"),
        timestamp=_time(result.new.started).strftime("%Y-%m-%dT%H:%M:%S"),
        hostname=plain(result.new.hostname or "localhost"),
        tests=str(len(cases)),
        failures=str(counts["failure"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
        time=f"{sum(row.new_s or 0.0 for row in result.comparisons if row.unit == 's'):.9f}",
    )
    properties = Xml.SubElement(suite, "properties")
    for name in CONDITIONS:
        Xml.SubElement(properties, "property", name=name, value=plain(result.new.conditions.get(name) or "unknown"))
    suite.extend(cases)
    Xml.SubElement(suite, "system-out").text = "\n".join(plain(f"{r.name}: {r.sentence}") for r in result.comparisons)
    Xml.SubElement(suite, "system-err").text = "\n".join(map(plain, result.notes))
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(result: Result) -> str:
    """A table of what changed or needs a look, and a folded one of the rest."""
    title = f"### {_cell(result.base.name)} against {_cell(result.new.name)}"
    counts = ", ".join(f"{count} {verdict}" for verdict, count in result.counts.items())
    told = [row for row in result.comparisons if row.verdict not in ("same", "new", "incomparable")]
    rest = [row for row in result.comparisons if row not in told]
    lines = [title, "", f"**{counts}**", ""]
    lines += _table(told) if told else ["Nothing changed.", ""]
    if rest:
        lines += ["<details><summary>" + f"{len(rest)} other rows</summary>", "", *_table(rest), "</details>", ""]
    return "\n".join([*lines, *(f"> {_cell(note)}" for note in result.notes)]).rstrip() + "\n"


def bencher(result: Result) -> str:
    """The new side's times, with the ends that the interval of the ratio gives them."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for row in _measured(result):
        scale, measure = (NANOSECONDS, "latency") if row.unit == "s" else (1.0, f"cost-{_slug(row.unit)}")
        metric = {"value": scale * (row.new_s or 0.0)}
        if row.low is not None and row.high is not None and row.base_s is not None:
            metric |= {"lower_value": scale * row.base_s * row.low, "upper_value": scale * row.base_s * row.high}
            metric = {"value": min(max(metric["value"], metric["lower_value"]), metric["upper_value"])} | {
                name: metric[name] for name in ("lower_value", "upper_value")
            }
        out.setdefault(plain(row.name)[:LONGEST_BENCHER], {})[measure] = metric
    return _json(out)


def hud(result: Result) -> str:
    """A record for each row of the new side; `target_value` is the base's time, so that the dashboard shows both."""
    return _json(
        [
            {
                "benchmark": {
                    "name": "roofcal",
                    "mode": "inference",
                    "dtype": plain(dict(row.key).get("dtype", "")),
                    "extra_info": {
                        "device": plain(result.new.conditions.get("device") or ""),
                        "arch": plain(result.new.conditions.get("device") or ""),
                        "verdict": row.verdict,
                        "key": json.dumps({name: plain(value) for name, value in row.key}),
                    },
                },
                "model": {"name": plain(row.name), "type": plain(row.key[0][0]), "backend": _provider(row)},
                "metric": {
                    "name": f"latency({row.unit})",
                    "benchmark_values": [row.new_s],
                    "target_value": row.base_s,
                },
            }
            for row in _measured(result)
        ]
    )


def gha(result: Result) -> str:
    """A list of names with values, smaller is better."""
    out = []
    for row in _measured(result):
        entry: dict[str, Any] = {"name": plain(row.name), "unit": row.unit, "value": row.new_s}
        if row.low is not None and row.high is not None and row.base_s is not None:
            entry["range"] = f"± {row.base_s * (row.high - row.low) / 2:.3g}"
        out.append({**entry, "extra": plain(row.sentence)})
    return _json(out)


def otava(result: Result) -> str:
    """Two lines of a series; append the second to the file of a longer one. Columns: time, commit, one for each row."""
    rows = _measured(result)
    file = io.StringIO()
    write = csv.writer(file, lineterminator="\n")
    write.writerow(["time", "commit", *(plain(row.name).replace(",", ";") for row in rows)])
    for side, is_new in ((result.base, False), (result.new, True)):
        stamp = _time(side.started).strftime("%Y-%m-%d %H:%M:%S %z")
        commit = side.versions.get("commit", side.name)
        write.writerow([stamp, plain(commit).replace(",", ";"), *(row.new_s if is_new else row.base_s for row in rows)])
    return file.getvalue()


DASHBOARDS: dict[str, Callable[[Result], str]] = {
    "junit": junit,
    "markdown": markdown,
    "bencher": bencher,
    "hud": hud,
    "gha": gha,
    "otava": otava,
}
"""Name of a format -> the content of its file."""


def _measured(result: Result) -> list[Comparison]:
    return [row for row in result.comparisons if row.base_s is not None and row.new_s is not None]


def _table(rows: list[Comparison]) -> list[str]:
    lines = ["| name | verdict | what |", "|---|---|---|"]
    return [*lines, *(f"| {_cell(row.name)} | {row.verdict} | {_cell(row.sentence)} |" for row in rows), ""]


def _cell(text: str) -> str:
    """A cell of a table in which nothing is HTML, a link, or the cell's end."""
    escaped = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|~#" else c for c in escaped)


def _slug(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower()).strip("-")


def _provider(row: Comparison) -> str:
    return plain(dict(row.key).get("provider") or "torch")


def _decimal(row: Comparison) -> str:
    return f"{row.new_s if row.new_s is not None and row.unit == 's' else 0.0:.9f}"


def _time(started: str) -> datetime:
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        moment = datetime.now(UTC)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _json(document: Any) -> str:
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
