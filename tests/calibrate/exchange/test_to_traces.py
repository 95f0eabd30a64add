"""Traces read back by the rules of their viewers: Perfetto's nesting of events, and speedscope's schema."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import report_samples
from each import each
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from calibrate.exchange.to_traces import MOST_DEPTH, microseconds, ranges
from calibrate.passes.reports import load
from profiler.cli.app import main
from profiler.record.folder import RunFolder
from profiler.record.run import CellResult, OpTimes, Run
from roofline.graph.op import Op, OpGraph
from roofline.hardware.spec import HardwareSpec

PATHS = ("", "model.embed", "model.layers.0.attn.q", "model.layers.0.attn", "model.layers.0.attn.q", "model.layers.1",
         "model.layers.1.mlp", "model", "lm_head")  # fmt: skip


@pytest.fixture
def write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, result: CellResult, graph: OpGraph
) -> Callable[..., RunFolder]:
    """Writes a finished run whose one pass has an operation of each path, and whose other cell failed."""
    monkeypatch.chdir(tmp_path)

    def made(paths: tuple[str, ...] = PATHS, spec: HardwareSpec = report_samples.CPU, **changes: Any) -> RunFolder:
        ops = tuple(
            graph.ops[i % 2].model_copy(update={"path": path, "count": 1.0, **changes}) for i, path in enumerate(paths)
        )
        times = tuple(
            OpTimes(op=i, device_s=(1.1e-6 * (i + 1),) * 2, gap_s=(0.3e-6,) * 2, kernels=(f"k{i}", *changes.values()))
            for i in range(len(ops))
        )
        with RunFolder.create(tmp_path / "results", run) as folder:
            folder.write_spec(spec)
            folder.write_graph(result.cell, graph.model_copy(update={"ops": ops}))
            folder.append(result.model_copy(update={"ops": times, "unattributed_s": (2e-6, 2e-6)}))
            folder.append(CellResult(cell=run.cells[1], status="failed", reason="out of memory: 3 GB wanted"))
            folder.finish()
        return folder

    return made


def exported(form: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["export", "last", "--to", form, "--out", "it.json"]) == 0, capsys.readouterr().err
    content: dict[str, Any] = json.loads(Path("it.json").read_bytes())
    return content


def nested(events: list[dict[str, Any]], whole: Callable[[float], int]) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Names around each event of a thread, as Perfetto finds them: by whole nanoseconds, in the order of the file."""
    stack: list[tuple[int, str]] = []
    out = []
    for event in events:
        start, end = whole(event["ts"] * 1000), whole(event["ts"] * 1000) + whole(event["dur"] * 1000)
        while stack and stack[-1][0] <= start and not (stack[-1][0] == start == end):
            stack.pop()
        assert not stack or end <= stack[-1][0], "partly overlaps"
        out.append((tuple(name for _, name in stack), event))
        stack.append((end, event["name"]))
    return out


