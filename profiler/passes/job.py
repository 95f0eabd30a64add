"""Turns a request into the cells of a run, measures them, and writes each result as soon as it is known.

`plan` refuses before anything is measured what this machine or a model cannot do. Models are built one at a time, once
for each dtype, and their memory is released before the next. A cell that cannot run fails with its reason, and the
others continue.

Example::

    with RunFolder.create(Path("results"), run) as folder:
        measure_cells(folder, done=frozenset(), job=Job(device=torch.device("cpu")))
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Literal

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from profiler.devices.backend import PerDevice, backend_of, free_bytes
from profiler.models.build import build, build_meta, check_request, context_limit, require_weights
from profiler.models.resolve import ResolvedModel, layer_count, resolve, truncate
from profiler.models.trace import trace
from profiler.passes.measure import Loaded, measure_cell, prepared, reason
from profiler.record.folder import RunFolder
from profiler.record.run import Cell, CellResult, InvalidMeasurement, Mode, ModelFacts, RequestError
from profiler.timing.clocks import clock_for
from roofline.graph.memory import footprint
from roofline.graph.op import Kind, OpGraph
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
            if cell.change:
                result = _with_fresh(result, job)
            if graph is not None:
                result = result.model_copy(update={"graph": folder.write_graph(cell, graph)})
            try:
                folder.append(result)
            except InvalidMeasurement as error:
                folder.append(CellResult(cell=cell, status="invalid", reason=str(error)))
        del loaded
        gc.collect()
        backend_of(job.device).release_memory()  # else the next model finds no memory free


def _with_fresh(result: CellResult, job: Job) -> CellResult:
    """The result with the times of new processes where the change asks for them, or the reason why there are none."""
    from profiler.models.changed import parsed

    name, options = parsed(result.cell.change)
    if name != "fresh":
        return result
    from profiler.passes.fresh import fresh_times

    try:
        times = fresh_times(result.cell, job.device, seed=job.seed, trust_remote_code=job.trust_remote_code, **options)
    except InvalidMeasurement as error:
        return result.model_copy(update={"status": "invalid", "reason": str(error)})
    return result.model_copy(update={"fresh": times})


def _within(step: Step, cell: Cell, done: int, text: str, part: float) -> None:
    step(f"{cell.model} {cell.workload.key}: {text}", done + part)


def _by_model(cells: list[Cell]) -> Iterator[list[Cell]]:
    """Groups of cells that can use the same loaded model, in the order of the run."""
    for _, group in groupby(cells, key=_model_key):
        yield list(group)


def _model_key(cell: Cell) -> tuple[object, ...]:
    change = ""
    if cell.change:
        from profiler.models.changed import model_change

        change = model_change(cell.change)
    return (cell.model, cell.workload.dtype, _attention(cell), cell.experts, cell.layers, cell.weights, change)


def _attention(cell: Cell) -> str:
    """The attention implementation of the cell's model: a mixed step has its own."""
    if cell.beside is None:
        return cell.attn
    from profiler.models.mixed import MIXED

    return MIXED


def _load(cell: Cell, job: Job) -> Loaded:
    """The cell's model on the device. Raises RequestError, or MemoryError where it cannot fit."""
    resolved = resolve(cell.model, trust_remote_code=job.trust_remote_code)
    whole_config = resolved.config
    if cell.change:
        from profiler.models.changed import change_model, changed_config

        whole_config = changed_config(whole_config, cell.change)
    config = truncate(whole_config, cell.layers) if cell.layers else whole_config
    dtype, attn = getattr(torch, cell.workload.dtype), _attention(cell)
    meta = build_meta(config, dtype, attn, cell.experts)
    whole = meta if config is whole_config else build_meta(whole_config, dtype, attn, cell.experts)
    needed, free = weight_bytes(meta), free_bytes(job.device)
    if needed > free:
        raise MemoryError(f"{cell.model} needs {needed / 1e9:.1f} GB for its weights, {free / 1e9:.1f} GB are free")
    model = build(
        config,
        job.device,
        dtype,
        attn,
        cell.experts,
        weights=cell.weights,
        name=resolved.location,
        seed=job.seed,
        trust_remote_code=job.trust_remote_code,
    )
    if cell.change:
        for each in (meta, model):
            change_model(each, cell.change)
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


