"""Runs one forward pass and writes down every operation that becomes device work: the OpGraph.

On `meta` tensors this needs no memory and no weights. On a real device the same recorder sees the routing,
the masks and the strides that really occur, and is used where `meta` cannot know them.
`scaled_dot_product_attention` is one operation, whatever it is made of on the device.
Never time a pass that is being traced.

Example: ``graph = trace(model, inputs, workload, name="gpt2", target="cpu")``
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.models.annotate import entered
from profiler.models.inputs import PassInputs
from profiler.models.meta import run_or_shape
from profiler.models.opkinds import ACCUMULATES, SOFTMAX_FLOPS, Description, describe, is_metadata, name_of
from roofline.op import Access, AttentionModule, Kind, Op, OpGraph, attention_pairs
from roofline.op import Tensor as TensorRecord
from roofline.workload import Workload

ATTENTION = "aten::scaled_dot_product_attention"

_WRITE_ONLY = frozenset(
    [
        "copy_",
        "fill_",
        "zero_",
        "normal_",
        "uniform_",
        "bernoulli_",
        "index_copy_",
        "scatter_",
        "index_put_",
        "index_fill_",
        "set_",
    ]
)
"""In-place operators that do not read what they overwrite."""

_PARTIAL = frozenset({"index_put_", "index_copy_", "scatter_"}) | ACCUMULATES
"""In-place operators that touch as much of their tensor as they are given."""

_GATHERS = frozenset({"embedding", "index", "index_select", "gather", "take"})
"""Operators that read as much of their source as they return."""


def trace(
    model: nn.Module, inputs: PassInputs, workload: Workload, *, name: str, target: str, options: Mapping[str, str]
) -> OpGraph:
    """Run one pass of `model` on `inputs` and return its operations in order.

    Args:
        target: type of the device that the graph stands for, "cpu" or "cuda"; work on host tensors is left out
            where it is not the device.
    Raises: whatever the model raises, as when `meta` tensors have no data to decide on.
    """
    recorder = _Recorder(model, workload, target)
    recorder.mark_weights()
    recorder.mark_cache(inputs)
    with torch.no_grad(), entered(model, recorder.inside), _Attention(recorder), recorder:
        model(**inputs.kwargs())
    recorder.mark_cache(inputs)
    device = next(model.parameters()).device.type
    return recorder.graph(name, traced_on=device, options=dict(options))


class _Attention(TorchFunctionMode):
    """Records attention as one operation and hides what it is made of."""

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        with self.recorder.suspended():
            query, value = args[0], args[2] if len(args) > 2 else kwargs["value"]
            if query.device.type == "meta":
                # The fused backends return (batch, query, heads, dim) memory seen as (batch, heads, query, dim).
                shape = (query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
                out = query.new_empty(shape).transpose(1, 2) if query.dim() == 4 else func(*args, **kwargs)
            else:
                out = func(*args, **kwargs)
            self.recorder.attention(args, kwargs, out)
        return out


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module, workload: Workload, target: str) -> None:
        super().__init__()
        self.model = model
        self.workload = workload
        self.target = target
        self.ops: list[Op] = []
        self.uncounted: set[str] = set()
        self.path = [""]
        self.recording = True
        self.ids: dict[int, int] = {}
        self.alive: list[StorageWeakRef] = []  # a weak reference keeps a storage's address from being used again
        self.sizes: list[int] = []
        self.roles: dict[int, tuple[str, str | None]] = {}
        self.read: set[int] = set()
        self.specs = {spec.path: spec for spec in attention_modules(model)}
        self.top_k = _experts_per_token(model)

    @contextmanager
    def inside(self, path: str) -> Iterator[None]:
        self.path.append(path)
        try:
            yield
        finally:
            self.path.pop()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        self.recording = False
        try:
            yield
        finally:
            self.recording = True

    def storage(self, tensor: Tensor) -> int:
        """Number of a tensor's storage; views share it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.ids:
            self.ids[key] = len(self.sizes)
            self.alive.append(StorageWeakRef(storage))
            self.sizes.append(storage.nbytes())
        return self.ids[key]

    def mark_weights(self) -> None:
        for path, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            self.roles.setdefault(self.storage(tensor), ("weight", path))

    def mark_cache(self, inputs: PassInputs) -> None:
        for layer, attribute, tensor in inputs.cache_tensors():
            self.roles.setdefault(self.storage(tensor), ("kv", f"{layer}.{attribute}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = run_or_shape(func, args, kwargs)
        if self.recording and not is_metadata(func):
            self.record(func, args, kwargs, out)
        return out

    def record(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        inputs = list(_tensors((*args, *kwargs.values())))
        outputs = list(_tensors((out,)))
        if self.target != "cpu" and all(t.device.type == "cpu" for t in (*inputs, *outputs)):
            return
        name = name_of(func)
        what = describe(func, args, kwargs, out)
        if not what.counted:
            self.uncounted.add(name)
        written = [args[i] for i, a in enumerate(func._schema.arguments) if i < len(args) and _is_written(a)]
        moved = max((t.numel() * t.element_size() for t in outputs), default=0)
        reads = [
            (t, min(_distinct_bytes(t), moved) if name in _GATHERS and i == 0 else _distinct_bytes(t))
            for i, t in enumerate(inputs)
            if not (name in _WRITE_ONLY and t is args[0])
        ]
        if what.kind == Kind.GROUPED_MATMUL and len(inputs) > 1:
            reads[1] = (inputs[1], self.expert_bytes(inputs, args, kwargs, what))
        if written and name in _PARTIAL:
            changed = max((_distinct_bytes(t) // t.element_size() for t in inputs[1:]), default=0)
            part = min(changed * written[0].element_size(), _distinct_bytes(written[0]))
            writes = [(written[0], part)]
            if name in ACCUMULATES:
                reads[0] = (written[0], part)
        else:
            fresh = [t for t in outputs if all(t is not w for w in written)]
            writes = [(t, _distinct_bytes(t)) for t in (*written, *fresh) if isinstance(t, Tensor)]
        self.append(f"aten::{name}", what, inputs or outputs, reads, writes)

    def expert_bytes(self, inputs: list[Tensor], args: Any, kwargs: Any, what: Description) -> int:
        """Weight bytes of the experts hit: counted from real routing, else expected under uniform routing.

        E·(1 − (1 − k/E)^T) distinct experts for T tokens that choose k of E each.
        """
        experts, rows = what.dims["groups"], what.dims["m"]
        offsets = kwargs.get("offs", args[2] if len(args) > 2 else None)
        if isinstance(offsets, Tensor) and offsets.device.type != "meta":
            hit = float((torch.diff(offsets.flatten(), prepend=offsets.new_zeros(1)) > 0).sum())
        else:
            hit = experts * (1 - (1 - min(1.0, self.top_k / experts)) ** (rows / self.top_k))
        return round(_distinct_bytes(inputs[1]) * hit / experts)

    def attention(self, args: Any, kwargs: Any, out: Tensor) -> None:
        named = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
        query, key, value, mask = named["query"], named["key"], named["value"], named.get("attn_mask")
        batch, heads = math.prod(query.shape[:-3]), query.shape[-3] if query.dim() > 2 else 1
        pairs, causal, window = self.pairs(query, key, mask, bool(named.get("is_causal")))
        head_dim, value_dim = query.shape[-1], value.shape[-1]
        what = Description(
            Kind.ATTENTION,
            {
                "batch": batch,
                "heads": heads,
                "kv_heads": key.shape[-3] if key.dim() > 2 else 1,
                "query": query.shape[-2],
                "kv": key.shape[-2],
                "head_dim": head_dim,
                "value_dim": value_dim,
                "causal": int(causal),
                "window": window or 0,
                "pairs": pairs,
            },
            2.0 * pairs * batch * heads * (head_dim + value_dim),
            SOFTMAX_FLOPS * pairs * batch * heads,
        )
        inputs = list(_tensors((query, key, value, mask)))
        reads = [(t, _distinct_bytes(t)) for t in inputs]
        self.append(ATTENTION, what, inputs, reads, [(out, _distinct_bytes(out))])

    def pairs(self, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool) -> tuple[int, bool, int | None]:
        """Unmasked pairs a head: from the flag, from the mask itself where it has data, else from the module's word."""
        length, kv = query.shape[-2], key.shape[-2]
        spec = next((self.specs[p] for p in reversed(self.path) if p in self.specs), None)
        if is_causal:
            return attention_pairs(length, 0, True, None), True, None
        if mask is None:
            return length * kv, False, None
        if mask.device.type != "meta" and mask.dtype == torch.bool:
            allowed = mask.expand(*query.shape[:-3], mask.shape[-3] if mask.dim() > 2 else 1, length, kv)
            seen = round(allowed.float().sum().item() / math.prod(allowed.shape[:-2]))
            return seen, spec.causal if spec else False, spec.window if spec else None
        if spec is not None and spec.causal:
            return attention_pairs(length, self.workload.context_tokens, True, spec.window), True, spec.window
        return length * kv, False, None

    def append(
        self,
        name: str,
        what: Description,
        typed: list[Tensor],
        reads: Iterable[tuple[Tensor, int]],
        writes: Iterable[tuple[Tensor, int]],
    ) -> None:
        read, written = self.accesses(reads), self.accesses(writes)
        self.read.update(access.tensor for access in read)
        floating = [t for t in typed if t.is_floating_point()]
        dtype = (floating or typed)[0].dtype if typed else torch.float32
        self.ops.append(
            Op(
                path=self.path[-1],
                name=name,
                kind=what.kind,
                dims=what.dims,
                dtype=str(dtype).removeprefix("torch."),
                matrix_flops=what.matrix_flops,
                vector_flops=what.vector_flops,
                reads=read,
                writes=written,
            )
        )

    def accesses(self, touched: Iterable[tuple[Tensor, int]]) -> tuple[Access, ...]:
        """One access a view; two equal views of one storage are read once."""
        seen: dict[tuple[int, int, tuple[int, ...], tuple[int, ...]], Access] = {}
        for tensor, size in touched:
            view = (self.storage(tensor), int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()))
            if size and view not in seen:
                seen[view] = Access(tensor=view[0], bytes=size)
        return tuple(seen.values())

    def graph(self, name: str, traced_on: str, options: dict[str, str]) -> OpGraph:
        records = []
        for i, size in enumerate(self.sizes):
            role, path = self.roles.get(i, ("activation", None))
            records.append(TensorRecord(id=i, storage_bytes=size, role=role, name=path))
        parameters = {self.storage(p): (path, p.numel()) for path, p in reversed(list(self.model.named_parameters()))}
        inactive = sorted(path for i, (path, _) in parameters.items() if i not in self.read)
        return OpGraph(
            model=name,
            workload=self.workload,
            ops=tuple(self.ops),
            tensors=tuple(records),
            attention_modules=tuple(self.specs.values()),
            inactive=tuple(inactive),
            uncounted=tuple(sorted(self.uncounted)),
            parameters=sum(count for _, count in parameters.values()),
            traced_on=traced_on,
            options=options,
        )


def attention_modules(model: nn.Module) -> Iterator[AttentionModule]:
    """Modules that say whether their attention is causal, as `transformers` attention modules do, with their window."""
    for path, module in model.named_modules():
        if not isinstance(getattr(module, "is_causal", None), bool):
            continue
        config = getattr(module, "config", None)
        if hasattr(module, "sliding_window"):
            window = module.sliding_window
        elif getattr(config, "layer_types", None) is None and getattr(config, "use_sliding_window", True):
            window = getattr(config, "sliding_window", None)
        else:
            window = None
        yield AttentionModule(
            path=path, causal=bool(module.is_causal), window=window if isinstance(window, int) else None
        )


def _experts_per_token(model: nn.Module) -> int:
    """Experts that a token chooses, by the names that `transformers` configurations use; 1 without experts."""
    config: Any = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    for name in (
        "num_experts_per_tok",
        "num_experts_per_token",
        "experts_per_token",
        "moe_topk",
        "moe_top_k",
        "top_k_experts",
    ):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _distinct_bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements that a view addresses: an expanded dimension (stride 0) counts once."""
    elements = math.prod(
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0 or size == 0
    )
    return min(elements * tensor.element_size(), tensor.untyped_storage().nbytes())
