import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import predicted_samples as samples
import pytest
from graphs import GraphBuilder
from hypothesis import given
from hypothesis import strategies as st

from calibrate.report.block import MOST_NODES, Block, blocks
from calibrate.report.block_drawing import Edge, layout, svg
from roofline.graph.fold import fold
from roofline.graph.op import OpGraph
from roofline.predict.passes import PassPrediction

HOSTILE = 'model.layers.0.<script>alert("x")</script>&\x07'


def step_of(graph: OpGraph) -> PassPrediction:
    return samples.priced_pass(graph)


def named(block: Block) -> set[tuple[str, str]]:
    """Edges by titles; the operation's kind tells those of one module apart."""
    titles = [f"{node.title}/{node.kind}" if node.kind else node.title for node in block.nodes]
    return {(titles[source], titles[target]) for source, target in block.edges}


LLAMA_EDGES = {
    ("model.embed_tokens/embedding", "self_attn.qkv_proj/matmul"),
    ("model.embed_tokens/embedding", "self_attn.o_proj/matmul"),  # the residual
    ("model.rotary_emb/pointwise", "self_attn/attention"),
    ("self_attn.qkv_proj/matmul", "self_attn/copy"),
    ("self_attn.qkv_proj/matmul", "self_attn/attention"),
    ("self_attn/copy", "self_attn/attention"),  # through the cache
    ("self_attn/attention", "self_attn.o_proj/matmul"),
    ("self_attn.o_proj/matmul", "mlp.up_proj/matmul"),
    ("self_attn.o_proj/matmul", "mlp.down_proj/matmul"),  # the residual
    ("mlp.up_proj/matmul", "mlp.down_proj/matmul"),
    ("mlp.down_proj/matmul", "what follows"),
}


def test_edges_are_what_reads_what_another_wrote() -> None:
    (block,) = blocks(step_of(samples.block_graph()))
    assert (block.path, block.layers) == ("model.layers.0", 32)
    assert named(block) == LLAMA_EDGES
    titles = [node.title for node in block.nodes]
    around = {(titles[source], titles[target]) for source, target in block.shortcuts()}
    assert around == {
        ("model.embed_tokens", "self_attn.o_proj"),
        ("self_attn.o_proj", "mlp.down_proj"),
        ("self_attn.qkv_proj", "self_attn"),  # beside the append to the cache
    }


def test_numbers_are_of_one_layer_and_add_up_to_the_layers() -> None:
    step = step_of(samples.block_graph(layers=8))
    (block,) = blocks(step)
    inside = [op for op in step.ops if ".layers." in op.path]
    assert block.time_s is not None
    assert block.time_s * 8 == pytest.approx(sum(op.time_s or 0.0 for op in inside))
    assert sum(node.flops for node in block.nodes if node.part == "operation") * 8 == pytest.approx(
        sum(op.flops for op in inside)
    )
    assert sum(node.share or 0.0 for node in block.nodes) == pytest.approx(1)


def deep(dense: int, sparse: int) -> OpGraph:
    """Layers that differ: `dense` ones with a matmul, then `sparse` ones with experts, a residual around each."""
    b = GraphBuilder(samples.DECODE)
    b.op("embedding", reads={"ids": 8}, writes={"h0": 4096}, path="model.embed")
    for i in range(dense + sparse):
        kind, path = ("matmul", "mlp") if i < dense else ("grouped_matmul", "experts")
        b.weight(f"w{i}", 1 << 20)
        b.weight(f"n{i}", 4096)
        b.op("norm", reads=[f"h{i}", f"n{i}"], writes={f"x{i}": 4096}, path=f"model.layers.{i}.norm", vector=9)
        b.op(kind, reads=[f"x{i}", f"w{i}", f"h{i}"], writes={f"h{i + 1}": 4096}, path=f"model.layers.{i}.{path}",
             matrix=1e6, dtype="bfloat16")  # fmt: skip
    b.op("matmul", reads=[f"h{dense + sparse}"], writes={"logits": 64}, path="head", matrix=1, dtype="bfloat16")
    return b.graph()


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("roles", [False, True])
def test_each_kind_of_block_is_drawn_once_with_its_ends(folded: bool, roles: bool) -> None:
    graph = deep(2, 5)
    step = step_of(fold(graph) if folded else graph)
    dense, sparse = blocks(step if roles else step.model_copy(update={"tensor_roles": ()}))
    assert [(block.path, block.layers) for block in (dense, sparse)] == [("model.layers.0", 2), ("model.layers.2", 5)]
    assert ("model.embed/embedding", "mlp/matmul") in named(dense)
    assert named(sparse) == {
        ("the layer before", "norm/norm"),
        ("the layer before", "experts/grouped_matmul"),  # the residual
        ("norm/norm", "experts/grouped_matmul"),
        ("experts/grouped_matmul", "what follows"),
    }


