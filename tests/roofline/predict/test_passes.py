"""Records of a prediction on graphs by hand."""

import json

from graphs import GraphBuilder, peaks

from roofline.graph.memory import Footprint
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec
from roofline.predict.passes import predict_pass
from roofline.workload import Workload


def spec(kind: str = "other") -> HardwareSpec:
    return HardwareSpec(name="by hand", kind=kind, datasheet=peaks())


def small() -> OpGraph:
    """A product of 1 s (matrix) that runs three times, and an addition of 2 s (memory)."""
    b = GraphBuilder()
    b.weight("w", 4)
    b.op("matmul", reads={"w": 4, "x": 0}, writes={"y": 2}, path="lin", matrix=100.0, count=3, m=1)
    b.op("pointwise", reads={"y": 2}, writes={"z": 18}, path="add", vector=5.0)
    return b.graph()


def test_sums_by_hand() -> None:
    found = predict_pass(small(), spec(), peaks())
    product, addition = found.ops
    assert (product.time_s, product.bound, product.count) == (3.0, "matrix", 3)
    assert (addition.time_s, addition.bound) == (2.0, "DRAM")
    assert product.matrix_flops == 300 and product.bytes.weight_read == 12
    assert (found.time_s, found.count, found.matrix_flops, found.vector_flops) == (5.0, 4, 300, 5)
    assert found.bytes.total == 3 * (4 + 2) + 20
    assert found.tokens_per_s == 4 / 5
    assert found.tensor_roles == ("weight", "activation", "activation", "activation")
    assert found.missing == () and found.fits and found.wall_s is None


def test_a_peak_that_is_not_known_is_named() -> None:
    found = predict_pass(small(), spec(), peaks(matrix=None))
    assert found.time_s is None and found.tokens_per_s is None
    assert found.missing == ("matrix float32",)
    assert [op.time_s for op in found.ops] == [None, 2.0]
    assert [op.bound for op in found.ops] == ["", "DRAM"]
    assert json.loads(found.model_dump_json())["time_s"] is None


def test_wall_time_with_the_host() -> None:
    for kind, wall in [("cpu", 5 + 4 * 10.0), ("cuda", 4 * 10 + 2.0), ("other", 4 * 10 + 2.0)]:
        rates = peaks(host_s=10.0)
        assert predict_pass(small(), spec(kind), rates).wall_s == wall, (kind, wall)


def test_what_does_not_fit_is_priced_and_flagged() -> None:
    rates = peaks(levels=(("DRAM", 20.0, 10.0),))
    need = Footprint(weights=10, kv_cache=0, activations=11, peak=21)
    assert predict_pass(small(), spec(), rates, memory=need).fits is False
    assert predict_pass(small(), spec(), rates, memory=need).time_s == 5
    assert predict_pass(small(), spec(), rates, memory=need.model_copy(update={"peak": 20})).fits is True


def test_workloads_of_a_mixed_step_are_its_parts() -> None:
    parts = tuple(Workload(batch=b, query_tokens=1, context_tokens=4, dtype="float32") for b in (2, 3))
    found = predict_pass(small(), spec(), peaks(), parts)
    assert found.workloads == parts and found.tokens_per_s == 1.0
