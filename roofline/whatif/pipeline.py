"""One stage of a pipeline of devices, each of which holds some of the layers (Huang et al., arXiv 1811.06965).

The first stage has the embedding, the last one the final norm and the head; layers are split as evenly as their number
allows. A stage that is not the last sends on what later ones read: the hidden state. Tables of positions and masks,
which every stage in fact makes again, are counted in the first. Tied weights of embedding and head lie on both ends.

Example: ``[pipeline_stage(graph, 4, i) for i in range(4)]`` → together all operations of the graph
"""

from roofline.graph.edit import Edit, access
from roofline.graph.op import ANCHORS, OpGraph, layer_of
from roofline.whatif.checks import checked_ranks
from roofline.whatif.collectives import send

OPTION = "pipeline_stage"


def pipeline_stage(graph: OpGraph, stages: int, stage: int, link: str = "network") -> OpGraph:
    """Stage `stage`, from 0 on, of a pipeline of `stages` devices; one stage is the identity.

    Raises: ValueError for more stages than layers, a stage that there is not, or a folded graph.
    """
    checked_ranks("stages", stages)
    if isinstance(stage, bool) or not isinstance(stage, int) or not 0 <= stage < stages:
        raise ValueError(f"stage {stage} is not one of {stages}; they are numbered 0 to {stages - 1}")
    if stages == 1:
        return graph
    if OPTION in graph.options:
        raise ValueError(f"the graph is stage {graph.options[OPTION]} already; start from the whole model")
    layers = _layers(graph)
    if stages > len(layers):
        raise ValueError(f"{stages} stages, but only {len(layers)} repeated layers; use {len(layers)} stages or fewer")
    stage_of_layer = {layer: i * stages // len(layers) for i, layer in enumerate(layers)}
    at = _stages(graph, stage_of_layer)
    edit = Edit(graph)
    last = max(i for i, here in enumerate(at) if here == stage)
    for i, here in enumerate(at):
        if here != stage:
            edit.put(i)
    sent = _sent_on(graph, at, stage)
    edit.put(
        last,
        graph.ops[last],
        *(send(access(t, size), link=link, like=graph.ops[last]) for t, size in sent.items()),
    )
    edit.drop(_unused_elsewhere(graph, stage_of_layer, stage))
    return edit.done({OPTION: f"{stage} of {stages} over {link}"})


def _layers(graph: OpGraph) -> list[tuple[str, int]]:
    layers: dict[tuple[str, int], None] = {}
    for op in graph.ops:
        place = layer_of(op.path)
        if place:
            if op.count != 1:
                raise ValueError("the graph is folded: one layer stands for several; split the graph of all layers")
            layers[place.prefix, place.layer] = None
    return list(layers)


def _stages(graph: OpGraph, stage_of_layer: dict[tuple[str, int], int]) -> list[int]:
    """The stage of each operation; outside of layers, that of the layer before, behind the last one the last."""
    stages: list[int] = []
    for op in graph.ops:
        place = layer_of(op.path)
        stages.append(stage_of_layer[place.prefix, place.layer] if place else (stages[-1] if stages else 0))
    return stages


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


def _unused_elsewhere(graph: OpGraph, stage_of_layer: dict[tuple[str, int], int], stage: int) -> list[int]:
    """Tensors that no operation touches and that belong to layers of other stages; those of none stay in the first."""
    used = {a.tensor for op in graph.ops for a in (*op.reads, *op.writes)}
    elsewhere = []
    for tensor in graph.tensors:
        if tensor.id in used or tensor.role != "weight":
            continue
        place = layer_of(tensor.name or "")
        if (stage_of_layer.get((place.prefix, place.layer), 0) if place else 0) != stage:
            elsewhere.append(tensor.id)
    return elsewhere
