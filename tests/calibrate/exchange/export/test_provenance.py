"""What holds for every format: provenance, the choice of peaks, refusals in one line, and the price as a seam."""

import io
import json
from dataclasses import replace
from typing import Any

import export_samples as samples
import pandas as pd
import pytest

from calibrate.exchange.export.files import SIDECAR, Export, uncommented
from calibrate.exchange.export.price import RooflinePrice
from calibrate.exchange.export.registry import FORMATS, Format, find
from calibrate.exchange.export.source import source_of
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
        return uncommented(text)
    (entry,) = json.loads(text).values()
    inner: dict[str, Any] = json.loads(entry["_comment"])
    return inner


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
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


@pytest.mark.parametrize(
    ("name", "column"), [("aiconfigurator", "latency"), ("vidur", "time_stats.add.median"), ("infersim", "latency_us")]
)
def test_tables_are_whatever_the_price_says(name: str, column: str) -> None:
    usual = find(name).write(samples.source())
    twice = find(name).write(replace(samples.source(), price=Twice()))
    assert provenance(twice)["priced_by"] == "twice the roofline"
    path = next(f.path for f in twice.files if f.path.endswith(("gemm_perf.parquet", "mlp.csv", "data.csv")))
    before, after = (table(export, path)[column].iloc[-1] for export in (usual, twice))
    assert after == pytest.approx(2 * before, rel=1e-12)


def table(export: Export, path: str) -> pd.DataFrame:
    content = io.BytesIO({file.path: file.content for file in export.files}[path])
    return pd.read_parquet(content) if path.endswith("parquet") else pd.read_csv(content)


TABLES_OF = ("nvidia-h200-sxm", "nvidia-t4", "amd-mi300x", "intel-xeon-6980p")
"""Tables of a few devices are enough: they take a third of a second each."""


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for form in FORMATS for name in (TABLES_OF if form.folder else device_names())],
    ids=lambda one: one.name if isinstance(one, Format) else one,
)
def test_every_datasheet_is_exported_or_refused_by_name(name: str, form: Format) -> None:
    source = source_of(load_device(name), "datasheet", version="0", now=samples.NOW)
    try:
        export = form.write(source)
    except ValueError as error:
        assert name in str(error)
        assert "\n" not in str(error)
    else:
        assert provenance(export)["peaks"] == "datasheet"


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


@pytest.mark.parametrize(
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
        find(asked)


def test_formats_are_found_by_name() -> None:
    assert [find(form.name) for form in FORMATS] == list(FORMATS)
