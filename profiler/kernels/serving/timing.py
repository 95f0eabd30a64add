"""One kernel in this process: checked, timed by the one engine, and checked again on the operands that were timed.

Each set of operands is bound on its own, since a provider may pack what it is bound to. Sets take turns until each use
is cold; where that takes more than `MOST_SETS` of them, a kernel is so small that a server's caches hold its operands,
and it is timed warm.

Example: ``run_kernel(task, registry)``
"""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from profiler.devices.backend import backend_of
from profiler.devices.caches import EffectiveCache
from profiler.kernels.serving.check import (
    Compared,
    Subject,
    Wrong,
    bound,
    check_kernel,
    judge_outputs,
    outputs_of,
)
from profiler.kernels.serving.contract import Dims, Draw, Kernel, NotInstalled, Result, Tensors, Unsupported
from profiler.kernels.serving.guards import refill
from profiler.kernels.serving.registry import Registry
from profiler.microbench.bench import Bench
from profiler.record.measurement import CacheSource, Measurement, State
from profiler.record.suite_table import Check, CheckStatus, KernelId, KernelResult
from profiler.timing.cache_state import copies
from profiler.timing.clocks import GraphClock
from profiler.timing.engine import Case
from roofline.reading import one_line
from roofline.record import Record
from roofline.units import binary

MOST_SETS = 512
"""Sets of operands of one kernel at most: with 32 MiB of cache, kernels below 100 kB are timed warm. So are kernels
whose sets would not fit the memory: a call that looks rows up touches a small part of its table."""
LATER = "after timing: "
"""Begins the reason of a kernel that was right before it was timed."""
NOT_CAPTURABLE = "NotCapturable"


class Task(Record):
    """The work of one process: a kernel, and how it is checked and timed."""

    kernel: KernelId
    process: int
    device: str
    seed: int = 0
    draws: int = 2
    """Draws of each small size; 0: only the kernel's own sizes are compared, as they are timed."""
    check_s: float = 10.0
    """Seconds after which the check takes up no other small size."""
    timed: bool = True
    state: State = "cold"
    seconds: float = 0.3
    """Time limit of the samples."""
    limit_bytes: int
    """Most memory of all sets of operands."""
    cache_bytes: int
    """Size of the last-level cache, which cold operands must exceed."""
    cache_source: CacheSource = "stated"
    cache_reason: str = ""
    threads: int | None = None
    files: tuple[str, ...] = ()
    """The user's kernel files."""
    file: str | None = None
    """The one of them that this kernel is from."""
    models: tuple[str, ...] = ()


@dataclass(slots=True)
class Bound:
    """A set of operands, and the kernel that is bound to it."""

    tensors: Tensors
    run: Kernel
    start: dict[str, Tensor] = field(default_factory=dict)
    """The operands that the kernel may write, before it ran: a state, a cache, a residual that is added in place."""
    mark: dict[str, int] = field(default_factory=dict)
    """A sum over the bits of each operand that must not change."""
    seed: int = 0


def run_kernel(task: Task, registry: Registry) -> KernelResult:
    """Check and time the task's kernel. Raises only what is no fault of the kernel: ValueError for an unknown name."""
    family, provider = registry.find(task.kernel)
    device, dims = torch.device(task.device), task.kernel.dims
    subject = Subject(family, provider, task.kernel.dtype, device)
    work, law = family.work(dims, task.kernel.dtype), family.kind(dims, task.kernel.dtype)
    tolerances = family.tolerance(dims, task.kernel.dtype)
    result = KernelResult(
        kernel=task.kernel,
        process=task.process,
        check=Check(status="passed"),
        flops=float(work.flops),
        bytes=float(work.bytes),
        law=None if law is None else (law[0], {name: float(size) for name, size in law[1].items()}),
        models=task.models,
        file=task.file,
        tolerance="; ".join(f"{name}: {tolerance.reason}" for name, tolerance in tolerances.items()),
    )
    try:
        provider.check(device.type, task.kernel.dtype)
        versions = {"torch": torch.__version__, **({provider.package: provider.version} if provider.package else {})}
    except NotInstalled as absent:
        return result.model_copy(update={"check": Check(status="not installed", reason=str(absent))})
    except Unsupported as unable:
        return result.model_copy(update={"check": Check(status="unsupported", reason=str(unable))})
    if (needed := float(work.bytes)) > task.limit_bytes:
        why = f"its operands are {binary(needed)}, and {binary(task.limit_bytes)} may be used; see --memory"
        return result.model_copy(update={"check": Check(status="unsupported", reason=why)})
    began = time.monotonic()
    check, timed = Check(status="passed"), None
    with torch.no_grad():
        if task.draws:
            check = check_kernel(subject, dims, seed=task.seed, draws=task.draws, longest_s=task.check_s)
        if task.timed and check.status == "passed":
            timed, later = time_kernel(subject, task)
            check = later or check
    seconds = time.monotonic() - began
    return result.model_copy(update={"check": check, "measurement": timed, "versions": versions, "seconds": seconds})


