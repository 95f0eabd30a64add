"""Builds a model from its config: on `meta` for tracing, or on a device, with weights, for measuring.

Random weights are made on the device, in the dtype they run in, one parameter after the other: memory never holds
more than the weights and one parameter. Buffers are computed as the model computes them, each parameter has the dtype
that `transformers` gives it, and tied ones share their memory. `check_request` refuses in advance what cannot run.

Example: ``model = build(config, device="cpu", dtype="bfloat16", attn="sdpa")``
"""

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from profiler.devices.backend import backend_of, parse_device
from profiler.models.catalogue import first_line, quiet
from profiler.models.config import auto_class
from profiler.models.faults import fault
from profiler.models.resolve import hub_reachable, truncate
from profiler.record.run import RequestError
from roofline.dtypes import MODEL_DTYPES
from roofline.workload import Workload

DEFAULT = "default"
"""Name that stands for the model's own choice of an implementation."""

ATTENTION_CHOICES = ("eager", "sdpa", "flash_attention_2", "flex_attention")
"""Implementations that an error suggests, if the model and the installed packages have them."""

EXPERTS_CHOICES = ("eager", "grouped_mm", "batched_mm")
"""Implementations that need only torch."""

WEIGHT_FILES = ("*.safetensors", "*.bin")
HUB_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files in which `transformers` keeps weights in a folder, and in a hub repository."""

BLOCK_ELEMENTS = 4_194_301
"""Number of normal values that are drawn; larger parameters repeat them, because drawing all values of a model takes
longer than measuring it. It is a prime number, so that no two rows of a matrix are alike."""
DEFAULT_STD = 0.02
"""Standard deviation of initial weights where the config names none: `PreTrainedModel._init_weights`."""


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Torch's type of that name. Raises RequestError with the known names."""
    name = str(dtype).removeprefix("torch.")
    if name not in MODEL_DTYPES:
        known = isinstance(getattr(torch, name, None), torch.dtype)
        why = "not a type that models are built in" if known else "unknown"
        raise RequestError(f"--dtype {name} is {why}; use {', '.join(MODEL_DTYPES)}")
    parsed: torch.dtype = getattr(torch, name)
    return parsed


def check_request(
    config: PretrainedConfig, *, device: str | torch.device, dtype: str | torch.dtype, workload: Workload
) -> None:
    """Raise RequestError if there is no such device, it cannot run the dtype, or the workload is too long."""
    _check_dtype_runs(parse_device(device), parse_dtype(dtype))
    longest = context_limit(config)
    tokens = workload.query_tokens + workload.context_tokens
    if longest is not None and tokens > longest:
        raise RequestError(
            f"{tokens} tokens ({workload.context_tokens} of context, {workload.query_tokens} new) are beyond the "
            f"{longest} that the model was made for; ask for fewer"
        )


def context_limit(config: PretrainedConfig) -> int | None:
    """Tokens that the model was made for; None where it has no limit, as a state-space model."""
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(limit) if limit else None


def _check_dtype_runs(device: torch.device, dtype: torch.dtype) -> None:
    """Run a product and a softmax in the dtype, which every model needs."""
    name = str(dtype).removeprefix("torch.")
    others = ", ".join(known for known in MODEL_DTYPES if known != name)
    if why := backend_of(device).why_not_dtype(dtype, device):
        raise RequestError(f"--dtype {name}: {why}; use one of {others}")
    try:
        square = torch.ones(8, 8, dtype=dtype, device=device)
        torch.softmax(square @ square, dim=-1)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise RequestError(f"--dtype {name} does not run on {device}; use one of {others}") from error


def build_meta(
    config: PretrainedConfig,
    dtype: str | torch.dtype,
    attn: str = DEFAULT,
    experts: str = DEFAULT,
    *,
    keep_towers: bool = False,
) -> PreTrainedModel:
    """The model without memory, to be traced; a multimodal one with its towers where these are kept. Raises
    RequestError if it refuses an implementation."""
    with torch.device("meta"), _parameters_on_meta():  # some are made by `torch.FloatTensor`, which knows only the CPU
        return _from_config(config, parse_dtype(dtype), attn, experts, keep_towers).eval()


