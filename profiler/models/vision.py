"""The vision tower of a multimodal model, on images of the size that its config names.

Example: ``vision_graph("gemma-3-27b", batch=1, dtype="bfloat16")``
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from profiler.devices.backend import CUDA
from profiler.models.build import DEFAULT, build_meta
from profiler.models.catalogue import first_line
from profiler.models.meta import know, known_values
from profiler.models.module import Example
from profiler.models.resolve import resolve
from profiler.models.trace import trace
from profiler.record.run import RequestError
from roofline.graph.op import OpGraph
from roofline.workload import Workload

VISION = ("vision_config", "vision_tower_config", "vision_encoder_config")
"""Fields with the config of a vision tower."""
SIDE = 448
"""Pixels of an image's side where a tower takes any size: 1,024 patches of 14."""


def vision_graph(
    name: str, batch: int, dtype: str, attn: str = DEFAULT, *, trust_remote_code: bool = False
) -> tuple[OpGraph, list[str]]:
    """Return one pass of the vision tower over `batch` images, and remarks for readers.

    Raises: RequestError, one line, where the model has no vision tower, or it cannot be traced without an image.
    """
    model = resolve(name, trust_remote_code=trust_remote_code, part="whole")
    part = next((part for part in _configs(model.config)), None)
    if part is None:
        raise RequestError(
            f"--part vision: {name} has no vision tower (no {VISION[0]} in its config); leave --part out"
        )
    whole = build_meta(model.config, dtype, attn, keep_towers=True)
    tower = next((m for m in whole.modules() if isinstance(m, PreTrainedModel) and type(m.config) is type(part)), None)
    if tower is None:
        raise RequestError(f"--part vision: {type(whole).__name__} keeps no tower of its own; give it as --module")
    inputs, what = _images(tower, part, batch, dtype)
    workload = Workload(batch=batch, query_tokens=1, context_tokens=0, dtype=dtype)
    try:
        with known_values():
            graph = trace(tower, inputs, workload, name=f"{name} (vision tower)", target=CUDA.type, options={})
    except Exception as error:  # a tower may ask for anything
        why = f"--part vision: {type(tower).__name__} cannot be traced on {what} ({first_line(error)})"
        raise RequestError(f"{why}; give it as --module with inputs of its own") from error
    return graph, [*model.notes_in_full, f"the vision tower alone ({type(tower).__name__}), on {what}"]


def _configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    for part in (config, getattr(config, "thinker_config", None)):
        for name in VISION:
            if isinstance(found := getattr(part, name, None), PretrainedConfig):
                yield found


def _images(tower: nn.Module, config: PretrainedConfig, batch: int, dtype: str) -> tuple[Example, str]:
    """The inputs of a tower, and what they are."""
    accepted = inspect.signature(tower.forward).parameters
    kind: torch.dtype = getattr(torch, dtype)
    channels = getattr(config, "num_channels", None) or getattr(config, "in_channels", None) or 3
    patch = getattr(config, "patch_size", None) or 14
    if "grid_thw" in accepted:  # patches of all images in a row (Qwen-VL)
        merge = getattr(config, "spatial_merge_size", None) or 1
        side = SIDE // (patch * merge) * merge
        frames = getattr(config, "temporal_patch_size", None) or 1
        patches = torch.empty(batch * side * side, channels * frames * patch * patch, dtype=kind, device="meta")
        grid = torch.tensor([[1, side, side]] * batch)
        made: Tensor = know(torch.empty(grid.shape, dtype=grid.dtype, device="meta"), grid)
        return Example((patches,), {"grid_thw": made}), f"{batch} × {side * patch} × {side * patch} pixels"
    size: Any = getattr(config, "image_size", None) or SIDE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    pixels = torch.empty(batch, channels, height, width, dtype=kind, device="meta")
    return Example((), {"pixel_values": pixels}), f"{batch} × {height} × {width} pixels"
