"""Files that are no tables, never end, or would lose rows in silence."""

import bz2
import gzip
import lzma
import os
import zipfile
from pathlib import Path

import exchange_samples
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrate.exchange import tables
from calibrate.exchange.formats import import_tables
from calibrate.exchange.tables import ImportOptions, numbers, read_table
from profiler.record.run import RequestError

CSV = exchange_samples.gemm().to_csv(index=False)


def refusal(path: Path) -> str:
    with pytest.raises(RequestError) as refused:
        read_table(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)
    return str(refused.value).replace(str(path), "FILE")


def test_packed_tables_are_read_and_archives_that_are_none_refused(tmp_path: Path) -> None:
    for suffix, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        path = tmp_path / f"gemm.csv{suffix}"
        packed = pack(CSV.encode())
        path.write_bytes(packed)
        assert len(read_table(path)[0]) == len(exchange_samples.gemm())
        for damaged in (b"no archive", b"", packed[:-9], packed[: len(packed) // 2]):
            path.write_bytes(damaged)
            assert refusal(path).startswith(("FILE is damaged (", "FILE is empty; nothing to import")), damaged[:10]
    for name in ("gemm.zip", "gemm.csv", "gemm.parquet", "gemm.tar"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("gemm.csv", CSV)
        assert refusal(tmp_path / name).startswith("FILE is damaged (")


def test_what_never_ends_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_CSV_BYTES", 1 << 20)
    for suffix, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        path = tmp_path / f"bomb.csv{suffix}"
        path.write_bytes(pack(CSV.encode() + b"\n" * (4 << 20)))
        assert "unpacks to more than 1,048,576 bytes" in refusal(path)
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    assert "a pipe or a device" in refusal(pipe)
    loop = tmp_path / "loop.csv"
    loop.symlink_to(loop)
    assert "Too many levels of symbolic links" in refusal(loop)
    for format_name in ("llmservingsim", "vidur"):
        with pytest.raises(RequestError, match="Too many levels"):
            import_tables(format_name, [loop], ImportOptions())
    assert refusal(tmp_path / ("n" * 5000)).startswith("no file FILE")


def test_no_row_is_lost_or_shifted(tmp_path: Path) -> None:
    path = tmp_path / "gemm.csv"
    lines = CSV.splitlines()
    for text, why in (
        ("\n".join([lines[0], *(f"{line},7" for line in lines[1:])]), "more fields than its first line has names"),
        ("\n".join([lines[0], f'"{lines[1]}', *lines[2:8], f'{lines[8]}"', *lines[9:]]), "give|EOF|fields"),
        (CSV.replace("gemm", "ge\0m"), "neither text nor"),
        (",".join(f"c{i}" for i in range(20_000)), "20,000 columns are more than any table has"),
    ):
        path.write_text(text)
        with pytest.raises(RequestError, match=why):
            read_table(path)
    path.write_text(CSV.replace("\n", "\r\n") + "\n\n")
    assert len(read_table(path)[0]) == len(lines) - 1


def test_columns_that_hold_no_figures_are_refused_by_name(tmp_path: Path) -> None:
    frame = exchange_samples.gemm()
    table, rows = pa.Table.from_pandas(frame, preserve_index=False), len(frame)
    path = tmp_path / "gemm.parquet"
    for values in (
        pa.array([{"a": 1}] * rows),
        pa.array([[1.0]] * rows),
        pa.array([[("k", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
        pa.array([b"1"] * rows),
        pa.array([b"12"] * rows, pa.binary(2)),
    ):
        pq.write_table(table.set_column(table.column_names.index("latency"), "latency", values), path)
        assert refusal(path).startswith("FILE is damaged (column latency holds "), values.type
    for values in (pa.array([True] * rows), pa.array([0] * rows, pa.timestamp("ns")), pa.array([None] * rows)):
        pq.write_table(table.set_column(table.column_names.index("latency"), "latency", values), path)
        with pytest.raises(RequestError, match=r"no row is left after cleaning \(latency is no finite number: 24\)"):
            import_tables("aiconfigurator", [path], ImportOptions())


def test_true_is_no_number() -> None:
    mixed = numbers(pd.Series([True, 2, "3", "x", None, False], dtype=object))
    assert np.array_equal(mixed, [np.nan, 2, 3, np.nan, np.nan, np.nan], equal_nan=True)
    assert np.isnan(numbers(pd.Series([True, False]))).all()
    assert np.isnan(numbers(pd.Series([1 + 2j]))).all()
    assert not np.isfinite(numbers(pd.Series(["1" * 400, "1" * 5000, "1e999", "-inf"]))).any()
