"""The program of each rank: it times every collective at every size together with the others; rank 0 writes the file.

`profiler.microbench.collectives.launch` starts it on one machine. Across machines, start it by hand on each of them, in
the folder of this repository::

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m profiler.microbench.collectives.worker --device cuda --out collectives.jsonl

Rank 0 appends one `Measurement` a line to `--out` (its value is the bus bandwidth), each flushed at once. A case that
fails on any rank fails on all and is a line with its reason; the next case gets new connections. If a rank dies, the
others end with an exit code that is not 0. Operations use one process group (NCCL on CUDA, gloo on a CPU), decisions
another one (always gloo).
"""

import argparse
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pynvml
import torch
import torch.distributed as dist

from profiler.devices.backend import BACKENDS, PerDevice, backend_of
from profiler.devices.host import keep_freed_memory
from profiler.microbench.bench import reason
from profiler.microbench.collectives.cases import CASES, Operands, Ranks, repeats_limit, whole
from profiler.microbench.collectives.lockstep import SAMPLE_S, Phase, Together, lockstep_clock, measure
from profiler.record.measurement import UNKNOWN_LINK, Measurement
from roofline.laws.work import factor

SMALLEST = 1 << 10
LARGEST = PerDevice(host=16 << 20, accelerator=256 << 20)
STEP, QUICK_STEP = 4, 16
"""Factor from one size to the next."""
TIMEOUT_S = 60.0
"""Longest time of an operation; a rank that takes longer is taken to be dead."""
CONTROL_FACTOR = 3
"""The group for decisions waits so many times longer than an operation may take, so that a rank that times out in an
operation can still tell the others."""


class FailedTogether(Exception):
    """A case failed on all ranks; the message holds the reason of each rank."""


def sizes(device_type: str, *, quick: bool, smallest: int = SMALLEST, largest: int | None = None) -> tuple[int, ...]:
    """Bytes, from the smallest in steps of 4 (quick: 16) up to the largest."""
    every, last = [smallest], largest or LARGEST.of(device_type)
    while every[-1] * (step := QUICK_STEP if quick else STEP) <= last:
        every.append(every[-1] * step)
    return tuple(every)


