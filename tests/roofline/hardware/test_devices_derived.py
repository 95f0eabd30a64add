"""The peaks of the device files, recomputed: units × FLOPs of a unit in a cycle × clock, and bus width × transfer rate.

The rates below come from the architecture documents, not from the files, so that a sparse figure, a figure of another
variant or a slip of a digit shows.
"""

import pytest

from roofline.hardware.load import device_names, load_device

# Multiply-adds of 16-bit inputs, FP32 accumulation, dense, of one SM in one cycle.
# Volta, GA100, GH100: the whitepapers' tables of tensor cores (64, 256, 512 a core × 8, 4, 4 cores); Turing as Volta.
# GA102, AD10x, GB202: 128 a core × 4 cores; GeForce, and L40 by its datasheet, at half of that. B200: Hopper × 2.
FMA = {
    "nvidia-v100-pcie-16gb": 512,
    "nvidia-v100-pcie-32gb": 512,
    "nvidia-v100-sxm2-16gb": 512,
    "nvidia-v100-sxm2-32gb": 512,
    "nvidia-v100s-pcie-32gb": 512,
    "nvidia-t4": 512,
    "nvidia-a100-pcie-40gb": 1024,
    "nvidia-a100-pcie-80gb": 1024,
    "nvidia-a100-sxm-40gb": 1024,
    "nvidia-a100-sxm-80gb": 1024,
    "nvidia-a30": 1024,
    "nvidia-a10": 512,
    "nvidia-a40": 512,
    "nvidia-rtx-a6000": 512,
    "nvidia-rtx-3090": 256,
    "nvidia-l4": 512,
    "nvidia-l40": 256,
    "nvidia-l40s": 512,
    "nvidia-rtx-4090": 256,
    "nvidia-h100-pcie": 2048,
    "nvidia-h100-sxm": 2048,
    "nvidia-h100-nvl": 2048,
    "nvidia-h200-sxm": 2048,
    "nvidia-h200-nvl": 2048,
    "nvidia-gh200-96gb": 2048,
    "nvidia-gh200-144gb": 2048,
    "nvidia-h800-sxm": 2048,
    "nvidia-a800-sxm-80gb": 1024,
    "nvidia-a800-pcie-80gb": 1024,
    "nvidia-l20": 256,
    "nvidia-rtx-a5000": 512,
    "nvidia-rtx-6000-ada": 512,
    "nvidia-b200": 4096,
    "nvidia-b300": 4096,
    "nvidia-gb200": 4096,
    "nvidia-gb300": 4096,
    "nvidia-jetson-thor": 4096,
    "nvidia-gb10": 512,
    "nvidia-rtx-pro-6000-server": 512,
    "nvidia-rtx-5090": 256,
    "nvidia-rtx-pro-6000": 512,
    "nvidia-rtx-pro-6000-max-q": 512,
}
# Their tensor clock is not published and lies below the boost clock, as on H100 (1830 of 1980, 1620 of 1755 MHz).
UNKNOWN_TENSOR_CLOCK = {
    "nvidia-h100-nvl",
    "nvidia-h200-nvl",
    "nvidia-b200",
    "nvidia-b300",
    "nvidia-gb200",
    "nvidia-gb300",
}
# FP32 lanes of an SM: 64 on Volta, Turing and GA100, 128 since GA102 and GH100 (whitepapers, SM diagrams).
SIXTY_FOUR_LANES = {
    "nvidia-t4",
    "nvidia-a30",
    *(name for name in FMA if any(part in name for part in ("-v100", "-a100", "-a800"))),
}
GEFORCE = {"nvidia-rtx-3090", "nvidia-rtx-4090", "nvidia-rtx-5090"}
EIGHT_BITS = 2.0  # times the 16-bit rate, on every tensor core so far that has them


def peak(name, dtype):
    figure = load_device(name).datasheet.matrix.get(dtype)
    return None if figure is None else figure.value


RESTRICTED = {"nvidia-h20", "nvidia-b300"}
"""Sold with fewer matrix FLOP/s than its units do, for export rules; stated at a lower clock than the highest."""


def clock(name):
    chip = load_device(name).chip
    return (chip.matrix_clock_hz or chip.boost_clock_hz).value


def lanes(name):
    return 64 if name in SIXTY_FOUR_LANES else 128