def time_kernel(subject: Subject, task: Task) -> tuple[Measurement | None, Check | None]:
    """Return the kernel's measurement, and the check that it fails meanwhile, if it does."""
    device, dims = subject.device, task.kernel.dims
    touched = max(1, round(float(subject.family.work(dims, subject.dtype).bytes)))
    state, cache = task.state, task.cache_bytes
    failed: list[Check] = []
    try:
        first = _made(subject, dims, task.seed + task.process)
    except Wrong as wrong:
        return None, wrong.check
    except (Unsupported, NotImplementedError) as unable:
        return None, Check(status="unsupported", reason=one_line(unable))
    held = sum(tensor.untyped_storage().nbytes() for tensor in first.tensors.values())
    sets = copies(touched, cache, limit_bytes=1 << 62) if state == "cold" else 1
    too_many = sets > MOST_SETS and touched * MOST_SETS < cache
    if too_many or sets * held > task.limit_bytes:  # rows of a large table, experts that few rows go to
        state = "warm"
    cached = EffectiveCache(task.cache_bytes, task.cache_bytes, task.cache_source, task.cache_reason)
    bench = Bench(device, task.seconds, process=task.process, limit_bytes=task.limit_bytes, cache=cached)
    case = _case(subject, dims, touched, task.seed + task.process, first, failed)

    def timed(clock: GraphClock | None) -> Measurement:
        return bench.time(
            task.kernel.family,
            f"{task.kernel.provider} {task.kernel.shape}",
            lambda: case,
            unit="s",
            work=1,
            dtype=task.kernel.dtype,
            cache=state,
            quantile=0.5,
            clock=clock,
        )

    measurement = timed(GraphClock(device) if backend_of(device).captures_graphs else None)
    if measurement.status == "failed" and (measurement.reason or "").startswith(NOT_CAPTURABLE):
        measurement = timed(None)
    if failed:
        return None, failed[0]
    if measurement.status == "failed":
        too_large = "bytes allowed" in (measurement.reason or "")
        status: CheckStatus = "unsupported" if too_large else "runtime error"
        return None, Check(status=status, reason=measurement.reason)
    return measurement, None


def _made(subject: Subject, dims: Dims, seed: int) -> Bound:
    made = make_bound(subject, dims, subject.family.operands(dims, subject.dtype, Draw(subject.device, seed)))
    made.seed = seed
    return made


def _case(subject: Subject, dims: Dims, touched: int, seed: int, first: Bound, failed: list[Check]) -> Case[Bound]:
    """Return the kernel as the engine takes it; a check that it fails is added to `failed`."""
    spare, made, checks = [first], 0, 0

    def make() -> Bound:
        nonlocal made
        made += 1
        return spare.pop() if spare else _made(subject, dims, seed + 1009 * made)

    def check(operands: Bound, result: object) -> None:
        nonlocal checks
        checks += 1
        try:
            check_bound(subject, dims, operands, result)  # type: ignore[arg-type]
            if checks > 1:
                check_renewed(subject, dims, operands)
        except Wrong as wrong:
            before = LATER if checks > 1 else ""
            failed.append(wrong.check.model_copy(update={"reason": f"{before}{wrong.check.reason}"}))
            raise

    return Case(make, _run, touched, check)


def _run(operands: Bound) -> Result:
    return operands.run(operands.tensors)


def make_bound(subject: Subject, dims: Dims, tensors: Tensors) -> Bound:
    """Bind a provider to one set of operands."""
    start, marks = {name: tensors[name].clone() for name in subject.changed}, _marks(subject, tensors)
    return Bound(tensors, bound(subject, dims, tensors), start, marks)


def check_bound(subject: Subject, dims: Dims, operands: Bound, result: Result) -> Compared:
    """Compare what the last call on a set returned, and see that its inputs are as they were. Raises Wrong."""
    tensors = operands.tensors
    if operands.start:  # what each call changes is no more what the reference knows
        refill(tensors, operands.start)
        expected = subject.family.reference(dims, tensors)
        result = operands.run(tensors)
    else:
        expected = subject.family.reference(dims, tensors)
    backend_of(subject.device).synchronize(subject.device)
    if changed := [name for name, mark in _marks(subject, tensors).items() if mark != operands.mark[name]]:
        raise Wrong(Check(status="writes its input", reason=f"{changed[0]} has changed"))
    return judge_outputs(subject, dims, outputs_of(subject, dims, tensors, result), expected)


def check_renewed(subject: Subject, dims: Dims, operands: Bound) -> Compared:
    """Compare a call on other values at the same addresses: a kernel that keeps its results after some calls gives old
    ones. Raises Wrong."""
    other = subject.family.operands(dims, subject.dtype, Draw(subject.device, operands.seed, turn=1))
    kept = (*subject.family.weights, *subject.changed)
    refill(operands.tensors, {name: value for name, value in other.items() if name not in kept})
    operands.mark = _marks(subject, operands.tensors)
    refill(operands.tensors, operands.start)
    return check_bound(subject, dims, operands, operands.run(operands.tensors))


def _marks(subject: Subject, tensors: Tensors) -> dict[str, int]:
    return {name: _mark(tensor) for name, tensor in tensors.items() if name not in subject.changed}


def _mark(tensor: Tensor) -> int:
    """Return a sum over the tensor's bits, as whole numbers as wide as its elements."""
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32}.get(tensor.itemsize, torch.int64)
    return int(tensor.detach().contiguous().view(width).sum(dtype=torch.int64))
