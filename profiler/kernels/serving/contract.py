"""Describes a serving kernel: its operands, reference, tolerance, work, shapes and providers, all as one row.

A family is one row of `profiler.kernels.serving.families.FAMILIES`, a provider one row of its family's `providers`. A
kernel takes its operands by name and returns its outputs in the order of `Family.outputs`, less those that it writes in
place (`Family.mutates`).

Example: ``family.reference(dims, family.operands(dims, "bfloat16", Draw(torch.device("cpu"), seed=1)))["y"]``
"""

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from profiler.devices.backend import CPU, CUDA
from roofline.dtypes import ARITHMETIC
from roofline.laws.work import Work
from roofline.workload import Workload

Dims = Mapping[str, int]
"""Sizes of a kernel by name, those of `Family.sizes`."""
Tensors = dict[str, Tensor]
Result = Tensor | tuple[Tensor, ...] | None
Kernel = Callable[[Tensors], Result]
"""The function that is timed: it takes the operands that it was bound to."""
EVERYWHERE = (CPU.type, CUDA.type)
"""Kinds of devices of what torch alone runs."""
SENTINEL = -(1 << 30)
"""The value of whole numbers that a kernel must not read or has not written, as far as their type can hold it."""


class Unsupported(Exception):
    """A provider cannot do these sizes, this dtype or this device; the message says why, in one line."""


class NotInstalled(Exception):
    """The package of a provider is not there; the message names it."""


