"""Every what-if by name, and how one is written down: ``name:option=value,option=value``.

Items of a list have | between them: ``quantise:weights=4,where=*.mlp.*|*.self_attn.*``. A what-if is a function of a
graph and of options with types, which returns a graph or raises ValueError; a new one is its file and a row here.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_origin, get_type_hints

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
    "remove_layers": remove_layers,
    "early_exit": early_exit,
    "fuse_attention": fuse_attention,
    "skew_experts": skew_experts,
    "compress_kv": compress_kv,
    "low_rank": low_rank,
    "sparsify_2_4": sparsify_2_4,
    "tensor_parallel": tensor_parallel,
    "expert_parallel": expert_parallel,
    "quantise": quantise,
    "lora": lora,
    "unfuse_attention": unfuse_attention,
    "pipeline_stage": pipeline_stage,
    "offload": offload,
    "send_kv": send_kv,
}
"""The what-ifs by name, in the order in which they are applied, however they are written.

The model is changed first (its layers, its attention, its routing, its cache, the shapes of its weights), then divided
among devices, then stored in fewer bits, so that each rank quantises what it holds; what crosses a link at its final
size (offloaded or sent tensors) comes last.
"""

REPEATABLE = frozenset({"remove_layers", "low_rank", "sparsify_2_4", "quantise", "lora"})
"""What-ifs that may be written several times, for other layers each time."""

CONTRADICTORY = (("fuse_attention", "unfuse_attention"),)
"""What-ifs of which each undoes the other."""


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
        is_list = get_origin(types[option]) is Sequence
        try:
            options[option] = TypeAdapter(types[option]).validate_python(tuple(value.split("|")) if is_list else value)
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Input ").partition(", unable")[0]
            raise ValueError(f"what-if {name}: {option}={value!r} {why}; write {usage(name)}") from None
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise ValueError(f"what-if {text!r} needs {', '.join(missing)}; write {usage(name)}")
    return WhatIf(name, options)


def ordered(changes: Sequence[WhatIf]) -> list[WhatIf]:
    """The changes in the order of `WHAT_IFS`; those of one name in the order of their texts.

    Raises: ValueError for two that undo each other, or for a name given twice that makes sense once.
    """
    names = [change.name for change in changes]
    for pair in CONTRADICTORY:
        if set(pair) <= set(names):
            raise ValueError(f"what-ifs {' and '.join(pair)} undo each other; leave one out")
    twice = next((name for name in names if names.count(name) > 1 and name not in REPEATABLE), None)
    if twice:
        raise ValueError(f"what-if {twice} is given {names.count(twice)} times; give it once")
    rank = {name: i for i, name in enumerate(WHAT_IFS)}
    return sorted(changes, key=lambda change: (rank[change.name], repr(sorted(change.options.items()))))


def stages_of(changes: Sequence[WhatIf]) -> list[list[WhatIf]]:
    """The changes for each stage of the pipeline that one of them asks for; none without a pipeline of several."""
    stages = next((change.options["stages"] for change in changes if change.name == "pipeline_stage"), 1)
    return [
        [WhatIf(c.name, {**c.options, "stage": i}) if c.name == "pipeline_stage" else c for c in changes]
        for i in range(stages if stages > 1 else 0)
    ]


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """The options of a what-if: all parameters of its function but the graph."""
    return dict(list(inspect.signature(WHAT_IFS[name]).parameters.items())[1:])


def _written(default: Any) -> str:
    if default is inspect.Parameter.empty or default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return "|".join(map(str, default)) if isinstance(default, tuple) else str(default)
