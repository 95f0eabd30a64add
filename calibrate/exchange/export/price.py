"""What an op table is filled with: seconds of kernels by kind, sizes and dtype.

The seam between the tables and whatever predicts: an exporter takes any `Price`. `RooflinePrice` is the bare roofline
at a device's peaks; a calibrated law takes its place without a change in an exporter.

Kinds and their sizes (arrays of one shape, as in `roofline.laws.law`):

    matmul              m n k                            (m×k)·(k×n), output of at least 16 bits
    prefill_attention   batch query context heads kv_heads head_dim window kv_element_bytes      causal
    decode_attention    batch kv heads kv_heads head_dim window kv_element_bytes                 one new token each
    pointwise           read_bytes write_bytes

`window` 0 is none; `kv` is the length that the new token sees, itself included.

Example: ``RooflinePrice(peaks)("matmul", {"m": m, "n": n, "k": k}, "bfloat16")`` → seconds, shape of `m`
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from roofline.hardware.spec import Peaks
from roofline.laws.law import Dims, Floats
from roofline.price import Rates, missing_peaks, roofs

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "int8": 1}
"""Of weights and activations, by dtype of a product's inputs."""


class Price(Protocol):
    """Predicts kernels."""

    name: str
    """For the provenance: "bare roofline", "calibrated laws of …"."""

    def __call__(self, kind: str, dims: Dims, dtype: str) -> Floats:
        """Seconds of each kernel. Raises ValueError, one line, where it cannot price the kind or the dtype."""


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs and bytes of kernels; a `roofline.laws.roofline.Work` as far as rates are asked for."""

    matrix_flops: Floats
    bytes: Floats


@dataclass(frozen=True, slots=True)
class _Needs:
    """One operation of a dtype, for its rates."""

    dtype: str
    matrix_flops: float = 1.0
    vector_flops: float = 0.0
    link: str | None = None
    link_bytes: float = 0.0
    messages: float = 0.0
    path: str = ""
    beside: str | None = None
    count: float = 1.0


class RooflinePrice:
    """max(matrix FLOPs ÷ peak, bytes ÷ bandwidth of main memory): cold operands, no fixed cost."""

    name = "bare roofline, cold operands, no fixed cost"

    def __init__(self, peaks: Peaks) -> None:
        self._peaks = peaks

    def __call__(self, kind: str, dims: Dims, dtype: str) -> Floats:
        work = work_of(kind, dims, dtype)
        need = _Needs(dtype=dtype, matrix_flops=float(work.matrix_flops.sum()))
        if missing := missing_peaks([need], self._peaks):
            raise ValueError(f"the spec has no peak {missing[0]}; measure it, or export without {dtype}")
        level_bytes = np.zeros((*work.bytes.shape, len(self._peaks.levels)))
        level_bytes[..., -1] = work.bytes
        nothing = np.zeros_like(work.bytes)
        rates = Rates.of([need], self._peaks)
        seconds: Floats = np.maximum.reduce(roofs(rates, work.matrix_flops, nothing, level_bytes, nothing, nothing))
        return seconds


def work_of(kind: str, dims: Dims, dtype: str) -> Work:
    """Compulsory work of kernels. Raises ValueError: an unknown kind or dtype."""
    if kind not in KINDS:
        raise ValueError(f"no price for kernels of kind {kind!r}; known: {', '.join(KINDS)}")
    if dtype not in ELEMENT_BYTES:
        raise ValueError(f"no element size of {dtype!r}; known: {', '.join(ELEMENT_BYTES)}")
    return KINDS[kind]({name: np.asarray(size, dtype=float) for name, size in dims.items()}, ELEMENT_BYTES[dtype])


def _matmul(d: Mapping[str, Floats], element: int) -> Work:
    m, n, k = d["m"], d["n"], d["k"]
    return Work(2 * m * n * k, element * (m * k + k * n) + max(element, 2) * m * n)


def _prefill(d: Mapping[str, Floats], element: int) -> Work:
    """Query i of q sees context + i + 1 keys, at most `window` of them."""
    batch, query, context, window = d["batch"], d["query"], d["context"], _window(d)
    growing = np.clip(window - context, 0, query)
    pairs = growing * context + growing * (growing + 1) / 2
    pairs = pairs + np.where(query > growing, (query - growing) * np.where(np.isinf(window), 0, window), 0)
    return _attention(d, element, batch, query, pairs, np.minimum(context + query, window + query - 1))


def _decode(d: Mapping[str, Floats], element: int) -> Work:
    seen = np.minimum(d["kv"], _window(d))
    return _attention(d, element, d["batch"], np.ones_like(seen), seen, seen)


def _attention(
    d: Mapping[str, Floats], element: int, batch: Floats, query: Floats, pairs: Floats, keys: Floats
) -> Work:
    """Two products a pair; q read and o written in at least 16 bits, each key and value read once a KV head."""
    heads, head_dim = d["heads"], d["head_dim"]
    moved = 2 * max(element, 2) * query * heads + 2 * d["kv_element_bytes"] * keys * d["kv_heads"]
    return Work(4 * batch * heads * head_dim * pairs, batch * head_dim * moved)


def _pointwise(d: Mapping[str, Floats], element: int) -> Work:
    moved = d["read_bytes"] + d["write_bytes"]
    return Work(np.zeros_like(moved), moved)


def _window(d: Mapping[str, Floats]) -> Floats:
    window = d.get("window", np.zeros(()))
    return np.where(window > 0, window, np.inf)


KINDS: dict[str, Callable[[Mapping[str, Floats], int], Work]] = {
    "matmul": _matmul,
    "prefill_attention": _prefill,
    "decode_attention": _decode,
    "pointwise": _pointwise,
}
"""Kind -> its compulsory work."""
