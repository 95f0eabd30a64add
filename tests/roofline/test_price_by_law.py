"""T3 on graphs by hand: operations by law, gaps of the host before them, and which reference probe a time follows."""

import numpy as np
import pytest
from calibrated_laws import at_priors
from graphs import GraphBuilder, peaks
from hypothesis import given
from hypothesis import strategies as st

from roofline.caches import bytes_since_last_run
from roofline.graph.op import OpGraph, Routing
from roofline.hardware.spec import Chip, Figure, HardwareSpec, Level, Link, Peaks, facts_of
from roofline.host import gap_dims, host_gap_s, least_gap_s
from roofline.laws.experts import expert_loads
from roofline.laws.fitted import PROBES, FittedLaw, LevelRatio
from roofline.laws.work import OPERATIONS
from roofline.price import Prepared
from roofline.price_by_law import law_prices, level_factors, ratio_of, skew_of, waits
from roofline.whatif.pipeline import all_gather, all_reduce
from roofline.workload import Workload


def figure(value: float) -> Figure:
    return Figure(value=value, source="made up")


def spec(*laws: FittedLaw) -> HardwareSpec:
    levels = (
        Level(name="L3", capacity_bytes=4096, bandwidth=figure(4e9)),
        Level(name="DRAM", capacity_bytes=1e9, bandwidth=figure(1e9)),
    )
    peaks = Peaks(matrix={"float32": figure(1e11)}, vector={"float32": figure(1e10)}, levels=levels)
    return HardwareSpec(name="a", kind="cpu", chip=Chip(units=figure(2), unit="core"), measured=peaks, calibrated=laws)


def law(kind: str, high: float = 1e6) -> FittedLaw:
    return at_priors(kind, "float32", facts_of(spec()), bytes_read=(1, high))


def graph() -> Prepared:
    builder = GraphBuilder()
    builder.weight("w", 8000)
    builder.op("pointwise", reads={"x": 400}, writes={"y": 400}, vector=100, elements=100)
    builder.op("norm", reads={"y": 400}, writes={"z": 400}, vector=100, elements=100)
    builder.op("other", reads={"z": 400}, writes={"u": 400})
    return Prepared(builder.graph())


OTHERWISE = np.array([1.0, 2.0, np.nan])


def gpu(*kinds: str) -> HardwareSpec:
    """A device with links to others, and laws of these kinds in float16."""
    link = Link(bandwidth=figure(1e9))
    peaks = Peaks(
        matrix={"float16": figure(1e12)}, vector={"float32": figure(1e11)},
        levels=(Level(name="HBM", capacity_bytes=1e9, bandwidth=figure(1e10)),),
        links={"nvlink": link, "network": link},
    )  # fmt: skip
    bare = HardwareSpec(name="a", kind="cuda", datasheet=peaks)
    laws = (at_priors(kind, "float16", facts_of(bare)) for kind in kinds)
    return bare.model_copy(update={"calibrated": tuple(laws)})


@pytest.mark.parametrize("kind", ["collective", "own_all_reduce"])
def test_a_collective_between_devices_has_its_law_s_time_whatever_the_dtype(kind: str) -> None:
    builder = GraphBuilder()
    builder.op("pointwise", reads={"x": 4000}, writes={"y": 4000}, elements=1000)
    plain = builder.graph()
    (op,) = plain.ops
    part, whole = op.reads[0], op.writes[0]
    ops = (
        all_reduce(whole, ranks=4, link="nvlink", like=op),
        all_reduce(whole, ranks=4, link="network", like=op),
        all_gather(part, whole, ranks=4, link="nvlink", like=op),
    )
    spec = gpu(kind)
    found = law_prices(Prepared(plain.model_copy(update={"ops": ops})), spec, np.ones(3), with_intervals=True)
    # another network than that of the law's tables; and the engine's own all-reduce gathers nothing
    assert found.by_law.tolist() == [True, False, kind == "collective"]
    sizes = {"bytes": 4000.0, "ranks": 4.0, "operation": float(OPERATIONS.index("all_reduce"))}
    expected = spec.calibrated[0].time_s({name: np.array([size]) for name, size in sizes.items()}, facts_of(spec))
    assert found.time_s[0] == pytest.approx(expected[0])
    assert found.low_s[0] < found.time_s[0] < found.high_s[0]


