"""A kernel of somebody else's becomes part of a calibration by one row."""

import pytest
import torch
from watches import Plays

from profiler.kernels import family
from profiler.kernels.family import FAMILIES, Draw, KernelFamily, Make, Operands, Run, family_of, streaming_operators
from profiler.kernels.table import probe_kernels
from roofline.laws.kinds import KernelShape

SHAPE = KernelShape("aten::lerp", "float32", "aten::lerp", {"rows": 8, "width": 64})


def lerp(shape: KernelShape, draw: Draw) -> tuple[Run, Make]:
    """What another file would hold: an operator that no family knows."""
    size = (shape.dims["rows"], shape.dims["width"])
    return (lambda a, b: torch.lerp(a, b, 0.25)), lambda: ((draw(size), draw(size)), ())


def lerp_part(shape: KernelShape, operands: Operands, result: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = (operand.double() for operand in operands)
    return result, 0.75 * a + 0.25 * b


MINE = KernelFamily(
    ("aten::lerp",),
    lerp,
    operands=lambda d: 2 * d["rows"] * d["width"],
    result=lambda d: d["rows"] * d["width"],
    reference=lerp_part,
    is_stream=True,
)


def test_an_operator_belongs_to_one_family() -> None:
    ops = [op for each in FAMILIES for op in each.ops]
    assert len(ops) == len(set(ops))
    for op in ops:
        assert op in family_of(op).ops
    with pytest.raises(ValueError, match=r"no kernel for aten::lerp; known: aten::mm, "):
        family_of("aten::lerp")


def test_a_kernel_from_outside_is_asked_for_checked_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "FAMILIES", (*FAMILIES, MINE))
    assert streaming_operators()[-1] == "aten::lerp"
    probed = probe_kernels([SHAPE], torch.device("cpu"), 1 << 15, limit_bytes=1 << 24, versions={}, watch=Plays())
    assert probed.failed == {} and probed.table is not None
    (row,) = probed.table.table.to_pylist()
    assert (row["kind"], row["op"], row["elements"]) == ("aten::lerp", "aten::lerp", 8 * 64)
    assert row["time_s"] > 0


def test_a_kernel_from_outside_with_a_wrong_result_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = KernelFamily(MINE.ops, MINE.bind, MINE.operands, MINE.result, lambda s, o, r: (r, o[0].double()), True)
    monkeypatch.setattr(family, "FAMILIES", (*FAMILIES, wrong))
    probed = probe_kernels([SHAPE], torch.device("cpu"), 1 << 15, limit_bytes=1 << 24, versions={}, watch=Plays())
    assert probed.table is None
    assert "the result of aten::lerp in float32 is off by" in probed.failed["kernel.aten::lerp.float32"]
