"""Whether a kernel is right: compared with its family's reference in ways that a wrong kernel cannot pass by luck.

A kernel is bound and called four times for each set of sizes. The second call finds other values at the same addresses,
as in a server, so that a result that is kept, or right only the first time, is seen; the third and fourth repeat it, so
that a race is seen. Operands lie between guards of NaN, in some draws at odd addresses; memory that a kernel gets for
its output has held NaN before, and in one draw what `torch.empty` returns is NaN. Whole storages, guards included, are
compared bit by bit before and after each call. Sizes are the family's small odd ones and the kernel's own.

Beside each element's error the gain is judged, ⟨result, expected⟩ ÷ ⟨expected, expected⟩: rounding errors have either
sign and leave it near 1, but a scale that is off by a part of the tolerance everywhere does not.

Example: ``check_kernel(Subject(family, provider, "bfloat16", device), {"rows": 8, "width": 4096}).status``
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from profiler.devices.backend import backend_of
from profiler.kernels.serving.contract import (
    Dims,
    Draw,
    Family,
    Kernel,
    NotInstalled,
    Provider,
    Result,
    Tensors,
    Tolerance,
    Unsupported,
    poisoned,
)
from profiler.microbench.bench import reason
from profiler.record.suite_table import Check, CheckStatus
from roofline.reading import one_line

GUARD = 64
"""Elements of NaN behind each operand: more than a vector register of any device holds."""
OFFSETS = (0, 1, 3)
"""Elements between the start of a storage and its operand, in turn: none, and two odd numbers."""
REPEATS = 2
"""Calls that must give the same bits as the second one."""
GAIN = 0.25
"""Part of the tolerance by which all elements together may be off in one direction. Errors of n independent roundings
leave less than 1/√n of it."""
FEW = 64
"""Elements below which a gain says no more than its elements."""
POISONS = 4
"""Blocks of each output's size that are filled with NaN and freed before a call; allocators hand them out again."""
MOST_POISON_BYTES = 1 << 26
COMPILERS = ("torch._dynamo", "torch._inductor", "triton", "torch.utils.cpp_extension")
"""Modules whose errors say that a kernel could not be compiled."""


