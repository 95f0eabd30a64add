"""Decides whether a kernel is right: compares it with its family's reference so that no wrong kernel passes by luck.

A kernel is bound and called four times for each set of sizes. The second call finds other values at the same addresses,
as in a server, so that a result that is kept, or right only the first time, is seen; the third and fourth repeat it, so
that a race is seen. `guards` says how accesses beyond the operands and unwritten results are seen. Sizes are the
family's small odd ones and the kernel's own.

Beside each element's error the gain is judged, ⟨result, expected⟩ ÷ ⟨expected, expected⟩: rounding errors have either
sign and leave it near 1, but a scale that is off by a part of the tolerance everywhere does not.

Example: ``check_kernel(Subject(family, provider, "bfloat16", device), {"rows": 8, "width": 4096}).status``
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from profiler.devices.backend import backend_of
from profiler.kernels.serving.contract import (
    Dims,
    Family,
    Kernel,
    NotInstalled,
    Provider,
    Result,
    Tensors,
    Tolerance,
    Unsupported,
)
from profiler.kernels.serving.guards import (
    GuardedDraw,
    bits,
    change_of,
    poison_allocator,
    poisoned_empties,
    refill,
    storages,
)
from profiler.microbench.bench import reason
from profiler.record.suite_table import Check, CheckStatus
from roofline.reading import one_line

OFFSETS = (0, 1, 3)
"""Elements between the start of a storage and its operand, in turn: none, and two odd numbers."""
REPEATS = 2
"""Calls that must give the same bits as the second one."""
GAIN = 0.25
"""Part of the tolerance by which all elements together may be off in one direction. Errors of n independent roundings
leave less than 1/√n of it."""
FEW = 64
"""Elements below which a gain says no more than its elements."""
COMPILERS = ("torch._dynamo", "torch._inductor", "triton", "torch.utils.cpp_extension")
"""Modules whose errors say that a kernel could not be compiled."""


class Wrong(ArithmeticError):
    """A kernel that must not be used, with its check."""

    def __init__(self, check: Check) -> None:
        super().__init__(f"{check.status}: {check.reason}")
        self.check = check


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing to check: a provider of a family, in a dtype on a device."""

    family: Family
    provider: Provider
    dtype: str
    device: torch.device

    @property
    def changed(self) -> tuple[str, ...]:
        """Return the operands that may be written."""
        return (*self.family.mutates, *self.provider.writes)


def check_kernel(
    subject: Subject,
    dims: Dims | None,
    *,
    seed: int = 0,
    draws: int = 2,
    longest_s: float = math.inf,
    now: Callable[[], float] = time.monotonic,
) -> Check:
    """Check a kernel at its family's small sizes in several draws, and at its own `dims` in one; None: small ones only.

    After `longest_s` no other small size is taken up once one has been compared: compilers need seconds for each. Which
    of them come first depends on the seed. Whatever the kernel raises becomes a status; only an interruption passes.
    """
    began, small, left = now(), 0, 0
    notes: dict[str, None] = {}
    compared, worst, refused, where = 0, 0.0, "", None
    for own, sizes, turn in _cases(subject.family, dims, draws, seed):
        if not own and small and now() - began > longest_s:
            left += 1
            continue
        try:
            offset = OFFSETS[turn % len(OFFSETS)]
            if subject.provider.alignment_bytes > 1:
                offset = 0
                notes["operands at odd addresses are not tried: its provider needs them aligned"] = None
            found = _draw(subject, sizes, seed + turn, offset, last=turn == draws - 1 and not own, notes=notes)
        except Wrong as wrong:
            return wrong.check.model_copy(update={"compared": compared, "notes": tuple(notes)})
        except NotInstalled as absent:
            return Check(status="not installed", reason=str(absent))
        except (Unsupported, NotImplementedError) as unable:
            refused = one_line(unable) if str(unable).strip() else "the kernel does not do these sizes"
            if own:
                return Check(status="unsupported", reason=refused)
            notes[f"not checked at {_shown(sizes)}: {refused}"] = None
            continue
        compared += found.compared
        small += not own
        if found.worst >= worst:
            worst, where = found.worst, found.where
    if left:
        notes[f"{left} of {draws * len(subject.family.checks)} small draws were left out after {longest_s:g} s"] = None
    if not compared:
        return Check(status="unsupported", reason=refused or "there is no size to check it at")
    return Check(status="passed", worst=worst, where=where, compared=compared, notes=tuple(notes))


def _cases(family: Family, dims: Dims | None, draws: int, seed: int) -> Iterator[tuple[bool, Dims, int]]:
    """Yield (whether it is the kernel's own, sizes, number of the draw); the own sizes first, since they may be
    refused.

    The last draw comes first: its empty memory is poisoned.
    """
    if dims is not None:
        yield True, dims, 1
    first = seed % max(1, len(family.checks))
    for turn in reversed(range(draws)):
        for sizes in (*family.checks[first:], *family.checks[:first]):
            yield False, sizes, turn


