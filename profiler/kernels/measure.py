"""Kernels for calibration, timed as a model runs them: as the operations of a module, by the clock that times models.

A `Probe` runs each kernel on several sets of operands in turn, as a model runs it layer after layer: weights come from
main memory where they do in a model, activations and the kernel's own code do not. Further rounds over the last sets
find them in the cache. The module is traced and profiled as any model is, so that an operation's sizes, cache states
and time mean the same on both sides. Each kernel is checked against its reference before it is timed.

Example: ``ProbedKernels(shapes, device, rotated_bytes=64 << 20).visit(watched)`` → seconds of each operation
"""

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from profiler.attribution.operations import passes
from profiler.devices.backend import backend_of
from profiler.kernels.family import Arena, Operands, Run, family_of
from profiler.kernels.journal import Made
from profiler.microbench.bench import reason
from profiler.models.meta import know
from profiler.models.trace import NoInputs, trace
from profiler.passes.eager import Runner
from profiler.passes.samples import Sample, sample
from profiler.timing.clocks import event_cost_s
from profiler.timing.turns import Watched
from roofline.graph.op import OpGraph
from roofline.laws.kinds import KernelShape
from roofline.workload import Workload

MOST_SETS, MOST_STREAMS = 32, 8
"""Most sets of operands of a product or attention, and of a stream, of which there are many more kernels."""
HELD_PART = 0.17
"""Share of the bytes that take turns, of sets that take turns again: about a quarter of the cache, and so still in it,
though not in the caches of single cores."""
ROUNDS = 2
"""Rounds over those sets, of which the last one counts."""
TOGETHER = 8
"""Small streams that take turns with each other, after as many bytes as a model's weights are were read: there, another
operator ran before each, and code and operands have to come back into the first caches, which is most of the time of a
small operation."""
SWEPT_PART = 1 / 12
"""Share of the bytes that take turns, read before: an eighth of the last-level cache, more than the caches below it."""
SMALL_PART = 1 / 192
"""Largest share of the bytes that take turns, of a small stream's operands: eight and all their turns stay cached."""
PASSES = 1
"""Profiled passes of a visit."""
LONGEST_S, LONGEST_STREAM_S = 0.04, 0.008
"""Longest time of all calls of a kernel in a pass, products and attention first: a stream that takes long is a fallback
of thousands of operators, each of which the profiler records."""
LONGEST_CALL_S = 0.15
"""Longest single call."""
TRIES = 2
"""Further calls of a kernel whose first one says that it takes long."""


