"""A wrong device file is refused in one line that names the file, every wrong field, why it is wrong and what to do."""

import copy
import itertools
import json
import math
import re
from pathlib import Path

import pytest

from roofline.hardware.load import DEVICES, device_names, load_device
from roofline.hardware.spec import SPEC_SCHEMA, Figure, HardwareSpec, Level, Peaks

NAMES = device_names()
RAW = {name: json.loads((DEVICES / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES}
H200 = RAW["nvidia-h200-sxm"]


def refusal(path):
    """The one line with which a file is refused, without the file's name."""
    with pytest.raises(ValueError) as caught:
        load_device(path)
    line = str(caught.value)
    assert line.startswith(str(path)) or str(path) in line
    assert "\n" not in line and "pydantic" not in line
    return re.sub(r"[0-9]+ problems: \(1\) ", "", line.replace(str(path), "FILE"))


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "mine.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def changed(place, value, base=H200):
    """A copy of a device with one field set, by its path."""
    content = copy.deepcopy(base)
    *parents, last = place.split(".")
    at = content
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    at[int(last) if isinstance(at, list) else last] = value
    return content


def values(content, place=""):
    """The path and the number of every quantity in a device file."""
    items = enumerate(content) if isinstance(content, list) else content.items()
    for key, value in items:
        path = f"{place}.{key}".lstrip(".")
        if isinstance(value, dict | list):
            yield from values(value, path)
        elif key in ("value", "capacity_bytes"):
            yield path, value


def test_a_file_of_ones_own_is_read_like_a_device_of_ours(write):
    for path in (write(H200), str(write(H200))):
        assert load_device(path) == load_device("nvidia-h200-sxm")


def test_the_spec_of_a_run_is_read(tmp_path):
    level = Level(
        name="DRAM", capacity_bytes=8e9, bandwidth=Figure(value=21e9, source="measured: copy", low=20e9, high=22e9)
    )
    cpu = Peaks(
        matrix={"bfloat16": Figure(value=3e9, source="measured: torch.mm")},
        vector={"float32": Figure(value=2e9, source="measured: add", low=7.6e7, high=2.1e9)},  # on a busy machine
        levels=(level,),
        host_s_per_op=Figure(value=5e-6, source="measured: decode"),
    )
    spec = HardwareSpec(name="a small CPU", kind="cpu", measured=cpu, missing={"matrix.float16": "no kernel"})
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json(indent=1))
    assert load_device(path) == spec
    assert refusal(tmp_path) == "FILE is a folder; name the JSON file of a device, such as FILE/spec.json"


def test_a_typo_in_a_name_suggests_the_nearest():
    for name, hint in [
        ("h200", "did you mean nvidia-h200-nvl or nvidia-h200-sxm?"),
        ("RTX 5090", "did you mean nvidia-rtx-5090?"),
        ("nvidia-h100-smx", "nvidia-h100-sxm"),
        ("amd-mi300", "did you mean amd-mi300a or amd-mi300x?"),
        ("v100", "did you mean nvidia-v100-pcie-16gb or nvidia-v100-pcie-32gb or"),
        ("abacus", "the devices are amd-epyc-9755, "),
    ]:
        with pytest.raises(ValueError, match=f"^no device or JSON file {name!r}; ") as caught:
            load_device(name)
        assert hint in str(caught.value) and "\n" not in str(caught.value), (name, hint)


def test_a_file_that_is_no_device_at_all(write):
    for content, line in [
        ("{", "FILE is not valid JSON (Expecting property name enclosed in double quotes"),
        ("", "FILE is not valid JSON (Expecting value"),
        ("[" * 100_000, "FILE is not valid JSON ("),
        ("[1]", "FILE holds list, not a JSON object; see roofline/devices/README.md"),
        ("null", "FILE holds NoneType, not a JSON object"),
        (
            '{"name": "a", "name": "b"}',
            "FILE is not valid JSON (the key 'name' appears twice in one object); correct it",
        ),
        ("{}", "FILE: name: missing; see roofline/devices/README.md"),
    ]:
        assert refusal(write(content)).startswith(line), (content, line)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    assert refusal(tmp_path / "none.json").startswith("cannot read FILE: No such file or directory; give a JSON file")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    assert refusal(binary).startswith("FILE is not valid JSON ('utf-8' codec")
    assert "File name too long" in refusal(tmp_path / ("n" * 300 + ".json"))


def test_a_newer_file_is_refused_by_its_schema_before_its_fields(write):
    newer = {**H200, "schema_version": SPEC_SCHEMA + 1, "sparsity": 2}
    known = f"(schema {SPEC_SCHEMA + 1}, this one reads {SPEC_SCHEMA}): update roofcal"
    assert refusal(write(newer)) == f"FILE is from a newer roofcal {known}"


def test_a_wrong_field_is_named(write):
    for place, value, line in [
        ("datasheets", {}, "datasheets: unknown field; did you mean datasheet?"),
        ("datasheet.matrices", {}, "datasheet.matrices: unknown field; did you mean matrix?"),
        (
            "datasheet.matrix.bfloat16.unit",
            "TFLOPS",
            "datasheet.matrix.bfloat16.unit: unknown field; known here: value",
        ),
        (
            "datasheet.levels.0.latency",
            1,
            "datasheet.levels.0.latency: unknown field; known here: name, capacity_bytes",
        ),
        ("chip.boost_clock", 1, "chip.boost_clock: unknown field; did you mean boost_clock_hz?"),
        ("datasheet.links.pcie.value", 1, "datasheet.links.pcie.value: unknown field; known here: bandwidth"),
        ("kind", "gpu", "kind: Input should be 'cuda', 'cpu' or 'other' (it is 'gpu')"),
        ("matches", ["NVIDIA H200"] * 2, "matches: 'NVIDIA H200' appears twice; keep one"),
        ("datasheet", None, "datasheet: missing, and so is measured; a device needs one of them"),
        ("datasheet.matrix.bfloat16", {"value": 1e12}, "datasheet.matrix.bfloat16.source: missing; see"),
        ("datasheet.matrix.bfloat16.source", " ", "datasheet.matrix.bfloat16.source: empty; say which document"),
        ("datasheet.matrix.bfloat16.value", "fast", "datasheet.matrix.bfloat16.value: Input should be a valid number"),
        ("datasheet.levels", [], "datasheet.levels: Tuple should have at least 1 item"),
        ("datasheet.matrix.bf16", {"value": 1e12, "source": "x"}, "datasheet.matrix.bf16: unknown dtype; did you mean"),
        ("datasheet.vector.x", {"value": 1e12, "source": "x"}, "datasheet.vector.x: unknown dtype; known: float64, "),
        ("datasheet.matrix.float16.low", 2e15, "datasheet.matrix.float16.low: 2e+15 lies above high, 1e+15; swap them"),
        ("datasheet.matrix.float16.low", 0, "datasheet.matrix.float16.low: 0 is no end of an interval; give a finite"),
        (
            "datasheet.matrix.float16.high",
            math.inf,
            "datasheet.matrix.float16.high: Input should be a finite number (it is inf)",
        ),
        ("chip.released", 24, "chip.released: 24 is below 1970 (a year)"),
        ("datasheet.host_s_per_op", {"value": 5.2, "source": "µs"}, "datasheet.host_s_per_op.value: 5.2 is above 1 s"),
    ]:
        base = changed("datasheet.matrix.float16.high", 1e15) if place.endswith("low") else H200
        assert refusal(write(changed(place, value, base))).startswith(f"FILE: {line}"), (place, value)


def test_levels_go_from_the_smallest_to_the_largest(write):
    cache = {"name": "L2", "capacity_bytes": 50e6, "bandwidth": {"value": 1e13, "source": "measured by hand"}}
    levels = H200["datasheet"]["levels"]
    assert len(load_device(write(changed("datasheet.levels", [cache, *levels]))).datasheet.levels) == 2
    line = "FILE: datasheet.levels: memory levels must go from the smallest to the largest"
    assert refusal(write(changed("datasheet.levels", [*levels, cache]))) == line


def test_a_wrong_unit_is_refused_with_the_one_expected(write):
    for place, value, line in [
        ("datasheet.matrix.bfloat16.value", 989.4, "989.4 is below 1e+08 FLOP/s: no processor computes at such a rate"),
        ("datasheet.levels.0.bandwidth.value", 4800, "4800 is below 1e+08 bytes/s: no memory has such a bandwidth"),
        ("datasheet.levels.0.capacity_bytes", 141, "141 is below 1e+07 bytes: no main memory is of such a size"),
        ("datasheet.links.nvlink.bandwidth.value", 450, "450 is below 1e+06 bytes/s: no link has such a bandwidth"),
        ("chip.boost_clock_hz.value", 1980, "1980 is below 1e+07 Hz: no chip has such a clock"),
        ("chip.last_level_cache_bytes.value", 50, "50 is below 10000 bytes: no last-level cache is of such a size"),
        ("chip.power_w.value", 0.7, "0.7 is below 1.5 W: no such device draws that"),
        ("datasheet.matrix.bfloat16.value", 1e21, "1e+21 is above 1e+18 FLOP/s"),
    ]:
        found = refusal(write(changed(place, value)))
        assert found.startswith(f"FILE: {place}: {line}"), (place, value)
        assert "; give " in found, (place, value)


def test_every_figure_of_every_device_is_refused_in_giga_or_tera_units_or_impossible(write):
    ways = itertools.cycle((1e-9, 1e-12, -1, 0, math.nan, math.inf, -math.inf))
    for name in NAMES:
        for place, value in values(RAW[name]):
            wrong = value * next(ways)
            line = refusal(write(changed(place, wrong, RAW[name])))
            assert line.startswith(f"FILE: {place}: "), (name, place, wrong)


SIXTEEN_OR_EIGHT = [
    (name, dtype)
    for name in NAMES
    for dtype in ("float16", "bfloat16", "float8_e4m3fn")
    if RAW[name]["kind"] == "cuda" and {"tfloat32", dtype} <= set(RAW[name]["datasheet"]["matrix"])
]


def test_a_sparse_figure_beside_dense_ones_is_refused(write):
    for name, dtype in SIXTEEN_OR_EIGHT:
        place = f"datasheet.matrix.{dtype}.value"
        line = refusal(write(changed(place, 2 * RAW[name]["datasheet"]["matrix"][dtype]["value"], RAW[name])))
        assert line.startswith(f"FILE: {place}: "), (name, dtype)
        assert "no tensor core more than doubles it; a figure with sparsity? Give half of it" in line, (name, dtype)


def test_eight_bits_slower_than_sixteen_are_refused(write):
    place = "datasheet.matrix.float8_e4m3fn.value"
    line = f"FILE: {place}: 5e+14 is slower than float16 (9.894e+14); is float16 a sparse figure?"
    assert refusal(write(changed(place, 500e12))).startswith(line)


def test_the_smallest_device_file_of_the_docs_is_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "hardware.md").read_text(encoding="utf-8")
    block = text.partition("```json\n")[2].partition("```")[0]
    file = tmp_path / "my-device.json"
    file.write_text(block)
    sheet = load_device(file).datasheet
    assert sheet is not None and sheet.matrix["bfloat16"].value == 400e12 and sheet.levels[-1].capacity_bytes == 80e9


def test_all_that_is_wrong_in_a_device_file_is_said_at_once(write):
    content = changed("datasheet.matrx", {})
    content["datasheet"]["matrix"]["bfloat16"]["value"] = "989"
    del content["datasheet"]["levels"][0]["bandwidth"]["source"]
    content["extra"] = 1
    says = refusal(write(content))
    for words in ("; (4) ", "datasheet.matrix.bfloat16.value", "levels.0.bandwidth.source: missing",
                  "datasheet.matrx: unknown field; did you mean matrix?", "extra: unknown field"):  # fmt: skip
        assert words in says, says
    figures = changed("datasheet.matrix.bfloat16.value", 989.0)
    figures["datasheet"]["levels"][-1]["capacity_bytes"] = 141.0
    says = refusal(write(figures))
    assert "; (2) " in says and "bfloat16" in says and "capacity_bytes" in says
