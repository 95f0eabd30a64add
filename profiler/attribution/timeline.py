"""Everything the torch profiler saw in one session, read from an exported Chrome trace.

Host and device events share one clock and one origin, the first event of the session. Operators and annotations of the
host are kept, calls of modules, calls that give the device work, and kernels, copies and memsets; other Python frames,
flows, device-side annotations, synchronisation, calls that launch nothing, and all metadata are left out.

An event whose time, name or ids cannot be true (a time that is no finite number, a host event that ends before it
starts, a name that is not UTF-8) is kept apart in `Timeline.broken` with the reason, so that a pass can name it.

Kineto writes two lines to stderr at each start of the profiler unless `QUIET` is in the environment before torch
is imported (it is read when libkineto is loaded; level 6 is above its highest, USDT).

Example: ``read_timeline("trace.json").device[0].name``
"""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from roofline.reading import Unreadable, read_bytes

QUIET: Mapping[str, str] = {"KINETO_LOG_LEVEL": "6"}
"""Environment that keeps kineto off stderr; its errors are then seen only as missing events, which `check` reports."""

LaunchKind = Literal["kernel", "memory", "graph"]

LAUNCHES: Mapping[str, LaunchKind] = {
    # CUDA runtime and driver API references, sections "Execution Control", "Memory Management", "Graph Management", and
    # the same sections of the HIP runtime API reference.
    **dict.fromkeys(
        ["cudaLaunchKernel", "cudaLaunchKernelExC", "cudaLaunchCooperativeKernel",
         "cudaLaunchCooperativeKernelMultiDevice", "cuLaunchKernel", "cuLaunchKernelEx", "cuLaunchCooperativeKernel",
         "hipLaunchKernel", "hipExtLaunchKernel", "hipModuleLaunchKernel", "hipExtModuleLaunchKernel",
         "hipLaunchCooperativeKernel"],
        "kernel",
    ),
    **dict.fromkeys(["cudaGraphLaunch", "cuGraphLaunch", "hipGraphLaunch"], "graph"),
    **dict.fromkeys(
        ["cudaMemcpy", "cudaMemcpyAsync", "cudaMemcpy2D", "cudaMemcpy2DAsync", "cudaMemcpy3D", "cudaMemcpy3DAsync",
         "cudaMemcpyPeer", "cudaMemcpyPeerAsync", "cudaMemcpyToSymbol", "cudaMemcpyToSymbolAsync",
         "cudaMemcpyFromSymbol", "cudaMemcpyFromSymbolAsync", "cudaMemset", "cudaMemsetAsync", "cudaMemset2D",
         "cudaMemset2DAsync", "cuMemcpyAsync", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync",
         "cuMemsetD8Async", "cuMemsetD16Async", "cuMemsetD32Async", "hipMemcpy", "hipMemcpyAsync",
         "hipMemcpyWithStream", "hipMemset", "hipMemsetAsync"],
        "memory",
    ),
}  # fmt: skip
"""API calls that give the device work, without the suffixes of their versions and of per-thread streams."""

_SUFFIX = re.compile(r"(_v\d+|_ptsz|_ptds)+$")
_HOST = ("cpu_op", "user_annotation")
_APIS = ("cuda_runtime", "cuda_driver")
_DEVICE: dict[str, Literal["kernel", "memcpy", "memset"]] = {
    "kernel": "kernel", "gpu_memcpy": "memcpy", "gpu_memset": "memset",
}  # fmt: skip
_KEPT = frozenset([*_HOST, *_APIS, *_DEVICE])
MODULE = "nn.Module: "
"""Begins the names of Python frames that are calls of modules (torch/autograd/profiler.py, `with_modules`)."""

MOST_PACKED_BYTES = 256 << 20
MOST_BYTES = 512 << 20
"""Bytes of a trace file, and of its JSON, which takes about ten times as much memory; a server's steps are some 10 MB
each."""

_LONGEST_NS = 2**63
"""Times beyond the 64-bit nanoseconds that CUPTI stamps with (CUpti_ActivityKernel) are no times."""
MOST_MEMBERS = 1024
"""Parts of a gzip file; kineto writes one."""


@dataclass(frozen=True, slots=True)
class HostEvent:
    """An operator or an annotation on a host thread."""

    name: str
    start_s: float
    end_s: float
    tid: int
    external_id: int | None
    inputs: Mapping[str, Any] | None = None
    """Arguments of an operator as kineto wrote them ("Input Dims" and its like, with `record_shapes`); unchecked."""


@dataclass(frozen=True, slots=True)
class Launch:
    """An API call that gave the device work."""

    name: str
    start_s: float
    end_s: float
    tid: int
    correlation: int
    """The same as that of the device's event."""
    kind: LaunchKind


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """A kernel, copy or memset as it ran."""

    name: str
    start_s: float
    end_s: float
    stream: int
    device: int
    correlation: int | None
    """None where the profiler knows no launch (it then writes 0 or nothing)."""
    kind: Literal["kernel", "memcpy", "memset"]
    external_id: int | None = None
    """External id of the innermost host event around its launch, which kineto knows even where it does not record the
    launch itself: of the driver API it keeps cuLaunchKernel and cuLaunchKernelEx alone (CuptiCbidRegistry.cpp)."""
    grid: tuple[int, ...] | None = None
    """Blocks of a kernel in x, y, z; None where the trace does not say."""
    block: tuple[int, ...] | None = None
    """Threads of a block in x, y, z."""


