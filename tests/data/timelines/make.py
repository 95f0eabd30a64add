"""Writes llama_decode_cuda.json: a decode layer as kineto exports it from an H200, built by hand.

Names, nesting and fields follow kineto's CuptiActivity.cpp and output_json.cpp; the times are made up. Run it as
``python tests/data/timelines/make.py``; a test checks that the file is what this script writes.
"""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("llama_decode_cuda.json")
PID = TID = 41207
WORKER = 41388
BOOT_US = 7_884_204_519.0  # µs since kineto's base: about 2 h
COMPUTE, SIDE = 7, 20

COPY = (
    "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)::"
    "{lambda()#3}::operator()() const::{lambda()#7}::operator()() const::{lambda(float)#1}, std::array<char*, 2ul>, 4, "
    "TrivialOffsetCalculator<1, unsigned int>, TrivialOffsetCalculator<1, unsigned int>, "
    "at::native::memory::LoadWithCast<1>, at::native::memory::StoreWithCast<1> >(int, ...)"
)
ELEMENTWISE = "void at::native::vectorized_elementwise_kernel<4, at::native::{}, std::array<char*, {}ul> >(int, ...)"
MUL = ELEMENTWISE.format("BinaryFunctor<c10::BFloat16, c10::BFloat16, c10::BFloat16, MulFunctor<float> >", 3)
ADD = ELEMENTWISE.format("CUDAFunctor_add<c10::BFloat16>", 3)
SILU = ELEMENTWISE.format("(anonymous namespace)::silu_kernel(at::TensorIteratorBase&)", 2)
FILL = ELEMENTWISE.format("FillFunctor<c10::BFloat16>", 1)
POW = ELEMENTWISE.format("(anonymous namespace)::pow_tensor_scalar_kernel_impl<float, float>", 2)
MEAN = "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float, float> > >(...)"
RSQRT = ELEMENTWISE.format("rsqrt_kernel_cuda(at::TensorIteratorBase&)", 2)
NVJET = "nvjet_sm90_tst_64x8_64x16_4x1_v_bz_TNT"
NVJET_SPLIT = "nvjet_sm90_tst_64x8_64x16_4x1_v_bz_splitK_TNT"
REDUCE = (
    "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, __nv_bfloat16, true, false, false>"
    "(cublasLt::cublasSplitKParams<float>, float const*, __nv_bfloat16 const*, __nv_bfloat16*, ...)"
)
GEMV = (
    "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, __nv_bfloat16, __nv_bfloat16, "
    "__nv_bfloat16, float, false, true, true, false, 7, false, cublasGemvParamsEx<...> >(...)"
)
CAT = (
    "void at::native::(anonymous namespace)::CatArrayBatchedCopy_vectorized<at::native::(anonymous namespace)::"
    "OpaqueType<2u>, unsigned int, 3, 64, 64, 16, 8>(char*, ...)"
)
FLASH = "void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4, ...> >(...)"
COMBINE = "void pytorch_flash::flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<128, 64, 128, ...>, 4, 2>(...)"
TRITON = "_rotate_cache_kernel"


