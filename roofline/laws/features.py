"""Where a kernel lies among others: coordinates in which near means alike, from its sizes alone, for any law.

A size is placed by its logarithm, in doublings, so is the product of all (the amount of work), and a size also by how
even it is (how often 2 divides it, up to `EVEN`): libraries choose other kernels for sizes that do not divide into
vectors and tiles. What a dim is follows from its name, never from the values beside it, so that a kernel lies where it
lies in whatever batch it is priced.

Example: ``features({"m": m, "n": n, "k": k}, ("m", "n", "k"))`` → shape (rows, 7)
"""

import numpy as np

from roofline.laws.collective import OPERATIONS
from roofline.laws.eager_modules import MODULES
from roofline.laws.law import Dims, Floats

EVEN = 3
"""Powers of two that count: 8 elements of 16 bits are a 16-byte vector."""
EVENNESS = 0.67
"""Doublings of a size that one more of them is worth."""
EXPONENTS = ("skew",)
"""Dims that are placed as they are: logarithms already."""
CATEGORIES = {"operation": len(OPERATIONS), "module": len(MODULES)}
"""Dims that are places in a list, and its length: any two lie equally far apart."""
APART = 2.0
"""Doublings of a size that two categories lie apart."""


def features(dims: Dims, names: tuple[str, ...]) -> Floats:
    """Shape (rows, columns): of each size, of the work, of evenness; names that are not in `dims` are left out."""
    sizes = [np.asarray(dims[name], dtype=float) for name in names if name in dims and _is_size(name)]
    work = np.sum([_logarithm(size) for size in sizes], axis=0) / np.sqrt(len(sizes))
    evenness = [EVENNESS * _evenness(size) for size in sizes]
    return np.concatenate([coordinates(dims, names), *(column[:, None] for column in (work, *evenness))], axis=1)


def coordinates(dims: Dims, names: tuple[str, ...]) -> Floats:
    """Shape (rows, columns): sizes in doublings, exponents, and a column for each place of a category."""
    return np.concatenate([_columns(name, np.asarray(dims[name], float)) for name in names if name in dims], axis=1)


def _columns(name: str, values: Floats) -> Floats:
    if name in CATEGORIES:
        return APART / np.sqrt(2) * (values[:, None] == np.arange(CATEGORIES[name])[None])
    return (values if name in EXPONENTS else _logarithm(values))[:, None]


def _is_size(name: str) -> bool:
    return name not in CATEGORIES and name not in EXPONENTS


def _logarithm(size: Floats) -> Floats:
    """Doublings; zero (no window, no rows) lies one below 1, fractions no lower."""
    return np.log2(np.maximum(size, 0.5))


def _evenness(size: Floats) -> Floats:
    """0 for a size that is not whole."""
    whole = np.where(size < 1, 2**EVEN, size).astype(np.int64)
    even = np.minimum(np.log2(whole & -whole), EVEN)
    return np.asarray(np.where(size == np.floor(size), even, 0.0))
