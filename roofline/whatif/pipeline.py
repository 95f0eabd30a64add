"""One stage of a pipeline of devices, each of which holds some of the layers (Huang et al., arXiv 1811.06965).

The first stage has the embedding, the last one the final norm and the head; layers are split as evenly as their number
allows. A stage that is not the last sends on what later ones read: the hidden state. Tables of positions and masks,
which every stage in fact makes again, are counted in the first. Tied weights of embedding and head lie on both ends.
"""

from roofline.graph.edit import Edit, access
from roofline.graph.op import ANCHORS, OpGraph, layer_of
from roofline.whatif.checks import checked_ranks
from roofline.whatif.collectives import send

OPTION = "pipeline_stage"


def pipeline_stage(graph: OpGraph, stages: int, stage: int, link: str = "network") -> OpGraph:
    """Stage `stage`, from 0 on, of a pipeline of `stages` devices; one stage changes nothing.

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