def test_the_kinds_of_block_that_take_longest_are_drawn() -> None:
    b = GraphBuilder(samples.DECODE)
    for i in range(6):
        b.op("matmul", reads={f"x{i}": 1}, writes={f"y{i}": 1}, path=f"layers.{i}.m{i}", matrix=1e9 * (1 + i % 4),
             dtype="bfloat16")  # fmt: skip
    assert [block.path for block in blocks(step_of(b.graph()), most=2)] == ["layers.2", "layers.3"]


def test_a_model_without_layers_is_one_block_and_an_empty_pass_none() -> None:
    b = GraphBuilder(samples.DECODE)
    b.op("matmul", reads={"x": 8}, writes={"y": 8}, path="first", dtype="bfloat16")
    b.op("pointwise", reads={"y": 8}, writes={"z": 8}, path="second")
    (block,) = blocks(step_of(b.graph()))
    assert named(block) == {
        ("inputs", "first/matmul"), ("first/matmul", "second/pointwise"), ("second/pointwise", "what follows"),
    }  # fmt: skip
    assert blocks(samples.swept(1, 512)) == ()


def test_an_operation_in_place_passes_on_what_it_changed() -> None:
    b = GraphBuilder(samples.DECODE)
    for name in ("a", "b", "c"):
        reads = {"t": 8} if name != "a" else {"x": 8}
        b.op("pointwise", reads=reads, writes={"t": 8} if name != "c" else {"y": 8}, path=f"layers.0.{name}")
    (block,) = blocks(step_of(b.graph()))
    assert named(block) >= {("a/pointwise", "b/pointwise"), ("b/pointwise", "c/pointwise")}
    assert ("a/pointwise", "c/pointwise") not in named(block)


@pytest.mark.parametrize("roles", [False, True])
def test_what_a_lost_layer_wrote_enters_and_weights_do_not(roles: bool) -> None:
    b = GraphBuilder(samples.DECODE)
    b.weight("n", 64)
    b.weight("w", 64)
    b.op("norm", reads=["n"], writes={}, path="layers.0.only_weights")
    b.op("norm", reads={"h": 8, "n": 64}, writes={"x": 8}, path="layers.3.norm")
    b.op("matmul", reads={"x": 8, "w": 64, "h": 8}, writes={"y": 8}, path="layers.3.mlp", dtype="bfloat16")
    step = step_of(b.graph())
    block = blocks(step if roles else step.model_copy(update={"tensor_roles": ()}))[-1]
    assert named(block) == {
        ("the layer before", "norm/norm"),
        ("the layer before", "mlp/matmul"),
        ("norm/norm", "mlp/matmul"),
        ("mlp/matmul", "what follows"),
    }


def test_what_is_written_anew_inside_does_not_come_from_outside() -> None:
    b = GraphBuilder(samples.DECODE)
    b.op("embedding", reads={"ids": 8}, writes={"t": 8, "u": 8}, path="embed")
    b.op("pointwise", reads={"u": 8}, writes={"t": 8}, path="layers.0.a")
    b.op("pointwise", reads={"t": 8}, writes={"y": 8}, path="layers.0.b")
    (block,) = blocks(step_of(b.graph()))
    assert ("a/pointwise", "b/pointwise") in named(block)
    assert ("embed/embedding", "b/pointwise") not in named(block)


def test_many_small_operations_of_a_module_become_one_node() -> None:
    b = GraphBuilder(samples.DECODE)
    b.op("matmul", reads={"t0": 8}, writes={"t1": 8}, path="layers.0.a", dtype="bfloat16")
    for i in range(1, MOST_NODES + 5):
        b.op("pointwise", reads={f"t{i}": 8}, writes={f"t{i + 1}": 8}, path=f"layers.0.{'b' if i < 20 else 'c'}")
    (block,) = blocks(step_of(b.graph()))
    inside = [(node.title, node.kind, len(node.ops)) for node in block.nodes if node.part == "operation"]
    assert inside == [("a", "matmul", 1), ("b", "19 operations", 19), ("c", f"{MOST_NODES - 15} operations", 17 - 4)]
    whole = sum(op.time_s or 0.0 for op in step_of(b.graph()).ops)
    assert sum(node.time_s or 0.0 for node in block.nodes) == pytest.approx(whole)