def settings(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line, the same on all ranks. Exits with a message where one is wrong."""
    parser = argparse.ArgumentParser(prog="collectives.worker", description="Run under torchrun; one process a rank.")
    parser.add_argument("--out", type=Path, required=True, help="file that rank 0 appends measurements to, one a line")
    parser.add_argument("--device", choices=tuple(backend.type for backend in BACKENDS), required=True)
    parser.add_argument("--operations", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--smallest", type=int, default=SMALLEST, help="bytes")
    parser.add_argument("--largest", type=int, help="bytes")
    parser.add_argument("--quick", action="store_true", help="sizes in steps of 16 instead of 4")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds of a case")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds that an operation may take")
    parser.add_argument("--process", type=int, default=0, help="number written into the measurements")
    parser.add_argument("--lifeline", type=Path, help="named pipe: every rank ends when its writing end is closed")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run all cases on this rank."""
    options = settings(arguments)
    if options.lifeline is not None:
        hold(options.lifeline)
    keep_freed_memory()
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device(options.device) if backend_of(options.device).is_host else torch.device(options.device, local)
    backend_of(device).make_current(device)
    dist.init_process_group("gloo", timeout=timedelta(seconds=CONTROL_FACTOR * options.timeout))
    try:
        with Path(os.devnull if dist.get_rank() else options.out).open("a", encoding="utf-8") as out, torch.no_grad():
            for measurement in Worker(options, device).measurements():
                out.write(measurement.model_dump_json() + "\n")
                out.flush()
    finally:
        dist.destroy_process_group()


def hold(lifeline: Path) -> None:
    """End this process as soon as no other process holds the named pipe open for writing."""
    file = lifeline.open("rb")

    def wait() -> None:
        file.read()
        os._exit(1)  # the main thread may be deep inside an operation that never ends

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


class Worker:
    """A rank of the measurement."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self._options, self._device = options, device
        self._backend = backend_of(device).collectives
        self._count = dist.get_world_size()
        self._small = torch.ones(1, device=device)

    def measurements(self) -> Iterator[Measurement]:
        """Measure every operation at every size; all ranks yield the same."""
        options = self._options
        if self._count < 2:
            yield failed("all", "one rank: collectives need two or more", process=options.process)
            return
        self._connect()
        link = self._link()
        every = sizes(options.device, quick=options.quick, smallest=options.smallest, largest=options.largest)
        for operation, size in product(options.operations, every):
            yield self._measured(operation, whole(size, self._count), link)

    def _measured(self, operation: str, size: int, link: str) -> Measurement:
        ranks = {"ranks": self._count, "backend": self._backend, "link": link}
        about: dict[str, Any] = {
            "benchmark": "collective",
            "case": f"{operation} {size}",
            "dtype": "float32",
            "threads": torch.get_num_threads() if backend_of(self._device).is_host else None,
            "process": self._options.process,
            "parameters": {"operation": operation, "bytes": size, **ranks},
            "unit": "B/s",
            "work": size * factor(operation, self._count),
        }
        try:
            timed = self._timed(operation, size)
        except FailedTogether as error:
            self._connect()
            return Measurement(**about, status="failed", reason=str(error))
        return Measurement(
            **about,
            status="done",
            samples=timed.times_s,
            repeats=timed.repeats,
            clock=timed.clock,
            stop_reason="sample limit",
            warm_up=timed.warm_up,
        )

    def _timed(self, operation: str, size: int) -> Together:
        ranks = Ranks(dist.get_rank(), self._count, self._device, self._group)
        made: list[Operands] = []

        def make() -> list[float]:
            made.append(CASES[operation](size, ranks))
            return []

        share(make)
        return measure(
            made[0],
            lockstep_clock(self._device, self._meet),
            share,
            budget_s=self._options.budget,
            sample_s=SAMPLE_S.of(self._device),
            most_repeats=repeats_limit(operation, self._count),
        )

    def _connect(self) -> None:
        """Make a new group for the operations: a group in which one has failed may be unusable."""
        self._group = dist.new_group(backend=self._backend, timeout=timedelta(seconds=self._options.timeout))

    def _meet(self) -> None:
        dist.all_reduce(self._small, group=self._group)

    def _link(self) -> str:
        seen: list[tuple[str, str]] = [("", "")] * self._count
        uuid = backend_of(self._device).describe(self._device)[1] or ""
        dist.all_gather_object(seen, (socket.gethostname(), uuid))
        return link_name(
            backend=self._backend,
            hosts=len({host for host, _ in seen}),
            rocm=torch.version.hip is not None,
            nvlinked=lambda: all_nvlinked([uuid for _, uuid in seen]),
        )


def link_name(*, backend: str, hosts: int, rocm: bool, nvlinked: Callable[[], bool]) -> str:
    """Name of the link between the ranks, as in `Peaks.links`; `nvlinked` is called only where it matters.

    - "network": more than one host takes part; a ring is as fast as its slowest link;
    - "loopback": gloo within one host, TCP through the kernel, which no device file has;
    - "infinity-fabric": AMD's GPUs within one host;
    - "nvlink": NVIDIA's GPUs, if the driver reports NVLink for every pair;
    - "pcie": NVIDIA's GPUs otherwise, also those that reach each other only through the host's memory;
    - `UNKNOWN_LINK`: NVIDIA's GPUs, if the driver cannot be read. No `Link` is made of such measurements.
    """
    if hosts > 1:
        return "network"
    if backend == "gloo":
        return "loopback"
    if rocm:
        return "infinity-fabric"
    try:
        return "nvlink" if nvlinked() else "pcie"
    except pynvml.NVMLError:
        return UNKNOWN_LINK


def all_nvlinked(uuids: Sequence[str]) -> bool:
    """Whether the driver reports NVLink between every two of these GPUs ("GPU-…"). Raises pynvml.NVMLError."""
    pynvml.nvmlInit()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        states = (
            pynvml.nvmlDeviceGetP2PStatus(a, b, pynvml.NVML_P2P_CAPS_INDEX_NVLINK) for a, b in combinations(handles, 2)
        )
        return all(state == pynvml.NVML_P2P_STATUS_OK for state in states)
    finally:
        pynvml.nvmlShutdown()


def share(phase: Phase) -> list[float]:
    """Run a phase on every rank and return the maximum of each time. Raises FailedTogether on all if it fails on any.

    KeyboardInterrupt and the failure of the group for decisions are not caught: they end the process.
    """
    times: list[float] = []
    why: str | None = None
    try:
        times = list(phase())
    except Exception as error:  # noqa: BLE001 - whatever a backend raises fails the case on all ranks
        why = reason(error)
    outcomes: list[tuple[list[float], str | None]] = [([], None)] * dist.get_world_size()
    dist.all_gather_object(outcomes, (times, why))
    reasons = [why for _, why in outcomes]
    if any(why is not None for why in reasons):
        each_rank = "; ".join(f"rank {rank}: {why}" for rank, why in enumerate(reasons) if why is not None)
        raise FailedTogether(each_rank if len(set(reasons)) > 1 else reasons[0])
    return [max(column) for column in zip(*(times for times, _ in outcomes), strict=True)]


def failed(case: str, why: str, *, process: int) -> Measurement:
    """A measurement that says why a case, or all remaining ones, have no result."""
    about: dict[str, Any] = {"benchmark": "collective", "case": case, "process": process}
    return Measurement(unit="B/s", work=1, status="failed", reason=why, **about)


if __name__ == "__main__":
    main(sys.argv[1:])
