"""Op tables from a spec's calibrated laws, and from the bare roofline for kinds and dtypes that it has no law of.

Operands are where the last-level cache can hold them, as when a kernel is timed again and again; a product with one row
goes to the law of matrix-vector products where there is one.

Example: ``LawPrice(spec, RooflinePrice(peaks))("matmul", {"m": m, "n": n, "k": k}, "bfloat16")`` → seconds
"""

import numpy as np

from calibrate.exchange.export.price import Price, work_of
from roofline.hardware.facts import facts_of
from roofline.hardware.spec import HardwareSpec
from roofline.laws.fitted import FittedLaw
from roofline.laws.kinds import MATVEC
from roofline.laws.law import Dims, Floats


class LawPrice:
    """Prices kernels with laws."""

    def __init__(self, spec: HardwareSpec, otherwise: Price) -> None:
        """Raises ValueError, one line: the spec lacks facts that its laws need."""
        self._laws = {(law.kind, law.dtype): law for law in spec.calibrated}
        self._facts = facts_of(spec)
        self._otherwise = otherwise
        named = ", ".join(sorted({kind for kind, _ in self._laws}))
        self.name = f"calibrated laws ({named}), operands in cache as far as it holds them; else {otherwise.name}"

    def __call__(self, kind: str, dims: Dims, dtype: str) -> Floats:
        """Seconds of each kernel. Raises ValueError as the other price does."""
        work = work_of(kind, dims, dtype)
        law = self._laws.get((kind, dtype))
        priced = (
            self._otherwise(kind, dims, dtype) if law is None else self._by(law, dims, work.matrix_flops, work.bytes)
        )
        single = self._laws.get((MATVEC, dtype)) if kind == "matmul" else None
        if single is not None and (rows := np.asarray(dims["m"]) == 1).any():
            priced = np.where(rows, self._by(single, dims, work.matrix_flops, work.bytes), priced)
        return priced

    def _by(self, law: FittedLaw, dims: Dims, flops: Floats, moved: Floats) -> Floats:
        """The same sizes by the names that laws have for them."""
        sizes = dict(dims)
        if "kv_element_bytes" in sizes:
            sizes["kv_bytes"] = sizes.pop("kv_element_bytes")
        sizes["bytes_written"] = sizes.pop("write_bytes", np.zeros_like(moved))
        sizes["bytes_read"] = moved - sizes["bytes_written"]
        sizes |= {"flops": flops, "kernels": np.ones_like(moved), "elements": sizes.get("n", moved)}
        return law.time_s(sizes, self._facts)