def test_the_drawing_is_sound_xml_with_every_node_and_edge() -> None:
    (block,) = blocks(step_of(samples.block_graph()))
    root = ElementTree.fromstring(svg(block, "block-0"))
    text = ["".join(element.itertext()) for element in root.iter("text")]
    for words in ("self_attn.qkv_proj", "mlp.down_proj", "what follows", "W 123 MB", "KV ↑ 2.10 MB", "KV ↓ 4.10 kB"):
        assert words in text, words
    edges = [path for path in root.iter("path") if path.get("marker-end")]
    assert len(edges) == len(block.edges)
    assert sum("around" in (edge.get("marker-end") or "") for edge in edges) == len(block.shortcuts())
    titles = [title.text or "" for title in root.iter("title")]
    assert any("model.layers.*.mlp.up_proj" in title and "FLOP/s, bound: HBM" in title for title in titles)


def test_a_hostile_name_is_text_in_the_drawing() -> None:
    b = GraphBuilder(samples.DECODE)
    b.op("matmul", reads={"x": 8}, writes={"y": 8}, path=HOSTILE, dtype="bfloat16")
    (block,) = blocks(step_of(b.graph()))
    markup = svg(block, "b")
    root = ElementTree.fromstring(markup)
    assert not list(root.iter("script"))
    assert '<script>alert("x")</script>&�' in "".join(root.itertext())
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", markup)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[tuple[float, float]], list[Edge]]:
    count = draw(st.integers(1, 14))
    sizes = [(draw(st.sampled_from([60.0, 200.0])), draw(st.sampled_from([26.0, 80.0]))) for _ in range(count)]
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    return sizes, sorted(draw(st.sets(st.sampled_from(pairs), max_size=24))) if pairs else []


@given(graphs())
def test_no_boxes_overlap_and_no_edge_runs_through_one(found: tuple[list[tuple[float, float]], list[Edge]]) -> None:
    sizes, edges = found
    placed = layout(sizes, edges)
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(placed.boxes, sizes, strict=True)]
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for left, top, right, bottom in boxes:
        assert -1e-6 <= left <= right <= placed.width + 1e-6
        assert -1e-6 <= top <= bottom <= placed.height + 1e-6
    for (source, target), route in placed.routes.items():
        assert route[0][1] == pytest.approx(boxes[source][3])
        assert route[-1][1] == pytest.approx(boxes[target][1])
        assert boxes[source][0] <= route[0][0] <= boxes[source][2]
        assert boxes[target][0] <= route[-1][0] <= boxes[target][2]
        assert all(above[1] <= below[1] + 1e-6 for above, below in pairwise(route))
        for (x, y0), (x1, y1) in zip(route[0::2], route[1::2], strict=True):  # ways through rows are straight
            assert x == x1
            for left, top, right, bottom in boxes:
                assert not (left < x < right and max(y0, top) < min(y1, bottom) - 1e-6)
        for (_, y0), (_, y1) in zip(route[1:-1:2], route[2:-1:2], strict=True):  # bends are between rows
            for _, top, _, bottom in boxes:
                assert bottom <= y0 + 1e-6 or top >= y1 - 1e-6
    assert set(placed.routes) == set(edges)


def test_what_need_not_cross_does_not() -> None:
    placed = layout([(50.0, 20.0)] * 8, [(0, 7), (1, 6), (2, 5), (3, 4)])
    ends = sorted((placed.boxes[source][0], placed.boxes[target][0]) for source, target in placed.routes)
    assert [x for _, x in ends] == sorted(x for _, x in ends)


def test_a_chain_is_straight_and_an_edge_backwards_is_refused() -> None:
    placed = layout([(100.0, 20.0)] * 4, [(0, 1), (1, 2), (2, 3)])
    assert {x for x, _ in placed.boxes} == {0.0}
    with pytest.raises(ValueError, match=r"edge \(1, 0\) does not go to a later box"):
        layout([(1.0, 1.0)] * 2, [(1, 0)])
    assert layout([], []).boxes == ()
