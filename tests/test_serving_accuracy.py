"""The script that scores predicted serving times, on made-up tables of a device whose kernels have known times."""

import csv
import json
from itertools import product
from pathlib import Path

import exchange_samples as samples
import numpy as np
import pandas as pd
import pytest

from scripts import serving_accuracy

CALL_S, RATE, BANDWIDTH = 3e-6, 8e14, 4e12
"""Of the made-up kernels: seconds of a call, FLOP/s, bytes/s."""
COLUMNS = [
    "backend",
    "backend_version",
    "model_path",
    "system",
    "mode",
    "isl",
    "osl",
    "gemm_quant_mode",
    "moe_quant_mode",
    "concurrency",
    "tp_size",
    "silicon_ttft_ms",
    "silicon_tpot_ms",
]


def milliseconds(flops: float, moved: float) -> float:
    return 1e3 * (CALL_S + max(flops / RATE, moved / BANDWIDTH))


def tables(folder: Path) -> Path:
    """Tables of products and of attention, in AIConfigurator's columns."""
    gemm, prefill, decode = [], [], []
    for m, n, k in product((1, 16, 128, 1024, 8192), (1024, 6144, 32768, 131072), (1024, 4096)):
        about = {"op_name": "gemm", "kernel_source": "linear", "gemm_dtype": "bfloat16", "m": m, "n": n, "k": k}
        gemm.append(samples.COMMON | about | {"latency": milliseconds(2 * m * n * k, 2 * (m * k + k * n + m * n))})
    for heads, kv_heads, batch, length in product((16, 32), (4, 8), (1, 16), (128, 1024, 8192)):
        about = {
            **samples.COMMON, "kernel_source": "flash", "batch_size": batch, "num_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": 64, "beam_width": 1, "attn_dtype": "bfloat16",
            "kv_cache_dtype": "bfloat16", "window_size": 0,
        }  # fmt: skip
        pairs = batch * heads * length * length / 2
        one = {"op_name": "context_attention", "isl": length, "step": 0, "latency": milliseconds(4 * 64 * pairs, 0)}
        prefill.append(about | one)
        read = 2 * 2 * 64 * batch * kv_heads * length
        one = {"op_name": "generation_attention", "isl": 1, "step": length - 1, "latency": milliseconds(0, read)}
        decode.append(about | one)
    folder.mkdir()
    for name, rows in (("gemm", gemm), ("context_attention", prefill), ("generation_attention", decode)):
        samples.saved(pd.DataFrame(rows), folder / f"{name}_perf.parquet")
    return folder


def silicon(path: Path, *rows: dict[str, object]) -> Path:
    usual = {
        "backend": "vllm", "backend_version": "0.18.0", "system": "h200_sxm", "mode": "agg", "isl": 1024, "osl": 128,
        "gemm_quant_mode": "bfloat16", "moe_quant_mode": "", "concurrency": 4, "tp_size": 1, "silicon_ttft_ms": 30,
    }  # fmt: skip
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(usual | row for row in rows)
    return path


def test_rows_are_predicted_from_tables_or_say_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "meta-llama/Llama-3.2-1B-Instruct"
    batches = (1, 16, 64)
    file = silicon(
        tmp_path / "silicon.csv",
        *({"model_path": name, "concurrency": batch, "silicon_tpot_ms": 1.0} for batch in batches),
        *({"model_path": "Qwen/Qwen3-0.6B", "concurrency": c, "silicon_tpot_ms": 2.0} for c in (1, 2, 4, 8, 16)),
        {"model_path": name, "system": "b200_sxm", "silicon_tpot_ms": 1.0},
        {"model_path": name, "isl": "long", "silicon_tpot_ms": 1.0},
        {"model_path": name, "tp_size": 3, "silicon_tpot_ms": 1.0},
    )
    arguments = ["serving_accuracy", str(file), str(tables(tmp_path / "h200")), "--json"]
    monkeypatch.setattr("sys.argv", arguments)
    assert serving_accuracy.main() == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 11
    predicted = np.array([row["predicted_tpot_ms"] for row in rows[:3]])
    assert all(
        row["predicted_tpot_ms_low"] < row["predicted_tpot_ms"] < row["predicted_tpot_ms_high"] for row in rows[:8]
    )
    assert all(row["predicted_ttft_ms"] > 0 for row in rows[:8])
    # By hand: weights of Llama-3.2-1B (1.24e9 in 16 bits), 16 layers of 4 products and an attention, 5 streaming
    # kernels of 2 µs each, a step of the engine; batches add keys and little else.
    alone = 1e3 * (2 * 1.24e9 / BANDWIDTH + 16 * 5 * CALL_S + 16 * 5 * 2e-6 + 3e-4)
    assert predicted[0] == pytest.approx(alone, rel=0.25)
    assert (np.diff(predicted) > 0).all()
    reasons = [row["reason"] for row in rows[8:]]
    assert "no tables of 'b200_sxm'" in reasons[0]
    assert "isl is 'long'" in reasons[1]
    assert "3 ranks" in reasons[2]


def test_what_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = silicon(tmp_path / "silicon.csv", {"model_path": "llama-3.1-8b"})
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        ([tmp_path / "none.csv", tmp_path / "empty"], "none.csv"),
        ([file, tmp_path / "empty"], "no *_perf.parquet under the tables"),
        ([file, tmp_path / "empty", "--fit-rows", "-1"], "--fit-rows is -1; use 0 or more"),
    ):
        monkeypatch.setattr("sys.argv", ["serving_accuracy", *map(str, arguments)])
        assert serving_accuracy.main() == 2
        printed = capsys.readouterr()
        assert says in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.parametrize(
    ("system", "device"),
    [
        ("h100_sxm", "nvidia-h100-sxm"),
        ("b200_sxm", "nvidia-b200"),
        ("gb200", "nvidia-gb200"),
        ("a100_sxm", "nvidia-a100-sxm-80gb"),
        ("l40s", "nvidia-l40s"),
        ("sxm", None),
        ("b60", None),
    ],
)
def test_names_of_systems_are_those_of_devices(system: str, device: str | None) -> None:
    found = serving_accuracy.device_named(system)
    assert (found.name if found else None) == device
