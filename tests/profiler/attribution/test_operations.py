"""Operations and modules out of the profiler's tree: by hand, and as torch's profiler really writes it."""

import pytest
import torch
from torch import nn
from torch._C._profiler import _RecordFunctionFast
from torch.profiler import ProfilerActivity, profile

from profiler.attribution.operations import PASS, PREFIX, differences, executed, passes, touches_data
from profiler.attribution.timeline import HostEvent, read_timeline
from profiler.models.trace import entered


def event(name: str, start: float, end: float, tid: int = 1) -> HostEvent:
    return HostEvent(name, start, end, tid, None)


HOST = (
    event(PASS, 0, 100),
    event(f"{PREFIX}", 1, 99),
    event(f"{PREFIX}block", 2, 60),
    event("aten::linear", 3, 20),
    event("aten::t", 4, 5),
    event("aten::addmm", 6, 19),
    event("aten::copy_", 7, 9),  # inside an operation: part of it
    event("aten::view", 20, 21),  # a view is nobody's work
    event(f"{PREFIX}block.norm", 30, 40),
    event("aten::mul", 31, 39),
    event("aten::add", 45, 50),
    event("aten::contiguous", 70, 80),
    event("aten::clone", 71, 79),  # touches data, but the graph does not know it
    event("aten::add", 81, 90),
    event("aten::add", 62, 64, tid=2),  # another thread
    event("aten::add", 200, 210),  # after the pass
)
NAMES = frozenset({"aten::addmm", "aten::mul", "aten::add"})


def test_outermost_known_operators_with_their_modules() -> None:
    found = executed(HOST, names=NAMES, window=(0, 100), tid=1)
    assert [(op.path, op.name, op.start_s, op.end_s) for op in found.ops] == [
        ("block", "aten::addmm", 6, 19),
        ("block.norm", "aten::mul", 31, 39),
        ("block", "aten::add", 45, 50),
        ("", "aten::add", 81, 90),
    ]
    assert [stranger.name for stranger in found.strangers] == ["aten::clone"]


def test_the_backend_of_an_operation_is_found_inside_it() -> None:
    names = frozenset({"aten::scaled_dot_product_attention"})
    host = (
        event("aten::scaled_dot_product_attention", 0, 9),
        event("aten::transpose", 1, 2),
        event("aten::_scaled_dot_product_flash_attention", 3, 8),
        event("aten::scaled_dot_product_attention", 10, 19),
        event("aten::mul", 11, 12),
    )
    found = executed(host, names=names, window=(0, 20), tid=1).ops
    assert [op.backend for op in found] == ["aten::_scaled_dot_product_flash_attention", None]


@pytest.mark.parametrize(
    ("name", "does"),
    [
        ("aten::add", True), ("aten::copy_", True), ("aten::mm", True), ("aten::cat", True), ("custom::kernel", True),
        ("aten::view", False), ("aten::transpose", False), ("aten::empty", False), ("aten::as_strided", False),
        ("aten::dropout", False), ("aten::to", False), ("aten::linear", False), ("a plain annotation", False),
        ("aten::detach_", False), ("aten::unsqueeze_", False), ("aten::sum", True), ("aten::sort", True),
    ],
)  # fmt: skip
def test_which_leaves_touch_data(name: str, does: bool) -> None:
    assert touches_data(name) is does


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Sequential(nn.Linear(16, 16), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)).clone() + 1


def test_a_live_profile_gives_modules_and_operators_in_order(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, x = Net().eval(), torch.randn(4, 16)
    ranges = entered(model, lambda path: _RecordFunctionFast(PREFIX + path))
    cpu = [ProfilerActivity.CPU]
    with torch.no_grad(), ranges, profile(activities=cpu, acc_events=True) as session, _RecordFunctionFast(PASS):
        model(x)
    session.export_chrome_trace(str(tmp_path / "trace.json"))
    timeline = read_timeline(tmp_path / "trace.json")
    (window,) = passes(timeline.host)
    names = frozenset({"aten::addmm", "aten::gelu", "aten::add"})
    found = executed(timeline.host, names=names, window=(window.start_s, window.end_s), tid=window.tid)
    assert [(op.path, op.name) for op in found.ops] == [
        ("first", "aten::addmm"), ("second.0", "aten::addmm"), ("second.1", "aten::gelu"), ("", "aten::add"),
    ]  # fmt: skip
    assert [stranger.name for stranger in found.strangers] == ["aten::copy_"]  # inside clone, which is not traced here


def test_annotations_leave_the_model_as_it_was() -> None:
    model = Net()
    seen: list[str] = []
    with entered(model, lambda path: seen.append(path) or _RecordFunctionFast(path)):  # type: ignore[func-returns-value]
        model(torch.randn(2, 16))
    assert seen == ["", "first", "second", "second.0", "second.1"]
    assert all("forward" not in vars(module) for module in model.modules())


def test_differences_are_told_operation_by_operation() -> None:
    traced = [("a", "aten::mm"), ("a", "aten::add"), ("b", "aten::mul")]
    assert differences(traced, traced) == ()
    assert differences(traced, [("a", "aten::mm"), ("b", "aten::mul"), ("", "aten::clone")]) == (
        "traced only: aten::add in a",
        "device only: aten::clone in the model",
    )
    assert differences([], [("a", "aten::mm")] * 500)[-1] == "and 300 more"