class Wrong(ArithmeticError):
    """A kernel that must not be used, with its check."""

    def __init__(self, check: Check) -> None:
        super().__init__(f"{check.status}: {check.reason}")
        self.check = check


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked: a provider of a family, in a dtype on a device."""

    family: Family
    provider: Provider
    dtype: str
    device: torch.device

    @property
    def changed(self) -> tuple[str, ...]:
        """Operands that may be written."""
        return (*self.family.mutates, *self.provider.writes)


class GuardedDraw(Draw):
    """Operands between guards of NaN. Draws of one `seed` have the same whole numbers (lengths, tables, indices), and
    other values with another `turn`."""

    def __init__(self, device: torch.device, seed: int, offset: int = 0, *, turn: int = 0) -> None:
        super().__init__(device, seed, offset)
        self._whole = self._generator
        self._values = torch.Generator().manual_seed((seed + 1) * 1_000_003 + turn)

    def normal(self, *size: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        return self._of_values(lambda: super(GuardedDraw, self).normal(*size, dtype=dtype, scale=scale))

    def uniform(self, low: float, high: float, *size: int, dtype: torch.dtype) -> Tensor:
        return self._of_values(lambda: super(GuardedDraw, self).uniform(low, high, *size, dtype=dtype))

    def _of_values(self, draw: Any) -> Tensor:
        self._generator = self._values
        try:
            result: Tensor = draw()
            return result
        finally:
            self._generator = self._whole

    def placed(self, values: Tensor) -> Tensor:
        storage = poisoned((self.offset + values.numel() + GUARD,), values.dtype).to(self.device)
        result = storage[self.offset : self.offset + values.numel()].view(values.shape)
        result.copy_(values)
        return result


EMPTIES: tuple[tuple[Any, str], ...] = (
    *((torch, name) for name in ("empty", "empty_like", "empty_strided")),
    *((Tensor, name) for name in ("new_empty", "new_empty_strided")),
)
"""What gives memory without a value."""


@contextmanager
def poisoned_empties() -> Iterator[None]:
    """Within it, memory that Python asks torch for without a value holds NaN."""
    before = [getattr(owner, name) for owner, name in EMPTIES]

    def filling(get: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def filled(*args: Any, **kwargs: Any) -> Tensor:
            result = get(*args, **kwargs)
            poison(result)
            return result

        return filled

    try:
        for (owner, name), get in zip(EMPTIES, before, strict=True):
            setattr(owner, name, filling(get))
        yield
    finally:
        for (owner, name), get in zip(EMPTIES, before, strict=True):
            setattr(owner, name, get)


def poison(tensor: Tensor) -> None:
    """Fill a tensor with NaN, or with the sentinel of its type."""
    if tensor.numel():
        fill = poisoned((1,), tensor.dtype) if tensor.dtype != torch.bool else torch.ones(1, dtype=torch.bool)
        tensor.copy_(fill.to(tensor.device).expand(tensor.shape))


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
    """(whether it is the kernel's own, sizes, number of the draw); the own sizes first, since they may be refused.

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
    """How far the outputs of one draw were off, in tolerances, and where."""

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
    run = bound(subject, dims, tensors)
    found = [compare(subject, dims, tensors, run, poisons=poisons)]
    refill(tensors, {name: other for name, other in others.items() if name not in family.weights})
    start = {name: tensors[name].clone() for name in subject.changed}
    found.append(compare(subject, dims, tensors, run, poisons=poisons))
    second: dict[str, Tensor] | None = None
    for call in range(1 + REPEATS):
        refill(tensors, start)
        outputs = {name: output.clone() for name, output in called(subject, dims, tensors, run).items()}
        if second is None:
            second = outputs
        for name, output in outputs.items():
            if not torch.equal(_bits(output), _bits(second[name])):
                raise _wrong("non-deterministic", dims, f"{name} differs between calls {call + 1} and {call + 2}")
    worst = max(found, key=lambda each: each.worst)
    return Compared(len(found), worst.worst, worst.where)


def bound(subject: Subject, dims: Dims, tensors: Tensors) -> Kernel:
    """The provider's kernel for these operands. Raises Unsupported, NotInstalled, and Wrong for any other error."""
    before = _storages(subject, tensors)
    try:
        run = subject.provider.bind(dims, subject.dtype, tensors)
    except (Unsupported, NotImplementedError, NotInstalled):
        raise
    except Exception as error:
        raise _wrong("compile error", dims, reason(error)) from error
    _require_unchanged(subject, dims, tensors, before)
    return run


def called(subject: Subject, dims: Dims, tensors: Tensors, run: Kernel, *, poisons: bool = False) -> Tensors:
    """The outputs of one call by name. Raises Wrong for one that is missing or whatever the kernel raises."""
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
    """What a kernel returned and wrote, by the names of the family's outputs. Raises Wrong where something lacks."""
    family = subject.family
    names = [name for name in family.outputs if name not in family.mutates]
    parts: Sequence[Any] = (result,) if isinstance(result, Tensor) else tuple(result or ())
    if len(parts) != len(names) or not all(isinstance(part, Tensor) for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts) or "nothing"
        raise _wrong("wrong shape", dims, f"it returned {kinds}; expected: {', '.join(names) or 'nothing'}")
    return {**dict(zip(names, parts, strict=True)), **{name: tensors[name] for name in family.mutates}}


def compare(subject: Subject, dims: Dims, tensors: Tensors, run: Kernel, *, poisons: bool = False) -> Compared:
    """Call a kernel once and compare all that it returned and all that it must not touch. Raises Wrong."""
    expected = subject.family.reference(dims, tensors)
    before = _storages(subject, tensors)
    _poison_allocator(subject, dims, expected)
    outputs = called(subject, dims, tensors, run, poisons=poisons)
    found = judge_outputs(subject, dims, outputs, expected)
    _require_unchanged(subject, dims, tensors, before)
    owned = {tensor.untyped_storage().data_ptr(): name for name, tensor in tensors.items() if tensor.numel()}
    for name, output in outputs.items():
        source = owned.get(output.untyped_storage().data_ptr()) if output.numel() else None
        if source is not None and source not in subject.changed:
            raise _wrong("writes its input", dims, f"{name} is a view of its input {source}, not memory of its own")
    return found


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
    """The largest error ÷ tolerance, and the element that has it, in words."""
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
    """⟨result, expected⟩ ÷ ⟨expected, expected⟩ where it is off by more than rounding explains, else None."""
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


def refill(tensors: Tensors, values: Mapping[str, Tensor]) -> None:
    """Write values to the operands of these names, where they lie."""
    for name, value in values.items():
        tensors[name].copy_(value)


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's elements, so that NaN equals itself."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _storages(subject: Subject, tensors: Tensors) -> dict[str, Tensor]:
    """A copy of each storage, its guards included; operands that may be written count as zeros."""
    return {name: _storage(tensor, name in subject.changed).clone() for name, tensor in tensors.items()}


def _storage(tensor: Tensor, may_change: bool) -> Tensor:
    """The bytes of the storage; where the operand may change, they count as zeros."""
    whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
    if may_change:
        whole = whole.clone()
        whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).zero_()
    return whole.view(torch.uint8)


def _require_unchanged(subject: Subject, dims: Dims, tensors: Tensors, before: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        now = _storage(tensor, name in subject.changed)
        if not torch.equal(now, before[name]):
            start = int(tensor.storage_offset()) * tensor.itemsize
            places = (now != before[name]).nonzero().flatten() - start
            inside = bool(((places >= 0) & (places < tensor.numel() * tensor.itemsize)).any())
            what = f"{name} has changed" if inside else f"it writes beyond the end of {name}"
            raise _wrong("writes its input", dims, what)


def _poison_allocator(subject: Subject, dims: Dims, expected: Tensors) -> None:
    """Leave NaN in memory of the outputs' sizes, which allocators hand out again without clearing it."""
    del dims
    types = subject.family.returned(subject.dtype)
    for name, wanted in expected.items():
        if wanted.numel() * types[name].itemsize <= MOST_POISON_BYTES:
            blocks = [torch.empty(wanted.shape, dtype=types[name], device=subject.device) for _ in range(POISONS)]
            for block in blocks:
                poison(block)


def _shown(dims: Dims) -> str:
    return ",".join(f"{name}={size}" for name, size in dims.items())


def _wrong(
    status: CheckStatus, dims: Dims, what: str, *, worst: float | None = None, where: str | None = None
) -> Wrong:
    finite = worst if worst is not None and math.isfinite(worst) else None
    return Wrong(Check(status=status, reason=f"at {_shown(dims)}: {what}", worst=finite, where=where))
