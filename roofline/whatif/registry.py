"""Every what-if by name, and how one is written down: ``name:option=value,option=value``.

Items of a list have | between them: ``quantise:weights=4,where=*.mlp.*|*.self_attn.*``. A what-if is a function of a
graph and of options with types, which returns a graph or raises ValueError; a new one is its file and a row here.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from roofline.graph.op import OpGraph
from roofline.whatif.attention import fuse_attention, unfuse_attention
from roofline.whatif.compress import compress_kv
from roofline.whatif.disaggregate import send_kv
from roofline.whatif.experts import expert_parallel, skew_experts
from roofline.whatif.layers import early_exit, remove_layers
from roofline.whatif.low_rank import lora, low_rank, sparsify_2_4
from roofline.whatif.offload import offload
from roofline.whatif.pipeline import pipeline_stage
from roofline.whatif.quantise import quantise
from roofline.whatif.tensor_parallel import tensor_parallel

WHAT_IFS: dict[str, Callable[..., OpGraph]] = {
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

AFTER_OFFLOAD = frozenset({"offload", "send_kv", "unfuse_attention", "fuse_attention"})
"""What-ifs that leave as many bytes to offload as there were, and so may be written behind it."""
PLAIN = {bool: ("true|false", "true or false"), int: (r"[+-]?\d+", "a whole number")}
"""How booleans and integers are written; pydantic alone would also take "no" and "8.0"."""


@dataclass(frozen=True)
class WhatIf:
    """One change of a graph, with its options."""

    name: str
    options: Mapping[str, Any]

    def __call__(self, graph: OpGraph) -> OpGraph:
        return WHAT_IFS[self.name](graph, **self.options)


def usage(name: str) -> str:
    """The form of a what-if, with its defaults: "tensor_parallel:degree=,link=nvlink"."""
    options = ",".join(f"{p.name}={_written(p.default)}" for p in _parameters(name).values())
    return f"{name}:{options}" if options else name


def help_text(name: str) -> str:
    """The form of a what-if, and on a second line its summary."""
    summary = (inspect.getdoc(WHAT_IFS[name]) or "").partition("\n")[0]
    return f"{usage(name)}\n    {summary}"


def parse(text: str) -> WhatIf:
    """Read one what-if.

    Raises: ValueError, one line, for an unknown what-if or option, a value of the wrong type, an option that is given
        twice, or one without a default that is not given.
    """
    name, _, rest = text.partition(":")
    if name not in WHAT_IFS:
        near = get_close_matches(name, WHAT_IFS, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(WHAT_IFS)}"
        raise ValueError(f"no what-if {name!r}; {hint}")
    parameters, types = _parameters(name), get_type_hints(WHAT_IFS[name])
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        option, equals, value = part.partition("=")
        if option not in parameters or not equals:
            raise ValueError(f"what-if {text!r}: {part!r} is not one of its options; write {usage(name)}")
        if option in options:
            raise ValueError(f"what-if {text!r}: {option} is given twice; give it once")
        try:
            options[option] = _value(types[option], value)
        except ValueError as error:
            raise ValueError(f"what-if {name}: {option}={value!r} should be {error}; write {usage(name)}") from None
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise ValueError(f"what-if {text!r} needs {', '.join(missing)}; write {usage(name)}")
    return WhatIf(name, options)


def check_order(changes: Sequence[WhatIf]) -> None:
    """Refuse orders that would give another number than they say. Raises: ValueError, which to write first.

    Shards are found from the dataflow before activations are quantised; the load of a rank follows from the skew;
    offloaded tensors cross the link at their final sizes.
    """
    for i, late in enumerate(changes):
        before = {change.name for change in changes[:i]}
        narrowed = any(change.name == "quantise" and change.options.get("activations") for change in changes[:i])
        if late.name == "tensor_parallel" and narrowed:
            raise ValueError("write tensor_parallel before the quantise that quantises activations")
        if late.name == "skew_experts" and "expert_parallel" in before:
            raise ValueError("write skew_experts before expert_parallel")
        if "offload" in before and late.name not in AFTER_OFFLOAD:
            raise ValueError(f"write offload after {late.name}")


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """The options of a what-if: all parameters of its function but the graph."""
    return dict(list(inspect.signature(WHAT_IFS[name]).parameters.items())[1:])


def _value(kind: Any, text: str) -> Any:
    """A value of this type from its text. Raises ValueError, which says what should stand there."""
    items = tuple(text.split("|")) if get_origin(kind) is Sequence else (text,)
    for plain, (pattern, wanted) in PLAIN.items():
        if plain in (kind, *get_args(kind)) and not all(re.fullmatch(pattern, item) for item in items):
            raise ValueError(wanted)
    try:
        return TypeAdapter(kind).validate_python(items if get_origin(kind) is Sequence else text)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Input should be ").partition(", unable")[0]) from None


def _written(default: Any) -> str:
    if default is inspect.Parameter.empty or default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return "|".join(map(str, default)) if isinstance(default, tuple) else str(default)