class Session:
    """A host that runs ahead of one device; both clocks in µs from the start."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.now = 0.0
        self.free = {COMPUTE: 0.0, SIDE: 0.0}
        self.external = 0
        self.correlation = 9120
        self.open: list[int] = []

    def event(
        self, category: str, name: str, tid: int | str, ts: float, dur: float, args: dict[str, Any], pid: int = PID
    ) -> None:
        self.events.append(
            {"ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid,
             "ts": round(BOOT_US + ts, 3), "dur": round(dur, 3), "args": args}
        )  # fmt: skip

    def op(
        self, name: str, *inside: Any, category: str = "cpu_op", tid: int = TID, before: float = 1.4, after: float = 0.9
    ) -> None:
        """An operator or annotation around what it calls; leaves are functions that launch."""
        self.external += 1
        external, start, slot = self.external, self.now, len(self.events)
        self.open.append(external)
        self.now += before
        for call in inside:
            call()
        self.now += after
        self.open.pop()
        args = {"External id": external, "Record function id": 0, "Ev Idx": external - 1}
        self.event(category, name, tid, start, self.now - start, args)
        self.events.insert(slot, self.events.pop())
        self.now += 0.35

    def call(self, name: str, cbid: int, dur: float, tid: int, api: str = "cuda_runtime") -> int:
        self.correlation += 1
        args: dict[str, Any] = {"External id": self.open[-1]} if self.open else {}
        self.event(api, name, tid, self.now, dur, {**args, "cbid": cbid, "correlation": self.correlation})
        self.now += dur + 0.2
        return self.correlation

    def device(self, category: str, name: str, dur: float, stream: int, correlation: int, args: dict[str, Any]) -> None:
        start = max(self.free[stream], self.now + 1.1)
        self.free[stream] = start + dur
        external = {"External id": self.open[-1]} if self.open else {}
        args = {**external, "device": 0, "context": 1, "stream": stream, "correlation": correlation, **args}
        self.event(category, name, stream, start, dur, args, pid=0)
        for phase, at in (("s", {"pid": PID, "tid": TID}), ("f", {"pid": 0, "tid": stream})):
            self.events.append(
                {"ph": phase, "id": correlation, **at, "ts": round(BOOT_US + start, 3), "cat": "ac2g", "name": "ac2g",
                 **({"bp": "e"} if phase == "f" else {})}
            )  # fmt: skip

    def kernel(self, name: str, dur: float, *, api: str = "cudaLaunchKernel", stream: int = COMPUTE, tid: int = TID,
               grid: int = 132, block: int = 128) -> Any:  # fmt: skip
        cbid = {"cudaLaunchKernel": 211, "cudaLaunchKernelExC": 430, "cuLaunchKernel": 307, "cuLaunchKernelEx": 652}[
            api
        ]

        def launch() -> None:
            kind = "cuda_driver" if api.startswith("cu") and not api.startswith("cuda") else "cuda_runtime"
            correlation = self.call(api, cbid, 2.6, tid, kind)
            self.device(
                "kernel", name, dur, stream, correlation,
                {"queued": 0, "registers per thread": 32, "shared memory": 0, "blocks per SM": round(grid / 132, 6),
                 "warps per SM": round(grid / 132 * block / 32, 6), "grid": [grid, 1, 1], "block": [block, 1, 1],
                 "est. achieved occupancy %": 6},
            )  # fmt: skip

        return launch

    def memory(self, name: str, api: str, cbid: int, size: int, dur: float, stream: int = COMPUTE) -> Any:
        def launch() -> None:
            correlation = self.call(api, cbid, 3.1, TID)
            category = "gpu_memset" if "Memset" in name else "gpu_memcpy"
            bandwidth = round(size / dur / 1000, 6)
            self.device(category, name, dur, stream, correlation, {"bytes": size, "memory bandwidth (GB/s)": bandwidth})

        return launch

    def quiet(self, name: str, cbid: int, dur: float = 0.4) -> Any:
        return lambda: self.call(name, cbid, dur, TID)


def build() -> dict[str, Any]:
    """The whole trace, as kineto would write it."""
    s = Session()

    def leaf(name: str, *launches: Any) -> Any:
        return lambda: s.op(name, *launches, before=2.2, after=0.6)

    def nest(name: str, *inside: Any, category: str = "cpu_op") -> Any:
        return lambda: s.op(name, *inside, category=category)

    def module(path: str, *inside: Any) -> Any:
        return nest(f"roofcal:{path}", *inside)

    def transpose() -> None:
        s.op("aten::t", nest("aten::transpose", nest("aten::as_strided")))

    def linear(*launches: Any) -> Any:
        product = nest("aten::matmul", nest("aten::view"), leaf("aten::mm", *launches), nest("aten::_unsafe_view"))
        return nest("aten::linear", transpose, product)

    def biased(*launches: Any) -> Any:
        return nest("aten::linear", transpose, nest("aten::view"), leaf("aten::addmm", *launches), nest("aten::view"))

    def cast() -> Any:
        copy = leaf("aten::copy_", s.kernel(COPY, 1.504))
        return nest("aten::to", nest("aten::_to_copy", nest("aten::empty_strided"), copy))

    def norm(path: str) -> Any:
        return module(
            path, cast(), leaf("aten::pow", s.kernel(POW, 1.344)), leaf("aten::mean", s.kernel(MEAN, 2.112)),
            leaf("aten::add", s.kernel(ADD, 1.216)), leaf("aten::rsqrt", s.kernel(RSQRT, 1.184)),
            leaf("aten::mul", s.kernel(MUL, 1.28)), cast(), leaf("aten::mul", s.kernel(MUL, 1.28)),
        )  # fmt: skip

    def worker() -> None:
        """A prefetching thread launches on the side stream while the main thread is in an operation."""
        now = s.now
        s.op("aten::fill_", s.kernel(FILL, 24.32, stream=SIDE, tid=WORKER), tid=WORKER)
        s.now = now

    attention = nest(
        "aten::scaled_dot_product_attention",
        nest(
            "aten::_scaled_dot_product_flash_attention",
            nest("aten::transpose", nest("aten::as_strided")),
            nest(
                "aten::_flash_attention_forward",
                nest("aten::empty_like"),
                s.quiet("cudaFuncSetAttribute", 273),
                s.kernel(FLASH, 11.264, grid=256),
                s.kernel(COMBINE, 3.136, grid=16),
            ),
        ),
    )
    split = [
        s.memory("Memset (Device)", "cudaMemsetAsync", 51, 65_536, 0.896),
        s.kernel(NVJET_SPLIT, 8.576, api="cuLaunchKernelEx", grid=128, block=384),
        s.kernel(REDUCE, 2.24, grid=64),
    ]
    layer = "model.layers.0"
    s.op(
        "roofcal-pass",
        norm(f"{layer}.input_layernorm"),
        module(
            f"{layer}.self_attn",
            module(f"{layer}.self_attn.q_proj", biased(*split)),
            module(f"{layer}.self_attn.k_proj", biased(s.kernel(NVJET, 5.088, api="cudaLaunchKernelExC", block=384))),
            module(f"{layer}.self_attn.v_proj", biased(s.kernel(NVJET, 5.12, api="cudaLaunchKernelExC", block=384))),
            leaf("aten::mul", s.kernel(MUL, 1.28)),
            s.kernel(TRITON, 2.016, api="cuLaunchKernel"),  # no operation around it
            nest("aten::cat", s.quiet("cudaStreamIsCapturing", 317), s.kernel(CAT, 3.52)),
            worker,
            leaf(
                "aten::copy_", s.memory("Memcpy DtoD (Device -> Device)", "cudaMemcpyAsync", 41, 2_097_152, 12.8, SIDE)
            ),
            attention,
            module(f"{layer}.self_attn.o_proj", linear(s.kernel(GEMV, 7.008, grid=1024))),
        ),
        leaf("aten::add", s.kernel(ADD, 1.216)),
        norm(f"{layer}.post_attention_layernorm"),
        module(
            f"{layer}.mlp",
            module(f"{layer}.mlp.gate_proj", linear(s.kernel(NVJET, 14.528, api="cudaLaunchKernelExC", block=384))),
            leaf("aten::silu", s.kernel(SILU, 1.472)),
            module(f"{layer}.mlp.up_proj", linear(s.kernel(NVJET, 14.464, api="cudaLaunchKernelExC", block=384))),
            leaf("aten::mul", s.kernel(MUL, 1.28)),
            module(f"{layer}.mlp.down_proj", linear(s.kernel(GEMV, 13.984, grid=1024))),
        ),
        leaf("aten::add", s.kernel(ADD, 1.216)),
        s.quiet("cudaDeviceSynchronize", 165, dur=12.0),
        category="user_annotation",
    )
    first = min(e["ts"] for e in s.events if e.get("pid") == 0 and e["ph"] == "X")
    last = max(e["ts"] + e["dur"] for e in s.events if e.get("pid") == 0 and e["ph"] == "X")
    annotation = {"External id": 1, "device": 0, "context": 1, "stream": COMPUTE}
    s.event("gpu_user_annotation", "roofcal-pass", COMPUTE, first - BOOT_US, last - first, annotation, pid=0)
    s.event("Trace", "PyTorch Profiler (0)", "PyTorch Profiler", -40.0, s.now + 80.0, {"Op count": 0})
    metadata = [
        {"ph": "M", "name": "process_name", "ts": BOOT_US, "pid": PID, "tid": 0, "args": {"name": "python"}},
        {"ph": "M", "name": "process_labels", "ts": BOOT_US, "pid": 0, "tid": 0, "args": {"labels": "GPU 0"}},
        {"ph": "M", "name": "thread_name", "ts": BOOT_US, "pid": 0, "tid": COMPUTE, "args": {"name": "stream 7 "}},
    ]
    return {
        "schemaVersion": 1,
        "deviceProperties": [
            {"id": 0, "name": "NVIDIA H200", "totalGlobalMem": 150_121_545_728, "computeMajor": 9, "computeMinor": 0,
             "maxThreadsPerBlock": 1024, "maxThreadsPerMultiprocessor": 2048, "regsPerBlock": 65_536, "warpSize": 32,
             "sharedMemPerBlock": 49_152, "numSms": 132, "regsPerMultiprocessor": 65_536,
             "sharedMemPerBlockOptin": 232_448, "sharedMemPerMultiprocessor": 233_472}
        ],
        "cupti_version": 26,
        "cuda_runtime_version": 12_080,
        "cuda_driver_version": 12_080,
        "trace_id": "00000000000000000000000000000000",
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": 1_761_955_200_000_000_000,
        "traceEvents": [
            *metadata,
            *s.events,
            {"ph": "i", "s": "g", "name": "Record Window End", "pid": "", "tid": "", "ts": round(BOOT_US + s.now, 3)},
        ],
        "traceName": "llama_decode_cuda.json",
    }  # fmt: skip


def text() -> str:
    """The file's content: one event a line."""
    trace = build()
    events = ",\n".join(json.dumps(e) for e in trace.pop("traceEvents"))
    head = json.dumps(trace, indent=1)[:-2]
    return f'{head},\n "traceEvents": [\n{events}\n]}}\n'


if __name__ == "__main__":
    FILE.write_text(text())
