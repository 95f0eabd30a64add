"""The table of kinds: each row is whole, and a law for a new kind costs that law and one row."""

import numpy as np
import pytest
from law_sizes import kernels

from calibrate.kernels.fit import Observations, halves
from calibrate.kernels.score import calibrate_kind, fit_measured, stored_laws
from roofline.hardware.spec import HardwareSpec
from roofline.laws.fitted import Provenance
from roofline.laws.kinds import KINDS, KernelKind, KernelShape, kind_of, law_for, law_named, laws
from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.laws.work import Work

FACTS = Facts(100, 50e6, 2e12, {"bfloat16": 400e12, "float8_e4m3fn": 800e12}, 50e12, link_bytes_per_s=4e11)
CPU = Facts(8, 32e6, 1e11, {"float32": 1e12, "bfloat16": 1e12, "float8_e4m3fn": 1e12}, 5e11, cores=True)


class Scan:
    """A state-space scan: a fixed cost, and its bytes."""

    name = "scan"
    dims = ("tokens", "channels")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        memory = facts.bandwidth_bytes_per_s
        return (
            Constant("fixed", "s", 1e-7, 1e-3, 3e-6, 1.0, "cost of a call"),
            Constant("memory", "B/s", 0.05 * memory, memory, 0.8 * memory, 0.5, "of its bytes"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        return values["fixed"] + 4 * dims["tokens"] * dims["channels"] / values["memory"]


def scan_work(dims: Dims, dtype: str) -> Work:
    elements = dims["tokens"] * dims["channels"]
    return Work(6 * elements, 4 * elements, np.zeros_like(elements))


def test_a_law_for_a_new_kind_costs_the_law_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on it is fitted, judged beside its rooflines, kept in a spec, read again, and prices kernels."""
    row = KernelKind("scan", law=Scan(), work=scan_work, sizes=Scan.dims, group="c{channels}")
    monkeypatch.setitem(KINDS, row.name, row)
    generator = np.random.default_rng(0)
    dims = {"tokens": np.rint(2 ** generator.uniform(0, 14, 240)), "channels": 2.0 ** generator.integers(8, 15, 240)}
    truth = {"fixed": 7e-6, "memory": 1.1e12}
    time_s = Scan().time_s(dims, FACTS, "bfloat16", truth) * np.exp(0.02 * generator.normal(size=240))
    shapes = [KernelShape("scan", "bfloat16", "scan", {"channels": int(size)}) for size in dims["channels"]]
    seen, unseen = halves(Observations("scan", "bfloat16", dims, time_s, np.array([s.group for s in shapes])), 0)
    judged = calibrate_kind(seen, unseen, FACTS, points=60)
    assert judged.scores.mape < 0.03 < judged.datasheet.mape
    assert judged.law.values == pytest.approx(truth, rel=0.1)
    (kept,) = stored_laws([judged.law], Provenance(runs=("a run",), date="2026-01-01", seed=0))
    spec = HardwareSpec(name="x", kind="cuda", calibrated=(kept,))
    (read,) = HardwareSpec.model_validate_json(spec.model_dump_json()).calibrated
    np.testing.assert_allclose(read.time_s(unseen.dims, FACTS), judged.law.time_s(unseen.dims, FACTS), rtol=1e-9)
    assert read.held is not None
    assert [law.kind for law in fit_measured({("scan", "bfloat16"): seen}, FACTS)] == ["scan"]


def test_each_row_is_whole() -> None:
    names = [law.name for row in KINDS.values() for law in {law.name: law for law in row.laws}.values()]
    assert len(names) == len(set(names))
    for name, row in KINDS.items():
        assert name == row.name
        for law in row.laws:
            assert law_named(law.name) is law
            assert kind_of(law.name) is row
            dims = kernels(law, 5)
            values = {constant.name: constant.prior for constant in law.constants(FACTS, "bfloat16")}
            assert np.isfinite(law.time_s(dims, FACTS, "bfloat16", values)).all(), law.name
            if row.work is not None:
                assert (row.work(dims, "bfloat16").flops >= 0).all(), law.name
    with pytest.raises(ValueError, match="no law is known for 'quantum'"):
        kind_of("quantum")
    with pytest.raises(ValueError, match="no law is known for 'quantum'"):
        law_named("quantum")


def test_the_law_of_a_kind_follows_the_dtype_and_the_device() -> None:
    asked = {
        ("matmul", "bfloat16"): ("matmul", "core_matmul", "bfloat16"),
        ("matmul_row_major", "bfloat16"): ("matmul", "core_matmul", "bfloat16"),
        ("matmul", "fp8_static"): ("scaled_matmul", "core_matmul", "float8_e4m3fn"),
        ("matmul", "fp8_block"): ("block_scaled_matmul", "core_matmul", "float8_e4m3fn"),
        ("matmul", "int4_wo"): ("matmul", "core_matmul", "bfloat16"),
        ("experts", "nvfp4"): ("experts", "experts", "float8_e4m3fn"),
        ("decode_attention", "bfloat16"): ("decode_attention", "core_decode_attention", "bfloat16"),
        ("aten::mean", "bfloat16"): ("norm", "core_norm", "bfloat16"),
        ("aten::mul", "bfloat16"): ("pointwise", "core_pointwise", "bfloat16"),
    }
    for (kind, dtype), (on_gpu, on_cpu, arithmetic) in asked.items():
        for facts, expected in ((FACTS, on_gpu), (CPU, on_cpu)):
            law, computed_in = law_for(kind, dtype, facts)
            assert (law.name, computed_in) == (expected, arithmetic), (kind, dtype)
    assert set(laws()) >= {"matmul", "module", "host_gap"}
