"""Kinds of devices: what each answers, how one is found, and that another one is a class and an entry of the list."""

import ast
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from pretended import pretend_accelerator
from pretended_hosts import HOSTS, pretend

from profiler.devices import backend as module
from profiler.devices.backend import BACKENDS, CPU, CUDA, PerDevice, backend_of, parse_device
from profiler.devices.caches import cache_capacities, main_capacity
from profiler.devices.environment import collect
from profiler.devices.watch import GpuReading
from profiler.microbench import memory
from profiler.microbench.bench import Bench
from profiler.microbench.host_cost import launch
from profiler.microbench.suite import parts
from profiler.record.run import Environment, RequestError
from profiler.timing.clocks import EventClock, HostClock, clock_for
from roofline.hardware.spec import spec_kind

HOST = torch.device("cpu")
ROOT = Path(__file__).parents[3]


def test_a_device_is_found_by_its_kind() -> None:
    assert backend_of(HOST) is backend_of("cpu") is CPU
    assert backend_of(torch.device("cuda:1")) is backend_of("cuda:1") is CUDA
    with pytest.raises(ValueError, match="'mps'; use cpu or cuda"):
        backend_of(torch.device("mps"))
    with pytest.raises(ValueError, match="mps"):
        clock_for(torch.device("mps"))
    assert len({backend.type for backend in BACKENDS}) == len(BACKENDS)


def test_names_that_are_refused_say_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CUDA, "count", lambda: 2)
    assert parse_device("auto") == torch.device("cuda") and parse_device("cuda:1").index == 1
    for name, says in {
        "gpu": "unknown; use auto, cpu, cuda or cuda:N",
        "mps": "not measured by roofcal; use auto, cpu, cuda or cuda:N",
        "cuda:2": "this machine has 2, from cuda:0 to cuda:1",
    }.items():
        with pytest.raises(RequestError, match=f"--device {name}.*{says}"):
            parse_device(name)
    monkeypatch.setattr(CUDA, "count", lambda: 0)
    assert parse_device("auto") == HOST
    with pytest.raises(RequestError, match="or use --device cpu"):
        parse_device("cuda")


def test_settings_differ_between_the_host_and_accelerators() -> None:
    setting = PerDevice(host=1, accelerator=2)
    assert (setting.of(HOST), setting.of("cuda:3"), setting.of(torch.device("cuda"))) == (1, 2, 2)


def test_the_host_waits_for_nothing() -> None:
    assert isinstance(clock_for(HOST), HostClock)
    CPU.synchronize(HOST)
    with CPU.on(HOST), CPU.beside(HOST) as side, side, CPU.tf32_products():
        assert not CPU.is_capturing() and CPU.peak_memory_bytes(HOST) is None
    for ask in (CPU.event, lambda: CPU.capture(HOST)):
        with pytest.raises(NotImplementedError, match="cpu"):
            ask()


def test_work_beside_the_current_stream_begins_after_it_and_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            steps.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def use(stream: Stream):  # type: ignore[no-untyped-def]
        steps.append(f"on {stream.name}")
        yield

    main = Stream("main")
    for name, value in {
        "Stream": Stream, "stream": use, "current_stream": lambda: main, "device": lambda _: nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    with CUDA.beside(torch.device("cuda")) as side:
        steps.append("first")
        with side:
            steps.append("second")
    assert steps == ["side waits for main", "first", "on side", "second", "main waits for side"]


def test_settings_of_the_clocks_are_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in (("cpu0/cpufreq/scaling_governor", "powersave\n"), ("intel_pstate/no_turbo", "1\n")):
        file = tmp_path / "sys/devices/system/cpu" / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    monkeypatch.setenv("ROOFCAL_PRETEND_HOST", str(tmp_path))
    assert collect("cpu", ()).clocks == "governor powersave, boost off"
    for reading, text in (
        (GpuReading(power_limit_w=650.0, event_reasons=0x02), "power limit 650 W, application clocks"),
        (GpuReading(power_limit_w=700.0), "power limit 700 W"),
        (GpuReading(), None),
        (None, None),
    ):
        monkeypatch.setattr(CUDA, "reading", lambda device, reading=reading: reading)
        assert CUDA.clock_settings(torch.device("cuda")) == text


def test_memory_of_a_device_that_is_gone_is_not_released(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise RuntimeError("CUDA error: the device is gone")

    monkeypatch.setattr(torch.cuda, "empty_cache", gone)
    CUDA.release_memory()


def test_an_accelerator_is_added_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = pretend_accelerator(monkeypatch)
    assert backend_of(HOST) is accelerator and parse_device("cpu") == HOST
    assert [(c.name, c.bytes) for c in cache_capacities(HOST)] == [("L2", 1 << 20)]
    assert main_capacity(HOST).bytes == 1 << 30
    assert {part.name for part in parts("cpu")} >= {"energy", "clocks", "transfer"}
    assert isinstance(clock_for(HOST), EventClock)
    environment = collect(HOST, ())
    assert (environment.device, environment.memory_bytes) == ("Pretended accelerator", 1 << 30)


def test_an_accelerator_from_outside_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path, HOSTS["l3-32m"])
    accelerator = pretend_accelerator(monkeypatch)
    bench = Bench(HOST, budget_s=0.02, quick=True, limit_bytes=32 << 20)
    (read, *_) = list(memory.main_memory(bench))
    assert read.status == "done", read.reason
    assert (read.clock, read.threads, read.placements) == ("pretended events", None, 1)
    assert read.cache is not None and read.cache.cache_bytes == 1 << 20 and read.cache.holds
    assert read.value() > 0 and read.windows[0].energy_j == 25
    assert {"idle", "hold"} <= set(accelerator.steps)
    call, back_to_back, *_ = launch(bench)
    assert call.clock == "monotonic clock, device not waited for" and back_to_back.clock == "pretended events"


def test_kinds_in_stored_files_are_read() -> None:
    stored = {"device": "d", "hostname": "h", "os": "o", "python": "p", "versions": {}}
    for kind, is_host, of_spec in (("cpu", True, "cpu"), ("cuda", False, "cuda"), ("xpu", False, "other")):
        environment = Environment.model_validate(stored | {"device_kind": kind})
        assert (environment.is_host, spec_kind(environment.device_kind)) == (is_host, of_spec)


ALLOWED = ("profiler/record/run.py", "roofline/hardware/spec.py", "scripts/gpu_campaign.py", "profiler/gate/worker.py")
"""Modules that say what stored files hold, and scripts that run in interpreters that lack roofcal."""


def test_only_the_backend_names_a_kind_of_accelerator() -> None:
    named = []
    files = [path for room in ("profiler", "roofline", "calibrate", "scripts") for path in (ROOT / room).rglob("*.py")]
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        if name in ALLOWED or path == Path(module.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            literal = isinstance(node, ast.Constant) and node.value == CUDA.type
            attribute = isinstance(node, ast.Attribute) and node.attr == CUDA.type
            if literal or attribute:
                named.append(f"{name}:{node.lineno}")
    assert not named, "ask profiler.devices.backend instead of naming a kind of device"