def build(
    config: PretrainedConfig,
    device: str | torch.device,
    dtype: str | torch.dtype,
    attn: str = DEFAULT,
    experts: str = DEFAULT,
    *,
    weights: Literal["random", "pretrained"] = "random",
    name: str | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model on `device`, ready to run.

    Args:
        weights: "random" is normal with the config's own deviation, around 1 for the gains of norms; "pretrained"
            loads those of `name`, a folder or a hub id.
        seed: of the random weights; the same seed gives the same weights on the same kind of device.
    Raises: RequestError if the model refuses an implementation or its weights are not available; torch's own errors.
    """
    where, kind = torch.device(device), parse_dtype(dtype)
    if weights == "pretrained":
        if name is None:
            raise ValueError("pretrained weights need the folder or hub id that holds them")
        return _pretrained(config, where, kind, attn, experts, name, trust_remote_code).eval()
    with torch.device(where), _parameters_on_meta():
        model = _from_config(config, kind, attn, experts)
    fill(model, where, initial_std(config), seed)
    return model.eval()


def require_weights(location: str) -> None:
    """Raise RequestError if `location`, a folder or a hub id, has no weights that are available now."""
    folder = Path(location)
    if folder.is_dir():
        if not any(path for pattern in WEIGHT_FILES for path in folder.glob(pattern)):
            raise RequestError(f"{location} has no weights ({' or '.join(WEIGHT_FILES)}); use --weights random")
    elif not any(isinstance(try_to_load_from_cache(location, name), str) for name in HUB_FILES) and not hub_reachable():
        raise RequestError(
            f"the weights of {location} are not in the hub's cache, and the hub cannot be reached; use --weights random"
        )


def implementations(model: PreTrainedModel) -> dict[str, str]:
    """The attention and experts implementations that `model` was built with."""
    names = {"attn": str(model.config._attn_implementation)}
    if model._can_set_experts_implementation():
        names["experts"] = str(model.config._experts_implementation)
    return names


def initial_std(config: PretrainedConfig) -> float:
    """Standard deviation of a new model's weights, from the field that `transformers` reads it from."""
    decoder = config.get_text_config(decoder=True)
    deviations = (getattr(decoder, name, None) for name in ("initializer_range", "init_std", "initializer_factor"))
    return float(next((std for std in deviations if std), DEFAULT_STD))


@torch.no_grad()
def fill(model: nn.Module, device: torch.device, std: float, seed: int) -> None:
    """Give each `meta` parameter random values on `device`, one after the other, tied ones once."""
    generator = torch.Generator(device).manual_seed(seed)
    largest = max((p.numel() for p in model.parameters() if p.device.type == "meta"), default=0)
    block = torch.empty(min(BLOCK_ELEMENTS, largest), device=device).normal_(0, std, generator=generator)
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.device.type != "meta":
                continue
            if parameter not in made:
                values = _drawn(parameter, block, generator)
                if name == "weight" and values.dim() == 1:
                    values += 1
                made[parameter] = nn.Parameter(values, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[parameter]


def _drawn(parameter: nn.Parameter, block: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Values of `block` from a random place on, again and again, in the shape and dtype of `parameter`."""
    values = torch.empty_like(parameter, device=block.device)
    flat = values.view(-1)
    first = int(torch.randint(len(block), (1,), generator=generator, device=generator.device)) if len(block) else 0
    turned = torch.cat([block[first:], block[:first]]).to(values.dtype)
    for start in range(0, len(flat), len(block) or 1):
        part = flat[start : start + len(block)]
        part.copy_(turned[: len(part)])
    return values


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Replace each parameter by a `meta` one as it is registered; buffers stay where they are made."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and parameter.device.type != "meta":  # a tied one is on meta already: keep it the same
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _from_config(
    config: PretrainedConfig, dtype: torch.dtype, attn: str, experts: str, keep_towers: bool = False
) -> Any:
    _check_experts(config, experts)
    if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None):
        # transformers 5.17 runs such a model with sdpa and leaves the softcap out; later ones refuse
        if attn == "sdpa":
            raise RequestError(f"--attn sdpa: it has no softcap, which {config.model_type} needs; use eager")
        attn = "eager" if attn == DEFAULT else attn
    try:
        return _construct(config, dtype, attn, experts, keep_towers)
    except (ValueError, ImportError) as error:
        working = [choice for choice in ATTENTION_CHOICES if choice != attn and _accepts(config, dtype, choice)]
        if attn != DEFAULT and working:
            kind = type(config).__name__.removesuffix("Config")
            raise RequestError(f"--attn {attn} is not available for {kind} here; use {' or '.join(working)}") from error
        raise _unbuildable(config, error) from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model class may raise anything on a config that it cannot take
        raise _unbuildable(config, error) from error


def _unbuildable(config: PretrainedConfig, error: Exception) -> RequestError:
    return RequestError(
        fault(config, error) or f"transformers cannot build this config ({first_line(error)}); repair it"
    )


def _construct(config: PretrainedConfig, dtype: torch.dtype, attn: str, experts: str, keep_towers: bool = False) -> Any:
    # A config whose class came from a repository was let in by the user's flag when it was resolved.
    trusted = type(config).__module__.startswith("transformers_modules.")
    options = _implementation_options(config, attn, experts)
    with quiet():
        auto = auto_class(config, with_towers=keep_towers) or AutoModelForCausalLM
        made = auto.from_config(copy.deepcopy(config), dtype=dtype, trust_remote_code=trusted, **options)
        return made if keep_towers or auto is AutoModelForCausalLM else _language_alone(made)


def _language_alone(model: PreTrainedModel) -> PreTrainedModel:
    """A multimodal model without the towers and projectors that a pass over token ids leaves out, an encoder-decoder
    without its encoder."""
    language, head = model.get_decoder(), model.get_output_embeddings()
    kept = {id(part) for part in (language, head) if part is not None}
    if language is None or language is model:
        return model
    around: list[nn.Module] = [model]
    for outer in around:
        for name, part in list(outer.named_children()):
            holds = {id(module) for module in part.modules()} & kept
            if not holds and next(part.parameters(), None) is not None:
                setattr(outer, name, None)
            elif holds and id(part) not in kept:
                around.append(part)
    return model


def _implementation_options(config: PretrainedConfig, attn: str, experts: str) -> dict[str, str]:
    options: dict[str, str] = {} if attn == DEFAULT else {"attn_implementation": attn}
    if experts != DEFAULT and _model_class_sets_experts(config):
        options["experts_implementation"] = experts
    return options


def _accepts(config: PretrainedConfig, dtype: torch.dtype, attn: str) -> bool:
    try:
        with torch.device("meta"):
            _construct(truncate(config, 1), dtype, attn, DEFAULT)
    except (ValueError, ImportError):
        return False
    return True


def _check_experts(config: PretrainedConfig, experts: str) -> None:
    """Raise RequestError for an unknown or unsupported implementation; a dense model accepts any known name."""
    if experts not in (DEFAULT, *EXPERTS_CHOICES):
        raise RequestError(f"--experts {experts} is unknown; use {', '.join((DEFAULT, *EXPERTS_CHOICES))}")
    decoder = config.get_text_config(decoder=True)
    counts = (getattr(decoder, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    if experts != DEFAULT and any(counts) and not _model_class_sets_experts(config):
        raise RequestError(f"--experts {experts}: this model has only its own experts; use {DEFAULT}")


def _model_class_sets_experts(config: PretrainedConfig) -> bool:
    auto = auto_class(config)
    if auto is None:
        return False
    classes = auto._model_mapping[type(config)]
    classes = classes if isinstance(classes, tuple) else (classes,)
    return all(model_class._can_set_experts_implementation() for model_class in classes)


def _pretrained(
    config: PretrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    attn: str,
    experts: str,
    name: str,
    trust_remote_code: bool,
) -> Any:
    _check_experts(config, experts)
    offline = not hub_reachable()
    try:
        with quiet():
            stored, _ = PretrainedConfig.get_config_dict(name, local_files_only=offline)
            if stored.get("quantization_config"):
                raise RequestError(f"the weights of {name} are stored quantised; use --weights random")
            return (
                (auto_class(config) or AutoModelForCausalLM)
                .from_pretrained(
                    name,
                    config=copy.deepcopy(config),
                    dtype=dtype,
                    local_files_only=offline,
                    trust_remote_code=trust_remote_code,
                    **_implementation_options(config, attn, experts),
                )
                .to(device)
            )
    except OSError as error:
        why = f"the weights of {name} are not available ({first_line(error)})"
        raise RequestError(f"{why}; use --weights random") from error
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise RequestError(f"the weights of {name} are damaged ({first_line(error)}); fetch them again") from error
