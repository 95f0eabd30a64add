"""Every what-if by name, and how one is written down: ``name:option=value,option=value``.

Lists have | between their items: ``quantise:weights=4,where=*.mlp.*|*.self_attn.*``.

Example: ``apply(parse("tensor_parallel:degree=8"), graph)``
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from roofline.graph.op import OpGraph
from roofline.whatif.attention import fuse_attention, unfuse_attention
from roofline.whatif.compress import compress_kv
from roofline.whatif.disaggregate import send_kv
from roofline.whatif.expert import expert_parallel
from roofline.whatif.layers import early_exit, remove_layers
from roofline.whatif.lora import lora
from roofline.whatif.lowrank import low_rank
from roofline.whatif.offload import offload
from roofline.whatif.pipeline import pipeline_stage
from roofline.whatif.quantise import quantise
from roofline.whatif.shard import tensor_parallel
from roofline.whatif.skew import skew_experts
from roofline.whatif.sparsity import sparsify_2_4

WHAT_IFS: Mapping[str, Callable[..., OpGraph]] = {
    "quantise": quantise,
    "unfuse_attention": unfuse_attention,
    "fuse_attention": fuse_attention,
    "tensor_parallel": tensor_parallel,
    "pipeline_stage": pipeline_stage,
    "expert_parallel": expert_parallel,
    "compress_kv": compress_kv,
    "early_exit": early_exit,
    "remove_layers": remove_layers,
    "low_rank": low_rank,
    "sparsify_2_4": sparsify_2_4,
    "lora": lora,
    "offload": offload,
    "skew_experts": skew_experts,
    "send_kv": send_kv,
}


SHRINK = frozenset(WHAT_IFS) - {"offload", "send_kv", "unfuse_attention", "fuse_attention"}
"""What-ifs that change how many bytes there are to offload."""


@dataclass(frozen=True)
class WhatIf:
    """One change of a graph, with its options."""

    name: str
    options: Mapping[str, Any]

    def __call__(self, graph: OpGraph) -> OpGraph:
        return WHAT_IFS[self.name](graph, **self.options)


def usage(name: str) -> str:
    """How a what-if is written, with its defaults: "tensor_parallel:degree=,link=nvlink"."""
    options = [f"{p.name}={_shown(p.default)}" for p in _parameters(name).values()]
    return f"{name}:{','.join(options)}" if options else name


def parse(text: str) -> WhatIf:
    """Read one what-if. Raises ValueError: an unknown name or option, a value of the wrong type, one that lacks."""
    name, _, rest = text.partition(":")
    if name not in WHAT_IFS:
        near = get_close_matches(name, WHAT_IFS, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(WHAT_IFS)}"
        raise ValueError(f"no what-if {name!r}; {hint}")
    parameters = _parameters(name)
    hints = get_type_hints(WHAT_IFS[name])
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        option, given, value = part.partition("=")
        if option not in parameters or not given:
            raise ValueError(f"what-if {text!r}: {part!r} is no option; write {usage(name)}")
        if option in options:
            raise ValueError(f"what-if {text!r}: {option} stands there twice; keep one")
        options[option] = _value(f"what-if {name}: {option}", hints[option], value)
    lacks = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if lacks:
        raise ValueError(f"what-if {text!r} lacks {', '.join(lacks)}; write {usage(name)}")
    return WhatIf(name, options)


def check_order(changes: Sequence[WhatIf]) -> None:
    """Refuse orders that would give another number than they say.

    Shards are found from the dataflow before activations are quantised; the load of a rank follows from the skew;
    what is offloaded crosses the link as it is then. Raises: ValueError, what to write first.
    """
    for i, late in enumerate(changes):
        before = {change.name for change in changes[:i]}
        if late.name == "tensor_parallel" and any(
            change.name == "quantise" and change.options.get("activations") for change in changes[:i]
        ):
            raise ValueError("write tensor_parallel before the quantise that quantises activations")
        if late.name == "skew_experts" and "expert_parallel" in before:
            raise ValueError("write skew_experts before expert_parallel")
        if late.name in SHRINK and "offload" in before:
            raise ValueError(f"write offload after {late.name}")


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    return {p.name: p for p in list(inspect.signature(WHAT_IFS[name]).parameters.values())[1:]}


def _shown(default: Any) -> str:
    if default is inspect.Parameter.empty or default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return "|".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _value(what: str, hint: Any, text: str) -> Any:
    origin = get_origin(hint)
    if origin in (UnionType, Union):
        return _value(what, next(one for one in get_args(hint) if one is not NoneType), text)
    if origin is Literal:
        if text not in get_args(hint):
            raise ValueError(f"{what} takes {', '.join(map(str, get_args(hint)))}; not {text!r}")
        return text
    if origin is not None:
        return tuple(_value(what, get_args(hint)[0], item) for item in text.split("|"))
    if hint is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{what} takes true or false; not {text!r}")
        return text == "true"
    try:
        return hint(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}.get(hint, "text")
        raise ValueError(f"{what} takes {wanted}; not {text!r}") from None
