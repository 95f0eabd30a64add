"""The experts that the tokens of a traced pass choose: how many of them are hit, and which weights those read.

On `meta` the chosen numbers are not known: choices are taken as made at random, and any loop over experts as balanced.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from profiler.models.aten import tensors
from profiler.models.meta import balanced
from roofline.graph.op import Routing, experts_hit


@dataclass(frozen=True, slots=True)
class Choice:
    """A `topk` of a pass."""

    path: str
    of: int
    chosen: int
    tokens: int

    @property
    def block(self) -> str:
        """The module around the one that chooses, which holds the experts too; itself where it is a layer's block."""
        return self.path.rpartition(".")[0]

    def hit(self, experts: int) -> float:
        """Return the expected distinct ones of the first `experts` that all tokens choose at random."""
        return float(experts_hit(experts, experts * self.chosen / self.of, self.tokens))

    def hit_in_turn(self, experts: int) -> int:
        """Return the distinct ones of the first `experts` that `balanced` choices hit."""
        chosen = self.tokens * self.chosen
        return experts if chosen >= self.of else int((balanced(chosen, self.of) < experts).sum())


class Choices:
    """The choices of a pass so far."""

    def __init__(
        self, model: nn.Module, tokens: int, shapes: Mapping[int, tuple[int, ...]], storage: Callable[[Tensor], int]
    ) -> None:
        """Start with none.

        Args: `tokens` of all sequences in the pass; `shapes` of the storages of weights, by number; `storage` gives the
            number of a tensor's.
        """
        self.made: list[Choice] = []
        self._tokens, self._shapes, self._storage = tokens, shapes, storage
        self._lists = {path: len(module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}

    def routing(self, path: str, rows: int, experts: int) -> Routing:
        """Return the assumed routing of a product of `rows` rows, one for each expert that a token chooses.

        Without a choice in the block around it, the rows are those of all tokens of the pass.
        """
        choice = self.choice(path, experts)
        tokens = choice.tokens if choice else self._tokens
        tokens = tokens if rows >= tokens else rows
        all_have_rows = choice is not None and rows == choice.tokens * choice.chosen
        real = experts / choice.of if choice and all_have_rows else 1  # others that are chosen have no weights
        return Routing(experts=experts, per_token=rows / tokens * real, tokens=tokens)

    def choice(self, path: str, experts: int) -> Choice | None:
        """Return the last choice among at least so many experts in the block around a module."""
        for choice in reversed(self.made):
            if choice.of >= experts and f"{path}.".startswith(f"{choice.block}." if choice.block else ""):
                return choice
        return None

    def share_of_expert(self, path: str, tensor: Tensor) -> float:
        """Return the expected number of hit experts ÷ those hit in this trace, where a tensor has the weights of one.

        On `meta` the load is balanced, which hits as many experts as it can. An expert's weights are a slice of a
        parameter, or those of a module in a list. It is 1 for all other tensors.
        """
        shape = self.shape_of_weight(tensor)
        if shape is None or not tensor.numel():
            return 1
        place, experts = path, math.prod(shape) / tensor.numel()
        if experts == 1:
            parents = accumulate(place.split("."), "{}.{}".format)
            place = next((parent for parent in reversed([*parents]) if parent in self._lists), "")
            experts = self._lists.get(place, 0)
        choice = self.choice(place, int(experts)) if experts > 1 else None
        if choice is None or not (experts == choice.of or (len(shape) == 3 and experts == shape[0])):
            return 1
        return choice.hit(int(experts)) / choice.hit_in_turn(int(experts))

    def share_of_rows(self, path: str, tensor: Tensor, indices: Any) -> float:
        """Return the same for the matrices of the chosen experts, gathered for each choice of each token.

        Biases are left as they are: so small, and the sizes of a grouped product's stay polynomials for a sweep.
        """
        shape, numbers = self.shape_of_weight(tensor), next(tensors(indices), None)
        choice = self.choice(path, shape[0]) if shape and len(shape) > 2 else None
        chosen = choice.tokens * choice.chosen if choice else 0
        if shape is None or choice is None or numbers is None or numbers.numel() != chosen:
            return 1
        return choice.hit(shape[0]) / min(shape[0], chosen)

    def shape_of_weight(self, tensor: Tensor) -> tuple[int, ...] | None:
        """Return the shape of the parameter on `meta` that holds a tensor; None of others, and where none chose."""
        if not self.made or tensor.device.type != "meta":
            return None
        return self._shapes.get(self._storage(tensor))
