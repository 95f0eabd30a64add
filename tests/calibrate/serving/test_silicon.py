import pytest

from calibrate.serving.silicon import case_of, scheme_of
from roofline.serving.engine import engine_named

ROW = {
    "backend": "vllm", "model_path": "m", "system": "b200_sxm", "isl": "1024", "osl": "128", "concurrency": "4",
}  # fmt: skip


@pytest.mark.parametrize(
    ("label", "dtype"),
    [
        ("", "bfloat16"),
        ("float16", "bfloat16"),
        ("w4a16_nvfp4", "int4_wo"),
        ("w8a16", "int8_wo"),
        ("w4a8_something", "w4afp8"),
        ("fp8_per_tensor", "float8_e4m3fn"),
        ("nvfp4_of_tomorrow", "nvfp4"),
    ],
)
def test_a_label_of_quantisation_that_is_not_known_is_read_by_its_bits(label: str, dtype: str) -> None:
    assert case_of(0, ROW | {"gemm_quant_mode": label}).layer == dtype


def test_a_label_without_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="quantisation 'mystery' is not known"):
        case_of(0, ROW | {"gemm_quant_mode": "mystery"})


@pytest.mark.parametrize(
    ("experts", "runs"), [("fp8_block", "fp8_block"), ("nvfp4", "nvfp4"), ("bfloat16", "bfloat16")]
)
def test_a_row_of_other_bits_than_the_published_checkpoint_keeps_its_own(experts: str, runs: str) -> None:
    """DeepSeek-V3 is published in blocks of 8 bits; NVIDIA sells it in 4, which some rows ran."""
    case = case_of(0, ROW | {"gemm_quant_mode": experts, "moe_quant_mode": experts})
    published = ("fp8_block", "fp8_block")
    assert scheme_of(case, engine_named("vllm", "0.18.0"), published).experts == runs