class Draw:
    """Makes operands on a device from a seed; each storage begins `offset` elements before its operand and ends
    `guard` elements behind it. Both hold poison.

    With an odd offset a kernel that expects aligned operands is seen. Two draws of one seed make equal operands; with
    another `turn` they have other values, and the same indices: lengths, tables, slots.
    """

    guard = 0

    def __init__(self, device: torch.device, seed: int, offset: int = 0, *, turn: int = 0) -> None:
        self.device, self.offset = device, offset
        self._indices = torch.Generator().manual_seed(seed)
        self._values = torch.Generator().manual_seed((seed + 1) * 1_000_003 + turn)

    def normal(self, *size: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        """Draw normal numbers of mean 0 and deviation `scale`, rounded to `dtype`."""
        return self.placed((torch.randn(size, generator=self._values) * scale).to(dtype))

    def uniform(self, low: float, high: float, *size: int, dtype: torch.dtype) -> Tensor:
        return self.placed((torch.rand(size, generator=self._values) * (high - low) + low).to(dtype))

    def integers(self, low: int, high: int, *size: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Draw whole numbers, `low` included and `high` not: values where they have 8 bits, else indices."""
        generator = self._values if dtype.itemsize == 1 else self._indices
        return self.placed(torch.randint(low, high, size, generator=generator).to(dtype))

    def order(self, count: int) -> Tensor:
        """Return the numbers below `count` in a random order."""
        return self.placed(torch.randperm(count, generator=self._indices))

    def empty(self, *size: int, dtype: torch.dtype) -> Tensor:
        """Return a tensor to be written, poisoned: NaN, or `SENTINEL` as far as the type holds it."""
        count = math.prod(size)
        return poisoned((self.offset + count + self.guard,), dtype, self.device)[self.offset :][:count].view(size)

    def placed(self, values: Tensor) -> Tensor:
        """Copy the values to the device, at the offset in a storage of their own."""
        count = values.numel()
        storage = torch.empty(self.offset + count + self.guard, dtype=values.dtype, device=self.device)
        for rest in (storage[: self.offset], storage[self.offset + count :]):
            rest.fill_(poison_of(values.dtype))
        result = storage[self.offset :][:count].view(values.shape)
        result.copy_(values)
        return result


def poison_of(dtype: torch.dtype) -> float:
    """Return NaN, or the whole number nearest to `SENTINEL`, for booleans 1."""
    if dtype == torch.bool:
        return 1
    return math.nan if dtype.is_floating_point else max(SENTINEL, torch.iinfo(dtype).min)


def poisoned(size: Iterable[int], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Return a tensor that holds `poison_of` its dtype everywhere."""
    return torch.full(tuple(size), poison_of(dtype), dtype=dtype, device=device)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The limits of an output: `share` of its elements are off by at most absolute + relative · |reference|."""

    absolute: float
    relative: float
    reason: str
    share: float = 1.0
    """Least share of elements within the limits."""
    exact: float = 0.0
    """Least share of elements that equal the reference rounded to the output's type: what quantises may round a few
    elements to the neighbour, but not most."""

    def excess(self, result: Tensor, expected: Tensor) -> Tensor:
        """Return the error ÷ limit of each element; NaN where only one of them is NaN, 0 where both are or both are
        equal."""
        off, wanted = result.double(), expected.double()
        ratio = (off - wanted).abs() / (self.absolute + self.relative * wanted.abs()).clamp_min(1e-300)
        return torch.where((off == wanted) | (off.isnan() & wanted.isnan()), 0.0, ratio)

    def accepts(self, result: Tensor, expected: Tensor) -> bool:
        """Return whether a result of the reference's shape is right."""
        if not result.numel():
            return True
        within = (self.excess(result, expected) <= 1).double().mean()
        rounded = expected.to(result.dtype).double()
        equal = ((rounded == result.double()) | (rounded.isnan() & result.double().isnan())).double().mean()
        return float(within) >= self.share and float(equal) >= self.exact


@dataclass(frozen=True, slots=True)
class Provider:
    """One implementation of a family."""

    name: str
    """"torch", "inductor", "torch._int_mm", "onnxruntime", "flashinfer"."""
    package: str
    """Distribution whose version is printed."""
    bind: Callable[[Dims, str, Tensors], Kernel]
    """Prepares a kernel for one set of operands (packs its weights, compiles), and returns what is timed. Called once
    for each set. Raises Unsupported."""
    modules: tuple[str, ...] = ()
    """Modules that must be importable, without importing them."""
    devices: tuple[str, ...] = EVERYWHERE
    """Kinds of devices it runs on."""
    dtypes: tuple[str, ...] = ()
    """Dtypes of the family that it has; empty: all."""
    writes: tuple[str, ...] = ()
    """Operands that it writes although its family does not ask for it: a residual that is added in place. It returns
    them as outputs; a second call has other operands."""
    alignment_bytes: int = 1
    """Multiple at which its operands have to begin."""

    @property
    def version(self) -> str:
        """Return the version of its package. Raises NotInstalled."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            raise NotInstalled(f"{self.package} is not installed") from None

    def check(self, device: str, dtype: str) -> None:
        """Raise NotInstalled or Unsupported, in one line, where it cannot run on this kind of device in this dtype."""
        if device not in self.devices:
            raise Unsupported(f"{self.name} does not run on {device}, only on {' and '.join(self.devices)}")
        if self.dtypes and dtype not in self.dtypes:
            raise Unsupported(f"{self.name} does not do {dtype} here, only {', '.join(self.dtypes)}")
        _ = self.version
        for module in self.modules:
            try:
                found = importlib.util.find_spec(module) is not None
            except (ImportError, ValueError):
                found = False
            if not found:
                raise NotInstalled(f"{self.package} has no module {module}")


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Heads of one rank in one kind of attention layer."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    """Tokens that a query sees, its own included; 0: all."""
    softcap: int = 0
    """Limit to which scores are bent by tanh; 0: none."""


@dataclass(frozen=True, slots=True)
class ModelStep:
    """The shapes of one forward pass of a model on one rank of `tp`, as its traced graph has them."""

    model: str
    tp: int
    workload: Workload
    hidden: int
    vocabulary: int
    """Rows of the embedding's table."""
    embeddings: tuple[tuple[int, int], ...] = ()
    """(rows looked up, width)."""
    products: tuple[tuple[int, int, int], ...] = ()
    """(m, n, k) of products with weights, routers left out."""
    routers: tuple[tuple[int, int, int, int], ...] = ()
    """(m, experts, k, experts chosen)."""
    grouped: tuple[tuple[int, int, int, int, int], ...] = ()
    """(experts, experts chosen, tokens, n, k) of grouped products."""
    attention: tuple[AttentionShape, ...] = ()
    latent: tuple[tuple[int, int, int], ...] = ()
    """(heads, latent width, width of the rotated part) of multi-head latent attention."""
    norms: tuple[tuple[str, int, int], ...] = ()
    """(family, rows, width)."""
    gates: tuple[tuple[str, int, int], ...] = ()
    """(family, rows, width of the result) of gated activations."""
    rotary: bool = False
    convolutions: tuple[tuple[int, int], ...] = ()
    """(channels, taps) of causal depthwise convolutions."""
    delta_rules: tuple[tuple[int, int, int], ...] = ()
    """(heads, key width, value width)."""
    state_spaces: tuple[tuple[int, int, int], ...] = ()
    """(heads, head width, state width)."""
    reduced: tuple[tuple[int, int], ...] = ()
    """(rows, width) of what is summed over the ranks."""

    @property
    def tokens(self) -> int:
        """Return new tokens of all sequences."""
        return self.workload.batch * self.workload.query_tokens

    @property
    def kv(self) -> int:
        """Return keys of a sequence, those of its new tokens included."""
        return self.workload.context_tokens + self.workload.query_tokens


def _no_kind(dims: Dims, dtype: str) -> None:
    del dims, dtype


@dataclass(frozen=True, slots=True)
class Family:
    """One kernel of a serving engine, whatever implements it."""

    name: str
    sizes: tuple[str, ...]
    """Names of the sizes of a shape."""
    dtypes: tuple[str, ...]
    """Dtypes that `roofline.dtypes` names: those of the products, or of the rows."""
    operands: Callable[[Dims, str, Draw], Tensors]
    """Operands by name; what lies beyond a valid range is NaN or `SENTINEL`, since a kernel must not read it."""
    outputs: tuple[str, ...]
    """Names of what a kernel returns, and of the operands that it has to write."""
    reference: Callable[[Dims, Tensors], Tensors]
    """All outputs, in float64 or wider than the kernel's, of the operands; these are left as they are."""
    returned: Callable[[str], Mapping[str, torch.dtype]]
    """The dtype of each output, for a dtype of the family."""
    tolerance: Callable[[Dims, str], Mapping[str, Tolerance]]
    """The tolerance of each output."""
    work: Callable[[Dims, str], Work]
    """FLOPs of products (a multiply-add is 2) and compulsory bytes: each operand that is used read once, each output
    written once, table rows that are looked up alone."""
    shapes: Callable[[ModelStep], Iterable[dict[str, int]]]
    """The kernels of a model's step."""
    checks: tuple[dict[str, int], ...]
    """Small sizes for correctness: one row, no multiples of tiles, ragged lengths."""
    providers: tuple[Provider, ...]
    kind: Callable[[Dims, str], tuple[str, dict[str, float]] | None] = _no_kind
    """Row of `roofline.laws.kinds` and its sizes, by which the calibrated law prices this kernel; None: none does."""
    mutates: tuple[str, ...] = ()
    """Operands that a kernel has to write: the cache that it appends to."""
    weights: tuple[str, ...] = ()
    """Operands that stay the same from call to call, which a provider may pack when it is bound."""
    constants: Mapping[str, float] = field(default_factory=dict)
    """Numbers that all kernels of the family take: {"eps": 1e-6}."""
    ranks: int = 1
    """Processes that run it together, at least: 2 for a collective."""
    note: str = ""
    """The reason why something is left out of the family."""

    def provider(self, name: str) -> Provider:
        """Return the provider of that name. Raises KeyError."""
        return {provider.name: provider for provider in self.providers}[name]


def points(names: Sequence[str], *rows: tuple[int, ...]) -> tuple[dict[str, int], ...]:
    """Return the sizes of each row by name."""
    return tuple(dict(zip(names, row, strict=True)) for row in rows)


def in_own_dtype(*names: str) -> Callable[[str], dict[str, torch.dtype]]:
    """Return `Family.returned` of outputs that are in the family's dtype."""
    return lambda dtype: dict.fromkeys(names, getattr(torch, dtype))


def widened(operands: Tensors) -> Tensors:
    """Return the operands for a reference: all but whole numbers in float64."""
    return {name: x.double() if x.is_floating_point() else x for name, x in operands.items()}


def torch_dtype(dtype: str) -> torch.dtype:
    """Return torch's dtype of the rows that a kernel in `dtype` takes: bfloat16 beside weights of 8 and 4 bits."""
    name = ARITHMETIC.get(dtype, (dtype,))[-1]
    result: torch.dtype = getattr(torch, name)
    return result


def amount(flops: float, moved_bytes: float, link_bytes: float = 0.0) -> Work:
    """Return the work of one kernel: FLOPs of products, compulsory bytes, and bytes that the busiest rank sends."""
    return Work(np.asarray(float(flops)), np.asarray(float(moved_bytes)), np.asarray(float(link_bytes)))
