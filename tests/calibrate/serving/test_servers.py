"""Options of the servers of a public benchmark: which rows they hold for, and what they change."""

from dataclasses import replace

import pytest

from calibrate.serving.servers import _servers, accepted_tokens, started
from calibrate.serving.silicon import Case, case_of
from profiler.models.catalogue import catalogue
from roofline.serving.engine import engine_named, engine_names
from roofline.serving.step import Parallel

ROW = {
    "backend": "trtllm", "backend_version": "1.1.0rc2.post2", "model_path": "deepseek-ai/DeepSeek-R1",
    "system": "h200_sxm", "isl": "8192", "osl": "1024", "concurrency": "32", "gemm_quant_mode": "fp8",
    "moe_quant_mode": "fp8", "tp_size": "8", "moe_tp_size": "1", "moe_ep_size": "8",
}  # fmt: skip


def case(**changes: str) -> Case:
    return case_of(0, ROW | changes)


def test_rows_name_what_is_known_and_their_sources() -> None:
    for server in _servers():
        assert server.engine in engine_names()
        assert set(server.models) <= set(catalogue())
        assert all("benchmarks/" in source for source in server.sources)


def test_rows_that_hold_together_add_up() -> None:
    how = started(case(), "deepseek-v3", 61)
    assert how.engine.chunk_tokens == 8192 + 32 + 64
    assert how.engine.cache_bits["fp8_block"] == 8 != engine_named("trtllm").cache_bits.get("fp8_block", 16)
    assert how.drafts is not None and (how.drafts.tokens, how.drafts.cost) == (3, pytest.approx(3 / 61))
    spread = started(case(tp_size="1", attention_dp_size="8"), "deepseek-v3", 61)
    assert spread.drafts is not None and spread.drafts.tokens == 1


def test_rows_of_other_runs_models_devices_and_versions_change_nothing() -> None:
    plain = engine_named("trtllm", "1.1.0rc2.post2")
    for other, model in (
        (case(isl="4000"), "deepseek-v3"),  # not that benchmark's lengths
        (case(), "qwen3-32b"),
    ):
        how = started(other, model, 61)
        assert (how.engine, how.parallel, how.drafts) == (plain, other.parallel, None)
    assert started(case(system="b200_sxm"), "deepseek-v3", 61).drafts is None
    assert started(case(backend_version="1.2.0"), "deepseek-v3", 61).drafts is None


def test_experts_by_rank_where_a_file_without_versions_does_not_say_so() -> None:
    unknown = case(backend_version="", moe_tp_size="8", moe_ep_size="1")
    assert started(unknown, "deepseek-v3", 61).parallel == Parallel(1, 1, 8)
    known = replace(unknown, version="1.0")
    assert started(known, "deepseek-v3", 61).parallel == Parallel(1, 8, 1)


def test_accepted_tokens_are_a_chain() -> None:
    assert accepted_tokens(1) == pytest.approx(1.85)
    assert accepted_tokens(3) == accepted_tokens(2) == pytest.approx(1 + 0.85 + 0.85 * 0.3)
