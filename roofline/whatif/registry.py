"""Every what-if by name, and how one is written down: ``name:option=value,option=value``.

Items of a list have | between them: ``"quantise:weights=4,where=*.mlp.*|*.self_attn.*"``, which a shell needs quoted.
An option `link` that is not written is the device's own (`linked`). A what-if is a function of a
graph and of options with types, which returns a graph or raises ValueError; a new one is its file and a row here.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from roofline.graph.op import OpGraph
from roofline.hardware.spec import OUTWARD, Peaks
from roofline.whatif.attention import fuse_attention, unfuse_attention
from roofline.whatif.compress import compress_kv
from roofline.whatif.disaggregate import send_kv
from roofline.whatif.draft import draft_head
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
    "draft_head": draft_head,
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

CONTRADICTORY = {
    ("fuse_attention", "unfuse_attention"): "undo each other",
    ("draft_head", "pipeline_stage"): "contradict each other: a draft of one layer has no stages",
}
"""Pairs of what-ifs that make no sense together, and why."""

PLAIN = {bool: ("true|false", "true or false"), int: (r"[+-]?\d+", "a whole number")}
"""How booleans and integers are written; pydantic alone would also take "no" and "8.0"."""


@dataclass(frozen=True)
class WhatIf:
    """One change of a graph, with its options."""

    name: str
    options: Mapping[str, Any]

    def __call__(self, graph: OpGraph) -> OpGraph:
        return WHAT_IFS[self.name](graph, **self.options)


LINK = "link"
"""The option that names a link of the device: a key of `Peaks.links`."""
TO_PEERS = (*OUTWARD, "network", "pcie")
"""Links to other devices, the best first: a device's own is the first that it has and that joins so many."""
TO_HOST = ("nvlink-c2c", "pcie")
"""The same for the memory of the host."""


def usage(name: str) -> str:
    """The form of a what-if, with its defaults: "tensor_parallel:degree=,link="."""
    options = ",".join(f"{p.name}={'' if p.name == LINK else _written(p.default)}" for p in _parameters(name).values())
    return f"{name}:{options}" if options else name


def help_text(name: str) -> str:
    """The form of a what-if, its summary, and a line for each option with its values."""
    doc = inspect.getdoc(WHAT_IFS[name]) or ""
    lines = [usage(name), f"    {doc.partition(chr(10))[0]}"]
    described, types = _described(doc), get_type_hints(WHAT_IFS[name])
    for option, parameter in _parameters(name).items():
        default = parameter.default
        without = "" if default in (None, ()) else f"; {_written(default)} if not given"
        end = "; the device's own if not given" if option == LINK else "" if default is parameter.empty else without
        lines.append(f"      {option}: {described.get(option, '')} ({_values(types[option])}{end})")
    return "\n".join(lines)


def _described(doc: str) -> dict[str, str]:
    """The words of a docstring for each argument."""
    described: dict[str, str] = {}
    name = ""
    for line in doc.partition("Args:\n")[2].splitlines():
        if not line.startswith("    "):
            break
        if not line.startswith("     ") and ": " in line:
            name, _, text = line.strip().partition(": ")
            described[name] = text.rstrip(".")
        else:
            described[name] = f"{described[name]} {line.strip()}".rstrip(".")
    return described


def _values(kind: Any) -> str:
    """The values of a type, in words."""
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is Sequence:
        return f"{_values(get_args(kind)[0])}, several with | between them"
    kinds = [k for k in get_args(kind) if k is not type(None)] or [kind]
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kinds[0]]


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


def ordered(changes: Sequence[WhatIf]) -> list[WhatIf]:
    """The changes in the order of `WHAT_IFS`; those of one name in the order of their texts.

    Raises: ValueError for two that undo each other, or for a name given twice that makes sense once.
    """
    names = [change.name for change in changes]
    for pair, why in CONTRADICTORY.items():
        if set(pair) <= set(names):
            raise ValueError(f"what-ifs {' and '.join(pair)} {why}; leave one out")
    shared = any(c.name == "expert_parallel" and c.options.get("attention") == "tensor" for c in changes)
    if shared and "tensor_parallel" in names:
        raise ValueError("expert_parallel with attention=tensor divides all layers; leave tensor_parallel out")
    twice = next((name for name in names if names.count(name) > 1 and name not in REPEATABLE), None)
    if twice:
        raise ValueError(f"what-if {twice} is given {names.count(twice)} times; give it once")
    rank = {name: i for i, name in enumerate(WHAT_IFS)}
    return sorted(changes, key=lambda change: (rank[change.name], repr(sorted(change.options.items()))))


def linked(changes: Sequence[WhatIf], peaks: Peaks, device: str) -> list[WhatIf]:
    """The changes with the links of a device: its own where none is written.

    Raises: ValueError, which lists the device's links, where it has no such link, or none that joins so many devices.
    """
    known = ", ".join(peaks.links) or "none"
    by_hand = "name another, or give its figures with --link NAME=BYTES_PER_S,SECONDS"
    out: list[WhatIf] = []
    for change in changes:
        ranks = change.options.get("degree", change.options.get("stages", 2))
        joined = ranks if "degree" in change.options else 2  # a stage has one neighbour
        if LINK not in _parameters(change.name) or ranks < 2:
            out.append(change)
            continue
        fits = {name: link.bytes_per_s(joined) is not None for name, link in peaks.links.items()}
        among = f" among {joined} devices" if joined > 2 else ""
        names = TO_HOST if change.name == "offload" else TO_PEERS
        link = change.options.get(LINK) or next((name for name in names if fits.get(name)), None)
        if link is None:
            to = "to its host" if change.name == "offload" else f"to others of its kind{among}"
            raise ValueError(f"what-if {change.name}: {device} has no known link {to} (its links: {known}); {by_hand}")
        if link not in fits:
            raise ValueError(f"what-if {change.name}: {device} has no link {link} (its links: {known}); {by_hand}")
        if not fits[link]:
            most = peaks.links[link].joins
            raise ValueError(
                f"what-if {change.name}: {link} of {device} joins {most} devices, not {joined} (its links: {known}); "
                f"{by_hand}"
            )
        out.append(WhatIf(change.name, {**change.options, LINK: link}))
    return out


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
