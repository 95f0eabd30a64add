import pytest

from roofline.hardware import DEVICES, find_device, load_device

NAMES = sorted(path.stem for path in DEVICES.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_a_device_file_is_whole_and_found_by_its_driver_name(name):
    spec = load_device(name)
    assert spec.name == name and spec.kind == "cuda" and spec.measured is None and spec.matches
    assert all(find_device(match) == spec for match in spec.matches)
    sheet = spec.datasheet
    assert {"float32", "tfloat32", "float16", "bfloat16"} <= set(sheet.matrix)
    assert all(figure.source for figure in sheet.matrix.values())
    # tensor cores: each halving of the type at least keeps the rate; fp32 outside them
    assert sheet.matrix["float32"].value <= sheet.matrix["tfloat32"].value <= sheet.matrix["bfloat16"].value
    assert 1.9 < sheet.matrix["bfloat16"].value / sheet.matrix["tfloat32"].value < 2.1
    assert sheet.matrix["float32"].value == sheet.vector["float32"].value


@pytest.mark.parametrize(
    ("name", "bfloat16", "bandwidth"),
    [
        ("nvidia-h200-sxm", 989.4e12, 4.8e12),
        ("nvidia-h100-sxm", 989.4e12, 3.35e12),
        ("nvidia-h100-pcie", 756e12, 2.0e12),
        ("nvidia-a100-sxm-80gb", 312e12, 2.039e12),
        ("nvidia-a100-pcie-80gb", 312e12, 1.935e12),
        ("nvidia-rtx-a6000", 154.8e12, 768e9),
        ("nvidia-l40s", 362.05e12, 864e9),
        ("nvidia-rtx-4090", 165.2e12, 1.008e12),
    ],
)
def test_dense_peaks(name, bfloat16, bandwidth):
    sheet = load_device(name).datasheet
    assert sheet.matrix["bfloat16"].value == bfloat16
    assert sheet.levels[-1].bandwidth.value == bandwidth


def test_no_two_files_claim_one_driver_name():
    claimed = [match for name in NAMES for match in load_device(name).matches]
    assert len(claimed) == len(set(claimed))
    assert find_device("NVIDIA H200 NVL") is None
