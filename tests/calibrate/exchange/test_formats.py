"""What holds for every format: provenance, the choice of peaks, refusals in one line, a format from outside."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import export_samples as samples
import pandas as pd
import pytest
from each import each

from calibrate.exchange import formats
from calibrate.exchange.figures import SIDECAR, Export, File, Ledger, Source, commented, source_of
from calibrate.exchange.formats import EXPORTS, IMPORTS, Format, Importer, export_format, import_format, import_tables
from calibrate.exchange.op_tables import RooflinePrice
from calibrate.exchange.tables import ImportOptions, Parsed, complete
from profiler.cli.app import main
from roofline.hardware.load import device_names, load_device
from roofline.laws.law import Dims, Floats


def provenance(export: Export) -> dict[str, Any]:
    """Wherever the main file has it."""
    main, *others = export.files
    beside = [file for file in others if file.path == main.path + SIDECAR]
    if beside:
        found: dict[str, Any] = json.loads(beside[0].content)
        return found
    text = main.content.decode()
    if text.startswith("#"):
        return samples.provenance_in_comments(text)
    (entry,) = json.loads(text).values()
    inner: dict[str, Any] = json.loads(entry["_comment"])
    return inner


@each("form", EXPORTS)
def test_every_format_says_where_its_figures_are_from(form: Format) -> None:
    found = provenance(form.write(samples.source()))
    assert found["by"] == "roofcal 9.8.7"
    assert found["exported"] == "2026-05-09T10:11:12+00:00"
    assert (found["device"], found["driver_name"], found["uuid"]) == ("example-77", "Example GPU 77", "GPU-7777")
    assert (found["peaks"], found["measured_on"]) == ("measured", "2026-05-08T09:00:00+00:00")
    assert found["versions"] == {"torch": "2.13.0", "driver": "580.65"}
    assert found["clocks"].startswith("SM 1,410")
    assert "cold operands" in found["valid"]
    assert found["folded"]
    taken = found["figures"]["bandwidth HBM"]
    assert taken == {
        "value": 3.337e12,
        "unit": "B/s",
        "source": "measured: 3337000000000.0",
        "low": pytest.approx(3.30363e12),
        "high": pytest.approx(3.37037e12),
    }


class Twice:
    """Stands for a calibrated law: twice the roofline."""

    name = "twice the roofline"

    def __call__(self, kind: str, dims: Dims, dtype: str) -> Floats:
        return 2 * RooflinePrice(samples.peaks())(kind, dims, dtype)


@each(
    ("name", "column"), [("aiconfigurator", "latency"), ("vidur", "time_stats.add.median"), ("infersim", "latency_us")]
)
def test_tables_are_whatever_the_price_says(name: str, column: str) -> None:
    usual = export_format(name).write(samples.source())
    twice = export_format(name).write(replace(samples.source(), price=Twice()))
    assert provenance(twice)["priced_by"] == "twice the roofline"
    path = next(f.path for f in twice.files if f.path.endswith(("gemm_perf.parquet", "mlp.csv", "data.csv")))
    before, after = (table(export, path)[column].iloc[-1] for export in (usual, twice))
    assert after == pytest.approx(2 * before, rel=1e-12)


def table(export: Export, path: str) -> pd.DataFrame:
    content = io.BytesIO({file.path: file.content for file in export.files}[path])
    return pd.read_parquet(content) if path.endswith("parquet") else pd.read_csv(content)


TABLES_OF = ("nvidia-h200-sxm", "nvidia-t4", "amd-mi300x", "intel-xeon-6980p")
"""Tables of a few devices are enough: they take a third of a second each."""


@each("form", EXPORTS)
def test_every_datasheet_is_exported_or_refused_by_name(form: Format) -> None:
    exported = 0
    for name in TABLES_OF if form.folder else device_names():
        source = source_of(load_device(name), "datasheet", version="0", now=samples.NOW)
        try:
            export = form.write(source)
        except ValueError as error:
            assert name in str(error) and "\n" not in str(error), name
        else:
            assert provenance(export)["peaks"] == "datasheet", name
            exported += 1
    assert exported >= (1 if form.folder else 20)


def test_measured_peaks_are_never_replaced_in_silence() -> None:
    spec = load_device("nvidia-h200-sxm")
    with pytest.raises(ValueError, match="no measured peaks; export its datasheet with --peaks datasheet"):
        source_of(spec, None, version="0", now=samples.NOW)
    assert source_of(spec, "datasheet", version="0", now=samples.NOW).origin == "datasheet"
    both = samples.spec()
    assert source_of(both, None, version="0", now=samples.NOW).peaks is both.measured
    assert source_of(both, "datasheet", version="0", now=samples.NOW).peaks is both.datasheet
    with pytest.raises(ValueError, match="no datasheet peaks"):
        source_of(samples.spec(datasheet=None), "datasheet", version="0", now=samples.NOW)


def test_copies_to_the_host_are_no_link_between_devices_that_have_their_own() -> None:
    alone = samples.peaks(links={"pcie": samples.peaks().links["pcie"]})
    assert samples.source(alone).between is None
    over_pcie = samples.source(alone, datasheet=alone).between
    assert over_pcie is not None and over_pcie[0] == "pcie"
    assert samples.source(alone, datasheet=None).between is None
    own = samples.source().between
    assert own is not None and own[0] == "nvlink"


@each(
    ("asked", "said"),
    [
        ("llmviewer", "llm-viewer"),
        ("GenZ", "genz"),
        ("ai-configurator", "aiconfigurator"),
        ("xlsx", "known: llm-viewer"),
    ],
)
def test_an_unknown_format_has_near_names(asked: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        export_format(asked)
    with pytest.raises(ValueError, match="no format 'vidu' to import; did you mean vidur"):
        import_format("vidu")


def test_an_export_is_added_by_a_function_and_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(source: Source) -> Export:
        ledger = Ledger(source, "Another")
        text = f"bandwidth = {ledger.bandwidth()!r}\n"
        provenance = ledger.provenance(folded="nothing")
        return Export((File.text("another.toml", commented(provenance) + text),), ledger.left_out)

    monkeypatch.setattr(formats, "EXPORTS", [*EXPORTS, Format("another", "Another tool: another.toml", write)])
    assert main(["export", "--to", "list"]) == 0
    assert "another " in capsys.readouterr().out
    target = tmp_path / "mine.toml"
    assert main(["export", "nvidia-h200-sxm", "--to", "another", "--peaks", "datasheet", "--out", str(target)]) == 0
    assert target.read_text().endswith("bandwidth = 4800000000000.0\n")
    assert samples.provenance_in_comments(target.read_text())["figures"].keys() == {"bandwidth HBM"}


def test_an_import_is_added_by_a_function_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(frame: pd.DataFrame, path: Path, options: ImportOptions) -> Parsed:
        rows = frame.assign(kind="matmul", dtype="bfloat16", op="gemm", group="all", row=range(len(frame)))
        return Parsed(complete(rows), unit="s", rows=len(frame), device="NVIDIA H200")

    monkeypatch.setattr(formats, "IMPORTS", [*IMPORTS, Importer("another", parse)])
    frame = pd.DataFrame({"m": [64, 128], "n": [4096, 4096], "k": [4096, 4096], "time_s": [3e-5, 4e-5]})
    frame.to_csv(tmp_path / "table.csv", index=False)
    kernels = import_tables("another", [tmp_path / "table.csv"], ImportOptions()).kernels
    assert kernels.counts() == {("matmul", "bfloat16"): 2}
