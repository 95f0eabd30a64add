"""Turns a request into the cells of a run, measures them, and writes each result as soon as it is known.

`plan` refuses before anything is measured what this machine or a model cannot do. Models are built one at a time, once
for each dtype, and their memory is released before the next. A cell that cannot run fails with its reason, and the
others continue.

Example::

    with RunFolder.create(Path("results"), run) as folder:
        measure_cells(folder, done=frozenset(), job=Job(device=torch.device("cpu")))
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Literal

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from profiler.devices.backend import PerDevice, backend_of, free_bytes
from profiler.models.build import build, build_meta, check_request, require_weights
from profiler.models.inputs import prepare
from profiler.models.resolve import ResolvedModel, resolve, truncate
from profiler.models.trace import trace
from profiler.passes.measure import Loaded, measure_cell, reason
from profiler.record.folder import RunFolder
from profiler.record.run import Cell, CellResult, InvalidMeasurement, Mode, RequestError
from profiler.timing.clocks import clock_for
from roofline.graph.op import OpGraph
from roofline.workload import Phase, Workload

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
    return Loaded(name=cell.model, model=model, meta=meta, whole=whole, notes=resolved.notes_in_full)


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


DEFAULT_MODEL = PerDevice(host="qwen2.5-0.5b", accelerator="llama-3.1-8b")
"""Profiled where no model is named: one that fits in 4 GiB of host memory, and one that fits on a 24 GB GPU."""
DEFAULT_DTYPES = PerDevice(host=("bfloat16", "float32"), accelerator=("bfloat16",))


@dataclass(frozen=True, slots=True)
class Shapes:
    """Every combination of these is one workload."""

    phases: tuple[Phase, ...] = ("prefill", "decode")
    prompts: tuple[int, ...] = (128,)
    """New tokens of prefill and chunk."""
    contexts: tuple[int, ...] = (128,)
    """Cached tokens of decode and chunk."""
    batches: tuple[int, ...] = (1,)
    dtypes: tuple[str, ...] = ()
    """Empty is the device's default."""

    def workloads(self, dtype: str) -> list[Workload]:
        """Workloads of one dtype, each once."""
        lengths: list[tuple[int, int]] = []
        for phase in self.phases:
            if phase == "prefill":
                lengths += [(prompt, 0) for prompt in self.prompts]
            elif phase == "decode":
                lengths += [(1, context) for context in self.contexts]
            else:
                lengths += [(prompt, context) for prompt in self.prompts for context in self.contexts]
        return [
            Workload(batch=batch, query_tokens=query, context_tokens=context, dtype=dtype)
            for query, context in dict.fromkeys(lengths)
            for batch in self.batches
        ]


@dataclass(frozen=True, slots=True)
class Choices:
    """Options that all cells of a run share."""

    attn: str = "default"
    experts: str = "default"
    cache: str = "dynamic"
    layers: int | None = None
    weights: Literal["random", "pretrained"] = "random"
    trust_remote_code: bool = False
    mode: Mode = "eager"


def plan(models: Sequence[str], device: torch.device, shapes: Shapes, choices: Choices) -> tuple[Cell, ...]:
    """One cell for each model, dtype and workload, in that order.

    Raises RequestError: unknown model, a device, dtype or implementation that cannot be had, a length beyond the
    model's, a number of layers that it does not have, a mode that the device has not.
    """
    check_mode(choices.mode, device)
    cells: list[Cell] = []
    for name in models or [DEFAULT_MODEL.of(device)]:
        resolved = resolve(name, trust_remote_code=choices.trust_remote_code)
        config = truncate(resolved.config, choices.layers) if choices.layers is not None else resolved.config
        for dtype in shapes.dtypes or DEFAULT_DTYPES.of(device):
            for workload in shapes.workloads(dtype):
                check_request(config, device=device, dtype=dtype, workload=workload)
                options = asdict(choices) | {"layers": None if config is resolved.config else choices.layers}
                del options["trust_remote_code"]
                cells.append(Cell(model=resolved.name, workload=workload, **options))
        _check_model(resolved, config, shapes.workloads(dtype), choices)
    return tuple(dict.fromkeys(cells))


def check_mode(mode: Mode, device: torch.device) -> None:
    """Raise RequestError where passes cannot run so here: CUDA graphs are of CUDA; inductor needs a compiler."""
    if mode.endswith("cuda-graph") and not backend_of(device).captures_graphs:
        raise RequestError(f"--cuda-graph needs a CUDA device, this is {device}; leave it out, or use --device cuda")
    if mode.startswith("compile") and (why := backend_of(device).why_not_compiled()):
        raise RequestError(f"--compile {why}, or leave --compile out")


def _check_model(
    resolved: ResolvedModel, config: PretrainedConfig, workloads: Sequence[Workload], choices: Choices
) -> None:
    """Raise RequestError: an implementation that the model lacks, weights that are not there, too few layers."""
    meta = build_meta(config, workloads[0].dtype, choices.attn, choices.experts)
    if choices.weights == "pretrained":
        require_weights(resolved.location)
    if config is resolved.config:
        return
    from profiler.models.graphs import scale

    whole = build_meta(resolved.config, workloads[0].dtype, choices.attn, choices.experts)
    for workload in workloads:
        part, everything = (_traced(model, workload, choices.cache) for model in (meta, whole))
        if part is not None and everything is not None:
            scale(part, part, everything)


def _traced(model: PreTrainedModel, workload: Workload, cache: str) -> OpGraph | None:
    """The graph on `meta`; None where only the device can tell, which is then asked."""
    try:
        return trace(model, prepare(model, workload, cache=cache), workload, name="", target="cpu", options={})
    except Exception:  # noqa: BLE001 - which error says so differs from model to model; the cell will tell
        return None