class Kernel(nn.Module):
    """One operator on all its sets of operands in turn, and then on the last ones, round and round."""

    def __init__(self, shape: KernelShape, run: Run, sets: Sequence[tuple[Operands, Operands]], held: int) -> None:
        """`sets`: operands, and those that are weights; the last `held` of the sets take turns again."""
        super().__init__()
        self.shape, self.held = shape, held
        self._run = run
        self._operands = [operands for operands, _ in sets]
        self.weights = nn.ModuleList(
            nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights) for _, weights in sets
        )
        self.set_bytes = sum(tensor.nbytes for tensor in self._operands[0])

    def forward(self, turn: int | None = None) -> None:
        """Run one of the `turns`, or all of them where none is named."""
        order = [*range(self.sets), *(list(range(self.sets - self.held, self.sets)) * ROUNDS)]
        for place in order if turn is None else [order[turn]]:
            self._run(*self._operands[place], *self.weights[place].parameters())

    def first(self) -> tuple[Tensor, float]:
        """Run on the first set of operands: the result, and the seconds of the call."""
        start = time.perf_counter()
        result = self._run(*self._operands[0], *self.weights[0].parameters())
        return result, time.perf_counter() - start

    def check(self, result: Tensor) -> None:
        """Raise ArithmeticError where the result on the first set is not what it must be."""
        family_of(self.shape.op).check(self.shape, (*self._operands[0], *self.weights[0].parameters()), result)

    def bounded(self, turns: int) -> "Kernel":
        """Return the same kernel with as many turns at most, on fewer sets of operands; it keeps one set at least."""
        if turns >= self.turns:
            return self
        held = min(self.held, turns // (2 * ROUNDS))
        return self.cut(max(held, 1, turns - held * ROUNDS), held)

    def cut(self, sets: int, held: int) -> "Kernel":
        """Return the same kernel on its first `sets` of operands, of which `held` take turns again."""
        return Kernel(self.shape, self._run, self._sets()[:sets], held)

    def on_meta(self) -> "Kernel":
        """Return the same kernel on tensors without memory, to be traced; those of indices keep their values."""
        twins: dict[int, Tensor] = {}

        def twin(tensor: Tensor) -> Tensor:
            if id(tensor) not in twins:
                twins[id(tensor)] = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
                )
                if not tensor.is_floating_point():
                    know(twins[id(tensor)], tensor)
            return twins[id(tensor)]

        sets = [(tuple(map(twin, operands)), tuple(map(twin, weights))) for operands, weights in self._sets()]
        return Kernel(self.shape, self._run, sets, self.held)

    @property
    def is_stream(self) -> bool:
        """Return whether it only streams."""
        return family_of(self.shape.op).is_stream

    @property
    def turns(self) -> int:
        """Return the calls of a whole pass."""
        return self.sets + self.held * ROUNDS

    @property
    def sets(self) -> int:
        """Return sets of operands."""
        return len(self._operands)

    def _sets(self) -> list[tuple[Operands, Operands]]:
        return [
            (operands, tuple(weights.parameters()))
            for operands, weights in zip(self._operands, self.weights, strict=True)
        ]


def kernel_of(shape: KernelShape, arena: Arena, rotated_bytes: int = 0) -> Kernel:
    """Return a kernel with `sets_of` operands out of `arena`. Raises ValueError for an operator that no family has."""
    run, make = family_of(shape.op).bind(shape, arena.take)
    count, held_bytes = sets_of(shape, rotated_bytes), HELD_PART * rotated_bytes
    held = min(count, sets_of(shape, held_bytes)) if operand_bytes(shape) <= held_bytes else 0
    return Kernel(shape, run, [make() for _ in range(count)], held)


def operand_bytes(shape: KernelShape) -> int:
    """Return bytes of one set of a kernel's operands, about. Raises ValueError for an operator that no family has."""
    return family_of(shape.op).operand_bytes(shape)


def sets_of(shape: KernelShape, rotated_bytes: float) -> int:
    """Return the number of operand sets that a kernel takes in turn: calls that move `rotated_bytes`, within reason."""
    family = family_of(shape.op)
    most = MOST_STREAMS if family.is_stream else MOST_SETS
    return max(1, min(most, math.ceil(rotated_bytes / family.moved_bytes(shape))))


class Probe(nn.Module):
    """Kernels one after another, each on all its sets of operands; small streams in turn with each other."""

    def __init__(self, kernels: Sequence[Kernel], rotated_bytes: int, device: torch.device) -> None:
        """`rotated_bytes`, of all sets of a kernel together, where `sets_of` allowed it."""
        super().__init__()
        self.rotated_bytes = rotated_bytes
        self.sweep = nn.Buffer(torch.ones(max(1, round(SWEPT_PART * rotated_bytes / 4)), device=device))
        self.kernels = nn.ModuleList(kernels)
        self._groups = _grouped(kernels, SMALL_PART * rotated_bytes)
        self.eval()

    def forward(self) -> None:
        for group in self._groups:
            if len(group) == 1:
                group[0]()
                continue
            for turn in range(group[0].turns):
                self.sweep.sum()
                for kernel in group:
                    kernel(turn)


