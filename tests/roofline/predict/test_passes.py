"""Records of a prediction on graphs by hand."""

import json

import numpy as np
import pytest
from calibrated_laws import at_priors
from graphs import GraphBuilder, peaks

from roofline.graph.memory import Footprint
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec, facts_of
from roofline.predict.passes import predict_pass
from roofline.price_by_law import law_notes
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


def test_a_pass_by_laws_has_sources_an_interval_and_the_share_without_a_law() -> None:
    b = GraphBuilder()
    b.op("pointwise", reads={"x": 400}, writes={"y": 400}, vector=100, count=2, elements=100)
    b.op("pointwise", reads={"y": 4000}, writes={"z": 4000}, vector=1000, elements=1000)
    b.op("norm", reads={"z": 400}, writes={"u": 400}, vector=100, elements=100)
    b.op("other", reads={"u": 30}, writes={"v": 30}, vector=3)
    facts = facts_of(spec())
    laws = [at_priors("pointwise", "float32", facts, bytes_read=(1, 1000)), at_priors("norm", "float32", facts)]
    known = spec().model_copy(update={"calibrated": tuple(laws)})
    found = predict_pass(b.graph(), known, peaks(), with_laws=True)
    first, second, norm, other = found.ops
    assert [op.source for op in found.ops] == [
        "law of pointwise float32", "law of pointwise float32 beyond its sizes", "law of norm float32", "roofline",
    ]  # fmt: skip
    assert (other.low_s, other.high_s) == (None, None)
    assert norm.high_s == pytest.approx(norm.time_s * np.exp(0.1))  # the width of these laws is 0.1
    assert first.low_s == pytest.approx(first.time_s * np.exp(-0.1))
    together = first.high_s + second.high_s - first.time_s - second.time_s  # one law: off together
    assert found.high_s == pytest.approx(found.time_s + np.hypot(together, norm.high_s - norm.time_s))
    assert found.low_s < found.time_s
    assert found.without_law == pytest.approx(other.time_s / found.time_s)
    assert found.beyond_law == pytest.approx(second.time_s / found.time_s)
    plain = predict_pass(b.graph(), known, peaks())
    assert {op.source for op in plain.ops} == {"roofline"}
    assert (plain.low_s, plain.high_s, plain.without_law) == (None, None, None)


def test_a_law_that_is_off_by_more_than_any_bound_prices_nothing() -> None:
    b = GraphBuilder()
    b.op("pointwise", reads={"x": 400}, writes={"y": 400}, vector=100, elements=100)
    law = at_priors("pointwise", "float32", facts_of(spec()))
    for unseen, source in ((0.99, "law of pointwise float32"), (7.58, "roofline")):
        known = spec().model_copy(update={"calibrated": (law.model_copy(update={"unseen": unseen}),)})
        found = predict_pass(b.graph(), known, peaks(), with_laws=True)
        assert found.ops[0].source == source
        assert len(found.refused_laws) == (source == "roofline")
        assert all("off by 758 %" in sentence for sentence in found.refused_laws)
        assert tuple(law_notes(known.calibrated)) == found.refused_laws


def test_a_law_that_is_off_is_said_only_where_the_pass_has_its_operators() -> None:
    norm = at_priors("norm", "float32", facts_of(spec())).model_copy(update={"unseen": 7.58})
    good = at_priors("pointwise", "float32", facts_of(spec()))
    known = spec().model_copy(update={"calibrated": (good, norm)})
    b = GraphBuilder()
    b.op("pointwise", reads={"x": 400}, writes={"y": 400}, vector=100, elements=100)
    assert predict_pass(b.graph(), known, peaks(), with_laws=True).refused_laws == ()
    b.op("norm", reads={"y": 400}, writes={"z": 400}, vector=100, elements=100)
    (sentence,) = predict_pass(b.graph(), known, peaks(), with_laws=True).refused_laws
    assert sentence.startswith("the law of norm float32 is off by 758 %")
