"""Vidur's tables: shapes of every layer by hand, milliseconds, repeats."""

from pathlib import Path

import exchange_samples as samples
import pytest

from calibrate.exchange.formats import import_tables
from calibrate.exchange.tables import ImportOptions
from calibrate.kernels.fit import observations
from profiler.record.run import RequestError

A100 = ImportOptions(device="nvidia-a100-sxm-80gb")


def test_shapes_of_the_linear_layers(tmp_path: Path) -> None:
    done = import_tables("vidur", [samples.saved(samples.vidur_linear(), tmp_path / "mlp.csv")], A100)
    rows = {row["op"]: row for row in done.kernels.table.to_pylist() if row["row"] == 0}
    # 2 ranks: 8 heads and 2 of keys and values each, head dim 64, inner 1408
    product = {name: tuple(rows[name][d] for d in ("m", "n", "k")) for name in rows if rows[name]["kind"] == "matmul"}
    assert product == {
        "attn_pre_proj": (64, (8 + 2 + 2) * 64, 1024),
        "attn_post_proj": (64, 1024, 8 * 64),
        "mlp_up_proj": (64, 2 * 1408, 1024),
        "mlp_down_proj": (64, 1024, 1408),
    }
    streamed = {name: (row["kind"], row["bytes_read"], row["bytes_written"]) for name, row in rows.items()}
    wide = 64 * 1024 * 2
    assert streamed["emb"] == ("embedding", wide, wide)
    assert streamed["input_layernorm"] == streamed["post_attention_layernorm"] == ("norm", wide, wide)
    assert streamed["attn_rope"] == ("pointwise", 64 * (8 + 2) * 64 * 2, 64 * (8 + 2) * 64 * 2)
    assert streamed["mlp_act"] == ("pointwise", 2 * 64 * 1408 * 2, 64 * 1408 * 2)
    assert streamed["add"] == ("pointwise", 2 * wide, wide)


def test_milliseconds_and_repeats(tmp_path: Path) -> None:
    done = import_tables("vidur", [samples.saved(samples.vidur_linear(), tmp_path / "mlp.csv")], A100)
    (source,) = done.kernels.sources
    assert (source.rows, source.timed, source.kept) == (3, 30, 20)
    assert source.cleaned == {"repeat of a shape, median taken": 10}
    one = observations(done.kernels)["matmul", "float16"]
    assert one.time_s[:2] == pytest.approx([2.05e-5, 2.2e-5])  # median of 20 and 21 µs; 22 µs
    assert done.device.name == "NVIDIA A100-SXM4-80GB"


def test_all_reduce(tmp_path: Path) -> None:
    done = import_tables("vidur", [samples.saved(samples.vidur_all_reduce(), tmp_path / "all_reduce.csv")], A100)
    one = observations(done.kernels)["collective", "float16"]
    assert one.time_s == pytest.approx([2e-5, 6e-5])
    assert one.dims["bytes"].tolist() == [2048, 1 << 20] and one.dims["operation"].tolist() == [0, 0]


def test_a_device_by_its_folder(tmp_path: Path) -> None:
    path = samples.saved(samples.vidur_all_reduce(), tmp_path / "a100_dgx" / "all_reduce.csv")
    done = import_tables("vidur", [path], ImportOptions())
    assert done.device.name == "a100" and done.device.spec is None
    assert "say which with --device" in done.warnings[0]
    only = samples.saved(samples.vidur_all_reduce(), tmp_path / "L40S" / "all_reduce.csv")
    assert import_tables("vidur", [only], ImportOptions()).device.name == "NVIDIA L40S"


def test_columns_that_are_missing_and_a_device_that_nothing_names(tmp_path: Path) -> None:
    path = samples.saved(samples.vidur_linear().drop(columns="n_head"), tmp_path / "mlp.csv")
    with pytest.raises(RequestError, match="missing column n_head of a Vidur table of linear layers"):
        import_tables("vidur", [path], A100)
    path = samples.saved(samples.vidur_linear(), tmp_path / "mlp.csv")
    with pytest.raises(RequestError, match="does not say which device it is of; add --device"):
        import_tables("vidur", [path], ImportOptions())