def test_every_gpu_with_units_and_a_clock_has_the_rates_of_a_known_architecture():
    """A new file needs no row above: its rate a unit and cycle must be one that some architecture has."""
    with_clock = {name for name in device_names() if (chip := load_device(name).chip).units and chip.boost_clock_hz}
    assert set(FMA) | set(CDNA) <= with_clock and len(FMA) >= 30
    for name in (n for n in with_clock - RESTRICTED if load_device(n).kind == "cuda"):
        chip, vector = load_device(name).chip, load_device(name).datasheet.vector["float32"].value
        matrix_of_unit = peak(name, "float16") / chip.units.value / clock(name)
        vector_of_unit = vector / chip.units.value / chip.boost_clock_hz.value
        if name.startswith("nvidia-"):
            slack = 0.75 if name in UNKNOWN_TENSOR_CLOCK else 0.98
            assert any(
                slack <= matrix_of_unit / (2 * FMA[known]) <= 1.01
                and vector_of_unit == pytest.approx(2 * lanes(known), rel=0.02)
                for known in FMA
            ), name
        else:
            assert any(
                (matrix_of_unit, vector_of_unit) == pytest.approx((m, v), rel=0.003) for m, _, v in CDNA.values()
            )


def test_the_16_bit_peak_of_an_nvidia_gpu_is_that_of_its_tensor_cores():
    for name in FMA:
        derived = load_device(name).chip.units.value * FMA[name] * 2 * clock(name)
        assert peak(name, "float16") <= derived * 1.01, "more than the tensor cores can do without sparsity"
        slack = 0.75 if name in UNKNOWN_TENSOR_CLOCK else 0.98
        assert peak(name, "float16") >= derived * slack, name


def test_the_fp32_peak_of_an_nvidia_gpu_is_that_of_its_lanes():
    for name in FMA:
        chip = load_device(name).chip
        derived = chip.units.value * lanes(name) * 2 * chip.boost_clock_hz.value
        slack = 0.03 if name == "nvidia-b300" else 0.02  # its 75 TFLOPS are at a lower clock than the highest
        assert load_device(name).datasheet.vector["float32"].value == pytest.approx(derived, rel=slack), name


def test_narrower_types_have_the_steps_of_the_tensor_cores():
    for name in [n for n in device_names() if n.startswith("nvidia-")]:
        wide, fp8, int8, int4, fp4 = (
            peak(name, d) for d in ("float16", "float8_e4m3fn", "int8", "int4", "float4_e2m1fn_x2")
        )
        ampere_or_earlier = any(
            part in name for part in ("-v100", "-t4", "-a1", "-a3", "-a4", "-a5", "-a6", "-a8", "3090")
        )
        assert (fp8 is None) == ampere_or_earlier, name
        if fp8 is not None:
            assert fp8 / wide == pytest.approx(EIGHT_BITS, rel=0.02), name
        if int8 is not None:  # the integer accumulator is not halved on GeForce
            assert int8 / wide == pytest.approx(EIGHT_BITS * (2 if name in GEFORCE else 1), rel=0.02), name
        if int4 is not None:
            assert int4 / int8 == pytest.approx(2, rel=0.02), name
        if fp4 is not None:  # Blackwell Ultra has half as much again, GeForce no halved accumulator
            step = 3 if "b300" in name else 4 if name in GEFORCE else 2
            assert fp4 / fp8 == pytest.approx(step, rel=0.01), name


# FLOPs of a compute unit in a cycle, dense (AMD CDNA 2, 3, 4 white papers): 16-bit matrix, FP32 matrix, FP32 vector
CDNA = {
    "amd-mi210": (1024, 256, 128),
    "amd-mi250x": (1024, 256, 128),
    "amd-mi300x": (2048, 256, 256),
    "amd-mi300a": (2048, 256, 256),
    "amd-mi325x": (2048, 256, 256),
    "amd-mi350x": (4096, 256, 256),
    "amd-mi355x": (4096, 256, 256),
}


def test_peaks_of_amd_gpus():
    for name in CDNA:
        spec = load_device(name)
        cycles = spec.chip.units.value * spec.chip.boost_clock_hz.value
        matrix, fp32, vector = (rate * cycles for rate in CDNA[name])
        assert peak(name, "bfloat16") == pytest.approx(matrix, rel=0.001), name
        assert peak(name, "float32") == pytest.approx(fp32, rel=0.001), name
        assert spec.datasheet.vector["float32"].value == pytest.approx(vector, rel=0.003), name
        eight_bits = 1 if name in {"amd-mi210", "amd-mi250x"} else EIGHT_BITS  # CDNA 2: INT8 at the rate of FP16
        assert peak(name, "int8") == pytest.approx(eight_bits * matrix, rel=0.001), name
        if (fp4 := peak(name, "float4_e2m1fn_x2")) is not None:
            assert fp4 == pytest.approx(4 * matrix, rel=0.001), name


