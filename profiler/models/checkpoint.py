"""How a checkpoint stores its weights, layer by layer, from the quantisation settings beside its config.

A `Checkpoint` is a change of a graph, which stores each weight in its own scheme; `quantisation` makes it from the
settings of any known method. Patterns of layers are matched as the tools that write them do: "re:" starts a regular
expression (compressed-tensors), a name with * is a glob (ModelOpt), all else names a module, a part of its path, or all
below it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache

from roofline.graph.op import OpGraph
from roofline.whatif.quantise import as_stored
from roofline.whatif.scheme import Scheme, Weight

DECODER = frozenset({"linear", "experts"})
"""Roles of the weights that a method quantises unless its settings say otherwise."""

ALL = DECODER | {"router", "head", "embedding", "tied"}

PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")
"""Starts of paths before the layers of a language model, which differ between a checkpoint and the model built here."""

EXPERT_MATRICES = {"gate_up_proj": ("gate_proj", "up_proj", "w1", "w3"), "down_proj": ("down_proj", "w2")}
"""A stacked matrix of all experts -> names of an expert's own matrices in checkpoints."""


@dataclass(frozen=True)
class Rule:
    """The scheme of the weights that a pattern matches; None: they stay in the type of the model."""

    pattern: str
    scheme: Scheme | None


@dataclass(frozen=True)
class Checkpoint:
    """The stored bits of a checkpoint, as a change of a graph."""

    method: str
    scheme: Scheme | None = None
    """The scheme of the weights that no rule matches."""
    roles: frozenset[str] = DECODER
    rules: tuple[Rule, ...] = ()
    """The first that matches a weight decides."""
    kv_bits: int | None = None
    runs: Callable[[str], bool] = field(default=lambda dtype: True)
    """Whether the device multiplies in a type; where it does not, weights are turned back before the product."""

    def __call__(self, graph: OpGraph) -> OpGraph:
        return as_stored(graph, self.scheme_of, {"weights": self.text}, kv_bits=self.kv_bits)

    def scheme_of(self, weight: Weight) -> Scheme | None:
        names = _names(weight)
        rule = next((rule for rule in self.rules if any(_matches(rule.pattern, name) for name in names)), None)
        scheme = rule.scheme if rule else self.scheme if weight.role in self.roles else None
        if scheme is not None and scheme.dtype is not None and not self.runs(scheme.dtype):
            return replace(scheme, activations=None, dtype=None)
        return scheme

    @property
    def text(self) -> str:
        """The method and the bits, for people."""
        bits = " and ".join(map(_bits_text, self._schemes[:3])) or "16 bits a weight"
        return f"{bits} of the checkpoint ({self.method})"

    @property
    def note(self) -> str:
        """A remark for readers of a prediction."""
        kv = f", keys and values of {self.kv_bits} bits" if self.kv_bits else ""
        emulated = next((s.dtype for s in self._schemes if s.dtype and not self.runs(s.dtype)), None)
        wide = f"; the device has no {emulated}, so the products run in the dtype of the model" if emulated else ""
        return f"weights as the checkpoint stores them: {self.text}{kv}{wide}; --bits-of-checkpoint no leaves it out"

    @property
    def _schemes(self) -> tuple[Scheme, ...]:
        every = (self.scheme, *(rule.scheme for rule in self.rules))
        return tuple(dict.fromkeys(scheme for scheme in every if scheme is not None))


def _bits_text(scheme: Scheme) -> str:
    beside = scheme.scale_bits + scheme.zero_point_bits
    share = beside / scheme.group / scheme.columns if scheme.group > 0 else 0
    group = f" in groups of {scheme.group}" if scheme.group > 0 else " by column" if scheme.group else ""
    block = f" × {scheme.columns}" if scheme.columns > 1 else ""
    inputs = f", inputs of {scheme.activations} bits" if scheme.activations else ""
    return f"{scheme.bits + share:.4g} bits a weight{group}{block}{inputs}"


def _names(weight: Weight) -> tuple[str, ...]:
    """Paths under which a checkpoint may know a weight's module."""
    path = weight.name.removesuffix(".weight")
    stem, _, last = path.rpartition(".")
    paths = [path]
    if weight.role == "experts" and last in EXPERT_MATRICES:
        paths = [stem, *(f"{stem}.0.{matrix}" for matrix in EXPERT_MATRICES[last])]
    if weight.role in ("head", "tied"):
        paths.append("lm_head")
    paths += [path.replace(".mlp.", ".block_sparse_moe.") for path in paths if ".mlp." in path]
    names: dict[str, None] = {}
    for path in paths:
        bare = path
        while start := next((prefix for prefix in PREFIXES if bare.startswith(prefix)), None):
            bare = bare.removeprefix(start)
        names |= dict.fromkeys((path, bare, *(f"{prefix}{bare}" for prefix in PREFIXES)))
    return tuple(names)


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} of the checkpoint is no regular expression ({error})") from error


@cache
def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return _regex(pattern[3:]).match(name) is not None
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
    return f".{pattern.strip('.')}." in f".{name}."