def mixture(is_fused: bool, tokens: int = 6) -> Prepared:
    """The experts of a layer: 8 of 32 × 16, of which a token chooses 2."""
    builder = GraphBuilder()
    routing = Routing(experts=8, per_token=2, tokens=tokens)
    for name, n, k in (("up", 32, 32), ("down", 32, 16)):
        builder.weight(name, 8 * n * k * 2)
        builder.op("grouped_matmul", reads={"x": 64, name: routing.hit * n * k * 2}, writes={"y": 64},
                   path="experts", matrix=2 * 12 * n * k, groups=8, m=12, n=n, k=k)  # fmt: skip
    graph = builder.graph()
    update = {"routing": routing, "dtype": "float16", "also": ("experts pointwise",) if is_fused else ()}
    return Prepared(graph.model_copy(update={"ops": tuple(op.model_copy(update=update) for op in graph.ops)}))


def test_the_experts_of_a_layer_share_the_time_of_their_law_where_no_law_knows_their_products() -> None:
    spec = gpu("experts")
    found = law_prices(mixture(is_fused=True), spec, np.ones(2))
    assert found.by_law.all()
    hit = Routing(experts=8, per_token=2, tokens=6).hit
    sizes = {"tokens": 6, "hidden": 32, "inner": 16, "topk": 2, "experts": 8, "tp": 1, "ep": 1, "weight_bits": 16}
    sizes["skew"] = skew_of(sizes, hit)
    dims = {name: np.array([float(size)]) for name, size in sizes.items()}
    whole = spec.calibrated[0].time_s(dims, facts_of(spec))[0]
    assert found.time_s == pytest.approx([whole * 2 / 3, whole / 3])
    assert not law_prices(mixture(is_fused=False), spec, np.ones(2)).by_law.any()  # whose moves are priced one by one
    both = law_prices(mixture(is_fused=True), gpu("experts", "grouped_matmul"), np.ones(2))
    assert both.law.tolist() == [1, 1]


@given(st.integers(1, 400), st.sampled_from([(8, 2), (64, 6), (128, 8)]), st.floats(0, 1.2))
def test_a_routing_s_equal_hits_as_many_experts(tokens: int, of: tuple[int, int], skew: float) -> None:
    sizes = {"tokens": float(tokens), "topk": float(of[1]), "experts": float(of[0]), "ep": 1.0}

    def hit(skew: float) -> float:
        rows = (np.array([sizes[name]]) for name in ("tokens", "topk", "experts", "ep"))
        return float(expert_loads(*rows, np.array([skew])).hit[0])

    equal = skew_of(sizes, hit(skew))
    assert equal is not None
    assert hit(equal) == pytest.approx(hit(skew), rel=0.05)
    assert skew_of(sizes, hit(1.2) / 3) is None


def test_without_laws_prices_stay_as_they_are() -> None:
    found = law_prices(graph(), spec(), OTHERWISE)
    assert found.time_s == pytest.approx(OTHERWISE, nan_ok=True)
    assert not found.by_law.any()


def test_an_operation_with_a_law_has_the_law_s_time_and_the_others_keep_theirs() -> None:
    pointwise = law("pointwise")
    found = law_prices(graph(), spec(pointwise), OTHERWISE)
    one = np.ones(1)
    dims = {"bytes_read": 400 * one, "bytes_written": 400 * one, "kernels": one, "elements": 100 * one}
    # x was read one pass ago, 1,200 bytes: in the cache; y is read next; the others have touched 1,600 bytes since
    states = {"cold": 0 * one, "reach": 1600 * one}
    expected = pointwise.time_s({**dims, "flops": 100 * one, **states}, facts_of(spec()))[0]
    assert found.time_s == pytest.approx([expected, 2.0, np.nan], nan_ok=True)
    assert found.by_law.tolist() == [True, False, False]


def test_what_lies_beyond_the_sizes_of_a_law_is_said() -> None:
    assert law_prices(graph(), spec(law("pointwise", high=100)), OTHERWISE).outside.tolist() == [True, False, False]


def test_a_law_that_says_no_sizes_has_none_beyond_them() -> None:
    bare = law("pointwise").model_copy(update={"domain": {}})
    assert not law_prices(graph(), spec(bare), OTHERWISE).outside.any()


def test_a_spec_with_laws_but_without_any_rate_is_refused_in_one_line() -> None:
    one = spec(law("pointwise"))
    assert one.measured is not None
    lacking = one.model_copy(update={"measured": one.measured.model_copy(update={"vector": {}, "matrix": {}})})
    with pytest.raises(ValueError, match=r"vector\.float32"):
        law_prices(graph(), lacking, OTHERWISE)


