"""What each rank runs: every collective at every size, timed on all ranks together; rank 0 writes the measurements.

Started by `profiler.microbench.collective` on one machine. Across machines, start it by hand on each of them, with the
folder of this package as the working directory::

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m profiler.microbench.collective_worker --device cuda --out collectives.jsonl

Contract: rank 0 appends one `Measurement` a line to `--out` (its value is the bus bandwidth), each flushed when it is
done. A case that fails on any rank fails on all and is a line with its reason; the next one has fresh connections. A
rank that is gone ends the others: the exit code is not 0. Operations go over one process group (NCCL on CUDA, gloo on
a CPU), decisions over another (always gloo).
"""

import argparse
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist

from profiler.devices.backend import BACKENDS, PerDevice, backend_of
from profiler.microbench.bench import reason
from profiler.microbench.busbw import factor
from profiler.microbench.collective_case import CASES, Ranks, repeats_limit, whole
from profiler.microbench.link_name import all_nvlinked, link_name
from profiler.microbench.lockstep import SAMPLE_S, Phase, Together, lockstep_clock, measure
from profiler.record.measurement import Measurement

SMALLEST = 1 << 10
LARGEST = PerDevice(host=16 << 20, accelerator=256 << 20)
STEP, QUICK_STEP = 4, 16
"""From one size to the next."""
TIMEOUT_S = 60.0
"""Of an operation: beyond it a rank is thought to be gone."""
CONTROL_FACTOR = 3
"""The group that decides waits so many times longer than an operation may take, so that whoever is left waiting in an
operation still gets to tell the others."""


class FailedTogether(Exception):
    """A case has no result on any rank; the message says what each rank says."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Alike on all ranks."""

    device: str
    out: Path
    operations: tuple[str, ...]
    sizes: tuple[int, ...]
    budget_s: float
    timeout_s: float
    process: int
    lifeline: Path | None


def sizes(device_type: str, *, quick: bool, smallest: int = SMALLEST, largest: int | None = None) -> tuple[int, ...]:
    """Bytes, from the smallest in steps of 4 (quick: 16) up to the largest."""
    found, last = [smallest], largest or LARGEST.of(device_type)
    while found[-1] * (step := QUICK_STEP if quick else STEP) <= last:
        found.append(found[-1] * step)
    return tuple(found)


