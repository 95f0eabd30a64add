"""Chooses the kernels that a command asks for: those of a suite, of a model's step, of a shape, or of the user's files.

A selection is what the command line says; `planned` makes a list of kernels of it, each a family, a provider, a dtype
and sizes, without doubles and in an order that does not depend on the machine, so that shards do not overlap.

Example: ``planned(Selection(suite="smoke", families=("linear",)), Registry.of(()), torch.device("cpu"))``
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from profiler.devices.backend import free_bytes
from profiler.kernels.serving.contract import Family, NotInstalled, Provider, Unsupported
from profiler.kernels.serving.registry import Registry, UserError, unknown
from profiler.kernels.serving.shapes import Suite, Wanted, kernels, model_step, suite_named, wanted_of
from profiler.kernels.serving.timing import Task
from profiler.microbench.bench import LIMIT_BYTES, MEMORY_PART
from profiler.record.suite_table import HIGHEST_SIZE, KernelId
from roofline.dtypes import MODEL_DTYPES
from roofline.record import Record
from roofline.units import binary
from roofline.workload import Workload

BASE = "torch"
"""The provider that a user's kernel stands beside."""
SMOKE, MODEL_DTYPE = "smoke", "bfloat16"
"""The suite, and the dtype of models, where none is named."""
COMPILED = "inductor"
"""The provider that takes seconds to compile."""
START_S, KERNEL_S, COMPILE_S = 5.0, 0.5, 6.0
"""Seconds until a nursery forks (it imports torch), of a kernel's process beside its samples (operands, the first
calls, its share of the check), and of compiling one with Inductor, on two quiet cores."""


class Selection(Record):
    """The kernels that a command asks for, which a run keeps for `--resume`."""

    suite: str | None = None
    """Name of a suite, or its file."""
    models: tuple[str, ...] = ()
    tp: tuple[int, ...] = (1,)
    phases: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1,)
    prompts: tuple[int, ...] = (128,)
    contexts: tuple[int, ...] = (1024,)
    shapes: tuple[str, ...] = ()
    """Shapes of the one family that is named: "m=8,n=4096,k=4096"."""
    families: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    """The user's kernel files."""
    shard: tuple[int, int] | None = None
    """(number from 1, of how many)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of a family, and the models whose step has it."""

    family: str
    dtype: str
    dims: Mapping[str, int]
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The kernels of a run, and about how long they take."""

    tasks: tuple[Task, ...]
    seconds: float

    @property
    def uses_compiler(self) -> bool:
        """Return whether children should share an imported compiler."""
        return any(task.kernel.provider == COMPILED for task in self.tasks)


def planned(
    selection: Selection,
    registry: Registry,
    device: torch.device,
    *,
    processes: int,
    template: Task,
) -> Plan:
    """Return the plan of a selection. Raises UserError, one line, for an unknown name and for an explicit shape that
    does not fit the memory; a suite's kernel that does not fit is "unsupported" when it runs.

    `template`: a task whose kernel is replaced.
    """
    for name in selection.families:
        registry.family(name)
    _require_providers(selection, registry)
    tasks: dict[str, Task] = {}
    for shape in _shapes(selection, registry):
        family = registry.family(shape.family)
        if shape.dtype not in family.dtypes:
            raise UserError(unknown(f"dtype of {family.name}", shape.dtype, family.dtypes))
        for provider in _providers(selection, registry, family):
            dims = _fixed(registry, family, provider, shape)
            if dims is None:
                continue
            kernel = KernelId(family=family.name, provider=provider.name, dtype=shape.dtype, dims=dims)
            known = tasks.get(kernel.key)
            models = tuple(dict.fromkeys([*(known.models if known else ()), *shape.models]))
            file = registry.file_of(family.name, provider.name)
            tasks[kernel.key] = template.model_copy(update={"kernel": kernel, "models": models, "file": file})
    if not tasks:
        raise UserError("no kernel is left of this selection; name fewer families, providers or dtypes")
    if selection.shapes:
        _require_memory(tasks.values(), registry, template.limit_bytes)
    ordered = [tasks[key] for key in sorted(tasks)]
    if selection.shard is not None:
        number, count = selection.shard
        ordered = ordered[number - 1 :: count]
        if not ordered:
            raise UserError(f"--shard {number}/{count}: there are {len(tasks)} kernels; use fewer shards")
    return Plan(tuple(ordered), _seconds(ordered, registry, device, processes))


def limit_of(device: torch.device) -> int:
    """Return bytes that the operands of one kernel may take by default."""
    return int(min(LIMIT_BYTES.of(device), MEMORY_PART * free_bytes(device)))


def _shapes(selection: Selection, registry: Registry) -> Iterator[Shape]:
    """Return the shapes asked for, of the families and dtypes asked for."""
    if selection.shapes:
        if len(selection.families) != 1:
            raise UserError("--shape is of one family; name it with --family")
        family = registry.family(selection.families[0])
        for text in selection.shapes:
            dims = dims_of(text, family)
            for dtype in selection.dtypes or family.dtypes[:1]:
                yield Shape(family.name, dtype, dims)
        return
    own = {family for family, _ in registry.listed}
    chosen = set(selection.families) or (own if own and selection.suite is None and not selection.models else None)
    found = set()
    for wanted in _of_models(selection, registry) if selection.models else wanted_of(suite_of(selection)):
        if chosen is None or wanted.family.name in chosen:
            found.add(wanted.family.name)
            if not selection.dtypes or wanted.dtype in selection.dtypes:
                yield Shape(wanted.family.name, wanted.dtype, wanted.dims, wanted.models)
    if selection.models:
        return
    for name in sorted((chosen or set()) - found):  # a family that no model of the suite has
        family = registry.family(name)
        dtypes = [dtype for dtype in family.dtypes if not selection.dtypes or dtype in selection.dtypes]
        yield from (Shape(name, dtype, dict(dims)) for dtype in dtypes[:1] for dims in family.checks[-1:])


def suite_of(selection: Selection) -> Suite:
    """Return the suite of a selection. Raises RequestError, one line, for an unknown one."""
    return suite_named(selection.suite or SMOKE)


def _of_models(selection: Selection, registry: Registry) -> list[Wanted]:
    """Return the kernels of the steps of the models that are named, in each dtype that a model can be in."""
    dtypes = [dtype for dtype in selection.dtypes if dtype in MODEL_DTYPES] or [MODEL_DTYPE]
    made: list[Wanted] = []
    for dtype in dtypes:
        steps = [
            model_step(model, workload, tp)
            for model in selection.models
            for tp in selection.tp
            for workload in _workloads(selection, dtype)
        ]
        made += kernels(steps, dtype, registry.families.values())
    return made


def _workloads(selection: Selection, dtype: str) -> Iterator[Workload]:
    """Yield every phase with its lengths and batches: decode adds a token, a prefill has nothing cached."""
    for phase in selection.phases:
        queries = (1,) if phase == "decode" else selection.prompts
        contexts = (0,) if phase == "prefill" else selection.contexts
        for query, context, batch in itertools.product(queries, contexts, selection.batches):
            yield Workload(batch=batch, query_tokens=query, context_tokens=context, dtype=dtype)


def dims_of(text: str, family: Family) -> dict[str, int]:
    """Return sizes from "m=8,n=4096,k=4096", all of a family's. Raises UserError."""
    dims: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in family.sizes:
            raise UserError(f"--shape {text!r:.80}: {unknown(f'size of {family.name}', name, family.sizes)}")
        if not (size.isascii() and size.isdigit() and len(size) < 14 and int(size) <= HIGHEST_SIZE):
            raise UserError(f"--shape {text!r:.80}: {name} is a whole number, not {size!r:.20}")
        dims[name] = int(size)
    if lacking := [name for name in family.sizes if name not in dims]:
        raise UserError(f"--shape {text!r:.80}: {family.name} also needs {', '.join(lacking)}")
    return {name: dims[name] for name in family.sizes}


