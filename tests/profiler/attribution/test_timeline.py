"""Reading kineto's export: real CPU sessions made here, and the recorded CUDA one."""

import gzip
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from profiler.attribution.timeline import Timeline, read_timeline

FOLDER = Path(__file__).parents[2] / "data" / "timelines"
CUDA = FOLDER / "llama_decode_cuda.json"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "cpu.json"
    x = torch.randn(16, 16)
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, acc_events=True) as session, torch.no_grad(), record_function("whole"):
        torch.nn.functional.linear(x, x, x[0])
        torch.relu(x)
    session.export_chrome_trace(str(path))
    return path


def inside(timeline: Timeline, outer: str, inner: str) -> bool:
    (a,) = [e for e in timeline.host if e.name == outer]
    return all(a.start_s <= e.start_s and e.end_s <= a.end_s for e in timeline.host if e.name == inner)


def test_a_bare_array_of_events_is_the_same_timeline(tmp_path: Path) -> None:
    (tmp_path / "array.json").write_text(json.dumps(json.loads(CUDA.read_text())["traceEvents"]))
    assert read_timeline(tmp_path / "array.json") == read_timeline(CUDA)


def test_a_live_cpu_session(exported: Path) -> None:
    timeline = read_timeline(exported)
    names = [e.name for e in timeline.host]
    assert names[0] == "whole"
    assert names.index("aten::linear") < names.index("aten::addmm") < names.index("aten::relu")
    assert inside(timeline, "aten::linear", "aten::addmm") and inside(timeline, "whole", "aten::relu")
    assert timeline.host[0].start_s == 0.0 and timeline.launches == () and timeline.device == ()
    assert len({e.tid for e in timeline.host}) == 1
    assert [e.start_s for e in timeline.host] == sorted(e.start_s for e in timeline.host)


def test_nanoseconds_survive_large_time_stamps(exported: Path) -> None:
    content = json.loads(exported.read_text())
    # 400 days in µs: a float would keep them to 4 ns only.
    ops = [e for e in content["traceEvents"] if e.get("cat") in ("cpu_op", "user_annotation")]
    text = exported.read_text()
    for event in ops:
        old = f"{event['ts']:.3f}"
        assert old in text
        text = text.replace(old, f"34567{old.rjust(17, '0')[-13:]}")
    shifted = exported.with_name("shifted.json")
    shifted.write_text(text)
    a, b = read_timeline(exported), read_timeline(shifted)
    assert [(e.name, e.start_s, e.end_s) for e in a.host] == [(e.name, e.start_s, e.end_s) for e in b.host]


def test_a_file_a_compressed_file_and_its_content_are_the_same(tmp_path: Path) -> None:
    packed = tmp_path / "trace.json.gz"
    packed.write_bytes(gzip.compress(CUDA.read_bytes()))
    read = read_timeline(CUDA)
    assert read_timeline(packed) == read
    content = read_timeline(json.loads(CUDA.read_text()))
    assert [e.name for e in content.device] == [e.name for e in read.device]
    assert max(abs(a.start_s - b.start_s) for a, b in zip(content.device, read.device, strict=True)) <= 2e-9


def test_the_recorded_file_is_what_its_script_writes() -> None:
    assert runpy.run_path(str(FOLDER / "make.py"))["text"]() == CUDA.read_text()


def test_what_launches_and_what_does_not() -> None:
    timeline = read_timeline(CUDA)
    assert {launch.name for launch in timeline.launches} == {
        "cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaMemcpyAsync",
        "cudaMemsetAsync",
    }  # fmt: skip
    assert {e.kind for e in timeline.device} == {"kernel", "memcpy", "memset"}
    assert {e.stream for e in timeline.device} == {7, 20} and {e.device for e in timeline.device} == {0}
    assert {launch.kind for launch in timeline.launches} == {"kernel", "memory"}
    assert "gpu_user_annotation" not in {e.kind for e in timeline.device} and len(timeline.device) == 36