@dataclass(frozen=True, slots=True)
class Compared:
    """The largest error of the outputs of one draw, in tolerances, and its place."""

    compared: int
    worst: float
    where: str | None


def _draw(subject: Subject, dims: Dims, seed: int, offset: int, *, last: bool, notes: dict[str, None]) -> Compared:
    """Check one draw; where operands at an odd address are refused, the same draw at an even one counts."""
    try:
        return draw_once(subject, dims, seed, offset, poisons=last)
    except Wrong as wrong:
        if wrong.check.status != "runtime error" or not offset:
            raise
        found = draw_once(subject, dims, seed, 0, poisons=last)
        notes[f"it refuses operands at odd addresses ({wrong.check.reason})"] = None
        return found


def draw_once(subject: Subject, dims: Dims, seed: int, offset: int = 0, *, poisons: bool = False) -> Compared:
    """Bind a kernel to one draw of operands and compare four calls. Raises Wrong, Unsupported, NotInstalled.

    `poisons`: memory that Python asks torch for holds NaN.
    """
    family = subject.family

    def operands(turn: int) -> Tensors:
        return family.operands(dims, subject.dtype, GuardedDraw(subject.device, seed, offset, turn=turn))

    tensors, others = operands(0), operands(1)
    before = storages(tensors, subject.changed)
    run = bound(subject, dims, tensors)
    _require_unchanged(subject, dims, tensors, before)
    found = [compare(subject, dims, tensors, run, before, poisons=poisons)]
    fresh = {name: other for name, other in others.items() if name not in family.weights}
    refill(tensors, fresh)
    before |= storages({name: tensors[name] for name in fresh}, subject.changed)
    start = {name: tensors[name].clone() for name in subject.changed}
    found.append(compare(subject, dims, tensors, run, before, poisons=poisons))
    second: dict[str, Tensor] | None = None
    last: Tensors = {}
    for call in range(1 + REPEATS):
        refill(tensors, start)
        threads = set(threading.enumerate())
        made = called(subject, dims, tensors, run)
        if set(threading.enumerate()) - threads and call:  # the first call may start a pool
            raise _wrong("non-deterministic", dims, "a thread that it started still runs when it returns")
        _require_own_memory(subject, dims, made, last, "the result of the call before")
        last, outputs = made, {name: output.clone() for name, output in made.items()}
        if second is None:
            second = outputs
        for name, output in outputs.items():
            if not torch.equal(bits(output), bits(second[name])):
                raise _wrong("non-deterministic", dims, f"{name} differs between calls {call + 1} and {call + 2}")
    worst = max(found, key=lambda each: each.worst)
    return Compared(len(found), worst.worst, worst.where)


def bound(subject: Subject, dims: Dims, tensors: Tensors) -> Kernel:
    """Return the provider's kernel for these operands. Raises Unsupported, NotInstalled, and Wrong for any other
    error."""
    try:
        return subject.provider.bind(dims, subject.dtype, tensors)
    except (Unsupported, NotImplementedError, NotInstalled):
        raise
    except Exception as error:
        raise _wrong("compile error", dims, reason(error)) from error


def called(subject: Subject, dims: Dims, tensors: Tensors, run: Kernel, *, poisons: bool = False) -> Tensors:
    """Return the outputs of one call by name. Raises Wrong for one that is missing or whatever the kernel raises."""
    try:
        with poisoned_empties() if poisons else nullcontext():
            result = run(tensors)
            backend_of(subject.device).synchronize(subject.device)
    except (Unsupported, NotImplementedError):
        raise
    except Exception as error:
        first = next((e for e in (error, error.__cause__) if e and type(e).__module__.startswith(COMPILERS)), None)
        raise _wrong("compile error" if first else "runtime error", dims, reason(error)) from error
    return outputs_of(subject, dims, tensors, result)


def outputs_of(subject: Subject, dims: Dims, tensors: Tensors, result: Result) -> Tensors:
    """Return what a kernel returned and wrote, by the names of the family's outputs. Raises Wrong where something
    lacks."""
    family = subject.family
    names = [name for name in family.outputs if name not in family.mutates]
    parts: Sequence[Any] = (result,) if isinstance(result, Tensor) else tuple(result or ())
    if len(parts) != len(names) or not all(isinstance(part, Tensor) for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts) or "nothing"
        raise _wrong("wrong shape", dims, f"it returned {kinds}; expected: {', '.join(names) or 'nothing'}")
    return {**dict(zip(names, parts, strict=True)), **{name: tensors[name] for name in family.mutates}}


