"""Which rows a fit may see: half of the groups, drawn by a seed; a group is on one side only.

Rows of one weight shape or head layout resemble each other: held out by rows, a fit would be asked what it was told.

Example: ``seen, unseen = halves(observations, seed=0)``
"""

import numpy as np

from calibrate.observations import Observations


def halves(observations: Observations, seed: int) -> tuple[Observations, Observations]:
    """Rows of half of the groups (rounded up), and of the others. Raises ValueError where there is only one group."""
    names = np.unique(observations.group)
    if len(names) < 2:
        raise ValueError(
            f"all {len(observations)} rows of {observations.kind} {observations.dtype} are of one group "
            f"({names[0] if len(names) else 'none'}), and none can be held out; score on another run with --score"
        )
    drawn = np.random.default_rng(seed).permutation(len(names))[: (len(names) + 1) // 2]
    seen = np.isin(observations.group, names[drawn])
    return observations.take(seen), observations.take(~seen)
