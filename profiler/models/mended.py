"""Modules of `transformers` whose code does or keeps more than what is asked for, with a forward that does just that.

`mended` is for the ideal form, `in_context` for the prefill that fills the cache of a traced pass, of which nothing but
the shapes of the cache is used.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[..., Any]
Mend = Callable[..., Any]
"""Called with the module, its own forward, and the arguments of that."""


class _Shift:
    """RWKV's states of the last token, of which a layer's is (batch, 1, width) as its new token is.

    `transformers` takes (batch, width), which adds each sequence's state to the tokens of all sequences.
    """

    def __init__(self, states: Tensor) -> None:
        self.states = states

    def __getitem__(self, index: Any) -> Tensor:
        return self.states[index].unsqueeze(1)

    def __setitem__(self, index: Any, value: Tensor) -> None:
        self.states[index] = value


def _sequences_apart(at: int) -> Mend:
    """RWKV without its mix of a batch's sequences, with which a step has batch² rows instead of batch.

    Args: `at` is the place of the last token's among the states.
    """

    def apart(_: nn.Module, forward: Forward, hidden: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        if state is None or hidden.size(1) > 1:
            return forward(hidden, state=state, **kwargs)
        parts = [_Shift(part) if i == at else part for i, part in enumerate(state)]
        return forward(hidden, state=parts, **kwargs)[0], state

    return apart


def _grouped(experts: Any, _: Forward, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """LongCat's experts in grouped products, not in a loop over all that are hit, which reads the values of a one-hot.

    Of the experts that a token chooses some return it unchanged ("zero-computation experts", arXiv 2509.01322, section
    2.1): of even choices, as many as there are among all. The others have rows in the products.
    """
    real = experts.num_routed_experts
    out = hidden * weights.sum(-1, keepdim=True)
    if not real or not chosen.numel():
        return out.to(hidden.dtype)
    rows = -(-chosen.numel() * real // experts.total_experts)
    tokens, ends = (chosen.new_empty(size, dtype=dtype) for size, dtype in ((rows, torch.long), (real, torch.int32)))
    gate_up, down = (matrices[:real].transpose(1, 2) for matrices in (experts.gate_up_proj, experts.down_proj))
    gate, up = torch._grouped_mm(hidden[tokens], gate_up, ends).chunk(2, dim=-1)
    made = torch._grouped_mm(experts.act_fn(gate) * up, down, ends) * weights.flatten()[tokens, None]
    return out.to(hidden.dtype).index_add_(0, tokens, made.to(hidden.dtype))


def _keys_of_index(
    index: Any, _: Forward, hidden: Tensor, positions: Any, mask: Tensor, past_key_values: Any, **kwargs: Any
) -> Tensor:
    """Qwen4's index without the choice, which it makes in a loop over the queries: a prefill attends over all keys."""
    widths = (index.index_n_heads * index.index_head_dim, index.index_kv_heads * index.index_head_dim)
    keys = index.index_qk_proj(hidden).split(widths, -1)[1].reshape(*hidden.shape[:2], -1, index.index_head_dim)
    past_key_values.update_indexer(keys.squeeze(2), index.layer_idx)
    return mask.new_empty(mask.shape, dtype=torch.bool)


def _leftovers_alone(
    _: nn.Module, forward: Forward, hidden: Tensor, residual: Tensor, positions: Tensor, cache: Any, layer: int
) -> Any:
    """DeepSeek-V4's compressors, which keep the tokens that fill no entry yet as a view of the projections of all."""
    out = forward(hidden, residual, positions, cache, layer)
    for buffers in (cache.layers[layer].buffer_kv, cache.layers[layer].buffer_gate) if cache is not None else ():
        for name, kept in buffers.items():
            if kept is not None and kept.untyped_storage().nbytes() > kept.nbytes:
                buffers[name] = kept.clone()
    return out


def _whole_pools(index: Any, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    """GLM-5-Next's index without padded tokens, which it would find by values that it keeps in its cache."""

    def pooled(packed_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        width, pool = index.head_dim, index.index_kpool
        pools = packed_states.shape[1] // pool
        whole = packed_states[:, : pools * pool].unflatten(1, (pools, pool))
        shares = (whole[..., width : 2 * width].float() + index.index_kpool_compress_ape.float()).softmax(dim=2)
        numbers = torch.arange(pools * pool, device=whole.device).view(1, pools, pool).expand(len(whole), -1, -1)
        keys = (shares.to(whole.dtype) * whole[..., :width]).sum(dim=2)
        return keys, numbers, numbers.new_ones(numbers.shape[:2], dtype=torch.bool)

    index.get_pooled_states = pooled
    try:
        return forward(*args, **kwargs)
    finally:
        del index.get_pooled_states


IDEAL: Mapping[str, Mend] = {
    "Glm5NextTextIndexer": _whole_pools,
    "DeepseekV4CSACompressor": _leftovers_alone,
    "DeepseekV4HCACompressor": _leftovers_alone,
    "RwkvSelfAttention": _sequences_apart(1),
    "RwkvFeedForward": _sequences_apart(0),
    "LongcatFlashExperts": _grouped,
}
"""Class of a module -> what it runs where the model is traced for the ideal form."""

IN_CONTEXT: Mapping[str, Mend] = {
    "Glm5NextTextIndexer": _whole_pools,
    "LongcatFlashExperts": _grouped,
    "Qwen4ExpTextQSAIndexer": _keys_of_index,
}
"""The same in the prefill of a context."""


@contextmanager
def mended(model: nn.Module, mends: Mapping[str, Mend] = IDEAL) -> Iterator[None]:
    """Run the modules of these classes by their mends; where that is so already, it stays so."""
    modules = [m for m in model.modules() if type(m).__name__ in mends and "forward" not in vars(m)]
    for module in modules:
        own, mend = module.forward, mends[type(module).__name__]

        def forward(*args: Any, _mend: Mend = mend, _module: nn.Module = module, _own: Any = own, **kwargs: Any) -> Any:
            return _mend(_module, _own, *args, **kwargs)

        module.forward = forward
    try:
        yield
    finally:
        for module in modules:
            del module.forward
