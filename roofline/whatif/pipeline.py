"""One stage of a pipeline of devices (Huang et al., arXiv 1811.06965), and the operations that move data between ranks.

The first stage has the embedding, the last one the final norm and the head; layers are split as evenly as they can. A
stage that is not the last sends on the hidden state. Tables of positions and masks, which every stage in fact makes
again, are counted in the first. Tied weights of embedding and head lie on both ends. Collectives have the bytes and
steps of rings (`roofline.laws.work`), which no algorithm beats in bytes (Thakur, Rabenseifner, Gropp, "Optimization of
Collective Communication Operations in MPICH", IJHPCA 19(1), 2005, sections 4.1, 4.3, 4.5). The additions of a reduction
are not counted: any vector unit is faster than the link.
"""

from typing import Any, Literal

from roofline.graph.edit import Accesses, Edit, access, inserted, whole
from roofline.graph.op import ANCHORS, Access, Bytes, Kind, Op, OpGraph, layer_of
from roofline.laws.work import RINGS
from roofline.whatif.checks import checked_ranks


def all_reduce(data: Access, *, ranks: int, link: str, like: Op) -> Op:
    """Sum `data` over the ranks, in its place. Path, type and count are those of `like`."""
    return _collective("all_reduce", data, data, data.bytes, ranks, link, like)


def all_gather(part: Access, gathered: Access, *, ranks: int, link: str, like: Op) -> Op:
    """Put the parts of all ranks together: `gathered` is the whole."""
    return _collective("all_gather", part, gathered, gathered.bytes, ranks, link, like)


def all_to_all(held: Access, received: Access, *, ranks: int, link: str, like: Op, moved: Bytes | None = None) -> Op:
    """Give each other rank its share of what this one holds, and get one of each; the own share stays.

    Args: `moved` are the bytes of all shares, the own one included, where they are not those in memory.
    """
    size = held.bytes if moved is None else moved
    most = max(held.bytes, received.bytes) if moved is None else moved
    return _collective("all_to_all", held, received, size, ranks, link, like, most)


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


OPTION = "pipeline_stage"


def pipeline_stage(graph: OpGraph, stages: int, stage: int = 0, link: str = "nvlink") -> OpGraph:
    """Return one stage of a pipeline of devices, and what it sends on; whole requests go through all stages.

    Args:
        stages: number of devices, each with an equal share of the layers; 1 changes nothing.
        stage: the one to price, from 0 on.
        link: of the device to the next stage.
    Raises: ValueError for more stages than layers, a stage that there is not, or a folded graph.
    """
    checked_ranks("stages", stages)
    if isinstance(stage, bool) or not isinstance(stage, int) or not 0 <= stage < stages:
        raise ValueError(f"stage {stage} is not one of {stages}; they are numbered 0 to {stages - 1}")
    if stages == 1:
        return graph
    if OPTION in graph.options:
        raise ValueError(f"the graph is stage {graph.options[OPTION]} already; start from the whole model")
    layers: dict[tuple[str, int], int] = {}
    for op in graph.ops:
        if place := layer_of(op.path):
            if op.count != 1:
                raise ValueError("the graph is folded: one layer stands for several; split the graph of all layers")
            layers.setdefault((place.prefix, place.layer), len(layers))
    if stages > len(layers):
        raise ValueError(f"{stages} stages, but only {len(layers)} repeated layers; use {len(layers)} stages or fewer")
    stage_of_layer = {layer: i * stages // len(layers) for layer, i in layers.items()}
    at: list[int] = []  # stage of each operation; outside of layers, that of the layer before
    for op in graph.ops:
        place = layer_of(op.path)
        at.append(stage_of_layer[place.prefix, place.layer] if place else (at[-1] if at else 0))
    edit = Edit(graph)
    last = max(i for i, here in enumerate(at) if here == stage)
    for i, here in enumerate(at):
        if here != stage:
            edit.put(i)
    sent = (send(access(t, n), link=link, like=graph.ops[last]) for t, n in _sent_on(graph, at, stage).items())
    edit.put(last, graph.ops[last], *sent)
    used = {a.tensor for op in graph.ops for a in (*op.reads, *op.writes)}
    for tensor in graph.tensors:
        if tensor.id not in used and tensor.role == "weight":  # it goes with its layer, or stays in the first stage
            place = layer_of(tensor.name or "")
            if (stage_of_layer.get((place.prefix, place.layer), 0) if place else 0) != stage:
                edit.drop([tensor.id])
    return edit.done({OPTION: f"{stage} of {stages} over {link}"})


def _sent_on(graph: OpGraph, at: list[int], stage: int) -> dict[int, float]:
    """Tensors, with their bytes, that this stage or one before makes of the tokens and that a later one reads."""
    carried: set[int] = set()
    sent: dict[int, float] = {}
    for op, here in zip(graph.ops, at, strict=True):
        reads = [a for a in op.reads if graph.tensors[a.tensor].role != "weight"]
        if here <= stage:
            if op.kind in ANCHORS or any(a.tensor in carried for a in reads):
                carried.update(a.tensor for a in op.writes)
            continue
        for a in reads:
            if a.tensor in carried:
                sent[a.tensor] = max(a.bytes, sent.get(a.tensor, 0.0))
    return sent
