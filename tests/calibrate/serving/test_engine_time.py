"""The fit of an engine's constants to times that a test computes, and the rows of a file of measured times."""

from pathlib import Path

import numpy as np
import pytest
from law_checks import FACTS

from calibrate.serving.engine_time import EngineTime, chosen_rows, fit_engine, interval
from calibrate.serving.silicon import case_of, read_rows, scheme_of
from profiler.record.run import RequestError
from roofline.serving.engine import engine_named
from roofline.serving.surface import SECONDS, TERMS

HEADER = (
    "backend,backend_version,model_path,system,mode,isl,osl,gemm_quant_mode,moe_quant_mode,concurrency,tp_size,"
    "pp_size,attention_dp_size,moe_tp_size,moe_ep_size,silicon_ttft_ms,silicon_tpot_ms\n"
)
ROW = "vllm,0.18.0,openai/gpt-oss-120b,h200_sxm,agg,1024,8192,nvfp4,nvfp4,64,2,1,1,2,1,80.0,14.5\n"


def terms_of(rows: int, seed: int = 0) -> np.ndarray:
    """Rows from small to large steps on one to eight ranks, in seconds and numbers."""
    draw = np.random.default_rng(seed)
    parts = draw.uniform(0.2, 6.0, (rows, len(SECONDS))) * draw.uniform(1e-4, 1e-3, (rows, 1))
    numbers = np.stack(
        [np.ones(rows), draw.integers(1, 128, rows), draw.integers(100, 500, rows), draw.integers(0, 160, rows)], 1
    )
    return np.concatenate([parts, numbers], axis=1)


def test_it_finds_the_constants_of_an_engine() -> None:
    law = EngineTime(engine_named("vllm", "0.11"))
    there = law.priors(FACTS)
    true = there * np.array([1.0] * len(SECONDS) + [4.0, 0.3, 1.0, 1.3])
    terms = terms_of(30)
    noise = np.exp(0.01 * np.random.default_rng(1).normal(size=30))
    found = fit_engine(law, terms, terms @ true * noise, ["a"] * 15 + ["b"] * 15, FACTS)
    step = TERMS.index("step")
    assert abs(np.log(found.constants[step] / true[step])) < 0.6 * abs(np.log(there[step] / true[step]))
    unseen = terms_of(50, seed=3)
    before, after = (np.abs(unseen @ values / (unseen @ true) - 1).mean() for values in (there, found.constants))
    assert after < 0.5 * before
    assert after < 0.03


def test_without_rows_the_priors_stand_with_a_wider_interval() -> None:
    law = EngineTime(engine_named("sglang"))
    alone = fit_engine(law, np.empty((0, len(TERMS))), np.empty(0), [], FACTS)
    assert alone.constants == pytest.approx(law.priors(FACTS))
    terms = terms_of(20)
    known = fit_engine(law, terms, terms @ law.priors(FACTS), ["a"] * 20, FACTS)
    assert known.deviation < alone.deviation
    low, high = interval(np.array(1.0), known.deviation)
    assert low < 1 < high


def test_another_version_counts_by_what_is_expected_of_it() -> None:
    old, new = engine_named("vllm", "0.11"), engine_named("vllm", "0.18")
    factors = EngineTime(new).as_here(old)
    assert factors[: len(SECONDS)] == pytest.approx(1)
    ratio = old.constants["step"].value / new.constants["step"].value
    assert factors[TERMS.index("step")] == pytest.approx(ratio)


def test_chosen_rows_are_few_distinct_and_of_all_models() -> None:
    terms, models = terms_of(60), ["a"] * 50 + ["b"] * 10
    rows = chosen_rows(terms, models, 30)
    assert len(rows) == len(set(rows)) <= 30
    assert sum(models[row] == "b" for row in rows) == 10
    assert chosen_rows(terms, models, 2) != []


def test_a_row_is_read_with_its_units_and_its_parallel_sizes(tmp_path: Path) -> None:
    (tmp_path / "silicon.csv").write_text(HEADER + ROW, encoding="utf-8")
    (row,) = read_rows(tmp_path / "silicon.csv")
    case = case_of(0, row)
    assert (case.ttft_s, case.tpot_s) == (0.08, 0.0145)
    assert (case.ranks, case.parallel.moe_tp, case.parallel.moe_ep, case.load.concurrency) == (2, 2, 1, 64)
    # the checkpoint has its experts alone in 4 bits, whatever the file calls its layers
    scheme = scheme_of(case, engine_named("vllm", "0.18.0"), ("bfloat16", "w4a16_mxfp4"))
    assert (scheme.layer, scheme.experts, scheme.cache_bytes) == ("bfloat16", "w4a16_mxfp4", 2.0)


def test_ranks_that_are_counted_twice_are_counted_once() -> None:
    row = dict(zip(HEADER.strip().split(","), ROW.strip().split(","), strict=True))
    twice = case_of(0, row | {"tp_size": "64", "moe_tp_size": "8", "moe_ep_size": "8"})
    assert (twice.ranks, twice.parallel.moe_tp, twice.parallel.moe_ep) == (8, 1, 8)
    empty = case_of(0, row | {"tp_size": "", "moe_tp_size": "nan", "backend_version": ""})
    assert (empty.ranks, empty.parallel.moe_tp, empty.version) == (1, 1, "unknown")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"isl": "many"}, "isl is 'many', not a whole number"),
        ({"tp_size": "0"}, "tp_size is '0', not a whole number from 1"),
        ({"osl": ""}, "osl is empty"),
        ({"gemm_quant_mode": "fp3"}, "quantisation 'fp3' is not known"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(change: dict[str, str], says: str) -> None:
    row = dict(zip(HEADER.strip().split(","), ROW.strip().split(","), strict=True))
    with pytest.raises(ValueError, match=says):
        case_of(0, row | change)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    for name, content, says in (
        ("empty.csv", b"", "has no rows"),
        ("other.csv", b"a,b\n1,2\n", "missing columns backend"),
        ("binary.csv", b"\xff\xfe\x00\x01", "is no CSV file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RequestError, match=says):
            read_rows(tmp_path / name)
