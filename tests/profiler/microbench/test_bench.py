"""What a bench makes of a case that works, and of every way in which one does not."""

import math

import pytest
import torch

from profiler.devices.watch import GpuReading
from profiler.microbench.bench import Bench, flags, reason
from profiler.record.measurement import CacheState, Window
from profiler.timing.clocks import Call
from profiler.timing.engine import Case

CPU = torch.device("cpu")


class Constant:
    """Every call takes 1 ms."""

    name, replays = "constant", False

    def __init__(self) -> None:
        self.at_s = 0.0

    def now(self) -> float:
        return self.at_s

    def time(self, call: Call, repeats: int) -> float:
        call()
        self.at_s += 1e-3 * repeats
        return 1e-3 * repeats


class Recorded:
    """A watch whose windows all look alike."""

    unread = ()

    def __init__(self, **figures: object) -> None:
        self.window = Window.model_validate({"start_s": 0, "duration_s": 10.0, "samples": 1, **figures})

    def begin(self) -> None:
        pass

    def end(self, samples: int) -> Window:
        return self.window.model_copy(update={"samples": samples})

    def close(self) -> None:
        pass


def bench(watch: Recorded | None = None, device: torch.device = CPU) -> Bench:
    made = Bench(CPU, budget_s=0.2)
    made.clock = Constant()
    made.watch = watch or Recorded(cores=2, steal_fraction=0.0, other_cores=0.0)
    made.device = device
    return made


def case() -> Case[int]:
    return Case(lambda: 1, lambda operand: operand, 4096)


def test_a_case_is_a_measurement_with_all_that_it_depends_on() -> None:
    made = bench()
    one = made.time("family", "case", case, unit="B/s", work=4096, dtype="float32", parameters={"m": 3})
    assert one.status == "done" and one.reason is None and one.value() == pytest.approx(4.096e6)
    assert one.samples and set(one.samples) == {1e-3} and one.clock == "constant" and one.stop_reason == "precise"
    assert one.cache is not None and one.cache.holds and one.warm_up is not None and one.warm_up.steady
    assert one.threads == torch.get_num_threads() and one.parameters == {"m": 3} and one.windows
    cost = made.time("family", "cost", case, unit="s", work=4)
    assert cost.value() == pytest.approx(0.25e-3)


ERRORS = (
    (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), "OutOfMemoryError: CUDA out of memory. Tried"),
    (MemoryError(), "MemoryError: no message"),
    (NotImplementedError('"addmm_impl_cpu_" not implemented'), 'NotImplementedError: "addmm_impl_cpu_" not'),
    (ArithmeticError("the product is not finite"), "ArithmeticError: the product is not finite"),
    (RuntimeError("CUDA error: unspecified launch failure"), "RuntimeError: CUDA error: unspecified launch"),
)


def test_what_keeps_a_case_from_a_result_is_its_reason() -> None:
    for error, why in ERRORS:

        def build(error: Exception = error) -> Case[int]:
            raise error

        failed = bench().time("family", "case", build, unit="B/s", work=1)
        assert failed.status == "failed" and failed.samples == () and (failed.reason or "").startswith(why)
        assert reason(error) == failed.reason
        with pytest.raises(ValueError, match="has no result"):
            failed.value()


def test_an_interruption_is_not_a_failure() -> None:
    def build() -> Case[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench().time("family", "case", build, unit="B/s", work=1)


def test_a_time_that_is_not_finite_is_never_recorded() -> None:
    made = bench()

    def time(call: Call, repeats: int) -> float:
        return math.nan

    made.clock.time = time  # type: ignore[method-assign]
    one = made.time("family", "case", case, unit="B/s", work=1)
    assert one.status == "failed" and one.samples == ()


def test_a_busy_host_makes_a_cpu_s_measurement_inconclusive_and_keeps_it() -> None:
    one = bench(Recorded(cores=2, steal_fraction=0.0, other_cores=1.5)).time("f", "c", case, unit="B/s", work=1)
    assert one.status == "inconclusive" and one.samples and "other work took 1.50 of 2 cores" in (one.reason or "")
    assert one.has_value and one.value() == pytest.approx(1e3)


def test_a_power_cap_is_a_label_and_heat_invalidates() -> None:
    capped = bench(Recorded(event_reasons=0x4, sm_clock_hz=1.6e9, foreign=())).time("f", "c", case, unit="s", work=1)
    assert capped.status == "done" and any("power cap" in label.what for label in capped.labels)
    hot = bench(Recorded(event_reasons=0x40, sm_clock_hz=1.1e9, foreign=())).time("f", "c", case, unit="s", work=1)
    assert hot.status == "invalid" and hot.samples and "thermal" in (hot.reason or "").lower()


def test_a_foreign_process_at_work_invalidates() -> None:
    watch = Recorded(event_reasons=0, foreign=("pid 7",), foreign_utilization=0.5)
    one = bench(watch).time("f", "c", case, unit="s", work=1)
    assert one.status == "invalid" and "pid 7" in (one.reason or "")


def test_what_does_not_hold_is_flagged() -> None:
    holds = CacheState(declared="cold", operand_bytes=10, between_bytes=100, cache_bytes=60, holds=True)
    assert flags(holds, sample_s=1e-3, floor=1e-6, clock="c") == []
    broken = holds.model_copy(update={"between_bytes": 20, "holds": False})
    (label,) = flags(broken, sample_s=1e-3, floor=1e-6, clock="c")
    assert label.severity == "warns" and "20 bytes" in label.what
    (short,) = flags(holds, sample_s=9e-6, floor=1e-6, clock="c")
    assert "shorter than 10 times" in short.what


def reading(**given: object) -> GpuReading:
    about = {"name": "GPU", "uuid": "GPU-1", "driver": "1", "memory_bytes": 1 << 34, "memory_used_bytes": 0, **given}
    return GpuReading.model_validate(about)


def test_memory_errors_during_a_case_invalidate_it_and_a_slice_is_said() -> None:
    made = bench(Recorded(event_reasons=0, foreign=()))
    readings = iter([reading(ecc_uncorrected=0, ecc=True), reading(ecc_uncorrected=2, ecc=True)])
    made.read = lambda: next(readings)
    one = made.time("f", "c", case, unit="s", work=1)
    assert one.status == "invalid" and "2 uncorrected memory errors" in (one.reason or "")
    made.read = lambda: reading(mig=True, ecc=False)
    sliced = made.time("f", "c", case, unit="s", work=1)
    assert sliced.status == "done" and {"MIG", "ECC"} <= {label.what.split()[0].strip(":") for label in sliced.labels}
