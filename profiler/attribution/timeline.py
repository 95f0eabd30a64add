"""Everything the torch profiler saw in one session, read from an exported Chrome trace.

Host and device events share one clock and one origin, the first event of the session. Operators and annotations of the
host are kept, calls that give the device work, and kernels, copies and memsets; Python frames, flows, device-side
annotations, synchronisation and calls that launch nothing are left out.

Kineto writes two lines to stderr at each start of the profiler unless `QUIET` is in the environment before torch
is imported (it is read when libkineto is loaded; level 6 is above its highest, USDT).

Example: ``read_timeline("trace.json").device[0].name``
"""

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

QUIET: Mapping[str, str] = {"KINETO_LOG_LEVEL": "6"}
"""Environment that keeps kineto off stderr; its errors are then seen only as missing events, which `check` reports."""

LaunchKind = Literal["kernel", "memory", "graph"]

LAUNCHES: Mapping[str, LaunchKind] = {
    # CUDA runtime and driver API references, sections "Execution Control", "Memory Management", "Graph Management".
    **dict.fromkeys(
        ["cudaLaunchKernel", "cudaLaunchKernelExC", "cudaLaunchCooperativeKernel",
         "cudaLaunchCooperativeKernelMultiDevice", "cuLaunchKernel", "cuLaunchKernelEx", "cuLaunchCooperativeKernel"],
        "kernel",
    ),
    **dict.fromkeys(["cudaGraphLaunch", "cuGraphLaunch"], "graph"),
    **dict.fromkeys(
        ["cudaMemcpy", "cudaMemcpyAsync", "cudaMemcpy2D", "cudaMemcpy2DAsync", "cudaMemcpy3D", "cudaMemcpy3DAsync",
         "cudaMemcpyPeer", "cudaMemcpyPeerAsync", "cudaMemcpyToSymbol", "cudaMemcpyToSymbolAsync",
         "cudaMemcpyFromSymbol", "cudaMemcpyFromSymbolAsync", "cudaMemset", "cudaMemsetAsync", "cudaMemset2D",
         "cudaMemset2DAsync", "cuMemcpyAsync", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync",
         "cuMemsetD8Async", "cuMemsetD16Async", "cuMemsetD32Async"],
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


@dataclass(frozen=True, slots=True)
class HostEvent:
    """An operator or an annotation on a host thread."""

    name: str
    start_s: float
    end_s: float
    tid: int
    external_id: int | None


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
class Timeline:
    """One profiler session; each list is sorted by start, enclosing events first."""

    host: tuple[HostEvent, ...]
    launches: tuple[Launch, ...]
    device: tuple[DeviceEvent, ...]


def read_timeline(trace: Path | str | Mapping[str, Any]) -> Timeline:
    """Parse a trace: a file (.json or .json.gz) or its decoded content. Times become seconds from the first event.

    Raises ValueError for what is not a torch profiler trace, and where an event lacks its time.
    """
    data = trace if isinstance(trace, Mapping) else _load(Path(trace))
    if not isinstance(data, Mapping) or not isinstance(data.get("traceEvents"), list):
        raise ValueError("not a torch profiler trace: no list 'traceEvents'; export one with prof.export_chrome_trace")
    events = [e for e in data["traceEvents"] if e.get("ph") == "X" and e.get("cat") in _KEPT]
    if not events:
        return Timeline((), (), ())
    try:
        times = [(_ns(e["ts"]), _ns(e["dur"])) for e in events]
    except KeyError as missing:
        raise ValueError(f"a trace event has no {missing}; was the file cut off?") from None
    zero = min(start for start, _ in times)
    spans = [((start - zero) * 1e-9, (start + duration - zero) * 1e-9) for start, duration in times]
    timed = list(zip(events, spans, strict=True))
    host = (_host(event, *span) for event, span in timed if event["cat"] in _HOST)
    device = (_device(event, *span) for event, span in timed if event["cat"] in _DEVICE)
    return Timeline(tuple(sorted(host, key=_order)), _launches(timed), tuple(sorted(device, key=_order)))


def _load(path: Path) -> Any:
    raw = path.read_bytes()
    text = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
    try:
        # Decimal keeps the nanoseconds of µs since boot, which a float loses after 2^43 µs, 102 days.
        return json.loads(text, parse_float=Decimal)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not complete JSON ({error}); export the trace again") from error


def _ns(us: float | int | Decimal) -> int:
    return round(us * 1000)


def _order(event: HostEvent | Launch | DeviceEvent) -> tuple[float, float]:
    return event.start_s, -event.end_s


def _host(event: Mapping[str, Any], start_s: float, end_s: float) -> HostEvent:
    return HostEvent(str(event["name"]), start_s, end_s, int(event["tid"]), _external(event))


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


def _launches(timed: list[tuple[Mapping[str, Any], tuple[float, float]]]) -> tuple[Launch, ...]:
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
        kind = LAUNCHES.get(_SUFFIX.sub("", str(event["name"]))) or worked.get(correlation)
        if kind is None:
            continue
        launch = Launch(str(event["name"]), *span, int(event["tid"]), correlation, kind)
        outer = outermost.get(correlation)
        if outer is None or _order(launch) < _order(outer):
            outermost[correlation] = launch
    return tuple(sorted(outermost.values(), key=_order))
