"""Kernels of a compiler to the traced operations they came from, on graphs made by hand."""

import pytest

from profiler.attribution.replayed import CompiledGraph, CompiledKernel, Source, library_operator, members

NORM, ATTENTION, MLP = "layers.0.norm", "layers.0.attn", "layers.0.mlp"
TRACED = [
    (NORM, "aten::pow"),
    (NORM, "aten::mean"),
    (NORM, "aten::mul"),
    (ATTENTION, "aten::mm"),
    (ATTENTION, "aten::cat"),
    (ATTENTION, "aten::scaled_dot_product_attention"),
    ("layers.0", "aten::add"),
    (MLP, "aten::silu"),
]
ANCHORS = {3, 5}
SOURCES = (
    Source(NORM, ("aten::pow",)),
    Source(NORM, ("aten::mean",)),
    Source(NORM, ("aten::mul",)),
    Source(ATTENTION, ("aten::mm",)),
    Source(ATTENTION, ()),  # a view
    Source(ATTENTION, ("aten::cat",)),
    Source(ATTENTION, ("aten::scaled_dot_product_attention",)),
    Source("layers.0", ("aten::add_",)),
    Source(MLP, ("aten::silu",)),
)


def graph(*kernels: tuple[int, ...], sources: tuple[Source, ...] = SOURCES) -> CompiledGraph:
    return CompiledGraph(sources, tuple(CompiledKernel(f"k{i}", ops) for i, ops in enumerate(kernels)))


def test_a_fused_kernel_has_the_operations_of_all_its_calls() -> None:
    assert members([graph((0, 1, 2), (3,), (6,), (7, 8))], TRACED, ANCHORS) == [(0, 1, 2), (3,), (5,), (6, 7)]


def test_an_operation_may_be_part_of_several_kernels() -> None:
    assert members([graph((0, 1), (0, 2))], TRACED, ANCHORS)[:2] == [(0, 1), (0, 2)]


def test_one_call_may_make_several_operations() -> None:
    norm = Source(NORM, ("aten::pow", "aten::mean", "aten::mul"))
    assert members([graph((0,), (1,), sources=(norm, *SOURCES[3:]))], TRACED, ANCHORS) == [(0, 1, 2), (3,)]


def test_what_only_the_compiled_model_does_leaves_the_alignment() -> None:
    mask = Source("layers.0", ("aten::le",))
    found = members([graph((1, 2, 3), (4,), sources=(mask, *SOURCES))], TRACED, ANCHORS)
    assert found == [(0, 1, 2), (3,)]


def test_a_kernel_of_such_work_alone_belongs_to_its_module_without_anchors() -> None:
    extra = Source(ATTENTION, ("aten::clone",))
    kernels = graph((0, 1, 2), (3,), (9,), (5,), sources=(*SOURCES, extra))
    assert members([kernels], TRACED, ANCHORS)[2] == (4,), "the products and the attention are others' kernels"


def test_a_module_without_operations_gives_its_kernel_to_the_one_around_it() -> None:
    extra = Source("layers.0.mlp.act.inner", ("aten::exp",))
    kernels = graph((8,), (9,), sources=(*SOURCES, extra))
    assert members([kernels], TRACED, ANCHORS) == [(7,), (7,)]


def test_a_call_put_in_the_place_of_another_stands_for_what_no_kernel_has() -> None:
    # the compiler took the product with the gain (position 2) for a cast that does nothing (position 9)
    cast = Source(NORM, ())
    kernels = graph((0, 1, 9), (3,), sources=(*SOURCES, cast))
    assert members([kernels], TRACED, ANCHORS) == [(0, 1, 2), (3,)]


def test_a_kernel_of_no_module_has_no_operations() -> None:
    assert members([graph((0,), sources=(Source(None, ("aten::pow",)),))], TRACED, ANCHORS) == [()]


def test_graphs_follow_each_other_in_the_order_of_their_calls() -> None:
    first, second = graph((0,), (1,), sources=SOURCES[:3]), graph((0,), (3,), sources=SOURCES[3:])
    assert members([first, second], TRACED, ANCHORS) == [(0,), (1,), (3,), (5,)]


def test_an_anchor_of_a_library_is_no_part_of_the_mask_made_for_it() -> None:
    # the attention's call made a mask as well, in a kernel with the concatenation, and in one of its own
    kernels = (CompiledKernel("k", (5, 6)), CompiledKernel("mask", (6,)), CompiledKernel("flash", (6,), True))
    assert members([CompiledGraph(SOURCES, kernels)], TRACED, ANCHORS) == [(4,), (4,), (5,)]


def test_an_anchor_that_the_compiler_wrote_itself_stays_in_its_kernel() -> None:
    assert members([graph((2, 3))], TRACED, ANCHORS) == [(2, 3)]


def test_repeated_layers_keep_to_their_own() -> None:
    traced = [(f"layers.{i}", "aten::mul") for i in range(3) for _ in range(2)]
    sources = tuple(Source(path, (name,)) for path, name in traced)
    assert members([graph((0, 1), (2, 3), (4, 5), sources=sources)], traced, ()) == [(0, 1), (2, 3), (4, 5)]


@pytest.mark.parametrize(
    ("kernel", "operator"),
    [
        ("extern_kernels.mm", "aten::mm"),
        ("extern_kernels.bias_addmm", "aten::addmm"),
        ("torch.ops.aten._grouped_mm.default", "aten::_grouped_mm"),
        ("torch.ops.mkldnn._linear_pointwise.default", "mkldnn::_linear_pointwise"),
        ("triton_poi_fused_add_mul_3", None),
        ("cpp_fused_mm_0", None),
    ],
)
def test_library_kernels_are_named_as_the_profiler_does(kernel: str, operator: str | None) -> None:
    assert library_operator(kernel) == operator
