"""The paper's accounting against LLM-Viewer's own output, the paper's printed table, and rules of arithmetic."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from graphs import peaks
from hypothesis import given
from hypothesis import strategies as st

from roofline.hardware.load import load_device
from roofline.hardware.spec import HardwareSpec, Peaks
from roofline.paper.rules import PaperShape
from roofline.paper.table import PaperCosts, PaperResult, PaperRow, paper_table

DATA = Path(__file__).parent.parent.parent / "data" / "paper"
VECTORS: list[dict[str, Any]] = json.loads((DATA / "llm-viewer.json").read_text("utf-8"))["vectors"]
A6000 = HardwareSpec.model_validate_json((DATA / "llm-viewer-a6000.json").read_text("utf-8")).datasheet
LLAMA_2_7B = PaperShape(hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000)
LLAMA_2_13B = PaperShape(hidden=5120, intermediate=13824, layers=40, heads=40, kv_heads=40, vocabulary=32000)
LLAMA_3_8B = PaperShape(hidden=4096, intermediate=14336, layers=32, heads=32, kv_heads=8, vocabulary=128256)
SHAPES = {"Llama-2-7b-hf": LLAMA_2_7B, "Llama-2-13b-hf": LLAMA_2_13B}
ATTENTION = {"qk_matmul", "sv_matmul", "softmax", "fused_attention"}

# arXiv 2402.16363, the table of Llama-2-7b's layers on an A6000: 2048 tokens, batch 1, 16 bits.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
PREFILL = [
    (PROJECTIONS, "68.72 G", "67.11 M", "1024", "154.8 T", "compute"),
    (MLP, "184.68 G", "152.04 M", "1214.7", "154.8 T", "compute"),
    (("qk_matmul", "sv_matmul"), "34.36 G", "301.99 M", "113.8", "87.4 T", "memory"),
    (("softmax",), "671.1 M", "536.9 M", "1.25", "960 G", "memory"),
    (("attn_norm", "mlp_norm"), "58.7 M", "33.6 M", "1.75", "1.34 T", "memory"),
    (("attn_add", "mlp_add"), "8.39 M", "33.6 M", "0.25", "192 G", "memory"),
    (("lm_head",), "131.1 M", "262.2 M", "0.5", "384 G", "memory"),
]
DECODE = [
    (PROJECTIONS, "33.55 M", "33.57 M", "0.9995"),
    (MLP, "90.18 M", "90.21 M", "0.9997"),
    (("qk_matmul", "sv_matmul"), "16.78 M", "16.92 M", "0.9918"),
    (("softmax",), "327.7 K", "262.1 K", "1.25"),
    (("attn_norm", "mlp_norm"), "28.7 K", "16.4 K", "1.75"),
    (("attn_add", "mlp_add"), "4.1 K", "16.4 K", "0.25"),
    (("lm_head",), "131.1 M", "262.2 M", "0.5"),
]
TOTALS = {"prefill": ("28.75 T", "65.9 G", "226.9 m"), "decode": ("14.17 G", "14.31 G", "18.64 m")}
SCALE = {"m": 1e-3, "": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def printed(value: float, like: str) -> str:
    """`value` with the unit and the number of decimals of `like`."""
    match = re.fullmatch(r"\d+(?:\.(\d+))?(?: (\w))?", like)
    assert match
    unit = match[2] or ""
    return f"{value / SCALE[unit]:.{len(match[1] or '')}f}" + (f" {unit}" if unit else "")


def by_name(rows: tuple[PaperRow, ...]) -> dict[str, PaperRow]:
    return {row.name: row for row in rows}


def test_every_figure_of_llm_viewer_is_reproduced_exactly() -> None:
    for phase in ["prefill", "decode"]:
        for vector in VECTORS:
            bits = {name: vector[name] for name in ("w_bit", "a_bit", "kv_bit")}
            result = paper_table(SHAPES[vector["model"]], A6000, vector["batchsize"], vector["seqlen"], **bits)
            ours = getattr(result, phase)
            rows = {row.name: row.model_dump(exclude={"name", "count"}) for row in ours.rows}
            assert rows == vector["results"][phase], (phase, vector["model"])
            assert list(rows) == list(vector["results"][phase]), (phase, vector["model"])
            assert ours.total.model_dump() == vector["results"]["total_results"][phase], (phase, vector["model"])


@pytest.mark.parametrize("sheet", [A6000, load_device("nvidia-rtx-a6000").datasheet], ids=["llm-viewer", "ours"])
def test_the_printed_table_and_totals_digit_by_digit(sheet: Peaks) -> None:
    result = paper_table(LLAMA_2_7B, sheet, batch=1, seqlen=2048)
    prefill, decode = by_name(result.prefill.rows), by_name(result.decode.rows)
    for names, ops, accessed, intensity, performance, bound in PREFILL:
        for row in (prefill[name] for name in names):
            assert printed(row.OPs, ops) == ops
            assert printed(row.memory_access, accessed) == accessed
            assert printed(row.arithmetic_intensity, intensity) == intensity
            assert printed(row.performance, performance) == performance
            assert row.bound == bound
    for names, ops, accessed, intensity in DECODE:
        for row in (decode[name] for name in names):
            assert printed(row.OPs, ops) == ops
            assert printed(row.memory_access, accessed) == accessed
            assert printed(row.arithmetic_intensity, intensity) == intensity
            assert row.bound == "memory"
    for phase, figures in TOTALS.items():
        total = getattr(result, phase).total
        values = (total.OPs, total.memory_access, total.inference_time)
        assert tuple(printed(v, like) for v, like in zip(values, figures, strict=True)) == figures


def test_flash_attention_as_llm_viewer_counts_it() -> None:
    """By hand for Llama-3-8B's heads, 300 tokens: 300 = 2 blocks of 128 and one that is not full."""
    flash = paper_table(LLAMA_3_8B, A6000, batch=2, seqlen=300, use_flash=True)
    prefill, decode = (by_name(phase.rows)["fused_attention"] for phase in (flash.prefill, flash.decode))
    scores = 2 * 32 * 300 * 300
    assert prefill.OPs == 2 * scores * 128 * 2 + 5 * scores
    assert prefill.load_act == 2 * 300 * 4096 * 2
    assert prefill.store_act == 2 * scores * 2
    assert prefill.load_kv_cache == 3 * (2 * 300 * 8 * 128 * 2) * 2
    assert decode.OPs == prefill.OPs / 300
    assert decode.store_act == prefill.store_act / 300
    assert decode.load_kv_cache == 2 * 300 * 8 * 128 * 2 * 2