def event(category: str, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": 1, "ts": ts, "dur": dur, "args": args}


def test_a_driver_call_within_a_runtime_call_is_one_launch() -> None:
    trace = {
        "traceEvents": [
            event("cuda_driver", "cuLaunchKernel", 11.0, 2.0, correlation=5),
            event("cuda_runtime", "cudaLaunchKernel", 10.0, 4.0, correlation=5),
            event("kernel", "k", 20.0, 1.0, correlation=5, device=0, stream=7),
        ]
    }
    (launch,) = read_timeline(trace).launches
    assert launch.name == "cudaLaunchKernel"


def test_an_unknown_call_that_made_a_kernel_is_a_launch_and_versions_do_not_matter() -> None:
    trace = {
        "traceEvents": [
            event("cuda_driver", "cuLaunchSomethingNew", 10.0, 4.0, correlation=5),
            event("kernel", "k", 20.0, 1.0, correlation=5, device=0, stream=7),
            event("cuda_runtime", "cudaLaunchKernel_v7000_ptsz", 30.0, 4.0, correlation=6),
            event("cuda_runtime", "cudaStreamIsCapturing", 40.0, 4.0, correlation=7),
            event("kernel", "without correlation", 50.0, 1.0, correlation=0, device=0, stream=7),
        ]
    }
    timeline = read_timeline(trace)
    assert [(launch.name, launch.kind) for launch in timeline.launches] == [
        ("cuLaunchSomethingNew", "kernel"), ("cudaLaunchKernel_v7000_ptsz", "kernel"),
    ]  # fmt: skip
    assert timeline.device[1].correlation is None


def test_bad_files_say_what_to_do(tmp_path: Path) -> None:
    cut = tmp_path / "cut.json"
    cut.write_text(CUDA.read_text()[:5000])
    with pytest.raises(ValueError, match="export the trace again"):
        read_timeline(cut)
    with pytest.raises(ValueError, match="export_chrome_trace"):
        read_timeline({"events": []})
    broken = event("cpu_op", "aten::mm", 1.0, 1.0)
    del broken["dur"]
    with pytest.raises(ValueError, match="'dur'"):
        read_timeline({"traceEvents": [broken]})
    assert read_timeline({"traceEvents": []}) == Timeline((), (), ())


def test_a_file_that_is_not_utf_8_keeps_all_events_but_those_that_are_damaged(tmp_path: Path) -> None:
    names = ["aten::mm", "aten::BAD", "aten::add"]
    events = [event("cpu_op", name, at, 2.0) for name, at in zip(names, (1.0, 5.0, 9.0), strict=True)]
    file = tmp_path / "trace.json"
    file.write_bytes(json.dumps({"traceEvents": events}).encode().replace(b"BAD", b"\xff\xfe"))
    timeline = read_timeline(file)
    assert [e.name for e in timeline.host] == ["aten::mm", "aten::add"]
    (broken,) = timeline.broken
    assert broken.name == "aten::\\udcff\\udcfe" and broken.reason == "its name is not UTF-8"
    packed = gzip.compress(CUDA.read_bytes())
    for what, content in {
        "cut archive": packed[:500],
        "damaged archive": packed[:200] + bytes(200) + packed[400:],
        "nested": b"[" * 200_000,
        "5,000 digits": b'{"traceEvents": [' + b"1" * 5000 + b"]}",
    }.items():
        file.write_bytes(content)
        with pytest.raises(ValueError, match="export the trace again") as refused:
            read_timeline(file)
        assert "\n" not in str(refused.value), what


def test_a_host_event_that_ends_before_it_starts_is_kept_apart_and_named() -> None:
    events = [event("cpu_op", "aten::mm", 1.0, 2.0), event("cpu_op", "aten::add", 5.0, -1.0), 7, {"ph": "X"}]
    timeline = read_timeline({"traceEvents": events})
    assert [e.name for e in timeline.host] == ["aten::mm"]
    assert [(e.name, e.reason) for e in timeline.broken] == [("aten::add", "its duration is -1.0 µs")]
    assert timeline.broken_in((0.0, 1e-6)) == () and timeline.broken_in((0.0, 5e-6)) == timeline.broken
