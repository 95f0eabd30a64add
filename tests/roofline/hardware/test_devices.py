import json
import re

from roofline.hardware.load import DEVICES, device_names, find_device, load_device

CODE = re.compile("`([^`]+)`")
NAMES = device_names()
GPUS = [name for name in NAMES if load_device(name).kind == "cuda"]
NVIDIA = [name for name in NAMES if name.startswith("nvidia-")]
TENSOR_WITHOUT_TF32 = {"nvidia-t4", *(name for name in NAMES if "-v100" in name)}  # Volta and Turing
PCIE = {15.75e9, 31.5e9, 63e9}  # x16 of Gen3, 4, 5: 8, 16, 32 GT/s × 16 × 128/130 ÷ 8


def figures(spec):
    """Every figure of a device, by its path in the file."""
    sheet = spec.datasheet
    found = {f"chip.{name}": value for name, value in spec.chip if hasattr(value, "source")}
    found |= {f"matrix.{dtype}": value for dtype, value in sheet.matrix.items()}
    found |= {f"vector.{dtype}": value for dtype, value in sheet.vector.items()}
    found |= {f"levels.{level.name}": level.bandwidth for level in sheet.levels}
    return found | {f"links.{name}": link.bandwidth for name, link in sheet.links.items()}


def test_the_devices_that_users_ask_for_are_there():
    assert len(NAMES) >= 36
    assert {path.stem for path in DEVICES.glob("*.json")} == set(NAMES)
    wanted = (
        "v100-pcie v100-sxm t4 a100-pcie-40 a100-pcie-80 a100-sxm-40 a100-sxm-80 a10 a30 a40 a6000 l4 l40 l40s "
        "h100-pcie h100-sxm h100-nvl h200-sxm h200-nvl gh200 b200 b300 gb200 gb300 gb10 "
        "h20 h800 a800 l20 a5000 jetson-thor 6000-ada 6000-server mi300a trainium-2 trainium-3 tpu-v7 rtx-3090 "
        "rtx-4090 rtx-5090 pro-6000 mi210 mi250x mi300x mi325x mi350x mi355x gaudi-2 gaudi-3 v5e v5p v6e epyc "
        "xeon i9-13900k"
    )
    assert [word for word in wanted.split() if not any(word in name for name in NAMES)] == []


def test_a_device_file_is_whole_and_found_by_its_driver_name():
    for name in NAMES:
        spec = load_device(name)
        assert spec.name == name and spec.measured is None and spec.uuid is None and not spec.missing, name
        assert all(find_device(match) == spec for match in spec.matches), name
        assert spec.matches or name not in NVIDIA, name
        assert spec.chip.released in range(2017, 2027), name
        assert (spec.chip.units is None) == (spec.chip.unit is None), name
        assert spec.datasheet.levels[-1].capacity_source, name
        assert len(spec.datasheet.levels) == 1, name  # no datasheet gives the bandwidth of a cache
        assert all(
            len(figure.source) > 20 and figure.low is figure.high is None for figure in figures(spec).values()
        ), name


def test_gpu_rates_are_in_the_order_of_the_hardware():
    for name in GPUS:
        matrix, vector = load_device(name).datasheet.matrix, load_device(name).datasheet.vector
        assert {"float32", "float16"} <= set(matrix), name
        assert ("bfloat16" in matrix) == (name not in TENSOR_WITHOUT_TF32), name
        if name in NVIDIA:
            assert ("tfloat32" in matrix) == (name not in TENSOR_WITHOUT_TF32), name
            assert matrix["float32"].value == vector["float32"].value, name  # fp32 runs outside the tensor cores
        if "tfloat32" in matrix:
            assert matrix["float32"].value <= matrix["tfloat32"].value, name
            assert 1.9 < matrix["float16"].value / matrix["tfloat32"].value < 2.1, name
        if "bfloat16" in matrix:
            assert matrix["bfloat16"].value == matrix["float16"].value, name
        for wide, narrow in (("float16", "float8_e4m3fn"), ("float16", "int8"), ("int8", "int4")):
            if wide in matrix and narrow in matrix:
                assert matrix[wide].value <= matrix[narrow].value, name


