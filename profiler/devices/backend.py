"""Kinds of devices: the only place that tells them apart.

Code that measures asks `backend_of(device)` for what it needs to know (`runs_ahead_of_host`, `captures_graphs`, …) or
to do (`synchronize`, `watch`, …). Another accelerator is a subclass of `Backend` and an entry of `BACKENDS`.

Example: ``backend_of(torch.device("cpu")).runs_ahead_of_host`` is False; ``parse_device("auto")``
"""

import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.profiler import ProfilerActivity

from profiler.devices import host
from profiler.devices.conditions import APPLICATION_CLOCKS, Finding, finding
from profiler.devices.findings import CPU_VARIABLES, CUDA_VARIABLES, Variable, gpu_findings
from profiler.devices.watch import GpuReading, HostWatch, Watch
from profiler.record.run import RequestError

CYCLES_PER_S = 2e9
"""A rate above the SM clock of every GPU today, so that a hold given in cycles is at least as long as asked for."""


class Event(Protocol):
    """A point in the order of a device's work."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from this event to a later one."""


class Graph(Protocol):
    """Captured work that can be issued again at once."""

    def replay(self) -> None: ...


class Backend:
    """A kind of device; the defaults are those of one that works as the host does."""

    type: str
    """Torch's name of the kind, which runs record as `Environment.device_kind`."""
    label: str
    """The name of the kind for people."""
    is_host: bool = False
    """Whether work runs on the host's processors, on threads of this process, in the host's memory."""
    runs_ahead_of_host: bool = False
    """Whether a call returns before its work is done, so that `event`, `hold` and `synchronize` mean something."""
    profiles_kernels: bool = False
    """Whether torch's profiler records its kernels; otherwise the host's spans are the times of operations."""
    captures_graphs: bool = False
    """Whether work can be captured in a graph and replayed."""
    counts_energy: bool = False
    """Whether windows of its watch have joules."""
    multiplies_tf32: bool = False
    collectives: str = "gloo"
    """Backend of torch.distributed."""
    activities: tuple[ProfilerActivity, ...] = (ProfilerActivity.CPU,)
    """Activities that a session of torch's profiler must record."""
    variables: tuple[Variable, ...] = ()
    """Environment variables that change what is measured."""

    def count(self) -> int:
        """Devices of this kind that torch can use here."""
        return 1

    def why_unusable(self) -> str:
        """Return the reason why there is no device of this kind, and the remedy, in one line."""
        return f"this machine has no device of kind {self.type}"

    def describe(self, device: torch.device) -> tuple[str, str | None, dict[str, str]]:
        """Name, unique identifier (None: it has none) and versions of drivers and runtimes."""
        return self.device_name(device), None, {}

    def device_name(self, device: torch.device) -> str:
        """Torch's name of the device, as device files list it."""
        return self.type

    def memory_bytes(self, device: torch.device) -> int:
        """Memory of the device; on the host, what a control group allows of it."""
        return host.total_bytes()

    def free_bytes(self, device: torch.device) -> int:
        """Memory of the device that nobody uses now."""
        return host.free_bytes()

    def peak_memory_bytes(self, device: torch.device) -> int | None:
        """Most bytes that tensors held since `reset_peak_memory`; None where they are not counted."""
        return None

    def reset_peak_memory(self, device: torch.device) -> None:
        """Begin to count the most memory anew."""

    def release_memory(self) -> None:
        """Give cached memory back, so that the next model finds it free."""

    def cache_bytes(self, device: torch.device) -> dict[str, int]:
        """Caches of an accelerator by level, as its driver states them."""
        return {}

    def why_not_dtype(self, dtype: torch.dtype, device: torch.device) -> str | None:
        """Return why the device has no arithmetic of this type, although torch emulates it; None where it has some."""
        return None

    def why_not_compiled(self) -> str | None:
        """Return what torch.compile lacks here, and the remedy; None where nothing is known to be missing."""
        return None

    def synchronize(self, device: torch.device) -> None:
        """Wait until the device's work is done."""

    def on(self, device: torch.device) -> AbstractContextManager[Any]:
        """A block in which this device is the current one."""
        return nullcontext()

    def make_current(self, device: torch.device) -> None:
        """Make this device the current one from now on."""

    def event(self) -> Event:
        """A new point in the order of a device's work."""
        raise NotImplementedError(f"{self.type} has no events: the host's clock times it")

    def hold(self, device: torch.device, seconds: float) -> None:
        """Keep the device busy for at least this many seconds, as nvbench's blocking kernel does."""

    def settle(self, device: torch.device, launches: int) -> None:
        """Run this many of the shortest kernels."""

    def beside(self, device: torch.device) -> AbstractContextManager[AbstractContextManager[Any]]:
        """A block whose context issues work beside the current stream, after what that held; it waits at the end."""
        return nullcontext(nullcontext())

    def capture(self, device: torch.device) -> AbstractContextManager[Graph]:
        """A block whose work is captured instead of run."""
        raise NotImplementedError(f"{self.type} captures no graphs")

    def is_capturing(self) -> bool:
        """Whether the current stream is being captured."""
        return False

    def tf32_products(self) -> AbstractContextManager[None]:
        """A block in which float32 products run in TF32."""
        return nullcontext()

    def fp32_precision(self) -> str:
        """Torch's mode of float32 products: "ieee", "tf32", …, "none" where it is not set."""
        return "none"

    def clock_settings(self, device: torch.device) -> str | None:
        """Settings that govern the device's clocks, as a run records them; None where none can be read."""
        return None

    def watch(self, device: torch.device) -> Watch:
        """Watches the device and the host while samples are taken."""
        return HostWatch()

    def reading(self, device: torch.device) -> GpuReading | None:
        """The device as its driver describes it now; None where none does."""
        return None

    def findings(self, device: torch.device) -> Sequence[Finding]:
        """Return the conditions of the device that spoil a measurement now."""
        return ()


