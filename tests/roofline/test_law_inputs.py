"""What laws are told of operations and of the gaps before them, on graphs small enough to count by hand."""

import numpy as np
import pytest
from graphs import GraphBuilder

from roofline.graph.op import OpGraph
from roofline.price import Prepared
from roofline.price_by_law import by_law, cold_shares, law_inputs, operator

CACHE = 1000.0


def graph_of(kind: str, **dims: int) -> OpGraph:
    builder = GraphBuilder()
    builder.weight("w", 400)
    builder.op(kind, reads={"x": 40, "w": 400}, writes={"y": 20}, matrix=800, **dims)
    return builder.graph()


def test_a_product_with_one_row_streams_its_matrix() -> None:
    (found,) = law_inputs(Prepared(graph_of("matmul", b=1, m=1, n=5, k=20)), CACHE)
    assert found is not None
    assert found.kinds == ("matvec", "matmul")
    assert (found.dims["bytes_read"], found.dims["bytes_written"], found.dims["flops"]) == (440, 20, 800)
    assert (found.dims["n"], found.dims["k"], found.dims["rows"]) == (5, 20, 5)
    (found,) = law_inputs(Prepared(graph_of("matmul", b=1, m=1, n=5, k=20, row_major=1)), CACHE)
    assert found is not None
    assert found.kinds[0] == "matvec_row_major"
    assert found.dims["rows"] == 20


def test_a_product_with_more_rows_is_a_matmul_and_a_batch_of_products_is_another_kind() -> None:
    (found,) = law_inputs(Prepared(graph_of("matmul", b=1, m=4, n=5, k=20)), CACHE)
    assert found is not None
    assert found.kinds == ("matmul",)
    (batch,) = law_inputs(Prepared(graph_of("matmul", b=2, m=4, n=5, k=20)), CACHE)
    assert batch is not None
    assert batch.kinds == ("batched_matmul",)  # a law of one product says nothing of two
    assert {name: batch.dims[name] for name in ("batch", "m", "n", "k")} == {"batch": 2, "m": 4, "n": 5, "k": 20}


ATTENTION = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "value_dim": 8, "window": 0, "pairs": 1}


@pytest.mark.parametrize(
    ("dims", "kind"),
    [
        ({"query": 1, "kv": 9, "causal": 0}, "decode_attention"),
        ({"query": 3, "kv": 9, "causal": 1}, "prefill_attention"),
        ({"query": 3, "kv": 9, "causal": 0}, None),
        ({"query": 3, "kv": 9, "causal": 1, "value_dim": 16}, None),
    ],
)
def test_attention_is_decode_or_prefill_or_nothing_that_a_law_knows(dims: dict[str, int], kind: str | None) -> None:
    (found,) = law_inputs(Prepared(graph_of("attention", **(ATTENTION | dims))), CACHE)
    assert (found.kinds[0] if found else None) == kind
    if found is not None and kind == "prefill_attention":
        assert found.dims["context"] == 6
        assert found.dims["kv_bytes"] == 4


def test_weights_beyond_the_cache_are_cold_and_what_was_just_written_is_not() -> None:
    builder = GraphBuilder()
    builder.weight("a", 2000)
    builder.weight("b", 2000)
    builder.op("matmul", reads={"x": 100, "a": 2000}, writes={"y": 100}, b=1, m=2, n=1, k=1)
    builder.op("pointwise", reads={"y": 100}, writes={"z": 100}, elements=25)
    builder.op("matmul", reads={"z": 100, "b": 2000}, writes={"last": 100}, b=1, m=2, n=1, k=1)
    cold = cold_shares(Prepared(builder.graph()).touches, CACHE)
    assert cold[1] == 0.0
    # of the first, x (its last use is a pass ago) and a are cold, y is read at once; `last` is read by nobody
    assert cold == pytest.approx([2100 / 2200, 0.0, 2000 / 2100])
    assert np.all(cold_shares(Prepared(builder.graph()).touches, 1e9) == 0)


def test_operators_are_priced_by_their_own_law_then_their_kind_then_the_same_bytes_in_another_dtype() -> None:
    found = law_inputs(Prepared(graph_of("pointwise", elements=5)), CACHE)
    assert found[0] is not None
    own = found[0].kinds[0], "float32"
    assert by_law(found, dict.fromkeys([own, ("pointwise", "float32")])) == {own: [0]}
    assert by_law(found, dict.fromkeys([("pointwise", "float32")])) == {("pointwise", "float32"): [0]}
    assert by_law(found, dict.fromkeys([("pointwise", "bfloat16")])) == {("pointwise", "bfloat16"): [0]}
    assert by_law(found, dict.fromkeys([("norm", "float32"), ("matmul", "float32")])) == {}


def test_an_in_place_operator_is_its_out_of_place_form() -> None:
    assert [operator(name) for name in ("aten::mul_", "aten::mul", "aten::__and__")] == [
        "aten::mul",
        "aten::mul",
        "aten::__and__",
    ]
