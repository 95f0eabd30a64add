"""The law of collectives of ranks on one kind of link: launch, steps of a ring, and the faster of two protocols.

With S the size (nccl-tests' meaning, `roofline.laws.work`) and n ranks:
``time = launch + step · steps(operation, n) + min_soft(W / slow, sync + W / busbw)``
- steps: n − 1 of a ring, 2(n − 1) for an all-reduce, 1 where every pair communicates at once (all-to-all, send);
- W: the bytes that a rank sends, plus `own` × the S/n that stays with it and is copied or added in place;
- small packets with their own flags (NCCL's LL and LL128) run at `slow`; large chunks (Simple) wait `sync` for their
  signals and run at `busbw`. The library takes the faster. Point-to-point operations have their own `slow` and `sync`.
- Between nodes (dim "per_node") a ring is as fast as its slowest link, `network`, and a message takes `hop` longer.
The dim "operation" is an index into `roofline.laws.work.OPERATIONS`.
"""

import numpy as np

from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.laws.work import RINGS, by_operation, sent_bytes

STEPS = [ring.messages if name != "all_to_all" else lambda n: 1 for name, ring in RINGS.items()]
"""Messages one after another, by operation: those of a ring, and 1 where every pair communicates at once."""
SHARPNESS = 6.0
"""Power of the soft minimum of the two protocols; held, since no table tried could determine it."""
POINT_TO_POINT = (3, 5)
"""Operations made of messages between pairs, as indices: all_to_all and send_recv."""


class Collective:
    name = "collective"
    dims = ("bytes", "ranks", "operation")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        if facts.link_bytes_per_s is None:
            raise ValueError("a collective needs the bandwidth of the device's link; its facts have none")
        link = facts.link_bytes_per_s
        return (
            Constant("launch", "s", 1e-7, 1e-2, 5e-6, 1.0, "start of the kernel on all ranks"),
            Constant("step", "s", 1e-8, 1e-3, 1e-6, 0.7, "one message of the ring"),
            Constant("pairing", "s", 1e-9, 1e-3, 1e-6, 1.0, "additional start of point-to-point messages"),
            Constant("slow", "B/s", 1e-3 * link, link, 0.3 * link, 0.8, "bus bandwidth of small packets"),
            Constant("slow_pairs", "B/s", 1e-4 * link, link, 0.05 * link, 1.0, "the same, point to point"),
            Constant("sync", "s", 1e-8, 1e-2, 15e-6, 0.8, "signals of large chunks"),
            Constant("sync_pairs", "s", 1e-8, 1e-2, 10e-6, 0.8, "the same, point to point"),
            Constant("busbw", "B/s", 1e-2 * link, 1.2 * link, 0.8 * link, 0.4, "bus bandwidth of large chunks"),
            Constant("network", "B/s", 1e-4 * link, link, 0.08 * link, 1.0, "bus bandwidth between nodes"),
            Constant("hop", "s", 1e-8, 1e-3, 1e-5, 1.0, "additional time of a message between nodes"),
            Constant("own", "1", 1e-2, 2.0, 0.4, 0.7, "time of a byte that stays with its rank ÷ a sent byte's"),
        )

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        pairs = np.isin(dims["operation"], POINT_TO_POINT)
        worked = sent_bytes(dims) + values["own"] * dims["bytes"] / dims["ranks"]
        nodes = np.ceil(dims["ranks"] / dims["per_node"]) if "per_node" in dims else np.ones_like(worked)
        across = nodes > 1
        latency = values["launch"] + values["step"] * by_operation(dims, STEPS) + values["pairing"] * pairs
        latency = latency + values["hop"] * np.where(across, by_operation({**dims, "ranks": nodes}, STEPS), 0.0)
        small = worked / np.where(pairs, values["slow_pairs"], values["slow"])
        large = np.where(pairs, values["sync_pairs"], values["sync"]) + worked / values["busbw"]
        network = np.where(across, worked / values["network"], 0.0)
        return np.asarray(latency + np.maximum(_faster(small, large), network))


class OwnAllReduce(Collective):
    """The same for an all-reduce of a serving engine's own, whose constants are others: one launch in a captured graph,
    and direct reads of all ranks' buffers instead of a ring."""

    name = "own_all_reduce"


def _faster(first: Floats, second: Floats) -> Floats:
    """A soft minimum: the smaller time, reduced a little where both are close."""
    least = np.maximum(np.minimum(first, second), np.finfo(float).tiny)
    ratios = (least / np.maximum(first, least)) ** SHARPNESS + (least / np.maximum(second, least)) ** SHARPNESS
    return np.asarray(least * ratios ** (-1 / SHARPNESS))
