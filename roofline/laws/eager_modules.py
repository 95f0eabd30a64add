"""Modules of a decoder as Hugging Face runs them eagerly: the kernels of each, and the price of their sum.

They price tables of whole modules (LLMServingSim's layers.csv: the sum of a module's kernels on the device). Constants
fitted on one model price another, since a module is described by its operations: products by m, n, k, attention by
heads and lengths, everything else by each kernel's bytes. Kernels are those of transformers'
`models/llama/modeling_llama.py` with 16-bit activations and float32 within norms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from roofline.laws.law import Constant, Dims, Facts, Floats, Law, Values
from roofline.laws.work import Work, prefill_work, product_work, stream_work

Operation = tuple[str, Dims]
"""Kind of the law, and the sizes."""
WIDE, NARROW = 4.0, 2.0
"""Bytes of a float32 element and of an activation."""


def _product(rows: Floats, columns: Floats, depth: Floats) -> Operation:
    return "matmul", {"m": rows, "n": columns, "k": depth}


def _stream(elements: Floats, read: float, written: float, **more: float) -> Operation:
    """Return one kernel, by bytes read and written per element, with one FLOP per element."""
    dims = {
        "bytes_read": elements * read,
        "bytes_written": elements * written,
        "kernels": np.ones_like(elements),
        "elements": elements,
        "flops": elements,
    }
    return "pointwise", dims | {name: np.full_like(elements, value) for name, value in more.items()}


def _norm(d: Dims) -> list[Operation]:
    """The eight kernels of a norm: to float32, square, mean, + ε, rsqrt, scale, back, weight; two of them are tiny.

    Kernels that convert to float32, or that broadcast an operand, take elements one by one (torch's `Loops.cuh`)."""
    elements = d["tokens"] * d["hidden"]
    return [
        _stream(elements, NARROW, WIDE, strided=1.0),
        _stream(elements, WIDE, WIDE),
        _stream(elements, WIDE, 0.0, reductions=1.0),
        _stream(d["tokens"], WIDE, WIDE),
        _stream(d["tokens"], WIDE, WIDE),
        _stream(elements, WIDE, WIDE, strided=1.0),
        _stream(elements, WIDE, NARROW),
        _stream(elements, NARROW, NARROW, strided=1.0),
    ]


def _rotate(elements: Floats) -> list[Operation]:
    """x·cos, −half, cat, ·sin, +: five kernels on a transposed view."""
    reads = ((1.0, NARROW), (0.5, NARROW), (1.0, NARROW), (1.0, NARROW), (1.0, 2 * NARROW))
    return [_stream(elements * part, read, NARROW, strided=1.0) for part, read in reads]


def _rope(d: Dims) -> list[Operation]:
    """Frequencies × positions, cat, cos, sin, scaled and narrowed: seven kernels of a row a token; then q and k."""
    table = [_stream(d["tokens"] * d["head_dim"], WIDE, WIDE) for _ in range(7)]
    query, key = d["heads"] * d["head_dim"], d["kv_heads"] * d["head_dim"]
    return table + _rotate(d["tokens"] * query) + _rotate(d["tokens"] * key)


def _attention(d: Dims) -> list[Operation]:
    """Return one fused kernel without a window, with keys in the activations' width. A kernel with a mask multiplies
    all pairs, seen or not: as many as causal attention has after half as many tokens more. (Only so does the rate of
    Llama-3.1-8B on an H100 come out as that of FlashAttention there.)"""
    ones = np.ones_like(d["tokens"])
    sizes = {
        "batch": ones,
        "heads": d["heads"],
        "kv_heads": d["kv_heads"],
        "query": d["tokens"],
        "context": d["context"] + (d["tokens"] - 1) / 2,
        "head_dim": d["head_dim"],
        "window": 0 * ones,
        "kv_bytes": NARROW * ones,
    }
    return [("prefill_attention", sizes)]


def _activation(d: Dims) -> list[Operation]:
    """SiLU, then times the other half of the gate."""
    elements = d["tokens"] * d["inner"]
    return [_stream(elements, NARROW, NARROW), _stream(elements, 2 * NARROW, NARROW)]


MODULES: dict[str, Callable[[Dims], list[Operation]]] = {
    "embedding": lambda d: [_stream(d["tokens"] * d["hidden"], NARROW, NARROW, gathered=1.0)],
    "input_layernorm": _norm,
    "q_proj": lambda d: [_product(d["tokens"], d["heads"] * d["head_dim"], d["hidden"])],
    "k_proj": lambda d: [_product(d["tokens"], d["kv_heads"] * d["head_dim"], d["hidden"])],
    "v_proj": lambda d: [_product(d["tokens"], d["kv_heads"] * d["head_dim"], d["hidden"])],
    "rope": _rope,
    "attn": _attention,
    "o_proj": lambda d: [_product(d["tokens"], d["hidden"], d["heads"] * d["head_dim"])],
    "post_layernorm": _norm,
    "gate_proj": lambda d: [_product(d["tokens"], d["inner"], d["hidden"])],
    "up_proj": lambda d: [_product(d["tokens"], d["inner"], d["hidden"])],
    "act_fn": _activation,
    "down_proj": lambda d: [_product(d["tokens"], d["hidden"], d["inner"])],
    "final_layernorm": _norm,
    "lm_head": lambda d: [_product(d["tokens"], d["vocab"], d["hidden"])],
}
"""Operations of each module by the table's names; the dim "module" is an index into this list."""
SIZES = ("tokens", "context", "hidden", "inner", "heads", "kv_heads", "head_dim", "vocab", "tp")
"""Dims of a model and a step: `context` tokens are cached before it, and `tp` ranks share each matrix."""
SHARED = ("inner", "heads", "kv_heads", "vocab")
"""Sizes that ranks divide among themselves, at least 1 each."""


def operations(module: str, dims: Dims) -> list[Operation]:
    """Kernels of a module on one rank, from the dims `SIZES`. Raises ValueError for an unknown module."""
    if module not in MODULES:
        raise ValueError(f"no module {module!r}; use {', '.join(MODULES)}")
    ranks = dims["tp"]
    return MODULES[module]({**dims, **{name: np.maximum(np.ceil(dims[name] / ranks), 1.0) for name in SHARED}})


def modules_work(dims: Dims, dtype: str) -> Work:
    """Work of each module: the sum of its operations'."""
    functions = {"matmul": product_work, "pointwise": stream_work, "prefill_attention": prefill_work}
    flops, moved, kernels = (np.zeros(len(dims["module"])) for _ in range(3))
    for kind, parts in _by_kind(dims).items():
        for rows, sizes in parts:
            work = functions[kind](sizes, dtype)
            flops[rows] += work.flops
            moved[rows] += work.bytes
            kernels[rows] += work.kernels
    return Work(flops, moved, np.zeros_like(flops), kernels=kernels)


@dataclass(frozen=True)
class EagerModules:
    """The law of whole modules: the sum of a module's operations, each priced by the law of its kind."""

    laws: Mapping[str, Law]
    """Laws by kind: "matmul", "pointwise", "prefill_attention"."""
    name: str = "module"
    dims: tuple[str, ...] = ("module", *SIZES)

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        return tuple(
            replace(c, name=f"{kind}.{c.name}") for kind, law in self.laws.items() for c in law.constants(facts, dtype)
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        total = np.zeros(len(dims["module"]))
        for kind, parts in _by_kind(dims).items():
            own = {name.removeprefix(f"{kind}."): v for name, v in values.items() if name.startswith(f"{kind}.")}
            time_s = self.laws[kind].time_s(_together([sized for _, sized in parts]), facts, dtype, own)
            total += np.bincount(np.concatenate([rows for rows, _ in parts]), time_s, minlength=len(total))
        return total


def _by_kind(dims: Dims) -> dict[str, list[tuple[NDArray[np.int_], Dims]]]:
    """Operations of all modules with the rows of those modules, by kind, so that a law is evaluated once."""
    parts: dict[str, list[tuple[NDArray[np.int_], Dims]]] = {}
    for index, module in enumerate(MODULES):
        rows = np.flatnonzero(dims["module"] == index)
        if len(rows):
            sizes = {name: np.asarray(dims[name], dtype=float)[rows] for name in SIZES}
            for kind, sized in operations(module, sizes):
                parts.setdefault(kind, []).append((rows, sized))
    return parts


def operations_of(dims: Dims) -> dict[str, Dims]:
    """Sizes of all operations of modules, by the kind of their law."""
    return {kind: _together([sized for _, sized in parts]) for kind, parts in _by_kind(dims).items()}


def _together(parts: list[Dims]) -> Dims:
    """Concatenated columns; 0 where a part has no such column."""
    names = dict.fromkeys(name for part in parts for name in part)
    lengths = [len(next(iter(part.values()))) for part in parts]
    return {
        name: np.concatenate([part.get(name, np.zeros(rows)) for part, rows in zip(parts, lengths, strict=True)])
        for name in names
    }
