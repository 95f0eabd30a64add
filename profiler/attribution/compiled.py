"""Finds the operations of the traced graph that each kernel of a compiler came from.

A compiler fuses calls of the model's source, and keeps the module path of each and the operators that it makes in eager
mode. Aligning these operators with the traced graph's gives a call's operations. A call without any stands for those of
its module that no kernel has; a kernel without any for those of its modules that are no anchors, or of the next module
around that has some. So the time of a kernel is only unattributed where no module of the model is known for it.

An anchor that an operator of a library does (a product, attention) belongs to the kernel of that operator alone, though
a compiler counts the copies and masks made for it as its part.

Example: ``members([graph], sequence(traced), anchors)[0] == (3, 4, 5)``
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from profiler.attribution.operations import in_place_or_not

LIBRARY = re.compile(r"^(?:extern_kernels|torch\.ops)\.(?:(\w+)\.)?(\w+)(?:\.\w+)?$")
"""Names by which inductor calls operators of libraries: extern_kernels.mm, torch.ops.aten._grouped_mm.default."""


@dataclass(frozen=True, slots=True)
class Source:
    """One call in the model's source, as the compiler traced it."""

    path: str | None
    """Path of its module; None where that is no module of the model."""
    names: tuple[str, ...] = ()
    """Operators that it makes in eager mode, in order, without views: "aten::mm"."""


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """One call of a kernel."""

    name: str
    """Name of its host event in the profiler."""
    sources: tuple[int, ...]
    """Positions in the sources of its graph."""
    is_library: bool = False
    """Whether it is an operator of a library, not code that the compiler wrote."""


@dataclass(frozen=True, slots=True)
class CompiledGraph:
    """A part of the model that was compiled as one: all of it, unless the compiler had to break it."""

    sources: tuple[Source, ...]
    """Calls in the order of the model's source."""
    kernels: tuple[CompiledKernel, ...]
    """Kernels in the order in which they are called."""


def library_operator(kernel: str) -> str | None:
    """The operator that a kernel calls, as the profiler names it; None for a kernel that the compiler wrote.

    ``library_operator("extern_kernels.mm") == "aten::mm"``
    """
    match = LIBRARY.match(kernel)
    if match is None:
        return None
    name = "addmm" if match[2] == "bias_addmm" else match[2]  # inductor's own, torch/_inductor/kernel/mm.py
    return f"{match[1] or 'aten'}::{name}"


def members(
    called: Sequence[CompiledGraph], traced: Sequence[tuple[str, str]], anchors: Collection[int]
) -> list[tuple[int, ...]]:
    """Operations of each kernel call, in order, as positions in `traced`; empty where no module is known for it.

    Args: the compiled graphs as one pass calls them; (module path, operator) of each traced operation; which of them
    are anchors.
    """
    own = _aligned(called, traced)
    by_path: dict[str, list[int]] = {}
    for i, (path, _) in enumerate(traced):
        by_path.setdefault(path, []).append(i)
    kernels = [(graph, sources, kernel) for graph, sources in zip(called, own, strict=True) for kernel in graph.kernels]
    of_kernels = [{op for source in kernel.sources for op in sources[source]} for _, sources, kernel in kernels]
    by_library = {
        op for ops, (_, _, kernel) in zip(of_kernels, kernels, strict=True) if kernel.is_library for op in ops
    }
    done_elsewhere = by_library.intersection(anchors)
    left = set(range(len(traced))) - set(anchors) - set().union(*of_kernels)
    for ops, (graph, sources, kernel) in zip(of_kernels, kernels, strict=True):
        if not kernel.is_library:
            ops -= done_elsewhere
        paths = [(graph.sources[source].path, not sources[source]) for source in kernel.sources]
        for path in (path for path, is_bare in paths if is_bare and path is not None):
            ops |= left.intersection(by_path.get(path, ()))
            left -= ops
        if not ops:
            ops |= {op for path, _ in paths if path is not None for op in _of_module(path, by_path, anchors)}
    return [tuple(sorted(ops)) for ops in of_kernels]


def _aligned(called: Sequence[CompiledGraph], traced: Sequence[tuple[str, str]]) -> list[list[list[int]]]:
    """The operations that each source of each graph makes."""
    own: list[list[list[int]]] = [[[] for _ in graph.sources] for graph in called]
    calls = [
        ((source.path or "", in_place_or_not(name)), own[g][s])
        for g, graph in enumerate(called)
        for s, source in enumerate(graph.sources)
        if source.path is not None
        for name in source.names
    ]
    matcher = SequenceMatcher(None, [key for key, _ in calls], traced, autojunk=False)
    for block in matcher.get_matching_blocks():
        for k in range(block.size):
            calls[block.a + k][1].append(block.b + k)
    return own


def _of_module(path: str, by_path: Mapping[str, list[int]], anchors: Collection[int]) -> list[int]:
    """Operations of a module that are no anchors, else all of them, else those of the module around it."""
    while path not in by_path and path:
        path = path.rpartition(".")[0]
    ops = by_path.get(path, [])
    return [op for op in ops if op not in anchors] or ops
