"""Reports of compiled and replayed passes, on graphs whose times are known by hand."""

import pytest
from calibrated_laws import at_priors
from graphs import GraphBuilder, figure, peaks
from report_views import as_markdown, every_view

from calibrate.passes.efficiency import summarise
from calibrate.passes.pass_report import PassReport, to_json
from calibrate.report.run import run_document
from profiler.record.run import Cell, CellResult, Closure, KernelTimes, Mode, OpTimes, Run
from roofline.graph.op import OpGraph
from roofline.hardware.spec import Chip, HardwareSpec, facts_of
from roofline.price import Prepared, price
from roofline.price_by_law import law_prices
from roofline.workload import Workload

DECODE = Workload(batch=1, query_tokens=1, context_tokens=8, dtype="float32")
MEASURED = peaks(matrix=100, vector=10, levels=(("DRAM", 1e9, 10.0),), host_s=0.5)
SPEC = HardwareSpec(name="test", kind="cpu", measured=MEASURED)
GPU = SPEC.model_copy(update={"kind": "cuda"})


def layers(count: int = 2) -> OpGraph:
    """Layers of a product (4 s by its FLOPs, 400 ÷ 100), an activation (2 s) and an addition (3 s of 30 bytes)."""
    b = GraphBuilder(DECODE)
    for i in range(count):
        b.weight(f"w{i}", 10)
        b.op("matmul", reads={f"x{i}": 10, f"w{i}": 10}, writes={f"a{i}": 10}, matrix=400, path=f"layers.{i}.up")
        b.op("pointwise", reads=[f"a{i}"], writes={f"b{i}": 10}, vector=1, path=f"layers.{i}.act")
        b.op("pointwise", reads=[f"b{i}", f"x{i}"], writes={f"x{i + 1}": 10}, vector=1, path=f"layers.{i}")
    return b.graph()


def result(mode: Mode = "compile", attributed: float = 1.0, **fields: object) -> CellResult:
    """Two layers: a product of 5 s and a kernel of activation and addition of 4 s, 0.5 s idle before each."""
    kernels = [
        KernelTimes(name=name, ops=ops, device_s=(time_s,), gap_s=(0.5,))
        for name, ops, time_s in (
            ("aten::mm", (0,), 5.0),
            ("triton_poi_fused_add_gelu_0", (1, 2), 4.0),
            ("aten::mm", (3,), 5.0),
            ("triton_poi_fused_add_gelu_1", (4, 5), 4.0),
        )
    ]
    base = {
        "cell": Cell(model="test", workload=DECODE, attn="sdpa", experts="default", cache="dynamic", mode=mode),
        "status": "done",
        "wall_s": (20.0,),
        "profiled_wall_s": (20.0,),
        "kernels": kernels,
        "tail_gap_s": (0.0,),
        "closure": Closure(attributed=attributed, spans_plus_gaps=1, instrumented_ratio=1),
    }
    return CellResult.model_validate(base | fields)


def by_path(report: PassReport) -> dict[str, float]:
    return {layer.path: layer.measured_s for layer in report.layers}


def test_fused_kernels_are_shared_by_their_members_rooflines() -> None:
    report = summarise(result(), layers(), SPEC)
    # 4 s to 2 : 3
    assert by_path(report) == pytest.approx({"layers.*.up": 10, "layers.*.act": 3.2, "layers.*": 4.8})
    assert report.busy_s == pytest.approx(18) and report.mode == "compile"


def test_what_was_executed_is_the_kernels() -> None:
    report = summarise(result(), layers(), SPEC)
    # the fused kernel reads a and x and writes x: 30 bytes, 3 s; unfused it was 2 + 3 s
    assert report.rungs.executed == pytest.approx(2 * (4 + 3))
    assert report.rungs.calibrated is None and report.prediction == "executed"
    shares = {layer.path: layer.predicted_s for layer in report.layers}
    assert shares == pytest.approx({"layers.*.up": 8, "layers.*.act": 2.4, "layers.*": 3.6})


def test_laws_price_kernels_that_are_one_operation() -> None:
    b = GraphBuilder(DECODE)
    b.op("norm", reads={"x": 4096}, writes={"a": 4096}, vector=7168, elements=1024, path="norm")
    b.op("pointwise", reads=["a"], writes={"c": 4096}, vector=1024, elements=1024, path="act")
    b.op("pointwise", reads=["c"], writes={"d": 4096}, vector=1024, elements=1024, path="add")
    graph = b.graph()
    measured = peaks(matrix=1e11, vector=1e10, levels=(("L2", 1e6, 1e11), ("DRAM", 1e10, 1e10)), host_s=1e-6)
    bare = HardwareSpec(name="test", kind="cpu", chip=Chip(units=figure(2), unit="core"), measured=measured)
    facts = facts_of(bare)
    laws = tuple(at_priors(kind, "float32", facts, bytes_read=(1, 1e6)) for kind in ("norm", "pointwise"))
    spec = bare.model_copy(update={"calibrated": laws})
    whole = result()
    some = whole.model_copy(update={"kernels": whole.kernels[:2]})
    before, after = summarise(some, graph, bare), summarise(some, graph, spec)
    assert (before.prediction, after.prediction) == ("executed", "calibrated")
    eager = law_prices(Prepared(graph), spec, price(graph, measured).time_s)
    assert eager.by_law.all()
    (norm, fused), (_, unfused) = after.kernels, before.kernels
    assert norm.predicted_s == pytest.approx(eager.time_s[0])
    assert fused.predicted_s == unfused.predicted_s, "what a compiler fused has no law"
    assert after.rungs.calibrated == pytest.approx(eager.time_s[0] + (fused.predicted_s or 0))