def test_the_int8_peak_needs_all_three_at_eight_bits() -> None:
    peak = {
        bits: paper_table(LLAMA_2_7B, A6000, 1, 2048, *bits).max_OPS
        for bits in ((8, 8, 8), (4, 8, 4), (8, 8, 16), (4, 16, 4), (16, 8, 8))
    }
    assert peak == {
        (8, 8, 8): 309.7e12,
        (4, 8, 4): 309.7e12,
        (8, 8, 16): 154.8385e12,
        (4, 16, 4): 154.8385e12,
        (16, 8, 8): 154.8385e12,
    }


def test_main_memory_is_the_last_level() -> None:
    cached = peaks(dtype="float16", levels=(("L2", 1e6, 9e12), ("HBM", 1e9, 768e9)))
    assert paper_table(LLAMA_2_7B, cached, 1, 8).bandwidth == 768e9


def test_grouped_heads_halve_nothing_but_keys_and_values() -> None:
    """Unfused prefill reads the queries of as many heads as hold keys: 8 of 32."""
    rows = by_name(paper_table(LLAMA_3_8B, A6000, batch=1, seqlen=512).prefill.rows)
    assert rows["k_proj"].OPs == rows["v_proj"].OPs == rows["q_proj"].OPs / 4
    assert rows["qk_matmul"].load_act == rows["q_proj"].store_act / 4
    assert rows["sv_matmul"].store_act == rows["q_proj"].store_act
    assert rows["qk_matmul"].load_kv_cache == rows["k_proj"].store_kv_cache


def test_an_mlp_without_a_gate_has_no_row_for_one() -> None:
    plain = PaperShape(hidden=64, intermediate=256, layers=2, heads=4, kv_heads=4, vocabulary=100, gated=False)
    gated = plain.model_copy(update={"gated": True})
    rows = by_name(paper_table(plain, A6000, 1, 16).prefill.rows)
    assert set(by_name(paper_table(gated, A6000, 1, 16).prefill.rows)) - set(rows) == {"gate_proj"}
    assert rows["up_proj"].OPs == rows["down_proj"].OPs == 2 * 16 * 64 * 256