class CellCheck:
    """The model in one dtype, ready to be measured: its facts, and a check of each cell before anything is."""

    def __init__(self, resolved: ResolvedModel, dtype: str, device: torch.device, choices: Choices) -> None:
        """Raises RequestError where the model cannot be built, or its weights do not fit."""
        options = asdict(choices) | {"layers": None}
        del options["trust_remote_code"]
        self.config, self.device = resolved.config, device
        one = Workload(batch=1, query_tokens=1, context_tokens=0, dtype=dtype)
        self.like = Cell(model=resolved.name, workload=one, **options)
        self._meta = build_meta(resolved.config, dtype, choices.attn, choices.experts)
        self._ways = {choices.attn}
        if choices.weights == "pretrained":
            require_weights(resolved.location)
        self._weights, self._free = weight_bytes(self._meta), free_bytes(device)
        self._require(0.0)
        cached = Workload(batch=1, query_tokens=1, context_tokens=15, dtype=dtype)
        try:
            graph, keeps = trace_cell(self.like.model_copy(update={"workload": cached}), self._meta), True
        except RequestError:
            graph, keeps = trace_cell(self.like, self._meta), False
        held = footprint(graph).kv_cache if keeps else 0.0
        self._token_bytes = held / (cached.context_tokens + 1)
        experts = (op.dims.get("groups", 0) for op in graph.ops if op.kind is Kind.GROUPED_MATMUL)
        self.facts = ModelFacts(
            layers=layer_count(resolved.config),
            experts=max(experts, default=0),
            keeps_cache=keeps,
            longest=context_limit(resolved.config),
        )

    def check(self, cell: Cell) -> None:
        """Raise RequestError, one line, for what the device, the model or its memory does not allow."""
        tokens = 0
        for workload in filter(None, (cell.workload, cell.beside)):
            check_request(self.config, device=self.device, dtype=workload.dtype, workload=workload)
            tokens += workload.batch * (workload.query_tokens + workload.context_tokens)
        if cell.change:
            from profiler.models.changed import changed_config

            changed_config(self.config, cell.change)
        copies = 2.0 if cell.change.startswith("load") else 1.0
        self._require(copies * tokens * self._token_bytes)
        way = _attention(cell)
        if way not in self._ways:
            meta = build_meta(self.config, cell.workload.dtype, way, cell.experts)
            if cell.beside:
                prepared(meta, meta, cell, torch.device("meta"), 0)
            self._ways.add(way)

    def _require(self, cache_bytes: float) -> None:
        if self._weights + cache_bytes > self._free:
            raise RequestError(
                f"{self.like.model} needs {(self._weights + cache_bytes) / 1e9:.1f} GB for weights, keys and values, "
                f"{self._free / 1e9:.1f} GB are free; use fewer tokens or sequences, or a smaller model"
            )


def in_groups(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Return each cell once, those that run the same model one after another."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in dict.fromkeys(cells):
        groups.setdefault(_model_key(cell), []).append(cell)
    return tuple(cell for group in groups.values() for cell in group)


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
        part, everything = (_traced(model, workload, choices) for model in (meta, whole))
        if part is not None and everything is not None:
            scale(part, part, everything)


def _traced(model: PreTrainedModel, workload: Workload, choices: Choices) -> OpGraph | None:
    """The graph on `meta`; None where only the device can tell, which is then asked."""
    cell = Cell(model="", workload=workload, attn=choices.attn, experts=choices.experts, cache=choices.cache)
    try:
        return trace_cell(cell, model)
    except Exception:  # noqa: BLE001 - which error says so differs from model to model; the cell will tell
        return None


def trace_cell(cell: Cell, meta: PreTrainedModel) -> OpGraph:
    """Return the graph of a cell's pass on `meta`. Raises RequestError as `prepare` does, and what a model raises."""
    module, inputs = prepared(meta, meta, cell, torch.device("meta"), 0)
    return trace(module, inputs, cell.workload, name="", target="cpu", options={})