def compare(
    subject: Subject, dims: Dims, tensors: Tensors, run: Kernel, before: Mapping[str, Tensor], *, poisons: bool = False
) -> Compared:
    """Call a kernel once and compare all that it returned, and with `before` all that it must not touch. Raises Wrong.

    `before`: the storages of the operands.
    """
    expected = subject.family.reference(dims, tensors)
    poison_allocator(expected, subject.family.returned(subject.dtype), subject.device)
    outputs = called(subject, dims, tensors, run, poisons=poisons)
    found = judge_outputs(subject, dims, outputs, expected)
    _require_unchanged(subject, dims, tensors, before)
    _require_own_memory(subject, dims, outputs, tensors, "its input")
    return found


def _require_own_memory(subject: Subject, dims: Dims, outputs: Tensors, others: Tensors, what: str) -> None:
    owned = {tensor.untyped_storage().data_ptr(): name for name, tensor in others.items() if tensor.numel()}
    for name, output in outputs.items():
        source = owned.get(output.untyped_storage().data_ptr()) if output.numel() else None
        if source is not None and source not in subject.changed:
            raise _wrong("writes its input", dims, f"{name} is a view of {what} {source}, not memory of its own")


def judge_outputs(subject: Subject, dims: Dims, outputs: Tensors, expected: Tensors) -> Compared:
    """Compare outputs with the reference's. Raises Wrong."""
    family = subject.family
    types, tolerances = family.returned(subject.dtype), family.tolerance(dims, subject.dtype)
    worst, where = 0.0, None
    for name in family.outputs:
        output, wanted = outputs[name], expected[name]
        if output.shape != wanted.shape:
            shapes = f"{list(output.shape)}; expected: {list(wanted.shape)}"
            raise _wrong("wrong shape", dims, f"{name} is {shapes}")
        if output.dtype != types[name]:
            raise _wrong("wrong dtype", dims, f"{name} is {output.dtype}; expected: {types[name]}")
        if not output.numel():
            continue
        off, at = _off(name, output, wanted, tolerances[name])
        tolerance = tolerances[name]
        if not bool(output.double()[wanted.isfinite()].isfinite().all()):
            raise _wrong("not finite", dims, at, worst=None, where=at)
        if not tolerance.accepts(output, wanted):
            what = f"{at}, {_times(off)} the tolerance ({tolerance.reason})"
            raise _wrong("wrong numbers", dims, what, worst=off, where=at)
        if (gain := _gain(output, wanted, tolerance)) is not None:
            what = f"all of {name} is {gain:.4g} times what it should be, and single elements hide it"
            raise _wrong("wrong numbers", dims, what, worst=off, where=at)
        if tolerance.share == 1 and off >= worst:
            worst, where = off, at
    return Compared(1, worst, where)


def _off(name: str, output: Tensor, wanted: Tensor, tolerance: Tolerance) -> tuple[float, str]:
    """Return the largest error ÷ tolerance, and the element that has it, in words."""
    excess = tolerance.excess(output, wanted).flatten()
    place = int(torch.where(excess.isnan(), math.inf, excess).argmax())
    at, rest = [], place
    for size in reversed(output.shape):
        at.append(rest % size)
        rest //= size
    index = f"[{', '.join(map(str, reversed(at)))}]" if at else ""
    value, right = float(output.flatten()[place]), float(wanted.flatten()[place])
    off = float(excess[place])
    return math.inf if math.isnan(off) else off, f"{name}{index} is {value:.6g} instead of {right:.6g}"


def _gain(output: Tensor, wanted: Tensor, tolerance: Tolerance) -> float | None:
    """Return ⟨result, expected⟩ ÷ ⟨expected, expected⟩ where it is off by more than rounding explains, else None."""
    result, expected = output.double().flatten(), wanted.double().flatten()
    both = result.isfinite() & expected.isfinite()
    result, expected = result[both], expected[both]
    if len(expected) < FEW or not output.is_floating_point():
        return None
    energy = float(expected @ expected)
    limit = GAIN * (tolerance.relative * energy + tolerance.absolute * float(expected.abs().sum()))
    return float(result @ expected) / energy if abs(float(result @ expected) - energy) > limit > 0 else None


def _times(off: float) -> str:
    return f"{off:.3g} times" if math.isfinite(off) else "beyond"


def _require_unchanged(subject: Subject, dims: Dims, tensors: Tensors, before: Mapping[str, Tensor]) -> None:
    if (what := change_of(tensors, before, subject.changed)) is not None:
        raise _wrong("writes its input", dims, what)


def _shown(dims: Dims) -> str:
    return ",".join(f"{name}={size}" for name, size in dims.items())


def _wrong(
    status: CheckStatus, dims: Dims, what: str, *, worst: float | None = None, where: str | None = None
) -> Wrong:
    finite = worst if worst is not None and math.isfinite(worst) else None
    return Wrong(Check(status=status, reason=f"at {_shown(dims)}: {what}", worst=finite, where=where))