PEAKS = peaks(matrix=100, vector=10, levels=(("DRAM", 1e9, 10.0),), host_s=0.5)


def levels_graph() -> OpGraph:
    """Of the measured peaks: 6 s of bytes and 4 s of arithmetic; 3 s and 1 s; nothing but 1 s of bytes."""
    b = GraphBuilder(Workload(batch=1, query_tokens=1, context_tokens=8, dtype="float32"))
    b.weight("w", 50)
    b.op("matmul", reads=["w"], writes={"a": 10}, matrix=400, path="up")
    b.op("pointwise", reads=["a"], writes={"b": 20}, vector=10, path="act")
    b.weight("v", 5)
    b.op("copy", reads=["v"], writes={"c": 5}, path="copy")
    return b.graph()


def level(**ratios: float) -> dict[str, LevelRatio]:
    return {probe: LevelRatio(ratio=ratio, low=0.9 * ratio, high=1.1 * ratio) for probe, ratio in ratios.items()}


def test_shares_by_hand() -> None:
    shares = waits(Prepared(levels_graph()), PEAKS, "cpu")
    assert shares == pytest.approx(
        np.array([[6 / 10.5, 4 / 10.5, 0.5 / 10.5], [3 / 4.5, 1 / 4.5, 0.5 / 4.5], [1 / 1.5, 0, 0.5 / 1.5]])
    )


def test_the_fixed_cost_of_a_kernel_of_a_gpu_is_not_the_hosts() -> None:
    shares = waits(Prepared(levels_graph()), PEAKS, "cuda")
    assert shares[:, PROBES.index("host")].tolist() == [0, 0, 0]
    assert shares.sum(axis=1) == pytest.approx(1)


def test_bytes_of_caches_follow_the_product() -> None:
    cached = peaks(matrix=100, vector=10, levels=(("L3", 1e6, 20.0), ("DRAM", 1e9, 10.0)), host_s=0.5)
    read_again = waits(Prepared(levels_graph()), cached, "cpu")[1]  # "a" is in the cache: 10 of its 30 bytes
    assert (
        read_again[PROBES.index("product")] > waits(Prepared(levels_graph()), PEAKS, "cpu")[1][PROBES.index("product")]
    )
    assert read_again.sum() == pytest.approx(1)


def test_a_product_with_one_row_follows_the_stream_on_a_cpu() -> None:
    b = GraphBuilder(Workload(batch=1, query_tokens=1, context_tokens=8, dtype="float32"))
    for rows in (1, 2):
        b.op(
            "matmul",
            reads={f"x{rows}": 10},
            writes={f"y{rows}": 10},
            matrix=100,
            path=f"p{rows}",
            m=rows,
            n=5,
            k=10,
        )
    on_cpu, on_gpu = (waits(Prepared(b.graph()), PEAKS, kind) for kind in ("cpu", "cuda"))
    memory, product = PROBES.index("memory"), PROBES.index("product")
    assert on_cpu[0, product] == 0
    assert on_cpu[0, memory] == pytest.approx(on_cpu[1, memory] + on_cpu[1, product])
    assert on_gpu[0].tolist() == on_gpu[1].tolist()


def test_an_operation_without_a_peak_keeps_the_calibrations_level() -> None:
    b = GraphBuilder(Workload(batch=1, query_tokens=1, context_tokens=8, dtype="float32"))
    b.op("matmul", reads={"x": 10}, writes={"y": 10}, matrix=100, dtype="bfloat16", path="a")
    shares = waits(Prepared(b.graph()), PEAKS, "cpu")
    assert shares.tolist() == [[0, 0, 0]]
    assert level_factors(shares, level(memory=2.0)).tolist() == [1]


def test_a_machine_that_is_slower_in_all_is_slower_by_that() -> None:
    shares = waits(Prepared(levels_graph()), PEAKS, "cpu")
    assert level_factors(shares, level(memory=1.3, product=1.3, host=1.3)) == pytest.approx(1.3)
    assert level_factors(shares, {}) == pytest.approx(1)
    only_memory = level_factors(shares, level(memory=2.0))
    assert only_memory == pytest.approx(1 + shares[:, PROBES.index("memory")])
    assert (ratio_of(level(memory=2.0), "memory"), ratio_of({}, "memory")) == (2.0, 1.0)


LEVELS = (("L3", 1000.0, 100.0), ("DRAM", 1e9, 10.0))
SPEC = HardwareSpec(
    name="a", kind="cpu", chip=Chip(units=Figure(value=2, source="made up")), measured=peaks(levels=LEVELS)
)
GAPS = at_priors("host_gap", "float32", facts_of(SPEC))