class Cpu(Backend):
    """The host's own processors."""

    type, label = "cpu", "CPU"
    is_host = True
    variables = CPU_VARIABLES

    def device_name(self, device: torch.device) -> str:
        name = host.parse_cpu_name(host.read_text(host.proc_root() / "cpuinfo") or "")
        return name or platform.processor() or platform.machine()

    def clock_settings(self, device: torch.device) -> str | None:
        cpus = host.usable_cpus()
        governors, boost = " and ".join(host.read_governors(cpus)), host.read_processor(cpus).boost
        told = (governors and f"governor {governors}", {None: "", True: "boost on", False: "boost off"}[boost])
        return ", ".join(filter(None, told)) or None

    def why_not_compiled(self) -> str | None:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "needs a C++ compiler here; install g++"
        return None

    def fp32_precision(self) -> str:
        return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


class Cuda(Backend):
    """GPUs of NVIDIA and, with ROCm builds of torch, of AMD, which speak the same."""

    type, label = "cuda", "CUDA"
    runs_ahead_of_host = profiles_kernels = captures_graphs = counts_energy = multiplies_tf32 = True
    collectives = "nccl"
    activities = (ProfilerActivity.CPU, ProfilerActivity.CUDA)
    variables = CUDA_VARIABLES

    def count(self) -> int:
        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    def why_unusable(self) -> str:
        if torch.version.cuda:
            return "torch finds no usable GPU or driver: see that nvidia-smi lists one"
        return "this torch is built without CUDA: install a CUDA build of torch"

    def describe(self, device: torch.device) -> tuple[str, str | None, dict[str, str]]:
        properties, versions = torch.cuda.get_device_properties(device), {"cuda": str(torch.version.cuda)}
        gpu = self.reading(device)
        if gpu is None:
            return properties.name, None, versions
        uuid = f"GPU-{properties.uuid}" if gpu.mig else gpu.uuid  # under MIG, the slice that torch sees
        driver = {} if gpu.driver is None else {"driver": gpu.driver}
        return gpu.name or properties.name, uuid, versions | driver

    def device_name(self, device: torch.device) -> str:
        return str(torch.cuda.get_device_name(device))

    def memory_bytes(self, device: torch.device) -> int:
        return int(torch.cuda.get_device_properties(device).total_memory)

    def free_bytes(self, device: torch.device) -> int:
        return int(torch.cuda.mem_get_info(device)[0])

    def peak_memory_bytes(self, device: torch.device) -> int | None:
        return int(torch.cuda.max_memory_allocated(device))

    def reset_peak_memory(self, device: torch.device) -> None:
        torch.cuda.reset_peak_memory_stats(device)

    def release_memory(self) -> None:
        with suppress(RuntimeError):  # a device that is gone has none
            torch.cuda.empty_cache()

    def cache_bytes(self, device: torch.device) -> dict[str, int]:
        return {"L2": int(torch.cuda.get_device_properties(device).L2_cache_size)}

    def why_not_dtype(self, dtype: torch.dtype, device: torch.device) -> str | None:
        with self.on(device):
            if dtype is not torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False):
                return None
        return f"{self.device_name(device)} has none"

    def why_not_compiled(self) -> str | None:
        return "needs Triton on a GPU; install triton" if find_spec("triton") is None else None

    def synchronize(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)

    def on(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.cuda.device(device)

    def make_current(self, device: torch.device) -> None:
        torch.cuda.set_device(device)

    def event(self) -> Event:
        return torch.cuda.Event(enable_timing=True)

    def hold(self, device: torch.device, seconds: float) -> None:
        with self.on(device):
            torch.cuda._sleep(int(seconds * CYCLES_PER_S))

    def settle(self, device: torch.device, launches: int) -> None:
        with self.on(device):
            for _ in range(launches):
                torch.cuda._sleep(1)

    @contextmanager
    def beside(self, device: torch.device) -> Iterator[AbstractContextManager[Any]]:
        with self.on(device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        yield torch.cuda.stream(side)
        current.wait_stream(side)

    @contextmanager
    def capture(self, device: torch.device) -> Iterator[Graph]:
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph leaves its own stream the current one where a capture fails (torch 2.13, cuda/graphs.py).
        with self.on(device), torch.cuda.stream(torch.cuda.current_stream(device)), torch.cuda.graph(graph):
            yield graph

    def is_capturing(self) -> bool:
        return bool(torch.cuda.is_current_stream_capturing())

    @contextmanager
    def tf32_products(self) -> Iterator[None]:
        before = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.fp32_precision = before

    def fp32_precision(self) -> str:
        return str(torch.backends.cuda.matmul.fp32_precision)

    def clock_settings(self, device: torch.device) -> str | None:
        gpu = self.reading(device)
        if gpu is None:
            return None
        told = [] if gpu.power_limit_w is None else [f"power limit {gpu.power_limit_w:.0f} W"]
        told += ["application clocks"] if (gpu.event_reasons or 0) & APPLICATION_CLOCKS else []
        return ", ".join(told) or None

    def watch(self, device: torch.device) -> Watch:
        from profiler.devices.nvml import gpu_watch

        return gpu_watch(pci_bus_id(device))

    def reading(self, device: torch.device) -> GpuReading | None:
        from profiler.devices.nvml import NvmlMissing, read_gpu

        with suppress(NvmlMissing):  # `findings` says so
            return read_gpu(pci_bus_id(device))
        return None

    def findings(self, device: torch.device) -> Sequence[Finding]:
        from profiler.devices.nvml import NvmlMissing, read_gpu

        try:
            reading = read_gpu(pci_bus_id(device))  # torch may give this process a context to tell the address
        except NvmlMissing as error:
            return (finding("nvml", str(error)),)
        index = device.index if device.index is not None else torch.cuda.current_device()
        own = bool(torch._C._cuda_hasPrimaryContext(index))  # type: ignore[attr-defined]
        return gpu_findings(reading, own, torch.cuda.memory_reserved(device))


def pci_bus_id(device: torch.device) -> str:
    """The PCI address of a CUDA device as NVML writes it, "domain:bus:device.0"."""
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stubs leave the PCI address out
    return f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"


CPU, CUDA = Cpu(), Cuda()
BACKENDS: list[Backend] = [CUDA, CPU]
"""Every kind of device that is measured; "auto" is the first one that this machine has."""


def backend_of(device: torch.device | str) -> Backend:
    """The backend of a device or of a kind of device. Raises ValueError for a kind that is not in `BACKENDS`."""
    kind = device.type if isinstance(device, torch.device) else device.partition(":")[0]
    if (found := next((backend for backend in BACKENDS if backend.type == kind), None)) is not None:
        return found
    known = " or ".join(sorted(backend.type for backend in BACKENDS))
    raise ValueError(f"no backend for device type {kind!r}; use {known}")


def parse_device(name: str | torch.device) -> torch.device:
    """Torch's device of that name. Raises RequestError: unknown, of another kind, or not in this machine."""
    if name == "auto":
        return torch.device(next(backend.type for backend in BACKENDS if backend.count()))
    accelerators = [f"{backend.type} or {backend.type}:N" for backend in BACKENDS if not backend.is_host]
    known = ", ".join(["auto", CPU.type, *accelerators])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RequestError(f"--device {name} is unknown; use {known}") from error
    try:
        backend = backend_of(device)
    except ValueError as error:
        raise RequestError(f"--device {name} is not measured by roofcal; use {known}") from error
    count, kind = backend.count(), backend.type
    if not count:
        raise RequestError(f"--device {name}: {backend.why_unusable()}, or use --device {CPU.type}")
    if device.index is not None and device.index >= count and not backend.is_host:
        raise RequestError(f"--device {name}: this machine has {count}, from {kind}:0 to {kind}:{count - 1}")
    return device


def free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody uses now; on a CPU, what a control group leaves of it."""
    return backend_of(device).free_bytes(device)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PerDevice(Generic[T]):
    """A setting of measuring that has one value for the host's processors and one for accelerators."""

    host: T
    accelerator: T

    def of(self, device: torch.device | str) -> T:
        """The value for a device or a kind of device."""
        return self.host if backend_of(device).is_host else self.accelerator
