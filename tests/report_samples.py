"""Realistic reports for the tests of the renderers: a Llama decode on a GPU and on a CPU, and awkward ones.

Times come from real shapes and plausible efficiencies, so that the pictures look as they will.
"""

import math

from calibrate.passes.pass_report import LayerEfficiency, PassReport, Rungs, Waterfall
from profiler.record.run import Cell, CellResult, Closure, Environment, Run
from roofline.hardware.spec import Figure, HardwareSpec, Level, Peaks
from roofline.laws.fitted import LevelRatio
from roofline.workload import Workload

DECODE = Workload(batch=1, query_tokens=1, context_tokens=512, dtype="bfloat16")
PREFILL = Workload(batch=1, query_tokens=512, context_tokens=0, dtype="bfloat16")

GPU_DATASHEET = Peaks(
    matrix={"bfloat16": Figure(value=989e12, source="H200 datasheet, dense")},
    vector={"float32": Figure(value=67e12, source="H200 datasheet, dense")},
    levels=(
        Level(name="L2", capacity_bytes=50e6, bandwidth=Figure(value=12e12, source="H200 datasheet, dense")),
        Level(name="HBM", capacity_bytes=141e9, bandwidth=Figure(value=4.8e12, source="H200 datasheet, dense")),
    ),
)
_SHORT = "hardware microbenchmark, 30 s sustained"
GPU_MEASURED = Peaks(
    matrix={"bfloat16": Figure(value=794e12, source=_SHORT, low=781e12, high=803e12)},
    vector={"float32": Figure(value=55e12, source=_SHORT)},
    levels=(
        Level(name="L2", capacity_bytes=50e6, bandwidth=Figure(value=7.1e12, source=_SHORT)),
        Level(
            name="HBM", capacity_bytes=141e9, bandwidth=Figure(value=4.16e12, source=_SHORT, low=4.1e12, high=4.2e12)
        ),
    ),
    host_s_per_op=Figure(value=5.2e-6, source=_SHORT),
)
CPU_MEASURED = Peaks(
    matrix={
        "bfloat16": Figure(value=412e9, source="short run of torch.mm, 2 threads"),
        "float32": Figure(value=104e9, source="short run of torch.mm, 2 threads"),
    },
    vector={"float32": Figure(value=61e9, source="short run of torch.add in cache, 2 threads")},
    levels=(
        Level(name="L3", capacity_bytes=33e6, bandwidth=Figure(value=140e9, source="torch.add of 8 MiB")),
        Level(name="DRAM", capacity_bytes=16e9, bandwidth=Figure(value=51e9, source="torch.add of 32 MiB")),
    ),
    host_s_per_op=Figure(value=3.1e-6, source="torch.add of 64 elements"),
)
GPU = HardwareSpec(name="nvidia-h200-sxm", kind="cuda", datasheet=GPU_DATASHEET, measured=GPU_MEASURED)
CPU = HardwareSpec(name="cpu", kind="cpu", measured=CPU_MEASURED)
BARE = HardwareSpec(name="unknown", kind="other")

