"""The host's time between two operations of an eager pass, where it does not run ahead: a CPU's.

``time = (operation + modules · module) · (1 + (cold − 1) · size / (1 + size))``: the interpreter goes on to the next
operator, and on its way leaves and enters modules. All of that is slower where the layers in between have driven the
interpreter out of the caches. ``size = (reach + share · streamed) / (held · last-level cache)``: products of many rows
copy their operands through the caches, while a matrix that is streamed once, by a product with one row, leaves more of
what is in them (on an AMD Zen 3, layers of 75 MB slow the interpreter by a third when they decode, threefold when they
prefill).

Example: ``HostGap().time_s({"modules": m, "reach": r, "streamed": s}, facts, "float32", values)``
"""

import numpy as np

from roofline.laws.law import Constant, Dims, Facts, Floats, Values


class HostGap:
    """The law; "modules" are left and entered; "reach" and "streamed" are bytes touched since the same line last ran,
    the latter by products with one row, the former by all else."""

    kind = "host_gap"
    dims: tuple[str, ...] = ("modules", "reach", "streamed")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Five."""
        del facts, dtype
        return (
            Constant("operation", "s", 1e-7, 1e-4, 5e-6, 1.0, "of the interpreter for an operator"),
            Constant("module", "s", 1e-7, 1e-4, 6e-6, 1.0, "of leaving or entering a module"),
            Constant("cold", "1", 1.0, 20.0, 5.0, 0.7, "slowdown where the interpreter comes from main memory"),
            Constant("held", "1", 0.1, 50.0, 4.0, 0.7, "last-level caches of bytes that drive out half of it"),
            Constant("share", "1", 0.0, 1.0, 0.15, 0.1, "of streamed bytes that drive out as others do", False),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds before each operation."""
        del dtype
        warm = values["operation"] + np.asarray(dims["modules"], dtype=float) * values["module"]
        reach = np.asarray(dims["reach"], dtype=float) + values["share"] * np.asarray(dims["streamed"], dtype=float)
        size = reach / (values["held"] * facts.cache_bytes)
        return np.asarray(warm * (1 + (values["cold"] - 1) * size / (1 + size)))
