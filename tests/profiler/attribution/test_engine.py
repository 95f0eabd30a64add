"""Timelines of engines: rules, owners, steps and closure, against recounts of the same files and known answers."""

import gzip
import json
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from profiler.attribution.engine import period, read_ranks
from profiler.attribution.kernel_kinds import form_of, kernel_rules, kind_of, operator_rules, step_forms, step_sizes

TIMELINES = Path(__file__).parents[2] / "data" / "timelines"
KINETO = ("h100_eager_qwen.json.gz", "vllm_decode_graph.json.gz", "sglang_prefill.json.gz")


def test_each_rule_is_the_first_that_knows_its_example() -> None:
    for rules in (kernel_rules(), operator_rules()):
        for rule in rules:
            assert next((r for r in rules if r.pattern.search(rule.example)), None) == rule, rule.example
    assert [form_of(form.example) for form in step_forms()] == list(step_forms())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        # Names as engines and libraries print them: vLLM, SGLang, TensorRT-LLM, FlashInfer, DeepGEMM, NCCL, torch.
        ("void vllm::cross_device_reduce_2stage<__nv_bfloat16, 8>(vllm::RankData*, vllm::RankSignals)", "collective"),
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "collective"),
        ("void tensorrt_llm::kernels::cutlass_kernels::expandInputRowsKernel<__nv_bfloat16>(int)", "experts"),
        ("fused_moe_kernel", "experts"),
        ("_ZN5aiter50fmoe_bf16_blockscaleFp8_g1u1_vs_silu_1tg_ps_32x256E", "experts"),
        ("void aiter::reduce_scatter_cross_device_store<__hip_bfloat16, 8>", "collective"),
        ("void aiter::local_device_load_rmsnorm<__hip_bfloat16>", "collective"),
        ("void vllm::concat_and_cache_mla_kernel<__nv_bfloat16, unsigned char>", "kv_write"),
        ("void tensorrt_llm::kernels::updateSparseKvCacheAfterFmha<__nv_bfloat16>", "kv_write"),
        ("void flashinfer::PrefillWithKVCacheKernel<flashinfer::AttentionKernelTraits<true, 128, 128>>", "attention"),
        ("_ZN5aiter48mla_a8w8_qh16_qseqlen1_gqaratio16_psE", "attention"),
        ("fmhaSm100fKernel_QE4m3KvE2m1OBfloat16H128PagedKvSlidingOrChunkedCausalP64", "attention"),
        ("void tensorrt_llm::kernels::cutlass_kernels::blockExpertPrefixSumKernel<256>(int const*)", "routing"),
        ("_ZN2ck42kernel_gemm_xdl_cshuffle_v3_multi_d_b_preshuffleINS_37GridwiseGemm", "matmul"),
        ("_fused_rms_fp8_group_quant_kernel", "norm"),
        ("void tensorrt_llm::kernels::topKStage1<float, 128>(float const*)", "sampling"),
        ("nvjet_sm100_tst_64x16_64x16_2x4_2cta_h_bz_splitK_TNT", "matmul"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>()", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_64x64_64x6_tn_align8>", "matmul"),
        ("void flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4>>(Flash_fwd_params)", "attention"),
        ("void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<int>>>", "attention"),
        ("_fwd_grouped_kernel_stage1", "attention"),
        ("void sglang::per_token_group_quant_flat_kernel<sglang::QuantTrait<__nv_bfloat16>>", "quantise"),
        ("void flashinfer::norm::FusedAddRMSNormKernel<8, __nv_bfloat16>(__nv_bfloat16*)", "norm"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3", "norm"),
        ("triton_poi_fused_mul_silu_slice_1", "activation"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>>", "copy"),
        ("_causal_conv1d_fwd_kernel", "state_space"),
    ],
)
def test_kinds_of_kernels_of_engines(name: str, kind: str) -> None:
    rule = kind_of(name)
    assert rule is not None and rule.kind == kind


def test_an_unknown_kernel_has_the_kind_of_its_operator_or_none() -> None:
    assert kind_of("k_1234") is kind_of("k_1234", "my::thing") is None
    rule = kind_of("k_1234", "aten::addmm")
    assert rule is not None and (rule.kind, rule.family) == ("matmul", "by operator")