@dataclass(frozen=True, slots=True)
class BrokenEvent:
    """An event of the trace that cannot be true."""

    name: str
    reason: str
    """The reason, as the end of a sentence: "its duration is nan"."""
    on_device: bool
    start_s: float | None = None
    """Its start on the timeline's clock; None where that itself is not known."""
    correlation: int | None = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """One profiler session; each list is sorted by start, enclosing events first."""

    host: tuple[HostEvent, ...]
    launches: tuple[Launch, ...]
    device: tuple[DeviceEvent, ...]
    broken: tuple[BrokenEvent, ...] = ()
    """Events of the trace that are in none of the other lists, in the order of the file."""
    modules: tuple[HostEvent, ...] = ()
    """Calls of modules, named as "Linear_3"; only where the profiler ran with `with_stack` or `with_modules`."""

    def broken_in(self, window: tuple[float, float]) -> tuple[BrokenEvent, ...]:
        """The broken events that may belong to a pass: those that begin in its window, or whose start is not known."""
        return tuple(e for e in self.broken if e.start_s is None or window[0] <= e.start_s <= window[1])


def read_timeline(trace: Path | str | Mapping[str, Any]) -> Timeline:
    """Parse a trace: a file (.json or .json.gz) or its decoded content. Times become seconds from the first event.

    Raises ValueError (Unreadable for files that are no JSON) for what is not a torch profiler trace, and where an event
    lacks its time.
    """
    data = trace if isinstance(trace, Mapping) else _load(Path(trace))
    if isinstance(data, list):  # "JSON Array Format" of Chrome's Trace Event Format
        data = {"traceEvents": data}
    if not isinstance(data, Mapping) or not isinstance(data.get("traceEvents"), list):
        raise ValueError("not a torch profiler trace: no list 'traceEvents'; export one with prof.export_chrome_trace")
    whole = (e for e in data["traceEvents"] if isinstance(e, Mapping) and e.get("ph") == "X")
    events = [e for e in whole if isinstance(e.get("cat"), str) and (e["cat"] in _KEPT or _is_module(e))]
    for event in events:
        if missing := [key for key in ("ts", "dur") if key not in event]:
            raise ValueError(f"a trace event has no {missing[0]!r}; was the file cut off?")
    starts = [_ns(event["ts"]) for event in events]
    zero = min((start for start in starts if start is not None), default=0)
    timed: list[_Timed] = []
    broken: list[BrokenEvent] = []
    for event, start in zip(events, starts, strict=True):
        duration = _ns(event["dur"])
        if start is not None and duration is not None and (reason := _fault(event, duration)) is None:
            timed.append((event, ((start - zero) * 1e-9, (start + duration - zero) * 1e-9)))
            continue
        start_s = None if start is None else (start - zero) * 1e-9
        if start is None:
            reason = f"its start is {_shown(event['ts'])}"
        elif duration is None:
            reason = f"its duration is {_shown(event['dur'])}"
        broken.append(_broken(event, str(reason), start_s))
    host = (_host(event, *span) for event, span in timed if event["cat"] in _HOST)
    device = (_device(event, *span) for event, span in timed if event["cat"] in _DEVICE)
    modules = (_host(event, *span, skip=len(MODULE)) for event, span in timed if _is_module(event))
    return Timeline(
        tuple(sorted(host, key=order)),
        _launches(timed),
        tuple(sorted(device, key=order)),
        tuple(broken),
        tuple(sorted(modules, key=order)),
    )


_Timed = tuple[Mapping[str, Any], tuple[float, float]]
"""An event as the trace has it, and its start and end in seconds."""


def _load(path: Path) -> Any:
    raw = read_bytes(path, MOST_PACKED_BYTES, "export a shorter session")
    if not raw.strip():
        raise Unreadable(f"{path} is empty; export the trace again")
    try:
        content = unpacked(raw, MOST_BYTES) if raw.startswith(b"\x1f\x8b") else raw
        # A byte that is not UTF-8 becomes a surrogate, by which `_fault` knows the event that it lies in.
        text = content.decode("utf-8", errors="surrogateescape")
        # Decimal keeps the nanoseconds of µs since boot, which a float loses after 2^43 µs, 102 days.
        return json.loads(text, parse_float=Decimal)
    except (ValueError, EOFError, zlib.error, RecursionError, ArithmeticError) as error:
        raise Unreadable(f"{path} is not complete JSON ({error}); export the trace again") from error


