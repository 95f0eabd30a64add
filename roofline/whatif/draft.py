"""A model's own draft: one layer that predicts a further token from the last hidden state and the token's embedding.

EAGLE (arXiv 2401.15077, section 4.1) and the multi-token prediction of DeepSeek-V3 (arXiv 2412.19437, section 2.2) have
the same parts: a product that brings both, side by side, back to the width of the model, a layer like the model's last,
and the embedding and the head of the model itself. The norms of either are left out.
"""

from roofline.dtypes import element_bits
from roofline.graph.edit import Edit, access, inserted, redirected
from roofline.graph.op import Kind, OpGraph, layer_of
from roofline.whatif.layers import remove_layers, repeated_layers

JOINED = "draft.joined.weight"
"""Name of the matrix that joins state and embedding."""
DRAFTS = ("mtp", "eagle")
"""Names of a model's own draft."""


def draft_head(graph: OpGraph) -> OpGraph:
    """The pass of the model's own draft (MTP, EAGLE): its last layer, after a product of 2 × width by width.

    Raises: ValueError where the last layer cannot run alone, or the graph has no embedding.
    """
    layers = repeated_layers(graph)
    alone = remove_layers(graph, layers[:-1])
    at = next((i for i, op in enumerate(alone.ops) if op.kind is Kind.EMBEDDING), None)
    if at is None:
        raise ValueError(f"{graph.model} has no embedding that its draft could share; name a draft model")
    embedding = alone.ops[at]
    embedded = embedding.writes[0]
    bits = element_bits(graph.workload.dtype)
    tokens = graph.workload.batch * graph.workload.query_tokens
    width = round(embedded.bytes * 8 / bits / tokens)
    edit = Edit(alone)
    size = 2 * width * width * bits / 8
    weight = access(edit.tensor(size, "weight", JOINED), size)
    state, joined = edit.activation(embedded.bytes), edit.activation(embedded.bytes)
    product = inserted(
        embedding,
        "aten::mm",
        Kind.MATMUL,
        {"b": 1, "m": tokens, "n": width, "k": 2 * width},
        (embedded, state, weight),
        (joined,),
        path="draft.joined",
        dtype=graph.workload.dtype,
        matrix_flops=2.0 * tokens * 2 * width * width,
    )
    edit.put(at, embedding, product)
    for i, op in enumerate(alone.ops[at + 1 :], start=at + 1):
        if (other := redirected(op, {embedded.tensor: joined.tensor})) is not op:
            edit.put(i, other)
    return edit.done({"draft": "of the model's last layer"}, parameters=alone.parameters + 2 * width * width)


def shared_bytes(graph: OpGraph) -> float:
    """Bytes of the weights of `draft_head` that are the model's own: the embedding, the head, the last norm."""
    return float(
        sum(
            tensor.storage_bytes
            for tensor in graph.tensors
            if tensor.role == "weight" and tensor.name != JOINED and layer_of(tensor.name or "") is None
        )
    )