def test_peaks_of_cpus():
    for name, dtype, cores_clock_and_flops in [
        ("amd-epyc-9755", "float32", [(128, 4.1e9, 64)]),  # two 512-bit FMA pipes: 2 × 16 × 2
        ("amd-epyc-9965", "float32", [(192, 3.7e9, 64)]),
        ("intel-xeon-6980p", "float32", [(128, 3.2e9, 64)]),
        ("intel-xeon-6980p", "bfloat16", [(128, 3.2e9, 1024)]),  # AMX: 16 × 16 × 32 × 2 in 16 cycles
        ("intel-xeon-6980p", "int8", [(128, 3.2e9, 2048)]),
        ("intel-xeon-6960p", "float32", [(72, 3.8e9, 64)]),
        ("intel-xeon-6960p", "float16", [(72, 3.8e9, 1024)]),
        ("intel-i9-13900k", "float32", [(8, 5.4e9, 32), (16, 4.3e9, 16)]),  # AVX2: two 256-bit, two 128-bit FMAs
    ]:
        derived = sum(cores * clock_hz * flops for cores, clock_hz, flops in cores_clock_and_flops)
        assert peak(name, dtype) == pytest.approx(derived, rel=0.001), (name, dtype)
        assert sum(cores for cores, _, _ in cores_clock_and_flops) == load_device(name).chip.units.value, (name, dtype)


# Width of the memory interface in bits, transfers of a pin in 1e9/s (datasheets, product briefs).
MEMORY = {
    "nvidia-v100-sxm2-16gb": (4096, 1.752),
    "nvidia-v100s-pcie-32gb": (4096, 2.214),
    "nvidia-t4": (256, 10),
    "nvidia-a10": (384, 12.5),
    "nvidia-a30": (3072, 2.43),
    "nvidia-a40": (384, 14.5),
    "nvidia-a100-sxm-40gb": (5120, 2.43),
    "nvidia-a100-sxm-80gb": (5120, 3.186),
    "nvidia-a100-pcie-80gb": (5120, 3.024),
    "nvidia-rtx-a6000": (384, 16),
    "nvidia-l4": (192, 12.5),
    "nvidia-l40": (384, 18),
    "nvidia-l40s": (384, 18),
    "nvidia-h100-pcie": (5120, 3.2),
    "nvidia-h100-sxm": (5120, 5.23),
    "nvidia-h200-sxm": (6144, 6.25),
    "nvidia-b200": (7680, 7.992),
    "nvidia-b300": (7680, 7.992),
    "nvidia-gb200": (7936, 7.992),
    "nvidia-gb300": (7936, 7.992),
    "nvidia-gb10": (256, 8.533),
    "nvidia-jetson-thor": (256, 8.533),
    "nvidia-h800-sxm": (5120, 5.23),
    "nvidia-l20": (384, 18),
    "nvidia-rtx-a5000": (384, 16),
    "nvidia-rtx-6000-ada": (384, 20),
    "nvidia-rtx-3090": (384, 19.5),
    "nvidia-rtx-4090": (384, 21),
    "nvidia-rtx-5090": (512, 28),
    "nvidia-rtx-pro-6000": (512, 28),
    "amd-mi210": (4096, 3.2),
    "amd-mi250x": (8192, 3.2),
    "amd-mi300x": (8192, 5.2),
    "amd-mi300a": (8192, 5.2),
    "amd-mi325x": (8192, 6),
    "amd-mi355x": (8192, 8),
    "intel-gaudi-3": (8192, 3.6),
    "amd-epyc-9755": (12 * 64, 6.4),
    "intel-xeon-6980p": (12 * 64, 8.8),
    "intel-i9-13900k": (2 * 64, 5.6),
}


def test_bandwidth_is_that_of_the_memory_interface():
    for name in MEMORY:
        bits, rate = MEMORY[name]
        stated = load_device(name).datasheet.levels[-1].bandwidth.value
        assert stated == pytest.approx(bits / 8 * rate * 1e9, rel=0.03), name
