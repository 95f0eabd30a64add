"""Measures the cells of a run, and writes each result as soon as it is known.

Models are built one at a time, once for each dtype, and their memory is released before the next. A cell that cannot
run fails with its reason, and the others continue.

Example::

    with RunFolder.create(Path("results"), run) as folder:
        measure_cells(folder, done=frozenset(), job=Job(device=torch.device("cpu")))
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import nn

from profiler.devices.backend import backend_of, free_bytes
from profiler.models.build import build, build_meta
from profiler.models.resolve import resolve, truncate
from profiler.passes.measure import Loaded, measure_cell, reason
from profiler.record.folder import RunFolder
from profiler.record.run import Cell, CellResult, InvalidMeasurement
from profiler.timing.clocks import clock_for

RATED = (128, 1024, 1024)
"""Rows, columns and depth of the product that rates a dtype: 0.3 GFLOP, which takes milliseconds on most hosts."""

Step = Callable[[str, float], None]
"""Called with a text that says what begins, and the units of work done by then: the device is one, each cell is one."""


@dataclass(frozen=True, slots=True)
class Job:
    """The settings of how to measure; the run says what to measure."""

    device: torch.device
    budget_s: float = 10
    """Seconds of passes for each cell."""
    seed: int = 0
    trust_remote_code: bool = False


def measure_cells(folder: RunFolder, done: frozenset[str], job: Job, step: Step = lambda text, done: None) -> None:
    """Measure every cell of the run that is not in `done`, and write each result before the next cell begins."""
    cells = [cell for cell in folder.run.cells if cell.key not in done]
    begun = 0
    for group in _by_model(cells):
        step(f"{group[0].model} {group[0].workload.dtype}: weights", begun + 1)
        loaded: Loaded | None = None
        why = ""
        try:
            loaded = _load(group[0], job)
        except Exception as error:  # noqa: BLE001 - a model that cannot be loaded fails its own cells alone
            why = reason(error)
        for cell in group:
            begun += 1
            if loaded is None:
                folder.append(CellResult(cell=cell, status="failed", reason=why))
                continue
            result, graph = measure_cell(
                cell,
                loaded,
                device=job.device,
                budget_s=job.budget_s,
                seed=job.seed,
                step=partial(_within, step, cell, begun),
            )
            if graph is not None:
                result = result.model_copy(update={"graph": folder.write_graph(cell, graph)})
            try:
                folder.append(result)
            except InvalidMeasurement as error:
                folder.append(CellResult(cell=cell, status="invalid", reason=str(error)))
        del loaded
        gc.collect()
        backend_of(job.device).release_memory()  # else the next model finds no memory free


def _within(step: Step, cell: Cell, done: int, text: str, part: float) -> None:
    step(f"{cell.model} {cell.workload.key}: {text}", done + part)


def _by_model(cells: list[Cell]) -> Iterator[list[Cell]]:
    """Groups of cells that can use the same loaded model, in the order of the run."""

    def model(cell: Cell) -> tuple[object, ...]:
        return (cell.model, cell.workload.dtype, cell.attn, cell.experts, cell.layers, cell.weights)

    for _, group in groupby(cells, key=model):
        yield list(group)


def _load(cell: Cell, job: Job) -> Loaded:
    """The cell's model on the device. Raises RequestError, or MemoryError where it cannot fit."""
    resolved = resolve(cell.model, trust_remote_code=job.trust_remote_code)
    whole_config = resolved.config
    config = truncate(whole_config, cell.layers) if cell.layers else whole_config
    dtype = getattr(torch, cell.workload.dtype)
    meta = build_meta(config, dtype, cell.attn, cell.experts)
    whole = meta if config is whole_config else build_meta(whole_config, dtype, cell.attn, cell.experts)
    needed, free = weight_bytes(meta), free_bytes(job.device)
    if needed > free:
        raise MemoryError(f"{cell.model} needs {needed / 1e9:.1f} GB for its weights, {free / 1e9:.1f} GB are free")
    model = build(
        config,
        job.device,
        dtype,
        cell.attn,
        cell.experts,
        weights=cell.weights,
        name=resolved.location,
        seed=job.seed,
        trust_remote_code=job.trust_remote_code,
    )
    return Loaded(name=cell.model, model=model, meta=meta, whole=whole, notes=resolved.notes)


def planned_weight_bytes(cells: Sequence[Cell], job: Job) -> dict[Cell, float]:
    """Bytes of the weights of each cell's model, before the model is built; 0 where it cannot be."""
    sizes: dict[Cell, float] = {}
    for group in _by_model(list(cells)):
        cell, size = group[0], 0.0
        with suppress(Exception):
            config = resolve(cell.model, trust_remote_code=job.trust_remote_code).config
            config = truncate(config, cell.layers) if cell.layers else config
            size = weight_bytes(build_meta(config, getattr(torch, cell.workload.dtype), cell.attn, cell.experts))
        sizes |= dict.fromkeys(group, size)
    return sizes


def planned_pass_s(weights: Mapping[Cell, float], device: torch.device) -> dict[Cell, float]:
    """About the seconds of a pass of each cell, from its weights (bytes) and one short product in its dtype.

    A dtype that a CPU lacks is a tenth as fast as others, and a single pass may be longer than its budget.
    """
    rates: dict[str, float] = {}
    seconds: dict[Cell, float] = {}
    for cell, size in weights.items():
        dtype = getattr(torch, cell.workload.dtype)
        if cell.workload.dtype not in rates:
            rates[cell.workload.dtype] = _product_rate(dtype, device)
        tokens = cell.workload.batch * cell.workload.query_tokens
        seconds[cell] = 2 * size / dtype.itemsize * tokens / rates[cell.workload.dtype]
    return seconds


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of one product as `nn.Linear` runs it."""
    m, n, k = RATED
    rows, weights = (torch.ones(size, k, dtype=dtype, device=device) for size in (m, n))
    with torch.no_grad():
        nn.functional.linear(rows, weights)  # the first call chooses a kernel
        seconds = clock_for(device).time(lambda: nn.functional.linear(rows, weights), 1)
    return 2 * m * n * k / max(seconds, 1e-9)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
