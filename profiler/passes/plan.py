"""Turns a request into cells, and refuses before anything is measured what this machine or a model cannot do.

Example: ``plan(["gpt2"], torch.device("cpu"), Shapes(phases=("decode",), contexts=(128,)), Choices())``
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from transformers import PretrainedConfig, PreTrainedModel

from profiler.devices.backend import PerDevice, backend_of
from profiler.models.build import build_meta, check_request, require_weights
from profiler.models.inputs import prepare
from profiler.models.resolve import ResolvedModel, resolve, truncate
from profiler.models.trace import trace
from profiler.record.run import Cell, Mode, RequestError
from roofline.graph.op import OpGraph
from roofline.workload import Phase, Workload

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