def _require_providers(selection: Selection, registry: Registry) -> None:
    families = [registry.family(name) for name in selection.families] or list(registry.families.values())
    known = [provider.name for family in families for provider in family.providers]
    for name in selection.providers:
        if name not in known:
            of = f" of {', '.join(selection.families)}" if selection.families else ""
            raise UserError(unknown(f"provider{of}", name, known))


def _providers(selection: Selection, registry: Registry, family: Family) -> Sequence[Provider]:
    if selection.providers:
        return [provider for provider in family.providers if provider.name in selection.providers]
    own = [name for of, name in registry.listed if of == family.name]
    if own and selection.suite is None and not selection.models:
        return [provider for provider in family.providers if provider.name in (*own, BASE)]
    left_out = () if selection.models or selection.shapes else suite_of(selection).without
    return [provider for provider in family.providers if provider.name not in left_out]


def _fixed(registry: Registry, family: Family, provider: Provider, shape: Shape) -> dict[str, int] | None:
    """Return the shape's sizes as a provider of a user's file takes them; None where it is made for others."""
    dims = {name: int(shape.dims[name]) for name in family.sizes}
    entry = registry.listed.get((family.name, provider.name))
    if entry is None:
        return dims
    _, listed = entry
    if listed.dtypes and shape.dtype not in listed.dtypes:
        return None
    return {**dims, **listed.fixed}


def _require_memory(tasks: Iterable[Task], registry: Registry, limit_bytes: int) -> None:
    for task in tasks:
        family = registry.family(task.kernel.family)
        needed = float(family.work(task.kernel.dims, task.kernel.dtype).bytes)
        if not math.isfinite(needed) or needed > limit_bytes:
            raise UserError(
                f"--shape {task.kernel.shape}: its operands are {binary(needed)}, and {binary(limit_bytes)} may be "
                "used; ask for less, or allow more with --memory"
            )


def _seconds(tasks: Sequence[Task], registry: Registry, device: torch.device, processes: int) -> float:
    """Return the seconds that the tasks take, about."""
    total = processes * START_S
    for task in tasks:
        _, provider = registry.find(task.kernel)
        try:
            provider.check(device.type, task.kernel.dtype)
        except (NotInstalled, Unsupported):
            continue
        total += processes * (KERNEL_S + (task.seconds if task.timed else 0.0))
        total += COMPILE_S * (provider.name == COMPILED)
    return total