def unpacked(raw: bytes, most: int) -> bytes:
    """The content of gzip members one after another. Raises ValueError beyond `most` bytes, EOFError where cut off."""
    content = bytearray()
    for _ in range(MOST_MEMBERS):
        if not raw:
            return bytes(content)
        member = zlib.decompressobj(wbits=31)  # 16 + 15: with gzip's header, the largest window
        content += member.decompress(raw, most + 1 - len(content))
        if len(content) > most:
            raise ValueError(f"above {most:,} bytes when unpacked")
        if not member.eof:
            raise EOFError("the compressed data end too early")
        raw = member.unused_data.lstrip(b"\0")  # gzip(1): padding after a member
    raise ValueError(f"above {MOST_MEMBERS} compressed parts")


def _is_module(event: Mapping[str, Any]) -> bool:
    return event["cat"] == "python_function" and str(event.get("name")).startswith(MODULE)


def _ns(us: object) -> int | None:
    """Whole nanoseconds; None where the trace holds no finite number of microseconds."""
    if isinstance(us, bool) or not isinstance(us, int | float | Decimal):
        return None
    return round(us * 1000) if -_LONGEST_NS < us * 1000 < _LONGEST_NS else None


def _fault(event: Mapping[str, Any], duration_ns: int) -> str | None:
    """The reason why an event with finite times cannot be true; None where it can.

    What ran on the device is judged where its pass is known (`profiler.attribution.kernels.impossible`).
    """
    if duration_ns < 0 and event["cat"] not in _DEVICE:
        return f"its duration is {_shown(event['dur'])} µs"
    if not isinstance(event.get("name"), str):
        return f"its name is {_shown(event.get('name'))}"
    if not event["name"].isprintable() and any("\udc80" <= letter <= "\udcff" for letter in event["name"]):
        return "its name is not UTF-8"
    try:
        (_device if event["cat"] in _DEVICE else _host)(event, 0.0, 0.0)
        _correlation(event)
    except (TypeError, ValueError, AttributeError, OverflowError, KeyError):
        return "its thread, stream, device or id is not a number"
    return None


def _broken(event: Mapping[str, Any], reason: str, start_s: float | None) -> BrokenEvent:
    try:
        correlation = _correlation(event) or None
    except (TypeError, ValueError, AttributeError, OverflowError):
        correlation = None
    return BrokenEvent(_shown(event.get("name")), reason, event["cat"] in _DEVICE, start_s, correlation)


def _shown(value: object) -> str:
    """A value of the trace in a message: short, and without characters that a terminal would obey."""
    text = value if isinstance(value, str) else str(value) if isinstance(value, int | float | Decimal) else repr(value)
    text = text.encode("utf-8", errors="backslashreplace").decode()
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_SHOWN]


_SHOWN = 60
"""Characters of a value in a message: templates of kernels fill pages."""


def base_name(call: str) -> str:
    """An API call's name without the suffixes of its version and of per-thread streams, as in `LAUNCHES`."""
    return _SUFFIX.sub("", call)


def order(event: HostEvent | Launch | DeviceEvent) -> tuple[float, float]:
    """Sorts events by start, enclosing ones first."""
    return event.start_s, -event.end_s


def _host(event: Mapping[str, Any], start_s: float, end_s: float, skip: int = 0) -> HostEvent:
    args = event.get("args", {})
    inputs = args if "Input Dims" in args else None
    return HostEvent(str(event["name"])[skip:], start_s, end_s, int(event["tid"]), _external(event), inputs)


def _external(event: Mapping[str, Any]) -> int | None:
    external = event.get("args", {}).get("External id")
    return None if external is None else int(external)


def _correlation(event: Mapping[str, Any]) -> int:
    return int(event.get("args", {}).get("correlation") or 0)


def _device(event: Mapping[str, Any], start_s: float, end_s: float) -> DeviceEvent:
    args = event.get("args", {})
    # A copy between devices has "inDevice" (kineto CuptiActivity.cpp, CUpti_ActivityMemcpy2).
    device = args.get("device", args.get("inDevice", event.get("pid")))
    return DeviceEvent(
        str(event["name"]), start_s, end_s, int(args.get("stream", event.get("tid"))), int(device),
        _correlation(event) or None, _DEVICE[event["cat"]], _external(event),
        *(tuple(map(int, args[name])) if name in args else None for name in ("grid", "block")),
    )  # fmt: skip


def _launches(timed: list[_Timed]) -> tuple[Launch, ...]:
    """Calls known to launch, and any other call that shares its correlation with a device event.

    A driver call that a runtime call makes may carry the runtime call's correlation: the outer one is kept.
    """
    worked: dict[int, LaunchKind] = {}
    for event, _ in timed:
        if event["cat"] in _DEVICE:
            worked[_correlation(event)] = "kernel" if event["cat"] == "kernel" else "memory"
    outermost: dict[int, Launch] = {}
    for event, span in timed:
        if event["cat"] not in _APIS or (correlation := _correlation(event)) == 0:
            continue
        kind = LAUNCHES.get(base_name(str(event["name"]))) or worked.get(correlation)
        if kind is None:
            continue
        launch = Launch(str(event["name"]), *span, int(event["tid"]), correlation, kind)
        outer = outermost.get(correlation)
        if outer is None or order(launch) < order(outer):
            outermost[correlation] = launch
    return tuple(sorted(outermost.values(), key=order))
