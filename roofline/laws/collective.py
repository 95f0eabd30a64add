"""Collectives of ranks on one kind of link: launch, steps of a ring, and the faster of two protocols.

With S the size (nccl-tests' meaning, `roofline.laws.bus_bandwidth`) and n ranks:
``time = launch + step · steps(operation, n) + min_soft(W / slow, sync + W / busbw)``

- steps: n − 1 of a ring, 2(n − 1) for an all-reduce, 1 where every pair talks at once (all-to-all, send);
- W: the bytes that a rank sends, plus `own` × the S/n that stays with it and is copied or added in place;
- small packets that carry their own flags (NCCL's LL and LL128) run at `slow` without more ado; large chunks (Simple)
  wait `sync` for their signals and run at `busbw`. The library takes the faster one (min, softened by `SHARPNESS`).
  All-to-all and send move point-to-point messages, which have a `slow` and `sync` of their own.
- Ranks on several nodes (dim "per_node", where a table has it) wait for the network: a ring is as fast as its slowest
  link, `network`, and each message between nodes takes `hop` longer.

Example: ``Collective().time_s({"bytes": s, "ranks": n, "operation": o}, facts, "float16", values)``; `o` is a place in
`roofline.laws.work.OPERATIONS`.
"""

import numpy as np

from roofline.laws.bus_bandwidth import RINGS
from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.laws.work import by_operation, sent_bytes

STEPS = [ring.messages if name != "all_to_all" else lambda n: 1 for name, ring in RINGS.items()]
"""Messages one after another, by operation: those of a ring, and 1 where every pair talks at once."""

SHARPNESS = 6.0
"""How sharply the library switches between its protocols: held, since no table tried could tell."""

POINT_TO_POINT = (3, 5)
"""Operations made of messages between pairs."""


class Collective:
    """The law; see the module."""

    name = "collective"
    dims = ("bytes", "ranks", "operation")

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        if facts.link_bytes_per_s is None:
            raise ValueError("a collective needs the bandwidth of the device's link; its facts have none")
        link = facts.link_bytes_per_s
        return (
            Constant("launch", "s", 1e-7, 1e-2, 5e-6, 1.0, "start of the kernel on all ranks"),
            Constant("step", "s", 1e-8, 1e-3, 1e-6, 0.7, "one message of the ring"),
            Constant("pairing", "s", 1e-9, 1e-3, 1e-6, 1.0, "start of point-to-point messages, more than a ring's"),
            Constant("slow", "B/s", 1e-3 * link, link, 0.3 * link, 0.8, "bus bandwidth of small packets"),
            Constant("slow_pairs", "B/s", 1e-4 * link, link, 0.05 * link, 1.0, "the same, point to point"),
            Constant("sync", "s", 1e-8, 1e-2, 15e-6, 0.8, "signals of large chunks"),
            Constant("sync_pairs", "s", 1e-8, 1e-2, 10e-6, 0.8, "the same, point to point"),
            Constant("busbw", "B/s", 1e-2 * link, 1.2 * link, 0.8 * link, 0.4, "bus bandwidth of large chunks"),
            Constant("network", "B/s", 1e-4 * link, link, 0.08 * link, 1.0, "bus bandwidth between nodes"),
            Constant("hop", "s", 1e-8, 1e-3, 1e-5, 1.0, "of a message between nodes, more than within one"),
            Constant(
                "own", "1", 1e-2, 2.0, 0.4, 0.7, "time of a byte that stays with its rank, over that of a sent one"
            ),
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
        return np.asarray(latency + np.maximum(_faster(small, large, SHARPNESS), network))


def _faster(one: Floats, other: Floats, sharpness: float) -> Floats:
    """The smaller of two, a little less where they are close."""
    least = np.maximum(np.minimum(one, other), np.finfo(float).tiny)
    return np.asarray(
        least
        * ((least / np.maximum(one, least)) ** sharpness + (least / np.maximum(other, least)) ** sharpness)
        ** (-1 / sharpness)
    )