# path, kind, count, k, n (weights k × n) or elements, reached share of the achieved roof
_LLAMA: tuple[tuple[str, str, int, int, int, float], ...] = (
    ("model.embed_tokens", "embedding", 1, 1, 4096, 0.1),
    ("model.rotary_emb", "pointwise", 5, 1, 256, 0.02),
    ("model.layers.*.input_layernorm", "norm", 32, 1, 4096, 0.06),
    ("model.layers.*.self_attn.q_proj", "matmul", 32, 4096, 4096, 0.81),
    ("model.layers.*.self_attn.k_proj", "matmul", 32, 4096, 1024, 0.62),
    ("model.layers.*.self_attn.v_proj", "matmul", 32, 4096, 1024, 0.63),
    ("model.layers.*.self_attn", "pointwise", 320, 1, 5120, 0.03),
    ("model.layers.*.self_attn", "copy", 64, 1, 1_048_576, 0.55),
    ("model.layers.*.self_attn", "attention", 32, 1, 1_048_576, 0.41),
    ("model.layers.*.self_attn.o_proj", "matmul", 32, 4096, 4096, 0.80),
    ("model.layers.*.post_attention_layernorm", "norm", 32, 1, 4096, 3.3),
    ("model.layers.*.mlp.gate_proj", "matmul", 32, 4096, 14336, 0.9),
    ("model.layers.*.mlp.up_proj", "matmul", 32, 4096, 14336, 0.91),
    ("model.layers.*.mlp.act_fn", "pointwise", 32, 1, 14336, 0.08),
    ("model.layers.*.mlp", "pointwise", 32, 1, 14336, 0.08),
    ("model.layers.*.mlp.down_proj", "matmul", 32, 14336, 4096, 0.88),
    ("model.layers.*", "pointwise", 64, 1, 4096, 0.05),
    ("model.norm", "norm", 1, 1, 4096, 0.06),
    ("model", "reduction", 1, 1, 512, 0.01),
    ("lm_head", "matmul", 1, 4096, 128256, 0.93),
    ("", "copy", 1, 1, 128256, 0.3),
    ("model.layers.*.self_attn", "softmax", 32, 1, 16384, 0.09),
)

FUSES = {"pointwise", "norm", "softmax", "copy"}
TERMS = {
    "ideal": "ideal",
    "peak_derate": "achieved",
    "extra_work": "executed",
    "shape_loss": "calibrated",
    "level": "calibrated_at_level",
    "residual": "measured",
}
"""Each term of a waterfall with the rung that it ends at."""


def waterfall(rungs: Rungs, total_s: float) -> Waterfall:
    """Differences of neighbouring known rungs; those over an unknown rung merged."""
    terms: dict[str, float | None] = {}
    merged: dict[str, float] = {}
    last, unknown = 0.0, ""
    for term, rung in TERMS.items():
        terms[term], value = None, getattr(rungs, rung)
        if value is None:
            unknown += f"{term}+"
        elif unknown:
            merged[unknown + term] = value - last
        else:
            terms[term] = value - last
        if value is not None:
            last, unknown = value, ""
    return Waterfall(**terms, idle=total_s - rungs.measured, merged=merged)


def _roof(peaks: Peaks | None, flops: float, bytes_: float) -> float | None:
    return max(flops / peaks.matrix["bfloat16"].value, bytes_ / peaks.levels[-1].bandwidth.value) if peaks else None