def threads(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Complete events of each thread by its name."""
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in content["traceEvents"] if e["name"] == "thread_name"}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for event in content["traceEvents"]:
        if event["ph"] == "X":
            found[names[event["pid"], event["tid"]]].append(event)
    return found


def prefixes(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def test_perfetto_sees_each_operation_in_its_modules(
    write: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write()
    content = exported("chrome-trace", capsys)
    assert "out of memory" in capsys.readouterr().err
    lanes = threads(content)
    assert list(lanes) == ["measured", "predicted"]
    (report,), _ = load(folder)
    for lane, busy_s in (("measured", report.busy_s), ("predicted", report.predicted_busy_s)):
        for whole in (int, round):
            seen = [(around, e) for around, e in nested(lanes[lane], whole) if e["cat"] == "operation"]
            own = [(around, e) for around, e in seen if e["name"] != "(unattributed)"]
            assert [list(around[1:]) for around, _ in own] == [prefixes(path) for path in PATHS]
            assert {around[0] for around, _ in seen} == {"example prefill-b1-q4-c0-float32"}
        assert sum(e["dur"] for _, e in seen) == pytest.approx(busy_s * 1e6, abs=1e-3 * len(seen))
    whole_pass = lanes["measured"][0]
    assert whole_pass["cat"] == "pass"
    gaps_us = 0.3 * len(PATHS) + 0.5
    assert whole_pass["dur"] == pytest.approx(report.busy_s * 1e6 + gaps_us, abs=0.01)
    first = next(e for e in lanes["measured"] if e["cat"] == "operation")
    assert first["args"]["kernels"] == "k0" and first["args"]["measured_us"] == pytest.approx(1.1)


@given(
    st.lists(
        st.tuples(st.sampled_from(("", "a", "a.b", "a.b.c", "a.d", "b")), st.floats(0, 1e-3), st.floats(0, 1e-5)),
        min_size=1,
        max_size=30,
    )
)
def test_ranges_of_one_depth_never_overlap_and_lie_in_those_above(steps: list[tuple[str, float, float]]) -> None:
    ops = [op(path) for path, _, _ in steps]
    time_s, gap_s = (np.array([step[i] for step in steps]) for i in (1, 2))
    found = ranges("pass", ops, gap_s, time_s, [{}] * len(ops))
    above = {}
    for one in found:
        if one.depth:
            parent = above[one.depth - 1]
            assert parent.start_ns <= one.start_ns <= one.end_ns <= parent.end_ns
        if (before := above.get(one.depth)) is not None:
            assert before.end_ns <= one.start_ns
        above[one.depth] = one
    leaves = [one for one in found if one.category == "operation"]
    assert sum(one.end_ns - one.start_ns for one in leaves) == pytest.approx(time_s.sum() * 1e9, abs=len(ops))
    assert found[0].end_ns == pytest.approx((time_s.sum() + gap_s.sum()) * 1e9, abs=1)


@given(st.integers(0, 10**14))
@example(1001)  # 1.001 × 1000 = 1000.9999999999999
def test_a_viewer_has_the_same_nanoseconds_whether_it_rounds_or_cuts_off(ns: int) -> None:
    parsed = json.loads(json.dumps(microseconds(ns))) * 1000
    assert int(parsed) == round(parsed) == ns


def op(path: str) -> Op:
    return Op.model_construct(path=path, name="aten::mm")


@each("bad_s", [-1e-6, math.nan, math.inf, 1e12])
def test_times_that_no_pass_has_are_refused(bad_s: float) -> None:
    with pytest.raises(ValueError, match="longer than a day"):
        ranges("pass", [op("a")], np.zeros(1), np.array([bad_s]), [{}])


def test_a_path_without_end_is_not_nested_without_end() -> None:
    assert len(ranges("pass", [op("a." * 5000)], np.zeros(1), np.ones(1), [{}])) == MOST_DEPTH + 3


# speedscope: src/lib/file-format-spec.ts of jlfwong/speedscope, from which its JSON schema is generated


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Frame(Strict):
    name: str
    file: str | None = None
    line: int | None = None
    col: int | None = None


class Event(Strict):
    type: Literal["O", "C"]
    at: float
    frame: int


Unit = Literal["none", "nanoseconds", "microseconds", "milliseconds", "seconds", "bytes"]


class Evented(Strict):
    type: Literal["evented"]
    name: str
    unit: Unit
    startValue: float
    endValue: float
    events: list[Event]


class Sampled(Strict):
    type: Literal["sampled"]
    name: str
    unit: Unit
    startValue: float
    endValue: float
    samples: list[list[int]]
    weights: list[float]


class Shared(Strict):
    frames: list[Frame]


class SpeedscopeFile(Strict):
    schema_url: Literal["https://www.speedscope.app/file-format-schema.json"] = Field(alias="$schema")
    shared: Shared
    profiles: list[Annotated[Evented | Sampled, Field(discriminator="type")]]
    name: str | None = None
    activeProfileIndex: int | None = None
    exporter: str | None = None


def stacks(profile: Evented) -> Iterator[tuple[tuple[int, ...], float]]:
    """Each stack with the time that it was on top; refuses what speedscope's importer refuses."""
    stack: list[int] = []
    now = profile.startValue
    assert profile.endValue >= profile.startValue
    for event in profile.events:
        assert event.at >= now, "events go back in time"
        yield tuple(stack), event.at - now
        now = event.at
        if event.type == "O":
            stack.append(event.frame)
        else:
            assert stack.pop() == event.frame, "closes another frame than the last opened"
    assert not stack and now <= profile.endValue


def test_speedscope_accepts_the_file_and_sums_up_each_module(
    write: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    write()
    content = exported("speedscope", capsys)
    found = SpeedscopeFile.model_validate(content)
    names = [frame.name for frame in found.shared.frames]
    assert len(set(names)) == len(names)
    measured, predicted = found.profiles
    assert isinstance(measured, Evented) and measured.name.endswith(": measured")
    assert isinstance(predicted, Evented) and predicted.name.endswith(": predicted")
    spent: dict[str, float] = dict.fromkeys(names, 0.0)
    for stack, ns in stacks(measured):
        for frame in set(stack):
            spent[names[frame]] += ns
    assert list(stacks(predicted))
    # From its first operation's start to its last one's end, idle between them included.
    assert spent["model.layers.0"] == pytest.approx(1100 * (3 + 4 + 5) + 300 * 2, abs=3)
    assert spent["lm_head"] == pytest.approx(1100 * 9, abs=3)
    assert spent["(unattributed)"] == pytest.approx(2000, abs=3)


HOSTILE = '</script>\x1b]0;t\x07\u202e\ud800"><img onerror=x>\x00' + "n" * 9000


@each("form", ["chrome-trace", "speedscope"])
def test_hostile_names_are_text(write: Callable[..., RunFolder], form: str, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = HOSTILE.replace("\ud800", "")  # JSON of a run holds no half of a pair
    write(paths=("a", hostile, f"b.{hostile}.c"), name=hostile)
    text = json.dumps(exported(form, capsys), ensure_ascii=False)
    assert "<img onerror=x>" in text and text.isprintable()
    assert max(map(len, text.split('"'))) <= 1000


def test_a_device_of_which_nothing_is_known_has_no_predicted_lane(
    write: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    write(spec=report_samples.BARE)
    assert list(threads(exported("chrome-trace", capsys))) == ["measured"]
    assert "left out: example-prefill-b1-q4-c0-float32-sdpa predicted: " in capsys.readouterr().err
    assert len(exported("speedscope", capsys)["profiles"]) == 1


@each(
    ("arguments", "said"),
    [
        (["nvidia-h200-sxm", "--to", "speedscope"], "is a device, and traces show passes of a run"),
        (["last", "--to", "chrome-trace", "--peaks", "measured"], "--peaks chooses figures of a device"),
        (["nothing", "--to", "chrome-trace"], "no run 'nothing'"),
        (["failed", "--to", "chrome-trace"], "has no measured pass (out of memory: 3 GB wanted)"),
        (["hardware", "--to", "speedscope"], "has no passes of a model"),
        (["last", "--to", "crome-trace"], "did you mean chrome-trace"),
    ],
)
def test_what_is_no_pass_is_one_line(
    write: Callable[..., RunFolder],
    run: Run,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write()
    with RunFolder.create(Path("results"), run.model_copy(update={"name": "failed"})) as other:
        other.append(CellResult(cell=run.cells[1], status="failed", reason="out of memory: 3 GB wanted"))
    with RunFolder.create(Path("results"), run.model_copy(update={"name": "hardware", "cells": ()})) as other:
        (other.path / "hardware.jsonl").touch()
    assert folder.path.exists()
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_figures_and_traces_of_one_run_at_once(
    write: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    name = write().path.name.lower()
    assert main(["export", "last", "--to", "tracelens-arch,chrome-trace,speedscope", "--out", "all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["format"], one["device"], one["peaks"]) for one in found["exports"]] == [
        ("tracelens-arch", "cpu", "measured"),
        ("chrome-trace", "cpu", None),
        ("speedscope", "cpu", None),
    ]
    assert found["exports"][1]["files"] == [f"all/{name}.trace.json"] and Path("all", f"{name}.trace.json").is_file()
