"""The choice among kernel tables of several engines, versions and dtypes."""

import numpy as np

from calibrate.kernels.fit import Observations
from calibrate.serving.device_laws import Tables
from roofline.hardware.load import load_device


def table(kind: str, dtype: str) -> Observations:
    return Observations(kind, dtype, {}, np.ones(1), np.array(["a"]))


def tables() -> Tables:
    def of(*keys: tuple[str, str]) -> dict[tuple[str, str], Observations]:
        return {key: table(*key) for key in keys}

    found = Tables(load_device("nvidia-h200-sxm"))
    found.of["vllm", (0, 9)] = of(("matmul", "bfloat16"), ("matmul", "nvfp4"))
    found.of["vllm", (0, 24)] = of(("matmul", "bfloat16"), ("experts", "w4a8_mxfp4_mxfp8"))
    found.of["trtllm", (1, 2)] = of(("matmul", "bfloat16"), ("matmul", "float8_e4m3fn"), ("collective", "float16"))
    return found


def test_an_engines_own_newest_table_comes_first() -> None:
    _, foreign, sources = tables().chosen("vllm", [("matmul", "bfloat16"), ("collective", "float16")])
    assert [source for source, _ in sources] == [("vllm", (0, 24)), ("trtllm", (1, 2))]
    assert not foreign  # collectives are of one library
    _, foreign, sources = tables().chosen("trtllm", [("matmul", "bfloat16")])
    assert [source for source, _ in sources] == [("trtllm", (1, 2))] and not foreign


def test_what_an_engine_has_no_table_of_is_another_engines_and_said_so() -> None:
    _, foreign, sources = tables().chosen("sglang", [("matmul", "float8_e4m3fn")])
    assert sources == [(("trtllm", (1, 2)), ("matmul", "float8_e4m3fn"))] and foreign
    found, _, _ = tables().chosen("vllm", [("matmul", "int4_wo"), ("scan", "bfloat16")])
    assert list(found) == [("matmul", "nvfp4")]  # as many bits; of no table of the kind there is none


def test_weights_of_as_many_bits_are_taken_with_the_activations_that_were_measured() -> None:
    assert tables().same_bits("experts", "w4a16_mxfp4") == "w4a8_mxfp4_mxfp8"
    assert tables().same_bits("experts", "bfloat16") == "bfloat16"
    assert tables().same_bits("matmul", "nvfp4") == "nvfp4"