def raw(name: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(gzip.decompress((TIMELINES / name).read_bytes()))["traceEvents"]
    return events


@pytest.mark.parametrize("name", KINETO)
def test_kernels_modules_and_window_as_a_naive_recount_has_them(name: str) -> None:
    events = raw(name)
    kernels = [e for e in events if e["cat"] == "kernel"]
    launches = {e["args"]["correlation"]: e for e in events if e["cat"] in ("cuda_runtime", "cuda_driver")}
    inside = [k for k in kernels if k["args"]["correlation"] in launches]

    def around(kernel: dict[str, Any], kind: str) -> list[dict[str, Any]]:
        at = launches[kernel["args"]["correlation"]]
        found = [e for e in events if e["cat"] == kind and e["ts"] <= at["ts"] <= e["ts"] + e["dur"]]
        return sorted((e for e in found if e["tid"] == at["tid"]), key=lambda e: (e["ts"], -e["dur"]))

    in_modules: dict[str, float] = {}
    for kernel in inside:
        if chain := [e["name"].removeprefix("nn.Module: ") for e in around(kernel, "python_function")]:
            in_modules["/".join(chain)] = in_modules.get("/".join(chain), 0.0) + kernel["dur"]
    (rank,) = read_ranks(TIMELINES / name)
    closure = rank.closure
    assert (closure.kernels, closure.outside) == (len(kernels), len(kernels) - len(inside))
    assert closure.kernel_s == pytest.approx(sum(k["dur"] for k in kernels) * 1e-6)
    assert closure.window_s == pytest.approx(sum(k["dur"] for k in inside) * 1e-6)
    own = {row.path: row.own_s for row in rank.modules if row.kernels}
    assert own == pytest.approx({path: us * 1e-6 for path, us in in_modules.items()})
    assert closure.module_s == pytest.approx(sum(in_modules.values()) * 1e-6)
    assert sum(step.kernel_s for step in rank.steps) + rank.between_steps_s == pytest.approx(closure.window_s)
    assert [step.name for step in rank.steps] == [
        max((e for e in events if e["cat"] == "user_annotation"), key=lambda e: e["dur"])["name"]
    ]
    assert closure.classified >= 0.97
    assert {row.name: row.calls for row in rank.kernels} == {
        name: sum(k["name"][:399] == name[:399] for k in kernels) for name in (row.name for row in rank.kernels)
    }


def test_work_of_the_step_before_is_kept_apart_and_graphs_are_said() -> None:
    (eager,) = read_ranks(TIMELINES / KINETO[0])
    assert eager.closure.outside == 40 and eager.closure.attributed == 1
    assert eager.steps[0].kernels == 120 and eager.steps[0].source == "torch.profiler"
    (graph,) = read_ranks(TIMELINES / KINETO[1])
    assert graph.closure.graph_s > 0.9 * graph.closure.window_s > 0 and graph.closure.attributed < 0.1
    assert graph.steps[0].sizes["decode_tokens"] == 32 and graph.steps[0].sizes["decode_attention"] == 55086


def test_an_export_of_nsight_systems_as_sql_counts_it() -> None:
    path = TIMELINES / "nsys_2gpu.sqlite"
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as database:
        by_device = database.execute(
            "SELECT deviceId, count(*), sum(k.end - k.start), sum((k.end - k.start) * (r.start IS NULL)) "
            "FROM CUPTI_ACTIVITY_KIND_KERNEL k LEFT JOIN CUPTI_ACTIVITY_KIND_RUNTIME r "
            "ON r.correlationId = k.correlationId AND r.globalTid >> 24 = k.globalPid >> 24 GROUP BY deviceId"
        ).fetchall()
    database.close()
    ranks = read_ranks(path)
    for rank, (device, count, ns, outside_ns) in zip(ranks, by_device, strict=True):
        assert (rank.device, rank.closure.kernels) == (device, count)
        assert (rank.closure.kernel_s, rank.closure.outside_s) == pytest.approx((ns * 1e-9, outside_ns * 1e-9))
        assert rank.closure.attributed == 1 and rank.closure.classified == 1


def test_processes_of_one_export_count_their_launches_apart(tmp_path: Path) -> None:
    made = sqlite3.connect(tmp_path / "two.sqlite")
    made.execute("CREATE TABLE StringIds(id, value)")
    made.execute("INSERT INTO StringIds VALUES(1, 'nvjet_a'), (2, 'cudaLaunchKernel_v7000')")
    made.execute(
        "CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL"
        "(start, end, deviceId, streamId, correlationId, globalPid, demangledName, shortName)"
    )
    made.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME(start, end, globalTid, correlationId, nameId)")
    for device, process in enumerate((1 << 24, 2 << 24)):
        made.execute(f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES(50, 90, {device}, 7, 5, {process}, 1, 1)")
    made.execute(f"INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES(10, 20, {(2 << 24) + 77}, 5, 2)")
    made.commit()
    made.close()
    first, second = read_ranks(tmp_path / "two.sqlite")
    assert (first.closure.outside, second.closure.outside) == (1, 0)
    assert second.closure.unexplained == 1, "nothing on the host is known but its launch"


def test_kernels_belong_to_the_step_that_launched_them_whenever_they_run(tmp_path: Path) -> None:
    names = [f"step[DECODE bs={n} g_sq={n}]" for n in (1, 2, 3)]
    events: list[dict[str, Any]] = []

    def add(category: str, name: str, start: float, length: float, **ids: int) -> None:
        events.append({"ph": "X", "cat": category, "name": name, "pid": 1, "tid": 1, "ts": start, "dur": length,
                       "args": ids})  # fmt: skip

    for n, name in enumerate(names, start=1):
        add("user_annotation", name, 100.0 * n, 50.0)
        for k in range(n):  # the device runs one step behind
            add("cuda_runtime", "cudaLaunchKernel", 100.0 * n + k, 0.5, correlation=10 * n + k)
            add("kernel", "nvjet_a", 1000.0 * n + 10 * k, 4.0, device=0, stream=7, correlation=10 * n + k)
    add("cuda_runtime", "cudaLaunchKernel", 180.0, 0.5, correlation=99)
    add("kernel", "nvjet_b", 5000.0, 3.0, device=0, stream=7, correlation=99)
    path = tmp_path / "steps.json"
    path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
    (rank,) = read_ranks(path)
    assert [(step.name, step.kernels, step.sizes["bs"]) for step in rank.steps] == [
        (name, n, n) for n, name in enumerate(names, start=1)
    ]
    assert [step.span_s for step in rank.steps] == pytest.approx([4e-6, 14e-6, 24e-6])
    assert rank.between_steps_s == pytest.approx(3e-6)


def test_attention_of_an_annotation_is_the_pairs_that_a_causal_mask_leaves() -> None:
    draw = random.Random(7)
    prefill = [(q, q + draw.randrange(50)) for q in (draw.randrange(1, 40) for _ in range(9))]
    decode = [(1, draw.randrange(1, 90)) for _ in range(5)]

    def text(of: list[tuple[int, int]]) -> str:
        q, kv, qq, qkv = (
            sum(a for a, _ in of),
            sum(b for _, b in of),
            sum(a * a for a, _ in of),
            sum(a * b for a, b in of),
        )
        return f"{len(of)}(sq{q}sk{kv}sqsq{qq}sqsk{qkv})"

    def pairs(of: list[tuple[int, int]]) -> int:
        return sum(k <= kv - q + i for q, kv in of for i in range(q) for k in range(kv))

    sizes = step_sizes(f"execute_99_context_{text(prefill)}_generation_{text(decode)}")
    assert sizes["prefill_attention"] == pairs(prefill) and sizes["decode_attention"] == pairs(decode)
    assert (sizes["prefill_sequences"], sizes["decode_context"]) == (9, sum(kv for _, kv in decode))
    assert step_sizes("execute_context_1(888_788544)_generation_0(0)")["prefill_tokens"] == 888
    assert step_sizes("step[DECODE bs=32 g_sq=32 g_sqsk=70000]") == {"bs": 32, "g_sq": 32, "g_sqsk": 70000}
    assert step_sizes("## Call CompiledFxGraph ##") == {}


@pytest.mark.parametrize("layers", [4, 126])
def test_steps_without_annotations_are_the_period_of_the_kernels_not_of_the_layers(layers: int) -> None:
    step = ["embed", *[f"layer_{i}" for i in range(12)] * layers, "argmax"]
    sequence = step[-5:] + step * 5 + step[:7]  # the recording begins and ends within a step
    parts = period(sequence)
    assert [b - a for a, b in parts] == [len(step)] * 5
    assert len({tuple(sequence[a:b]) for a, b in parts}) == 1
    draw = random.Random(1)
    assert period([f"k{draw.randrange(9)}" for _ in range(400)]) == period([]) == period(["a"]) == []