def test_alike_kernels_are_one_row_with_their_set_of_modules() -> None:
    report = summarise(result(), layers(), SPEC)
    product, fused = report.kernels
    assert (product.name, product.modules, product.count) == ("aten::mm", ("layers.*.up",), 2)
    assert (fused.name, fused.modules) == ("triton_poi_fused_add_gelu", ("layers.*.act", "layers.*"))
    assert (fused.measured_s, fused.predicted_s, fused.kinds) == (8, pytest.approx(6), ("pointwise",))
    assert to_json(report)["kernels"][1]["modules"] == ["layers.*.act", "layers.*"]
    assert to_json(report)["mode"] == "compile"


def test_a_kernel_of_scaled_layers_counts_as_often_as_they_do() -> None:
    graph = layers(1)
    scaled = graph.model_copy(update={"ops": tuple(op.model_copy(update={"count": 3}) for op in graph.ops)})
    whole = result()
    report = summarise(whole.model_copy(update={"kernels": whole.kernels[:2]}), scaled, SPEC)
    assert [kernel.count for kernel in report.kernels] == [3, 3]
    assert report.busy_s == pytest.approx(3 * 9)


def test_the_host_issues_kernels_of_a_compiled_pass_and_operations_of_an_eager_one() -> None:
    compiled = summarise(result(), layers(), SPEC)
    assert compiled.predicted_wall_s == pytest.approx(14 + 4 * 0.5)
    eager = result("eager", kernels=(), ops=[OpTimes(op=i, device_s=(1.0,), gap_s=(0.0,)) for i in range(6)])
    assert summarise(eager, layers(), SPEC).predicted_wall_s == pytest.approx(18 + 6 * 0.5)


@pytest.mark.parametrize("mode", ["cuda-graph", "compile-cuda-graph"])
def test_a_graph_waits_for_no_host(mode: Mode) -> None:
    ops = [OpTimes(op=i, device_s=(1.0,), gap_s=(0.0,)) for i in range(6)]
    one = result(mode) if mode == "compile-cuda-graph" else result(mode, kernels=(), ops=ops)
    report = summarise(one, layers(), GPU)
    assert report.predicted_wall_s == report.predicted_busy_s


def test_less_has_to_be_attributed_where_the_host_does_not_say_it() -> None:
    assert summarise(result(attributed=0.975), layers(), SPEC).status == "done"
    assert summarise(result(attributed=0.965), layers(), SPEC).status == "inconclusive"
    assert summarise(result("cuda-graph", attributed=0.975), layers(), GPU).status == "done"
    ops = [OpTimes(op=i, device_s=(1.0,), gap_s=(0.0,)) for i in range(6)]
    assert summarise(result("eager", attributed=0.975, kernels=(), ops=ops), layers(), SPEC).status == "inconclusive"


def test_operations_of_no_kernel_are_told() -> None:
    whole = result()
    fewer = whole.model_copy(update={"kernels": whole.kernels[:3]})
    assert summarise(whole, layers(), SPEC).warnings == ()
    warning = summarise(fewer, layers(), SPEC).warnings[0]
    assert warning.startswith("2 operations are in no compiled kernel") and "layers.1.act" in warning


def test_kernels_of_another_graph_are_refused() -> None:
    with pytest.raises(ValueError, match="not its graph of 3"):
        summarise(result(), layers(1), SPEC)


def test_without_peaks_only_what_was_measured_is_known() -> None:
    report = summarise(result(), layers(), HardwareSpec(name="test", kind="cpu"))
    assert report.rungs.executed is None and report.kernels[0].predicted_s is None
    assert by_path(report) == pytest.approx({"layers.*.up": 10, "layers.*.act": 3.2, "layers.*": 4.8}), "by bytes"


def test_every_view_shows_the_kernels(run: Run) -> None:
    report = summarise(result(), layers(), SPEC)
    document = run_document([report], run, SPEC)
    for view, text in every_view(document, 100).items():
        for words in ("triton_poi_fused_add_gelu", "layers.*.act + layers.*", "test decode b1 q1 ctx 8 fp32, compiled"):
            assert words in text, (view, words)
    assert "### Compiled kernels" in as_markdown(document)
    assert "| `triton_poi_fused_add_gelu` | `layers.*.act + layers.*` | 2 | 8.00 s | 40.0 % |" in as_markdown(document)
