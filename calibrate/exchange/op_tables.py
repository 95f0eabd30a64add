"""What op tables of other tools are filled with: seconds of kernels by kind, sizes and dtype, over a grid of shapes.

The seam between the tables and whatever predicts: an exporter takes any `Price`. `RooflinePrice` is the bare roofline
at a device's peaks, `LawPrice` its calibrated laws. The shapes are model-agnostic, dense enough for the interpolation
of the tools that read them; their range goes into the provenance.

Kinds and their sizes (arrays of one shape, as in `roofline.laws.law`):

    matmul              m n k                            (m×k)·(k×n), output of at least 16 bits
    prefill_attention   batch query context heads kv_heads head_dim window kv_bytes      causal
    decode_attention    batch kv heads kv_heads head_dim window kv_bytes                 one new token each
    pointwise           bytes_read bytes_written

`window` 0 is none; `kv` is the length that the new token sees, itself included.

Example: ``RooflinePrice(peaks)("matmul", {"m": m, "n": n, "k": k}, "bfloat16")`` → seconds, shape of `m`
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roofline.dtypes import ELEMENT_BYTES
from roofline.hardware.facts import facts_of
from roofline.hardware.spec import HardwareSpec, Peaks
from roofline.laws.fitted import FittedLaw
from roofline.laws.kinds import KINDS, MATVEC, work_of
from roofline.laws.law import Dims, Floats
from roofline.laws.work import Work
from roofline.price import Rates, missing_peaks, roofs

Columns = dict[str, NDArray[np.int64]]

GEMM_M = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16384, 32768)
GEMM_NK = (32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192, 10240, 12288,
           14336, 16384, 24576, 28672, 32768, 65536)  # fmt: skip
HEADS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 96, 128)
KV_HEADS = (1, 2, 4, 8)
"""Besides as many as query heads."""
HEAD_DIMS = (64, 128, 256)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LENGTHS = tuple(2**i for i in range(4, 18))
"""16 to 131,072 tokens."""
MOST_TOKENS = 1 << 17
"""New tokens of a prefill, over the batch."""


class Price(Protocol):
    """Predicts kernels."""

    name: str
    """For the provenance: "bare roofline", "calibrated laws of …"."""

    def __call__(self, kind: str, dims: Dims, dtype: str) -> Floats:
        """Seconds of each kernel. Raises ValueError, one line, where it cannot price the kind or the dtype."""


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
        _, work = _work(kind, dims, dtype)
        need = _Needs(dtype=dtype, matrix_flops=float(work.flops.sum()))
        if missing := missing_peaks([need], self._peaks):
            raise ValueError(f"the spec has no peak {missing[0]}; measure it, or export without {dtype}")
        level_bytes = np.zeros((*work.bytes.shape, len(self._peaks.levels)))
        level_bytes[..., -1] = work.bytes
        nothing = np.zeros_like(work.bytes)
        rates = Rates.of([need], self._peaks)
        seconds: Floats = np.maximum.reduce(roofs(rates, work.flops, nothing, level_bytes, nothing, nothing))
        return seconds


class LawPrice:
    """A spec's calibrated laws; another price for kinds and dtypes that it has no law of.

    Operands are where the last-level cache can hold them, as when a kernel is timed again and again; a product with one
    row goes to the law of matrix-vector products where there is one.
    """

    def __init__(self, spec: HardwareSpec, otherwise: Price) -> None:
        """Raises ValueError, one line: the spec lacks facts that its laws need."""
        self._laws = {(law.kind, law.dtype): law for law in spec.calibrated}
        self._facts = facts_of(spec)
        self._otherwise = otherwise
        named = ", ".join(sorted({kind for kind, _ in self._laws}))
        self.name = f"calibrated laws ({named}), operands in cache as far as it holds them; else {otherwise.name}"

    def __call__(self, kind: str, dims: Dims, dtype: str) -> Floats:
        """Seconds of each kernel. Raises ValueError as the other price does."""
        sizes, work = _work(kind, dims, dtype)
        law = self._laws.get((kind, dtype))
        priced = self._otherwise(kind, dims, dtype) if law is None else self._by(law, sizes, work)
        single = self._laws.get((MATVEC, dtype)) if kind == "matmul" else None
        if single is not None and (rows := sizes["m"] == 1).any():
            priced = np.where(rows, self._by(single, sizes, work), priced)
        return priced

    def _by(self, law: FittedLaw, sizes: Mapping[str, Floats], work: Work) -> Floats:
        """By one law; what a kernel streams is its compulsory work."""
        written = sizes.get("bytes_written", np.zeros_like(work.bytes))
        streamed = {"bytes_read": work.bytes - written, "bytes_written": written, "flops": work.flops}
        elements = sizes.get("n", work.bytes)
        return law.time_s({**sizes, **streamed, "kernels": np.ones_like(elements), "elements": elements}, self._facts)


def _work(kind: str, dims: Dims, dtype: str) -> tuple[dict[str, Floats], Work]:
    """Sizes as arrays of floats, and the work of kernels. Raises ValueError: an unknown kind or dtype."""
    if kind not in KINDS:
        raise ValueError(f"no price for kernels of kind {kind!r}; known: {', '.join(KINDS)}")
    if dtype not in ELEMENT_BYTES:
        raise ValueError(f"no element size of {dtype!r}; known: {', '.join(ELEMENT_BYTES)}")
    sizes = {name: np.asarray(size, dtype=float) for name, size in dims.items()}
    return sizes, work_of(kind, sizes, dtype)


def columns(**sizes: Iterable[int]) -> Columns:
    """Every combination of the sizes, the last one varying fastest; a column a size."""
    rows = np.array(list(itertools.product(*sizes.values())), dtype=np.int64).reshape(-1, len(sizes))
    return {name: rows[:, i] for i, name in enumerate(sizes)}


def kept(table: Mapping[str, NDArray[np.int64]], rows: NDArray[np.bool_]) -> Columns:
    """Some of the rows."""
    return {name: column[rows] for name, column in table.items()}


def attention_shapes(batches: Sequence[int], lengths: Sequence[int], capacity_bytes: float, kv_bytes: float) -> Columns:
    """batch, length, heads, kv_heads, head_dim: grouped and multi-head layouts whose KV cache fits the memory."""
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