def settings(arguments: Sequence[str]) -> Settings:
    """From the command line. Exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(prog="collective_worker", description="Run under torchrun; one process a rank.")
    parser.add_argument("--out", type=Path, required=True, help="file that rank 0 appends measurements to, one a line")
    parser.add_argument("--device", choices=tuple(backend.type for backend in BACKENDS), required=True)
    parser.add_argument("--operations", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--smallest", type=int, default=SMALLEST, help="bytes")
    parser.add_argument("--largest", type=int, help="bytes")
    parser.add_argument("--quick", action="store_true", help="sizes in steps of 16 instead of 4")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds of a case")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds that an operation may take")
    parser.add_argument("--process", type=int, default=0, help="number written into the measurements")
    parser.add_argument("--lifeline", type=Path, help="named pipe: every rank ends when its writer is gone")
    given = parser.parse_args(arguments)
    return Settings(
        device=given.device,
        out=given.out,
        operations=tuple(given.operations),
        sizes=sizes(given.device, quick=given.quick, smallest=given.smallest, largest=given.largest),
        budget_s=given.budget,
        timeout_s=given.timeout,
        process=given.process,
        lifeline=given.lifeline,
    )


def main(arguments: Sequence[str]) -> None:
    """Run all cases on this rank."""
    asked = settings(arguments)
    if asked.lifeline is not None:
        hold(asked.lifeline)
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device(asked.device) if backend_of(asked.device).is_host else torch.device(asked.device, local)
    backend_of(device).make_current(device)
    dist.init_process_group("gloo", timeout=timedelta(seconds=CONTROL_FACTOR * asked.timeout_s))
    try:
        with Path(os.devnull if dist.get_rank() else asked.out).open("a", encoding="utf-8") as out, torch.no_grad():
            for found in Worker(asked, device).measurements():
                write(out, found)
    finally:
        dist.destroy_process_group()


def write(out: TextIO, found: Measurement) -> None:
    """One line, at once."""
    out.write(found.model_dump_json() + "\n")
    out.flush()


def hold(lifeline: Path) -> None:
    """End this process as soon as nobody holds the named pipe open for writing, however they went."""
    file = lifeline.open("rb")

    def wait() -> None:
        file.read()
        os._exit(1)  # the main thread may be deep inside an operation that never ends

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


class Worker:
    """One rank of the measurement."""

    def __init__(self, asked: Settings, device: torch.device) -> None:
        self._asked, self._device = asked, device
        self._backend = backend_of(device).collectives
        self._count = dist.get_world_size()
        self._small = torch.ones(1, device=device)

    def measurements(self) -> Iterator[Measurement]:
        """Every operation at every size, alike on all ranks."""
        if self._count < 2:
            yield failed("all", "one rank: collectives need two or more", process=self._asked.process)
            return
        self._connect()
        link = self._link()
        for operation in self._asked.operations:
            for size in self._asked.sizes:
                yield self._measured(operation, whole(size, self._count), link)

    def _measured(self, operation: str, size: int, link: str) -> Measurement:
        about: dict[str, Any] = {
            "benchmark": "collective",
            "case": f"{operation} {size}",
            "dtype": "float32",
            "threads": torch.get_num_threads() if backend_of(self._device).is_host else None,
            "process": self._asked.process,
            "parameters": {
                "operation": operation,
                "bytes": size,
                "ranks": self._count,
                "backend": self._backend,
                "link": link,
            },
            "unit": "B/s",
            "work": size * factor(operation, self._count),
        }
        try:
            found = self._timed(operation, size)
        except FailedTogether as error:
            self._connect()
            return Measurement(**about, status="failed", reason=str(error))
        return Measurement(
            **about,
            status="done",
            samples=found.times_s,
            repeats=found.repeats,
            clock=found.clock,
            stop_reason="sample limit",
            warm_up=found.warm_up,
        )

    def _timed(self, operation: str, size: int) -> Together:
        ranks = Ranks(dist.get_rank(), self._count, self._device, self._group)
        made = []

        def make() -> list[float]:
            made.append(CASES[operation](size, ranks))
            return []

        share(make)
        return measure(
            made[0],
            lockstep_clock(self._device, self._meet),
            share,
            budget_s=self._asked.budget_s,
            sample_s=SAMPLE_S.of(self._device),
            most_repeats=repeats_limit(operation, self._count),
        )

    def _connect(self) -> None:
        """A fresh group for the operations: one that an operation has failed in may be of no more use."""
        self._group = dist.new_group(backend=self._backend, timeout=timedelta(seconds=self._asked.timeout_s))

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


def share(phase: Phase) -> list[float]:
    """Run a phase on every rank and give the greatest of each time. Raises FailedTogether on all if it fails on any.

    What ends the process (KeyboardInterrupt, a control group that is gone) is not caught.
    """
    times: list[float] = []
    why: str | None = None
    try:
        times = list(phase())
    except Exception as error:  # noqa: BLE001 - whatever a backend raises fails the case on all ranks
        why = reason(error)
    outcomes: list[tuple[list[float], str | None]] = [([], None)] * dist.get_world_size()
    dist.all_gather_object(outcomes, (times, why))
    if any(why is not None for _, why in outcomes):
        raise FailedTogether(together([why for _, why in outcomes]))
    return [max(column) for column in zip(*(times for times, _ in outcomes), strict=True)]


def together(reasons: Sequence[str | None]) -> str:
    """One line of what each rank says, None where it has not failed; said once where all say the same."""
    if len(set(reasons)) == 1:
        return str(reasons[0])
    return "; ".join(f"rank {rank}: {why}" for rank, why in enumerate(reasons) if why is not None)


def failed(case: str, why: str, *, process: int) -> Measurement:
    """Why a case, or all that are left, have no result."""
    return Measurement(
        benchmark="collective", case=case, process=process, unit="B/s", work=1, status="failed", reason=why
    )


if __name__ == "__main__":
    main(sys.argv[1:])
