"""Exported op tables: predicted seconds of kernels by kind, sizes and dtype, over a grid of shapes.

An exporter takes any `Price`: `RooflinePrice` is the bare roofline at a device's peaks, `LawPrice` its calibrated laws.
The shapes belong to no one model and are dense enough for the interpolation of the tools that read them; their range
goes into the provenance.

Kinds and their sizes (arrays of one shape, or numbers that hold for all rows):

    matmul              m n k                            (m×k)·(k×n), output of at least 16 bits
    prefill_attention   batch query context heads kv_heads head_dim window kv_bytes      causal
    decode_attention    batch kv heads kv_heads head_dim window kv_bytes                 one new token each
    pointwise           bytes_read bytes_written

`window` 0 means no sliding window; `kv` is the length that the new token sees, itself included.

Example: ``RooflinePrice(peaks)("matmul", {"m": m, "n": n, "k": k}, "bfloat16")`` → seconds, shape of `m`
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roofline.dtypes import ELEMENT_BYTES
from roofline.hardware.spec import HardwareSpec, Peaks, facts_of
from roofline.laws.fitted import FittedLaw
from roofline.laws.kinds import KINDS, MATVEC, work_of
from roofline.laws.law import Floats
from roofline.laws.work import Work

Sizes = Mapping[str, ArrayLike]
Columns = dict[str, NDArray[np.int64]]

GEMM_M = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16384, 32768)
GEMM_NK = (32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192, 10240, 12288,
           14336, 16384, 24576, 28672, 32768, 65536)  # fmt: skip
HEADS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 96, 128)
KV_HEADS = (1, 2, 4, 8)
"""Grouped layouts; each number of heads also comes with as many KV heads."""
HEAD_DIMS = (64, 128, 256)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LENGTHS = tuple(2**i for i in range(4, 18))
"""16 to 131,072 tokens."""
MOST_TOKENS = 1 << 17
"""New tokens of a whole prefill batch, at most."""


class Price(Protocol):
    """Predicts the time of kernels."""

    name: str
    """Name that the provenance states: "bare roofline", "calibrated laws of …"."""

    def __call__(self, kind: str, dims: Sizes, dtype: str) -> Floats:
        """Seconds of each kernel. Raises ValueError, one line, where it cannot price the kind or the dtype."""


class RooflinePrice:
    """max(matrix FLOPs ÷ peak, bytes ÷ bandwidth of main memory): cold operands, no fixed cost."""

    name = "bare roofline, cold operands, no fixed cost"

    def __init__(self, peaks: Peaks) -> None:
        self._peaks = peaks

    def __call__(self, kind: str, dims: Sizes, dtype: str) -> Floats:
        _, work = _work(kind, dims, dtype)
        seconds: Floats = work.bytes / self._peaks.levels[-1].bandwidth.value
        if work.flops.any():
            if dtype not in self._peaks.matrix:
                raise ValueError(f"the spec has no peak matrix {dtype}; measure it, or export without {dtype}")
            seconds = np.maximum(seconds, work.flops / self._peaks.matrix[dtype].value)
        return seconds


class LawPrice:
    """A spec's calibrated laws, and another price for the kinds and dtypes that have no law.

    Operands are in the last-level cache as far as it holds them, as when a kernel is timed again and again. A product
    with one row has the time of the law of matrix-vector products, where there is one.
    """

    def __init__(self, spec: HardwareSpec, otherwise: Price) -> None:
        """Raises ValueError, one line: the spec lacks facts that its laws need."""
        self._laws = {(law.kind, law.dtype): law for law in spec.calibrated if law.is_usable}
        self._facts = facts_of(spec)
        self._otherwise = otherwise
        named = ", ".join(sorted({kind for kind, _ in self._laws}))
        self.name = f"calibrated laws ({named}), operands in cache as far as it holds them; else {otherwise.name}"

    def __call__(self, kind: str, dims: Sizes, dtype: str) -> Floats:
        sizes, work = _work(kind, dims, dtype)
        law = self._laws.get((kind, dtype))
        priced = self._otherwise(kind, dims, dtype) if law is None else self._by(law, sizes, work)
        single = self._laws.get((MATVEC, dtype)) if kind == "matmul" else None
        if single is not None and (rows := sizes["m"] == 1).any():
            priced = np.where(rows, self._by(single, sizes, work), priced)
        return priced

    def _by(self, law: FittedLaw, sizes: Mapping[str, Floats], work: Work) -> Floats:
        """Seconds by one law; what a kernel streams is its compulsory work."""
        written = sizes.get("bytes_written", np.zeros_like(work.bytes))
        streamed = {"bytes_read": work.bytes - written, "bytes_written": written, "flops": work.flops}
        elements = sizes.get("n", work.bytes)
        return law.time_s({**sizes, **streamed, "kernels": np.ones_like(elements), "elements": elements}, self._facts)


def _work(kind: str, dims: Sizes, dtype: str) -> tuple[dict[str, Floats], Work]:
    """Sizes as arrays of floats of one shape, and the work. Raises ValueError for an unknown kind or dtype."""
    if kind not in KINDS:
        raise ValueError(f"no price for kernels of kind {kind!r}; known: {', '.join(KINDS)}")
    if dtype not in ELEMENT_BYTES:
        raise ValueError(f"no element size of {dtype!r}; known: {', '.join(ELEMENT_BYTES)}")
    arrays = np.broadcast_arrays(*(np.asarray(size, dtype=float) for size in dims.values()))
    sizes = dict(zip(dims, arrays, strict=True))
    return sizes, work_of(kind, sizes, dtype)


def columns(**sizes: Iterable[int]) -> Columns:
    """Every combination of the sizes, the last size varying fastest, as one column for each size."""
    rows = np.array(list(itertools.product(*sizes.values())), dtype=np.int64).reshape(-1, len(sizes))
    return dict(zip(sizes, rows.T, strict=True))


def kept(table: Mapping[str, NDArray[np.int64]], rows: NDArray[np.bool_]) -> Columns:
    """The rows where `rows` is true."""
    return {name: column[rows] for name, column in table.items()}


def attention_shapes(batches: Sequence[int], lengths: Sequence[int], capacity_bytes: float, kv_bytes: float) -> Columns:
    """Grouped and multi-head layouts whose KV cache fits the memory: batch, length, heads, kv_heads, head_dim."""
    shapes = columns(batch=batches, length=lengths, heads=HEADS, kv_heads=(*KV_HEADS, 0), head_dim=HEAD_DIMS)
    heads, kv = shapes["heads"], shapes["kv_heads"]
    own = kv == 0
    whole = own | ((kv < heads) & (heads % np.where(own, 1, kv) == 0))
    shapes = kept({**shapes, "kv_heads": np.where(own, heads, kv)}, whole)
    cached = 2.0 * kv_bytes * shapes["batch"] * shapes["length"] * shapes["kv_heads"] * shapes["head_dim"]
    return kept(shapes, cached <= capacity_bytes)


def span(table: Mapping[str, NDArray[np.int64]]) -> str:
    """The range of a table: "m 1–32768, n 32–65536"."""
    return ", ".join(f"{name} {column.min()}–{column.max()}" for name, column in table.items())