def test_what_cannot_be_computed_is_said_in_one_line() -> None:
    for arguments, message in [
        ({"batch": 0}, "batch is 0; give 1 or more"),
        ({"seqlen": -3}, "seqlen is -3; give 1 or more"),
        ({"w_bit": 32}, "w_bit is 32; the paper's accounting knows 1 to 16 bits"),
        ({"kv_bit": 0}, "kv_bit is 0; the paper's accounting knows 1 to 16 bits"),
        ({"peaks": peaks(dtype="float32")}, "needs the matrix peak of float16, which this hardware lacks"),
        (
            {"peaks": peaks(dtype="float16"), "w_bit": 8, "a_bit": 8, "kv_bit": 8},
            "needs the matrix peak of int8, which this hardware lacks",
        ),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            paper_table(**({"shape": LLAMA_2_7B, "peaks": A6000, "batch": 1, "seqlen": 8} | arguments))
        assert "\n" not in str(caught.value), (arguments, message)


@st.composite
def shapes(draw: st.DrawFn) -> PaperShape:
    kv_heads, group, head_size = draw(st.integers(1, 16)), draw(st.integers(1, 8)), draw(st.integers(1, 256))
    return PaperShape(
        hidden=kv_heads * group * head_size,
        intermediate=draw(st.integers(1, 60000)),
        layers=draw(st.integers(1, 130)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        vocabulary=draw(st.integers(1, 300000)),
        gated=draw(st.booleans()),
    )


CALLS = st.fixed_dictionaries({
    "batch": st.integers(1, 256),
    "seqlen": st.integers(1, 131072),
    "w_bit": st.integers(1, 16),
    "a_bit": st.integers(1, 16),
    "kv_bit": st.integers(1, 16),
})  # fmt: skip


@given(shapes(), CALLS, st.booleans())
def test_totals_are_the_layers_times_the_rows_and_the_head(
    shape: PaperShape, call: dict[str, int], flash: bool
) -> None:
    result = paper_table(shape, A6000, **call, use_flash=flash)
    for phase in (result.prefill, result.decode):
        *layer, head = phase.rows
        assert head.name == "lm_head"
        for name in PaperCosts.model_fields:
            expected = shape.layers * math.fsum(getattr(row, name) for row in layer) + getattr(head, name)
            assert getattr(phase.total, name) == pytest.approx(expected, rel=1e-12)
        total = phase.total
        parts = (total.memory_consumption_weight, total.memory_consumption_kv_cache, total.memory_consumption_tmp_act)
        assert total.memory_consumption == pytest.approx(sum(parts), rel=1e-12)
        assert total.memory_consumption_weight == pytest.approx(total.load_weight - head.load_weight, rel=1e-12)


@given(shapes(), CALLS, st.booleans())
def test_every_time_is_on_the_roofline(shape: PaperShape, call: dict[str, int], flash: bool) -> None:
    result = paper_table(shape, A6000, **call, use_flash=flash)
    for row in (*result.prefill.rows, *result.decode.rows):
        compute_s, memory_s = row.OPs / result.max_OPS, row.memory_access / 768e9
        assert row.inference_time == pytest.approx(max(compute_s, memory_s), rel=1e-12)
        if not math.isclose(compute_s, memory_s):
            assert row.bound == ("compute" if compute_s > memory_s else "memory")


@given(shapes(), CALLS)
def test_flash_changes_the_rows_of_attention_alone(shape: PaperShape, call: dict[str, int]) -> None:
    flash, plain = (paper_table(shape, A6000, **call, use_flash=use) for use in (True, False))
    for one, other in ((flash.prefill, plain.prefill), (flash.decode, plain.decode)):
        fused, apart = by_name(one.rows), by_name(other.rows)
        assert set(fused) ^ set(apart) == ATTENTION
        assert all(fused[name] == apart[name] for name in set(fused) & set(apart))
        unfused = math.fsum(apart[name].OPs for name in ATTENTION & set(apart))
        assert fused["fused_attention"].OPs == pytest.approx(unfused, rel=1e-12)
        weights = "memory_consumption_weight"
        assert getattr(one.total, weights) == getattr(other.total, weights)


@given(shapes(), CALLS, st.integers(2, 7))
def test_operations_are_linear_in_the_batch_and_weights_do_not_know_it(
    shape: PaperShape, call: dict[str, int], times: int
) -> None:
    one = paper_table(shape, A6000, **call)
    many = paper_table(shape, A6000, **(call | {"batch": times * call["batch"]}))
    for phase in ("prefill", "decode"):
        for a, b in zip(getattr(one, phase).rows, getattr(many, phase).rows, strict=True):
            assert b.OPs == pytest.approx(times * a.OPs, rel=1e-12)
            assert b.load_weight == a.load_weight


@given(shapes(), CALLS)
def test_each_kind_of_bits_scales_its_own_bytes(shape: PaperShape, call: dict[str, int]) -> None:
    fields = {
        "w_bit": {"load_weight"},
        "a_bit": {"load_act", "store_act"},
        "kv_bit": {"load_kv_cache", "store_kv_cache"},
    }
    full = paper_table(shape, A6000, **(call | {"w_bit": 16, "a_bit": 16, "kv_bit": 16}))
    for bit, scaled in fields.items():
        half = paper_table(shape, A6000, **(call | {"w_bit": 16, "a_bit": 16, "kv_bit": 16} | {bit: 8}))
        for name in set().union(*fields.values()):
            factor = 0.5 if name in scaled else 1
            assert getattr(half.prefill.total, name) == factor * getattr(full.prefill.total, name)


@given(shapes(), CALLS, st.booleans())
def test_json_holds_everything_and_only_finite_numbers(shape: PaperShape, call: dict[str, int], flash: bool) -> None:
    result = paper_table(shape, A6000, **call, use_flash=flash)
    text = json.dumps(result.model_dump(), allow_nan=False)
    assert PaperResult.model_validate_json(text) == result
