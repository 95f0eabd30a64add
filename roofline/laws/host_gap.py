"""The host's time between two operations of an eager pass, where it does not run ahead: a CPU's.

``time = (operation + modules · module) · (1 + (cold − 1) · driven out)``: the interpreter goes on to the next operator,
and on its way leaves and enters modules. All of that is slower where the layers in between have driven the interpreter
out of the caches.

Example: ``HostGap().time_s({"modules": m, "reach": r}, facts, "float32", values)``
"""

import numpy as np

from roofline.laws.driven_out import driven_out
from roofline.laws.law import Constant, Dims, Facts, Floats, Values


class HostGap:
    """The law; "modules" are left and entered, "reach" is in bytes touched since the same line last ran."""

    kind = "host_gap"
    dims: tuple[str, ...] = ("modules", "reach")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        """Three."""
        del facts, dtype
        return (
            Constant("operation", "s", 1e-7, 1e-4, 3e-6, 1.0, "of the interpreter for an operator"),
            Constant("module", "s", 1e-7, 1e-4, 4e-6, 1.0, "of leaving or entering a module"),
            Constant("cold", "1", 1.0, 10.0, 2.0, 0.7, "slowdown where the interpreter comes from main memory"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        """Seconds before each operation."""
        del dtype
        warm = values["operation"] + np.asarray(dims["modules"], dtype=float) * values["module"]
        return np.asarray(warm * (1 + (values["cold"] - 1) * driven_out(dims, facts)))