def checked_kernels(
    shapes: Sequence[KernelShape], device: torch.device, rotated_bytes: int, arena: Arena
) -> tuple[list[Kernel], list[tuple[KernelShape, str]]]:
    """Kernels of one dtype, each run and checked once; and those that the device cannot run, each with its reason.

    Args: `rotated_bytes`, of all sets of a kernel together; `arena`, where operands are taken from.
    """
    made: dict[int, Kernel] = {}
    failed: list[tuple[KernelShape, str]] = []
    pace = _Pace(device)
    for place in sorted(range(len(shapes)), key=lambda place: operand_bytes(shapes[place])):
        try:
            with torch.device(device), torch.no_grad():
                made[place] = pace.bounded(shapes[place], lambda shape: kernel_of(shape, arena, rotated_bytes))
        except (RuntimeError, ValueError, NotImplementedError, ArithmeticError) as error:
            failed.append((shapes[place], reason(error)))
    return [made[place] for place in sorted(made)], failed


class _Pace:
    """Keeps the time that calls of each kind of kernel have taken so far, on a CPU.

    A fallback, such as bfloat16 on cores that lack it, can be a hundred times slower than the device's peak tells. Two
    kernels in a row have to say so: a single one may have met a burst of other work.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cpu = backend_of(device).is_host
        self._s_per_byte: dict[str, list[float]] = {}
        """Rates of each kind's last two kernels, while they are slow: larger products and attention take more a
        byte."""

    def bounded(self, shape: KernelShape, make: Callable[[KernelShape], Kernel]) -> Kernel:
        """Return the kernel, checked, with fewer sets of operands where all of them would take longer than `LONGEST_S`.

        Raises RuntimeError where one call takes longer than `LONGEST_CALL_S`, as far as smaller ones of its kind tell.
        """
        size, rates = operand_bytes(shape), self._s_per_byte.setdefault(shape.kind, [])
        expected_s = size * min(rates) if len(rates) == 2 else 0.0
        if expected_s > LONGEST_CALL_S:
            raise RuntimeError(f"a call takes more than {expected_s:.2g} s, calibration allows {LONGEST_CALL_S:g} s")
        kernel = make(shape)
        result, once_s = kernel.first()
        if not self._is_cpu:
            kernel.check(result)
            return kernel
        longest_s = LONGEST_STREAM_S if kernel.is_stream else LONGEST_S
        for _ in range(TRIES):  # first touch of memory, or a burst of other work, is not the kernel's
            if once_s * kernel.turns <= longest_s or once_s > 10 * LONGEST_CALL_S:
                break
            result, again_s = kernel.first()
            once_s = min(once_s, again_s)
        is_slow = once_s > LONGEST_CALL_S / 10
        self._s_per_byte[shape.kind] = [*rates[-1:], once_s / size] if is_slow else []
        if once_s > LONGEST_CALL_S:
            raise RuntimeError(f"a call takes {once_s:.2g} s, calibration allows {LONGEST_CALL_S:g} s")
        kernel.check(result)
        return kernel.bounded(max(1, int(longest_s / once_s)))


def _grouped(kernels: Sequence[Kernel], small_bytes: float) -> list[list[Kernel]]:
    """Return small streams with as many turns, `TOGETHER` at a time; all other kernels by themselves."""
    small: dict[int, list[Kernel]] = {}
    groups: list[list[Kernel]] = []
    for kernel in kernels:
        if kernel.is_stream and kernel.set_bytes <= small_bytes:
            small.setdefault(kernel.turns, []).append(kernel)
        else:
            groups.append([kernel])
    alike = [streams[i : i + TOGETHER] for streams in small.values() for i in range(0, len(streams), TOGETHER)]
    return [*alike, *groups]


class ProbedKernels:
    """Kernels that are measured in one profiled session, over several visits."""

    def __init__(
        self,
        shapes: Sequence[KernelShape],
        device: torch.device,
        rotated_bytes: int,
        arena: Arena | None = None,
        made: Made | None = None,
    ) -> None:
        """Operands are taken from `arena`, allocated without one; `made`: how an earlier process made the kernels."""
        self.asked = self.shapes = tuple(shapes)
        """The kernels' shapes; `shapes`, after the first visit, only shapes that the device can run."""
        self.failed: dict[str, str] = {}
        """Reasons why kernels are not measured, by operator and dtype."""
        self._device, self._rotated_bytes = device, rotated_bytes
        self._arena = arena or Arena(device, getattr(torch, shapes[0].dtype))
        self._probe: Probe | None = None
        self.graph: OpGraph | None = None
        self.owners: tuple[int | None, ...] = ()
        """Shape that each operation of the graph belongs to; None for the sweeps."""
        self.held: tuple[int, ...] = ()
        """Sets of operands of each shape that took turns again."""
        self.made = made
        """The way the kernels were made: by an earlier process, or at the first visit."""

    def prepare(self) -> Probe:
        """Make the kernels and, the first time, trace them. Raises RuntimeError where none of them can run."""
        probe = self._probe or self._made()
        if self._device.type == "cpu":  # operands out of an arena are kept, as no others are needed in between
            self._probe = probe
        if self.graph is None:
            self.graph = traced(probe, self.shapes[0].dtype, backend_of(self._device).type)
            self.owners = tuple(int(op.path.split(".")[1]) if op.path else None for op in self.graph.ops)
        return probe

    def visit(self, watched: Watched) -> list[list[float]]:
        """Return seconds of each operation in each of `PASSES` passes; the first visit traces them.

        Raises `InvalidMeasurement` and `SequenceMismatch` as profiling does, and torch's own errors.
        """
        runner = Runner(self.prepare(), NoInputs(), self._device)
        assert self.graph is not None
        with torch.no_grad():
            taken = samples(runner, [op.name for op in self.graph.ops], PASSES, watched)
        return [sample.device_s for sample in taken]

    def _made(self) -> Probe:
        if self.made is not None and self.graph is None:
            kernels = self._made_again(self.made)
            self.failed |= self.made.failed
        else:
            kernels, failed = checked_kernels(self.shapes, self._device, self._rotated_bytes, self._arena)
            self.failed |= {f"kernel.{shape.op}.{shape.dtype}": why for shape, why in failed}
            if not kernels:
                raise RuntimeError(f"none of them can run, the last: {failed[-1][1]}")
            places = {id(shape): place for place, shape in enumerate(self.asked)}
            how = [(places[id(kernel.shape)], kernel.sets, kernel.held) for kernel in kernels]
            self.made = Made(kernels=tuple(how), failed=self.failed)
        self.shapes = tuple(kernel.shape for kernel in kernels)
        self.held = tuple(kernel.held for kernel in kernels)
        return Probe(kernels, self._rotated_bytes, self._device)

    def _made_again(self, made: Made) -> list[Kernel]:
        """Return the kernels of an earlier process, on as many sets of operands. Raises RuntimeError if one does not
        run."""
        kernels = []
        for place, sets, held in made.kernels:
            with torch.device(self._device), torch.no_grad():
                kernel = kernel_of(self.asked[place], self._arena, self._rotated_bytes).cut(sets, held)
                kernel.check(kernel.first()[0])
            kernels.append(kernel)
        return kernels


def traced(probe: Probe, dtype: str, kind: str) -> OpGraph:
    """Return the probe's operations, counted as a model's are; on a CPU without running them, which would take long."""
    if kind == "cpu":
        kernels = [kernel.on_meta() for kernel in probe.kernels if isinstance(kernel, Kernel)]
        probe = Probe(kernels, probe.rotated_bytes, torch.device("meta"))
    workload = Workload(batch=1, query_tokens=1, context_tokens=0, dtype=dtype)
    return trace(probe, NoInputs(), workload, name="probe", target=kind, options={})


def samples(runner: Runner, names: Sequence[str], count: int, watched: Watched) -> list[Sample]:
    """Return passes of a profiled session, less what the profiler added to them."""
    timeline, _ = runner.session(count, watched=watched)
    event_s = event_cost_s() if not runner.by_kernels else 0.0
    return [sample(timeline, window, names, runner.by_kernels).without(event_s) for window in passes(timeline.host)]
