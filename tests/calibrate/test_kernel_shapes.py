"""The kernels of a calibration: they follow from the device, fit into it, and are the same each time."""

from dataclasses import replace

import pytest

from calibrate.kernel_shapes import LARGEST, LONGEST_S, MEMORY_PART, POINTS, VOCABULARY, kernel_shapes
from profiler.record.kernel_shape import KernelShape
from roofline.laws.law import Facts

CPU = Facts(2, 32e6, 30e9, {"float32": 2e11, "bfloat16": 4e11}, 6e10)
GPU = Facts(132, 50e6, 4.8e12, {"float32": 6e13, "bfloat16": 9.9e14}, 6e13)


def shapes(facts: Facts, memory: float = 24e9, dtype: str = "float32", **options: bool) -> list[KernelShape]:
    return kernel_shapes(facts, (dtype,), memory, ("aten::mul",), **options)


@pytest.mark.parametrize("facts", [CPU, GPU])
def test_each_kind_has_its_points_and_none_takes_long_or_much(facts: Facts) -> None:
    found = shapes(facts)
    for kind, points in POINTS.items():
        assert sum(shape.kind == kind for shape in found) == points
    most = min(LARGEST * facts.cache_bytes, MEMORY_PART * 24e9)
    for shape in found:
        if "n" in shape.dims:
            assert 4 * shape.dims["n"] * shape.dims["k"] <= (2.1 if shape.dims["n"] == VOCABULARY else 1) * most
            assert 2 * shape.dims["m"] * shape.dims["n"] * shape.dims["k"] / 2e11 <= LONGEST_S or facts is GPU
            assert (shape.dims["m"] == 1) == shape.kind.startswith("matvec")


def test_a_larger_device_is_asked_for_larger_kernels() -> None:
    def most(facts: Facts) -> float:
        return max(s.dims["m"] * s.dims["n"] * s.dims["k"] for s in shapes(facts) if s.kind == "matmul")

    assert most(GPU) > 10 * most(CPU)


def test_little_memory_bounds_operands() -> None:
    found = shapes(CPU, memory=64e6)
    assert max(4 * s.dims["n"] * s.dims["k"] for s in found if "n" in s.dims) <= 2.1 * MEMORY_PART * 64e6


def test_the_same_device_is_asked_the_same_and_quick_for_half() -> None:
    assert shapes(CPU) == shapes(replace(CPU))
    assert len(shapes(CPU, quick=True)) == (len(shapes(CPU)) + 1) // 2


def test_groups_are_what_resembles() -> None:
    found = {shape.kind: shape.group for shape in shapes(CPU)}
    assert found["matmul"].startswith("n")
    assert found["decode_attention"].startswith("h")
    assert "x" in found["aten::mul"]
