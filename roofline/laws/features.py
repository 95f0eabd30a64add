"""Where a kernel lies among others: coordinates in which near means alike, from its sizes alone, for any law.

A size is placed by its logarithm, in doublings, so is the product of all (the amount of work), and a size also by how
even it is (how often 2 divides it, up to `EVEN`): libraries choose other kernels for sizes that do not divide into
vectors and tiles.

Example: ``features({"m": m, "n": n, "k": k}, ("m", "n", "k"))`` → shape (rows, 7)
"""

import numpy as np

from roofline.laws.law import Dims, Floats

EVEN = 3
"""Powers of two that count: 8 elements of 16 bits are a 16-byte vector."""
EVENNESS = 0.67
"""Doublings of a size that one more of them is worth."""


def features(dims: Dims, names: tuple[str, ...]) -> Floats:
    """Shape (rows, 2 × sizes + 1); names that are not in `dims` are left out."""
    columns = [np.asarray(dims[name], dtype=float) for name in names if name in dims]
    logs = [logarithm(column) for column in columns]
    work = np.sum(logs, axis=0) / np.sqrt(len(logs))
    return np.stack([*logs, work, *(EVENNESS * _evenness(column) for column in columns)], axis=1)


def logarithm(size: Floats) -> Floats:
    """Doublings; zero (no window, no rows) lies one below 1. A column of fractions (a skew) stays as it is."""
    if not _whole(size):
        return size
    return np.log2(np.maximum(size, 0.5))


def _evenness(size: Floats) -> Floats:
    if not _whole(size):
        return np.zeros_like(size)
    whole = np.where(size < 1, 2**EVEN, size).astype(np.int64)
    return np.minimum(np.log2(whole & -whole), EVEN).astype(float)


def _whole(size: Floats) -> bool:
    return bool((size == np.floor(size)).all())