def two_layers(size: int = 10) -> OpGraph:
    b = GraphBuilder()
    for layer in (0, 1):
        before = f"x{layer}"
        b.op("norm", reads={before: size}, writes={f"n{layer}": size}, path=f"layers.{layer}.norm")
        b.op("pointwise", reads={f"n{layer}": size}, writes={f"x{layer + 1}": size}, path=f"layers.{layer}.mlp.act")
    b.op("norm", reads={"x2": size}, writes={"y": size}, path="norm")
    return b.graph()


def test_modules_are_those_left_and_entered() -> None:
    # enter layers, 0, norm; leave norm, enter mlp, act; leave those and 0, enter 1, norm; …; leave all, enter it
    assert gap_dims(two_layers().ops)["modules"].tolist() == [3, 3, 5, 3, 5]


def test_the_same_line_ran_a_layer_ago_or_a_pass_ago() -> None:
    found = gap_dims(two_layers().ops)["reach"]
    assert found.tolist() == [40, 40, 20, 20, 80]  # each operation touches 20 bytes, five of them make a pass


def test_reach_is_counted_since_the_same_code_ran() -> None:
    ops = two_layers().ops
    assert bytes_since_last_run(ops, ["a"] * 5).tolist() == [0] * 5
    assert bytes_since_last_run(ops, list("abcde")).tolist() == [80] * 5
    assert bytes_since_last_run(ops, list("abbab")).tolist() == [20, 20, 0, 40, 20]
    assert bytes_since_last_run((), []).tolist() == []


@given(layers=st.integers(2, 9), sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_folded_layers_have_the_mean_of_all(layers: int, sizes: list[int]) -> None:
    def graph(unfolded: int, count: float) -> OpGraph:
        b = GraphBuilder()
        b.op("embedding", reads={"t": 3}, writes={"x": 5})
        for layer in range(unfolded):
            for i, size in enumerate(sizes):
                b.op("norm", reads={"x": size}, writes={f"y{layer}{i}": size}, path=f"layers.{layer}", count=count)
        b.op("norm", reads={"x": 7}, writes={"z": 7}, path="norm")
        return b.graph()

    folded, unfolded = graph(1, layers).ops, graph(layers, 1).ops
    for code in (lambda op: op.name, lambda op: op.kind == "norm"):
        whole = bytes_since_last_run(unfolded, [code(op) for op in unfolded])
        part = bytes_since_last_run(folded, [code(op) for op in folded])
        assert part[[0, -1]] == pytest.approx(whole[[0, -1]])
        assert part[1:-1] == pytest.approx(whole[1:-1].reshape(layers, -1).mean(axis=0))


def test_gaps_are_priced_by_the_law_and_colder_ones_are_longer() -> None:
    spec = SPEC.model_copy(update={"calibrated": (GAPS,)})
    small, large = host_gap_s(two_layers(1), spec), host_gap_s(two_layers(10**9), spec)
    assert small is not None and large is not None
    warm = GAPS.values["operation"] + np.array([3, 3, 5, 3, 5]) * GAPS.values["module"]
    assert small == pytest.approx(warm, rel=0.05)
    assert large == pytest.approx(warm * GAPS.values["cold"], rel=0.05)
    assert least_gap_s(spec, 2) == pytest.approx([GAPS.values["operation"]] * 2)


def test_a_matrix_that_is_streamed_is_counted_apart() -> None:
    b = GraphBuilder()
    b.op("matmul", reads={"w": 100, "x": 1}, writes={"y": 1}, path="a", b=1, m=1, n=1, k=1)
    b.op("norm", reads={"y": 3}, writes={"z": 4}, path="b")
    found = gap_dims(b.graph().ops)
    assert found["streamed"].tolist() == [0, 102]  # of the others, since it last ran
    assert found["reach"].tolist() == [7, 0]


def test_a_law_of_an_older_spec_is_left_out() -> None:
    constants = tuple(one for one in GAPS.constants if one.name not in ("held", "share"))
    spec = SPEC.model_copy(update={"calibrated": (GAPS.model_copy(update={"constants": constants}),)})
    assert host_gap_s(two_layers(), spec) is None and least_gap_s(spec, 2) is None


def test_without_a_law_there_is_no_gap_to_be_told() -> None:
    assert host_gap_s(two_layers(), SPEC) is None
    assert least_gap_s(SPEC, 3) is None