def test_dense_peaks():
    for name, bfloat16, bandwidth in [
        ("nvidia-b200", 2250e12, 7.672e12),
        ("nvidia-h200-sxm", 989.4e12, 4.8e12),
        ("nvidia-h200-nvl", 835.5e12, 4.8e12),
        ("nvidia-h100-sxm", 989.4e12, 3.35e12),
        ("nvidia-h100-pcie", 756e12, 2.0e12),
        ("nvidia-a100-sxm-80gb", 312e12, 2.039e12),
        ("nvidia-a100-pcie-80gb", 312e12, 1.935e12),
        ("nvidia-rtx-a6000", 154.8385e12, 768e9),
        ("nvidia-l40s", 362.05e12, 864e9),
        ("nvidia-l4", 121e12, 300e9),
        ("nvidia-rtx-3090", 71e12, 936e9),
        ("nvidia-rtx-4090", 165.2e12, 1.008e12),
        ("amd-mi300x", 1307.4e12, 5.3e12),
        ("intel-gaudi-3", 1835e12, 3.67e12),
        ("google-tpu-v5p", 459e12, 2.765e12),
    ]:
        sheet = load_device(name).datasheet
        assert sheet.matrix["bfloat16"].value == bfloat16, (name, bfloat16)
        assert sheet.levels[-1].bandwidth.value == bandwidth, (name, bfloat16)


def test_capacities_are_those_that_the_driver_reports():
    for name, gigabytes in [
        ("nvidia-h100-sxm", 85.5),
        ("nvidia-a100-sxm-80gb", 85.9),
        ("nvidia-h200-sxm", 150.8),
        ("nvidia-b200", 191.5),
        ("nvidia-gb200", 198.7),
        ("nvidia-b300", 288.4),
        ("nvidia-rtx-4090", 25.8),
        ("amd-mi300x", 206.1),
        ("google-tpu-v5p", 102.0),
    ]:
        assert round(load_device(name).datasheet.levels[-1].capacity_bytes / 1e9, 1) == gigabytes, name


def test_a_tpu_without_an_fp8_unit_computes_it_at_the_rate_of_bf16():
    for name in ("google-tpu-v5p", "google-tpu-v6e"):
        matrix = load_device(name).datasheet.matrix
        assert matrix["float8_e4m3fn"].value == matrix["bfloat16"].value == matrix["int8"].value / 2, name


def test_links_are_those_of_one_direction():
    for name in NAMES:
        links = load_device(name).datasheet.links
        assert set(links) <= {"pcie", "nvlink", "nvlink-c2c", "infinity-fabric", "ici", "neuronlink", "network"}, name
        if "pcie" in links:
            assert links["pcie"].bandwidth.value in PCIE, name
        if "nvlink" in links:
            # links of 25 GB/s each way (NVLink 2 to 4; 8 of them on export editions), 50 (5), or 4 of 14.0625 (the
            # bridge of GA102 cards)
            assert links["nvlink"].bandwidth.value in {100e9, 150e9, 200e9, 300e9, 450e9, 900e9, 56.25e9}, name


def test_no_two_files_claim_one_driver_name():
    claimed = [match for name in NAMES for match in load_device(name).matches]
    assert len(claimed) == len(set(claimed))
    assert find_device("NVIDIA H100 NVL").name == "nvidia-h100-nvl"
    assert find_device("NVIDIA H20Z") is None and find_device("") is None


def test_the_layout_of_the_readme_is_that_of_the_files():
    text = (DEVICES / "README.md").read_text(encoding="utf-8")
    explained = {
        word for line in text.splitlines() if line.startswith("| `") for word in CODE.findall(line.split("|")[1])
    }
    for name in NAMES:
        file = json.loads((DEVICES / f"{name}.json").read_text())
        fields = {f"datasheet.{key}" for key in file["datasheet"]} | set(file) - {"datasheet"}
        assert fields <= explained, name
        assert f"| `schema_version`, `name`, `kind` | {file['schema_version']};" in text, name
