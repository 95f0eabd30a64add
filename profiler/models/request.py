"""Checks that a device can run what is asked of a model, before anything is built.

Example: ``check_request(config, device="cuda", dtype="bfloat16", workload=workload)``
"""

import torch
from transformers import PretrainedConfig

from profiler.devices.backend import backend_of, parse_device
from profiler.record.errors import RequestError
from roofline.workload import Workload

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Types that `transformers` can build and run a model in, by torch's name."""


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Torch's type of that name. Raises RequestError with the known names."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        known = isinstance(getattr(torch, name, None), torch.dtype)
        why = "not a type that models are built in" if known else "unknown"
        raise RequestError(f"--dtype {name} is {why}; use {', '.join(DTYPES)}")
    return DTYPES[name]


def check_request(
    config: PretrainedConfig, *, device: str | torch.device, dtype: str | torch.dtype, workload: Workload
) -> None:
    """Raise RequestError if the device, the dtype on it, or the workload's length cannot be had."""
    where = parse_device(device)
    _check_runs(where, parse_dtype(dtype))
    longest = context_limit(config)
    asked = workload.query_tokens + workload.context_tokens
    if longest is not None and asked > longest:
        raise RequestError(
            f"{asked} tokens ({workload.context_tokens} of context, {workload.query_tokens} new) are beyond the "
            f"{longest} that the model was made for; ask for fewer"
        )


def context_limit(config: PretrainedConfig) -> int | None:
    """Tokens that the model was made for; None where it has no limit, as a state-space model."""
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(limit) if limit else None


def _check_runs(device: torch.device, dtype: torch.dtype) -> None:
    """Try the type with a product and a softmax, which every model needs."""
    name = str(dtype).removeprefix("torch.")
    others = ", ".join(known for known in DTYPES if known != name)
    if why := backend_of(device).why_not_dtype(dtype, device):
        raise RequestError(f"--dtype {name}: {why}; use one of {others}")
    try:
        square = torch.ones(8, 8, dtype=dtype, device=device)
        torch.softmax(square @ square, dim=-1)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise RequestError(f"--dtype {name} does not run on {device}; use one of {others}") from error