def layer(
    path: str, kind: str, count: int, k: int, n: int, reached: float, spec: HardwareSpec, tokens: int, calibrated: bool
) -> LayerEfficiency:
    flops = 0.0 if kind in ("copy", "embedding") else 2.0 * k * n * tokens * count
    bytes_ = 2.0 * count * (k * n + (k + n) * tokens)
    known = spec.measured
    executed = _roof(known, flops, bytes_)
    fused = 0.4 if kind in FUSES else 1.0
    datasheet = _roof(spec.datasheet, flops, bytes_)
    base = executed if executed is not None else bytes_ / 50e9
    measured = base / reached
    by_laws = calibrated and executed is not None
    rungs = Rungs(
        ideal=None if datasheet is None else datasheet * fused,
        achieved=None if executed is None else executed * fused,
        executed=executed,
        calibrated=base + 0.9 * (measured - base) if by_laws else None,
        calibrated_at_level=base + 0.96 * (measured - base) if by_laws else None,
        measured=measured,
    )
    predicted_s = next((x for x in (rungs.calibrated_at_level, rungs.executed) if x is not None), None)
    ideal_s = rungs.ideal if rungs.ideal is not None else rungs.achieved
    repeats = 32 if "*" in path else 1
    matrix_bound = known is not None and flops / known.matrix["bfloat16"].value == executed
    return LayerEfficiency(
        path=path,
        kind=kind,
        count=count,
        rungs=rungs,
        waterfall=waterfall(rungs, measured),
        ideal_s=ideal_s,
        predicted_s=predicted_s,
        predicted_s_low=0.9 * predicted_s if by_laws and predicted_s is not None else None,
        predicted_s_high=1.1 * predicted_s if by_laws and predicted_s is not None else None,
        measured_s=measured,
        measured_s_low=0.97 * measured,
        measured_s_high=1.03 * measured,
        median_s=measured / repeats,
        spread_s=0.013 * measured / repeats if repeats > 1 else 0.0,
        efficiency=None if ideal_s is None else ideal_s / measured,
        bound="" if known is None else "matrix" if matrix_bound else known.levels[-1].name,
        matrix_flops=flops if kind in ("matmul", "attention") else 0.0,
        vector_flops=0.0 if kind in ("matmul", "attention") else flops,
        bytes=bytes_,
        kernels=("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "splitKreduce<32|16>") if spec.kind == "cuda" else ("mkldnn",),
    )


def report(
    spec: HardwareSpec,
    workload: Workload = DECODE,
    calibrated: bool = False,
    idle: float = 0.05,
    layers: tuple[LayerEfficiency, ...] | None = None,
    **changes: object,
) -> PassReport:
    """A pass of the sample model on `spec`; `changes` replace fields of the report."""
    tokens = workload.batch * workload.query_tokens
    layers = layers or tuple(layer(*row, spec=spec, tokens=tokens, calibrated=calibrated) for row in _LLAMA)
    totals: dict[str, float | None] = {}
    for name in Rungs.model_fields:
        values = [getattr(one.rungs, name) for one in layers]
        totals[name] = None if None in values else math.fsum(values)
    rungs = Rungs(**totals)
    busy_s = sum(one.measured_s for one in layers)
    wall_s = busy_s / (1 - idle)
    at_level_s, calibrated_s = rungs.calibrated_at_level, rungs.calibrated
    predicted_s = at_level_s if at_level_s is not None else rungs.executed
    fall = waterfall(rungs, wall_s)
    known = {"idle": fall.idle} | ({"level": fall.level, "residual": fall.residual} if at_level_s is not None else {})
    prediction = "calibrated" if rungs.calibrated is not None else "executed" if rungs.executed is not None else None
    cuda = spec.kind == "cuda"
    events = {"launches": 933, "kernels": 933, "memory_operations": 4} if cuda else {}
    fields: dict[str, object] = {
        "model": "llama-3.1-8b",
        "workload": workload,
        "status": "done",
        "reason": None,
        "wall_s": wall_s,
        "busy_s": busy_s,
        "scaled_from_layers": None,
        "ideal_peaks": "datasheet" if spec.datasheet else "achieved" if spec.measured else None,
        "prediction": prediction,
        "rungs": rungs,
        "wall_s_low": 0.988 * wall_s,
        "wall_s_high": 1.012 * wall_s,
        "busy_s_low": 0.99 * busy_s,
        "busy_s_high": 1.01 * busy_s,
        "waterfall": fall,
        "waterfall_low": {name: value - 0.01 * wall_s for name, value in known.items()},
        "waterfall_high": {name: value + 0.01 * wall_s for name, value in known.items()},
        "predicted_busy_s": predicted_s,
        "predicted_busy_s_low": None if at_level_s is None else 0.9 * at_level_s,
        "predicted_busy_s_high": None if at_level_s is None else 1.1 * at_level_s,
        "predicted_busy_calibrated_s": calibrated_s,
        "predicted_wall_calibrated_s": None if calibrated_s is None else calibrated_s * 1.07,
        "level": {} if at_level_s is None else {"memory": LevelRatio(ratio=1.06, low=1.02, high=1.1)},
        "predicted_wall_s": None if predicted_s is None else predicted_s * 1.07,
        "noise": 0.012,
        "closure": Closure(attributed=0.9991, spans_plus_gaps=1.0008, instrumented_ratio=1.031, **events),
        "ran": {"attention": "flash" if cuda else "sdpa math", "experts": "none", "cache": "DynamicCache"},
        "differences": (),
        "inactive": (),
        "peak_memory_bytes": 16_500_000_000,
        "layers": layers,
        "clock": "kernel timeline" if cuda else "profiler spans",
        "cache_state": "in situ",
        "passes": (12, 12),
        "rounds": 4,
    }
    return PassReport.model_validate(fields | changes)


def gpu() -> PassReport:
    """Datasheet and achieved peaks, not calibrated: shape loss and residual are one term."""
    return report(GPU)


def gpu_calibrated() -> PassReport:
    """Every rung known; a prefill."""
    return report(GPU, PREFILL, calibrated=True, idle=0.31, differences=("op 17: aten::copy_ ran, the trace has none",))


def cpu() -> PassReport:
    """No datasheet; 4 of 32 layers measured; idle slightly negative; some parameters inactive."""
    return report(
        CPU,
        idle=-0.004,
        scaled_from_layers=(4, 32),
        inactive=tuple(f"model.layers.{i}.self_attn.unused_bias" for i in range(7)),
        warnings=("2 other processes used the cores during 1 of 12 passes",),
    )


def no_peaks() -> PassReport:
    """Nothing is known of the device."""
    return report(BARE)


def with_unattributed() -> PassReport:
    """Device time that belongs to no operation: a row of its own that knows no rung but the measured one."""
    good = gpu()
    seconds = 0.01 * good.busy_s
    rungs = Rungs(ideal=None, achieved=None, executed=None, calibrated=None, measured=seconds)
    row = LayerEfficiency(
        path="(unattributed)",
        kind="other",
        count=1,
        rungs=rungs,
        waterfall=waterfall(rungs, seconds),
        ideal_s=None,
        predicted_s=None,
        measured_s=seconds,
        median_s=seconds,
        spread_s=0,
        efficiency=None,
        bound="",
        matrix_flops=0,
        vector_flops=0,
        bytes=0,
    )
    whole = good.rungs.model_copy(update={"measured": good.busy_s + seconds})
    return good.model_copy(
        update={
            "layers": (*good.layers, row),
            "busy_s": good.busy_s + seconds,
            "rungs": whole,
            "waterfall": waterfall(whole, good.wall_s),
        }
    )


def many_layers(kinds: int = 300) -> PassReport:
    """More layer kinds than any screen holds, with long paths."""
    return report(
        GPU,
        model="deepseek-v3",
        layers=tuple(
            layer(
                f"model.layers.*.mlp.experts.routed_group_{i}.down_projection_{i}",
                "grouped_matmul",
                58,
                2048,
                64 + 16 * i,
                0.3 + 0.5 * i / kinds,
                GPU,
                1,
                False,
            )
            for i in range(kinds)
        ),
    )


def failed() -> tuple[CellResult, ...]:
    cell = Cell(model="mixtral-8x7b", workload=PREFILL, attn="sdpa", experts="default", cache="dynamic")
    return (CellResult(cell=cell, status="failed", reason="out of memory: needs 93.4 GB,\nthe device has 16.0 GB"),)


def run(kind: str = "cuda") -> Run:
    cuda = kind == "cuda"
    return Run(
        name="2025-11-20T15-00-00-run",
        started="2025-11-20T15:00:00Z",
        finished="2025-11-20T15:03:00Z",
        command=("python", "-m", "profiler", "run", "llama-3.1-8b"),
        cells=(),
        environment=Environment(
            device="NVIDIA H200" if cuda else "AMD EPYC 9B14 96-Core Processor",
            device_kind="cuda" if cuda else "cpu",
            device_uuid="GPU-3f2a" if cuda else None,
            cores=16 if cuda else 2,
            threads=16 if cuda else 2,
            memory_bytes=141_000_000_000 if cuda else 16_000_000_000,
            hostname="box",
            os="Linux 6.8",
            python="3.11.2",
            versions={
                "torch": "2.13.0",
                "transformers": "5.23.0",
                **({"cuda": "13.0", "driver": "580.82"} if cuda else {}),
            },
            notes=() if cuda else ("the CPU governor is not set to performance",),
        ),
    )
