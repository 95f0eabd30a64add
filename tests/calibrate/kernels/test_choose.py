"""Which kernels are measured: spread over sizes and regimes, within points and seconds."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_kernels import FACTS, Simple, kernels

from calibrate.kernels.choose import LONGEST_S, Demand, design, design_within, kernel_shapes
from roofline.laws.kinds import KINDS, KernelShape, law_named
from roofline.laws.law import Facts


class Windowed(Simple):
    dims = ("m", "n", "window")


def chosen(points, seed=0, group=True):
    seen = kernels()
    return design(Simple(), seen.dims, FACTS, "bfloat16", points, seed, seen.group if group else None)


@pytest.mark.parametrize("points", [1, 7, 60])
def test_a_budget_is_kept_and_no_row_is_measured_twice(points):
    rows = chosen(points)
    assert len(rows) == points == len(np.unique(rows))


def test_a_seed_gives_one_design():
    assert (chosen(30, seed=1) == chosen(30, seed=1)).all()
    assert (chosen(30, seed=1) != chosen(30, seed=2)).any()


@pytest.mark.parametrize("points", [20, 120])
def test_no_group_is_needed_whole(points):
    seen = kernels()
    names, counts = np.unique(seen.group[chosen(points)], return_counts=True)
    whole = dict(zip(*np.unique(seen.group, return_counts=True), strict=True))
    assert all(2 * count <= whole[name] + 1 for name, count in zip(names, counts, strict=True))


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("points", [150, 239, 240, 1000])
def test_a_budget_is_used_though_groups_give_more_than_half(points, group):
    rows = chosen(points, group=group)
    assert len(rows) == len(np.unique(rows)) == min(points, 240)


def test_kernels_of_one_shape_are_candidates_each():
    dims = {name: np.repeat(column[:5], 6) for name, column in kernels().dims.items()}
    assert len(np.unique(design(Simple(), dims, FACTS, "bfloat16", 20))) == 20


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("points", [6, 12])
def test_regimes_that_sizes_mark_are_measured_on_both_sides(points, seed):
    """A window of 0 is none, as many n as m is another kernel: a quarter of the candidates each, among many others."""
    generator = np.random.default_rng(seed)
    m, n = np.exp2(generator.integers(3, 15, size=(2, 400)))
    equal = generator.random(400) < 0.25
    dims = {"m": m, "n": np.where(equal, m, n * 1.5), "window": np.where(generator.random(400) < 0.25, 0.0, 512.0)}
    rows = design(Windowed(), dims, FACTS, "bfloat16", points, seed)
    assert len(np.unique(rows)) == points
    assert 0 < (dims["window"][rows] == 0).sum() < points
    assert 0 < (dims["m"] == dims["n"])[rows].sum() < points


def test_points_spread_over_the_sizes():
    seen = kernels()
    rows = chosen(25)
    for name in "mn":
        logs = np.log2(seen.dims[name])
        assert np.ptp(logs[rows]) > 0.75 * np.ptp(logs)
    # Every candidate has a chosen one nearer than a random design's farthest.
    places = np.stack([np.log2(seen.dims[name]) for name in "mn"], axis=1)

    def farthest(rows):
        return np.sqrt(((places[:, None] - places[rows][None]) ** 2).sum(axis=2)).min(axis=1).mean()

    random = [farthest(np.random.default_rng(seed).choice(240, 25, replace=False)) for seed in range(10)]
    assert farthest(rows) < np.mean(random)


def test_nothing_to_choose_from_is_refused():
    with pytest.raises(ValueError, match="at least one point"):
        chosen(0)
    with pytest.raises(ValueError, match="need candidates"):
        design(Simple(), {"m": np.zeros(0), "n": np.zeros(0)}, FACTS, "bfloat16", 5)


GPU = Facts(132, 50e6, 4.8e12, {"float32": 6e13, "bfloat16": 9.9e14}, 6e13)
LAW = law_named("matmul")


def candidates() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: np.round(np.exp(generator.uniform(3, 9, 500))) for name in "mnk"}


def seconds_of(rows: np.ndarray) -> float:
    priors = {constant.name: constant.prior for constant in LAW.constants(GPU, "bfloat16")}
    return float(LAW.time_s(candidates(), GPU, "bfloat16", priors)[rows].sum())


def test_points_that_fit_are_those_of_the_design() -> None:
    whole = design(LAW, candidates(), GPU, "bfloat16", 40)
    assert design_within(LAW, candidates(), GPU, "bfloat16", 40, seconds=1e3).tolist() == whole.tolist()


@pytest.mark.parametrize("part", [0.7, 0.3, 0.1])
def test_fewer_points_are_chosen_where_seconds_are_few(part: float) -> None:
    whole = design(LAW, candidates(), GPU, "bfloat16", 40)
    seconds = part * seconds_of(whole)
    rows = design_within(LAW, candidates(), GPU, "bfloat16", 40, seconds)
    assert 1 <= len(rows) < 40
    assert seconds_of(rows) <= seconds
    assert len(rows) >= 2, "some fit"


def test_one_point_is_measured_whatever_it_takes() -> None:
    assert len(design_within(LAW, candidates(), GPU, "bfloat16", 40, seconds=0.0)) == 1


CPU = Facts(2, 32e6, 30e9, {"float32": 2e11, "bfloat16": 4e11}, 6e10, cores=True)
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
    for kind, points in ((row.name, row.points) for row in KINDS.values() if row.points):
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
