"""The kernels of a calibration: they follow from the device and from what models ask of it, and fit into it."""

from dataclasses import replace

import pytest

from calibrate.kernels.choose import LONGEST_S, Demand, kernel_shapes
from calibrate.report.hardware.drawing import POINTS
from roofline.laws.kinds import KernelShape
from roofline.laws.law import Facts

CPU = Facts(2, 32e6, 30e9, {"float32": 2e11, "bfloat16": 4e11}, 6e10, cores=True)
GPU = Facts(132, 50e6, 4.8e12, {"float32": 6e13, "bfloat16": 9.9e14}, 6e13)
DEMAND = Demand(
    weights=((4864, 896), (896, 4864), (151936, 896), (896, 896), (128, 896), (50257, 768)),
    heads=((14, 2, 64), (12, 12, 64)),
    rows=(1, 128),
    contexts=(128, 129),
)
LARGEST_BYTES = float(1 << 30)


def shapes(
    facts: Facts, demand: Demand = DEMAND, largest: float = LARGEST_BYTES, dtype: str = "float32", **options: bool
) -> list[KernelShape]:
    return kernel_shapes(facts, (dtype,), largest, ("aten::mul",), demand, **options)


def products(found: list[KernelShape]) -> list[KernelShape]:
    return [shape for shape in found if "n" in shape.dims]


@pytest.mark.parametrize("facts", [CPU, GPU])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_kind_has_its_points_and_none_takes_long_or_much(facts: Facts, dtype: str) -> None:
    found = shapes(facts, dtype=dtype)
    for kind, points in POINTS.items():
        assert abs(sum(shape.kind == kind for shape in found) - points) <= 1
    width = 4 if dtype == "float32" else 2
    for shape in products(found):
        batch, m, n, k = (shape.dims.get(name, 1) for name in ("batch", "m", "n", "k"))
        assert width * batch * n * k <= LARGEST_BYTES
        assert m == 1 or 2 * 2 * batch * m * n * k / facts.matrix_flops_per_s[dtype] <= LONGEST_S
        assert min(batch, m, n, k) >= 1
        assert (
            (m == 1) == shape.kind.startswith("matvec")
            or batch > 1
            or "batched" in shape.kind
            or "grouped" in shape.kind
        )


def test_the_range_holds_what_the_passes_to_come_will_run() -> None:
    """Qwen2.5-0.5B's products at one and at 128 rows: none lies beyond the sizes asked for."""
    found = shapes(CPU)
    for n, k in DEMAND.weights:
        single = [s.dims for s in found if s.kind == "matvec"]
        assert min(s["n"] * s["k"] for s in single) <= n * k <= max(s["n"] * s["k"] for s in single)
        assert min(s["n"] for s in single) <= n <= max(s["n"] for s in single)
        if 4 * 128 * n * k / CPU.matrix_flops_per_s["float32"] > LONGEST_S:
            continue  # the vocabulary's projection runs with one row
        many = [s.dims for s in found if s.kind == "matmul"]
        for name, size in (("m", 128), ("n", n), ("k", k)):
            assert min(s[name] for s in many) <= size <= max(s[name] for s in many), (name, size)


def test_rows_and_contexts_lie_around_those_that_will_be_measured() -> None:
    near = shapes(CPU, replace(DEMAND, rows=(1, 1000), contexts=(4000,)))
    rows = [s.dims["m"] for s in near if s.kind == "matmul"]
    assert sum(500 < m < 2000 for m in rows) >= len(rows) / 4
    kv = [s.dims["kv"] for s in near if s.kind == "decode_attention"]
    assert sum(2000 < length < 8000 for length in kv) >= len(kv) / 4


def test_no_models_own_shape_is_asked_for_on_purpose() -> None:
    own = {(s.dims["n"], s.dims["k"]) for s in shapes(CPU) if s.kind in ("matmul", "matvec")} & set(DEMAND.weights)
    assert len(own) <= 2  # by chance


def test_little_memory_bounds_operands_and_leaves_each_kind_some() -> None:
    found = shapes(CPU, largest=1e6)
    assert max(4 * s.dims.get("batch", 1) * s.dims["n"] * s.dims["k"] for s in products(found)) <= 1e6
    assert {s.kind for s in found} == {s.kind for s in shapes(CPU)}


def test_a_catalogue_of_which_the_device_holds_nothing_still_gives_kernels() -> None:
    found = shapes(CPU, Demand(weights=((1 << 20, 1 << 20),), heads=((8, 8, 64),)))
    assert {s.kind for s in found} >= {"matmul", "matvec", "decode_attention"}


def test_the_same_device_is_asked_the_same_and_quick_for_half() -> None:
    assert shapes(CPU) == shapes(replace(CPU))
    assert len(shapes(CPU, quick=True)) == (len(shapes(CPU)) + 1) // 2


def test_streams_reach_from_one_element_to_the_activations_of_the_longest_pass() -> None:
    elements = [s.dims["rows"] * s.dims["width"] for s in shapes(CPU) if s.kind == "aten::mul"]
    assert min(elements) == 1
    assert max(elements) >= 128 * 4864 * 0.9


def test_groups_are_what_resembles() -> None:
    found = {shape.kind: shape.group for shape in shapes(CPU)}
    assert found["matmul"].startswith("n")
    assert found["decode_attention"].startswith("h")
    assert "x" in found["aten::mul"]
