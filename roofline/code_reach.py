"""How long ago the code of an operation last ran: how many bytes others have touched since.

What they touch drives code and tables out of the caches: a norm runs longer in a model whose layers are larger than the
last-level cache than in one whose layers fit. Passes repeat, and the second one counts. A run of neighbours
with the same count above 1 is a block of layers that runs so often, one after another; its operations have the mean
over its repetitions.

Example: ``reach_bytes(graph.ops, [op.name for op in graph.ops])`` → shape (operations,)
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import groupby

import numpy as np

from roofline.graph.op import Op
from roofline.laws.law import Floats


def reach_bytes(ops: Sequence[Op], code: Sequence[Hashable], counted: Callable[[Op], bool] = lambda op: True) -> Floats:
    """Bytes between each operation and the one before it that ran the same `code`, of operations that are `counted`."""
    touched = [float(counted(op) and sum(access.bytes for access in (*op.reads, *op.writes))) for op in ops]
    found = np.zeros(len(ops))
    last: dict[Hashable, float] = {}
    now = 0.0
    for _ in range(2):  # passes
        for count, block in groupby(range(len(ops)), lambda i: ops[i].count):
            rows = list(block)
            found[rows] = 0.0
            size = sum(touched[i] for i in rows)
            for weight in (1.0,) if count == 1 else (1 / count, 1 - 1 / count):  # the first repetition, all others
                for i in rows:
                    found[i] += weight * (now - last.get(code[i], now))
                    now += touched[i]
                    last[code[i]] = now
            if count > 1:  # on to the last repetition
                now += (count - 2) * size
                for key in {code[i] for i in rows}:
                    last[key] += (count - 2) * size
    return found
