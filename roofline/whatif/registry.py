"""Every what-if by name, and how one is written down: ``name:option=value,option=value``.

Items of a list have | between them: ``"quantise:weights=4,where=*.mlp.*|*.self_attn.*"``, which a shell needs quoted.
An option `link` that is not written is the device's own (`linked`). A what-if is a function of a
graph and of options with types, which returns a graph or raises ValueError; a new one is its file and a row here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from roofline.written import Written

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


_WRITTEN = Written("what-if", WHAT_IFS, {LINK: "the device's own"})


def usage(name: str) -> str:
    """The form of a what-if, with its defaults: "tensor_parallel:degree=,link="."""
    return _WRITTEN.usage(name)


def help_text(name: str) -> str:
    """The form of a what-if, its summary, and a line for each option with its values."""
    return _WRITTEN.help_text(name)


def parse(text: str) -> WhatIf:
    """Read one what-if. Raises ValueError as `Written.parse` does."""
    return WhatIf(*_WRITTEN.parse(text))


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
        if LINK not in _WRITTEN.parameters(change.name) or ranks < 2:
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
