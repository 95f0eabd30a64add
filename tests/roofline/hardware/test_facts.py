"""What laws start from, for every device that there is a file of."""

from statistics import median

import pytest

from roofline.hardware.load import device_names, load_device
from roofline.hardware.spec import CACHE_S, MATRIX_PER_VECTOR, UNIT_FLOPS_PER_S, Figure, Level, facts_of
from roofline.laws.kinds import laws

SPECS = [load_device(name) for name in device_names()]


def test_every_device_has_facts_and_says_which_of_them_are_assumed() -> None:
    for spec in SPECS:
        facts = facts_of(spec)
        assert facts.units >= 1 and facts.cache_bytes > 1e6 and facts.vector_flops_per_s > 0, spec.name
        assumed = {fact.split()[0] for fact in facts.assumed}
        assert ("chip.units" in assumed) == (spec.chip is None or spec.chip.units is None), spec.name
        for law in laws().values():
            for dtype in facts.matrix_flops_per_s:
                if law.name not in ("collective", "own_all_reduce") or facts.link_bytes_per_s is not None:
                    assert law.constants(facts, dtype), (spec.name, law.name, dtype)


def test_what_a_datasheet_says_is_taken_from_it() -> None:
    facts = facts_of(load_device("nvidia-h200-sxm"))
    assert (facts.units, facts.cache_bytes, facts.assumed) == (132, 62914560, ())


def test_a_cpu_has_the_cache_that_was_measured_and_a_gpu_that_of_its_datasheet() -> None:
    stated = {"amd-epyc-9755": 536870912, "nvidia-h200-sxm": 62914560}
    for name, in_datasheet in stated.items():
        spec = load_device(name)
        assert spec.datasheet is not None
        assert facts_of(spec).cache_bytes == in_datasheet
        main = spec.datasheet.levels[-1]
        cache = Level(name="L3", capacity_bytes=16 << 20, bandwidth=Figure(value=1e11, source="test"))
        measured = spec.datasheet.model_copy(update={"levels": (cache, main)})
        expected = 16 << 20 if spec.kind == "cpu" else in_datasheet
        assert facts_of(spec.model_copy(update={"measured": measured})).cache_bytes == expected
        flat = spec.datasheet.model_copy(update={"levels": (main,)})
        assert facts_of(spec.model_copy(update={"measured": flat})).cache_bytes == in_datasheet


def test_a_device_without_them_is_near_what_others_are() -> None:
    bare = load_device("nvidia-h100-sxm").model_copy(update={"chip": None})
    facts = facts_of(bare)
    assert [one.split()[0] for one in facts.assumed] == ["chip.last_level_cache_bytes", "chip.units"]
    assert 66 <= facts.units <= 264
    assert 25e6 <= facts.cache_bytes <= 100e6


def test_assumptions_are_medians_of_the_device_files() -> None:
    cache, unit, matrix = [], [], []
    for spec in SPECS:
        assert spec.datasheet is not None
        chip, peaks = spec.chip, spec.datasheet
        vector = peaks.vector["float32"].value if "float32" in peaks.vector else None
        if chip and chip.last_level_cache_bytes:
            cache.append(chip.last_level_cache_bytes.value / peaks.levels[-1].bandwidth.value)
        if chip and chip.units and vector and chip.unit != "core":
            unit.append(vector / chip.units.value)
        sixteen = peaks.matrix.get("bfloat16") or peaks.matrix.get("float16")
        if sixteen and vector:
            matrix.append(sixteen.value / vector)
    assert median(cache) == pytest.approx(CACHE_S, rel=0.1)
    assert median(unit) == pytest.approx(UNIT_FLOPS_PER_S, rel=0.1)
    assert median(matrix) == pytest.approx(MATRIX_PER_VECTOR, rel=0.1)
