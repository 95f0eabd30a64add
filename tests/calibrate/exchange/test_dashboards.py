"""Every format against the rules that its owner publishes; the rules are restated here, from the pages named."""

import csv
import io
import json
import math
import re
from datetime import datetime
from xml.etree import ElementTree as Xml

import numpy as np
import pytest

from calibrate.exchange.dashboards import DASHBOARDS
from calibrate.regression.compare import Result, Row, Side, compare

HOSTILE = "../<script>alert(1)</script>\x1b[2J\x00|`x`, &amp; [a](b) \ud800"
HERE = {"device": "NVIDIA H200 <b>", "method version": "2"}


@pytest.fixture(scope="module")
def result() -> Result:
    random = np.random.default_rng(1)

    def rows(ratio: float, **more: Row) -> tuple[Row, ...]:
        names = ("rms_norm", HOSTILE, "same")
        made = [
            Row(
                (("kernel", name), ("dtype", "bfloat16"), ("provider", "inductor")),
                tuple(1e-5 * random.lognormal(0, 1e-3, 6) * (1 if name == "same" else ratio)),
                0.5,
            )
            for name in names
        ]
        power = Row((("figure", "power"),), tuple(random.lognormal(5, 1e-3, 6)), unit="W")
        return (*made, power, *more.values())

    def key(name: str) -> tuple[tuple[str, str], ...]:
        return (("kernel", name),)

    others = {name: Row(key(name), (1.0,)) for name in ("gone", "bad", "one")}
    base = Side("base", rows(1, **others),
                HERE, {"commit": "aaa0"}, "box", "2026-05-09T10:11:12+00:00")  # fmt: skip
    new = Side("new", rows(1.1, bad=Row(key("bad"), failed=f"it crashed {HOSTILE}"), one=Row(key("one"), (1.5,))),
               HERE, {"commit": "bbb1"}, "box", "2026-05-10T10:11:12+00:00")  # fmt: skip
    made = compare(base, new)
    assert made.counts == {"slower": 2, "failed": 1, "missing": 1, "ambiguous": 1, "same": 2}
    return made


def test_every_format_is_one_clean_text(result: Result) -> None:
    for name, write in DASHBOARDS.items():
        text = write(result)
        text.encode()
        assert all(c.isprintable() or c == "\n" for c in text), name
        assert "\x1b" not in text and text.endswith("\n")


def test_junit_is_what_the_schema_of_ant_says(result: Result) -> None:
    """windyroad/JUnit-Schema, JUnit.xsd: order of elements, required attributes, one outcome for a case."""
    root = Xml.fromstring(DASHBOARDS["junit"](result))
    assert root.tag == "testsuites"
    (suite,) = root
    tags = [child.tag for child in suite]
    assert tags[0] == "properties" and tags[-2:] == ["system-out", "system-err"] and set(tags[1:-2]) == {"testcase"}
    needed = {"package", "id", "name", "timestamp", "hostname", "tests", "failures", "errors", "time"}
    assert needed <= set(suite.keys()) <= needed | {"skipped"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
    cases = suite.findall("testcase")
    assert int(suite.attrib["tests"]) == len(cases) == 7
    for tag, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert int(suite.attrib[count]) == len(suite.findall(f"testcase/{tag}"))
    for case in cases:
        assert set(case.keys()) == {"name", "classname", "time"} and float(case.attrib["time"]) >= 0
        assert " ".join(case.attrib["name"].split()) == case.attrib["name"] != "", "a token"
        assert len(case) <= 1
        for outcome in case:
            assert outcome.tag == "skipped" or "type" in outcome.attrib
    failed = {case.attrib["name"].split()[0] for case in cases if case.find("failure") is not None}
    assert failed == {"rms_norm", "../<script>alert(1)</script>�[2J�|`x`,", "gone"}


def test_bencher_is_the_metric_format(result: Result) -> None:
    """bencher.dev/docs/reference/bencher-metric-format: objects of objects with numbers, `value` required."""
    document = json.loads(DASHBOARDS["bencher"](result))
    assert len(document) == 5
    for name, measures in document.items():
        assert 0 < len(name) <= 1024
        for measure, metric in measures.items():
            assert 0 < len(measure) <= 64
            assert "value" in metric and metric.keys() <= {"value", "lower_value", "upper_value"}
            assert all(type(number) is float and math.isfinite(number) for number in metric.values())
            assert metric.get("lower_value", 0) <= metric["value"] <= metric.get("upper_value", math.inf)
    name = "rms_norm bfloat16 inductor"
    assert document[name]["latency"]["value"] == pytest.approx(1.1e4, rel=0.01), "nanoseconds"
    assert "lower_value" not in document["one"]["latency"]


def test_hud_records_are_version_three(result: Result) -> None:
    """pytorch/test-infra, benchmark results v3: benchmark, model and metric; values are a list."""
    records = json.loads(DASHBOARDS["hud"](result))
    assert len(records) == 5
    for record in records:
        assert record.keys() == {"benchmark", "model", "metric"}
        assert record["benchmark"].keys() <= {"name", "mode", "dtype", "extra_info"}
        assert record["model"].keys() <= {"name", "type", "backend", "origins", "extra_info"}
        assert all(isinstance(value, str) for value in record["benchmark"]["extra_info"].values())
        assert all(isinstance(value, str) and value for value in record["model"].values())
        assert [type(value) for value in record["metric"]["benchmark_values"]] == [float]
        assert type(record["metric"]["target_value"]) is float


def test_github_action_benchmark_takes_smaller_is_better(result: Result) -> None:
    """benchmark-action/github-action-benchmark, README: name, unit and value required; range and extra are texts."""
    entries = json.loads(DASHBOARDS["gha"](result))
    assert len(entries) == len({entry["name"] for entry in entries}) == 5
    for entry in entries:
        assert {"name", "unit", "value"} <= entry.keys() <= {"name", "unit", "value", "range", "extra"}
        assert isinstance(entry["value"], float) and isinstance(entry["unit"], str)
        assert isinstance(entry.get("range", ""), str) and isinstance(entry["extra"], str)


def test_otava_reads_time_commit_and_metrics(result: Result) -> None:
    """apache/otava, docs/CSV.md: a header, a time column, attributes, and a number in each metric's column."""
    header, *lines = csv.reader(io.StringIO(DASHBOARDS["otava"](result)))
    assert header[:2] == ["time", "commit"] and len(set(header)) == len(header) == 7
    assert [line[1] for line in lines] == ["aaa0", "bbb1"]
    times = [datetime.strptime(line[0], "%Y-%m-%d %H:%M:%S %z") for line in lines]
    assert times == sorted(times)
    assert all(len(line) == len(header) and all(float(value) > 0 for value in line[2:]) for line in lines)


def test_a_summary_shows_names_and_no_markup(result: Result) -> None:
    text = DASHBOARDS["markdown"](result)
    assert "slower by 10" in text and "50 → 50 % of the device" in text
    assert "<script>" not in text and "&lt;script&gt;" in text and "[a](b)" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in tables)
    assert set(re.findall(r"<(/?\w+)>", text)) == {"details", "summary", "/summary", "/details"}
