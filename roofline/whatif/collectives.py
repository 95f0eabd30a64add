"""Operations that move data between ranks, or between two devices: those that the sharding what-ifs insert.

Bytes and steps are those of ring algorithms (`roofline.laws.bus_bandwidth`), which no other beats in bytes: Thakur,
Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH", IJHPCA 19(1), 2005, sections 4.1,
4.3 and 4.5. They read and write their tensors in memory too. The additions of a reduction are not counted: one for each
element that arrives over the link, which is slower than any vector unit.
"""

from typing import Any, Literal

from roofline.graph.edit import Accesses, access, inserted, whole
from roofline.graph.op import Access, Bytes, Kind, Op
from roofline.laws.bus_bandwidth import RINGS
from roofline.whatif.checks import checked_ranks


def all_reduce(data: Access, *, ranks: int, link: str, like: Op) -> Op:
    """Sum `data` over the ranks, in its place. Path, type and count are those of `like`."""
    return _collective("all_reduce", data, data, data.bytes, ranks, link, like)


def all_gather(part: Access, gathered: Access, *, ranks: int, link: str, like: Op) -> Op:
    """Put the parts of all ranks together: `gathered` is the whole."""
    return _collective("all_gather", part, gathered, gathered.bytes, ranks, link, like)


def reduce_scatter(data: Access, part: Access, *, ranks: int, link: str, like: Op) -> Op:
    """Sum `data` over the ranks; each keeps its `part` of the sum."""
    return _collective("reduce_scatter", data, part, data.bytes, ranks, link, like)


def all_to_all(held: Access, received: Access, *, ranks: int, link: str, like: Op) -> Op:
    """Give each other rank its share of what this one holds, and get one of each; the own share stays."""
    return _collective("all_to_all", held, received, held.bytes, ranks, link, like, max(held.bytes, received.bytes))


def send(data: Access, *, link: str, like: Op) -> Op:
    """Send `data` to another device, in one message."""
    return transfer("send", data.bytes, reads=(access(data.tensor, data.bytes),), link=link, like=like)


def transfer(
    name: str, size: Bytes, *, link: str, like: Op, reads: Accesses = (), beside: Literal["in", "out"] | None = None
) -> Op:
    """Move `size` bytes over a link, in one message; see `Op.beside`."""
    dims, crosses = {"bytes": round(size), "ranks": 2}, _crossing(link, size, 1)
    return inserted(like, f"transfer::{name}", Kind.TRANSFER, dims, reads, (), beside=beside, **crosses)


def _collective(
    name: str, read: Access, written: Access, size: Bytes, ranks: int, link: str, like: Op, moved: Bytes | None = None
) -> Op:
    """A ring over `size` bytes; its link carries the traffic of `moved` bytes where that is more."""
    if checked_ranks("ranks", ranks) == 1:
        raise ValueError(f"{name} among 1 rank moves nothing; leave it out")
    reads, writes = ((access(a.tensor, a.bytes),) for a in (read, written))
    ring, dims = RINGS[name], {"bytes": round(size), "ranks": ranks}
    crosses = _crossing(link, ring.factor(ranks) * (moved or size), ring.messages(ranks))
    return inserted(like, f"collective::{name}", Kind.COLLECTIVE, dims, reads, writes, **crosses)


def _crossing(link: str, size: Bytes, messages: int) -> dict[str, Any]:
    """Fields of an operation that sends `size` bytes over a link."""
    if not link:
        raise ValueError("a transfer needs the name of a link of the device, such as nvlink, pcie or network")
    return {"link": link, "link_bytes": whole(size), "messages": messages}
