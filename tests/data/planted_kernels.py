"""Kernels that are wrong in ways that real ones have been, as a user's kernel file.

`tests/profiler/kernels/test_serving_check.py` sees that the check catches each of them.
"""

import threading

import torch
import torch.nn.functional as F


def norm(x, weight, eps):
    """What an RMSNorm gives."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def attend(q, keys, values, seen, scale=None):
    """Attention of batch × query × heads × width to keys that `seen` (batch × query × kv) does not mask."""
    groups = q.shape[2] // keys.shape[2]
    q = q.transpose(1, 2).float()
    any_seen = seen.any(1)[:, :, None, None]
    k, v = (x.float().where(any_seen, 0.0).transpose(1, 2).repeat_interleave(groups, 1) for x in (keys, values))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1) @ v).transpose(1, 2)


def mask(q, keys, lengths, window=0, later=0):
    """Which keys a query sees; `later`: how many after its own."""
    own = lengths[:, None, None] - q.shape[1] + torch.arange(q.shape[1])[:, None] + later
    places = torch.arange(keys.shape[1])
    return (places <= own) & ((places > own - window) if window else True) & (places < lengths[:, None, None])


_KEPT = {}


def stale_output(x, weight, eps):
    """Keeps what it gave for an address, and gives it again."""
    key = x.data_ptr(), x.shape
    if key not in _KEPT:
        _KEPT[key] = norm(x, weight, eps)
    return _KEPT[key].clone()


def missing_tail(x, weight, eps):
    """Writes whole vectors of 32 elements, and leaves the rest at 0."""
    y = torch.zeros_like(x)
    whole = x.shape[1] // 32 * 32
    y[:, :whole] = norm(x, weight, eps)[:, :whole]
    return y


def wrong_scale(x, weight):
    """One percent too much, which each element's rounding could have done."""
    return (F.linear(x.float(), weight.float()) * 1.01).to(x.dtype)


def race(x, weight, eps):
    """The last bits of some elements depend on when it ran."""
    y = norm(x, weight, eps)
    y[0, :8] *= 1 + torch.finfo(x.dtype).eps * torch.rand(8)
    return y


def input_mutation(x, weight, eps):
    """Normalises in place, and gives a copy."""
    return x.copy_(norm(x, weight, eps)).clone()


def wrong_dtype(x, weight, eps):
    """Leaves the result in the precision of its sums."""
    return norm(x, weight, eps).to(torch.float32 if x.dtype != torch.float32 else torch.float64)


def past_valid_length(q, keys, values, lengths):
    """Attends to the whole cache, whatever a sequence's length is."""
    whole = torch.full_like(lengths, keys.shape[1])
    return attend(q, keys, values, mask(q, keys, whole)).to(q.dtype)


def off_by_one_causal_mask(q, keys, values, lengths, window):
    """Each query sees the next token too."""
    return attend(q, keys, values, mask(q, keys, lengths, window, later=1)).to(q.dtype)


def ignores_window(q, keys, values, lengths):
    """Attends to all of the past; what lies before the window is 0 to it, not masked."""
    seen = mask(q, keys, lengths)
    return attend(q, keys.nan_to_num(0.0), values.nan_to_num(0.0), seen).to(q.dtype)


def wrong_gqa_head_mapping(q, keys, values, lengths, window):
    """Query head i reads KV head i mod kv_heads, not i ÷ group."""
    heads, kv_heads = q.shape[2], keys.shape[2]
    order = [i % kv_heads for i in range(heads)]
    return attend(q, keys[:, :, order], values[:, :, order], mask(q, keys, lengths, window)).to(q.dtype)


def transposed_scale(x, weight, weight_scale, k, group):
    """Reads scales of n × groups as groups × n."""
    n = len(weight)
    low, high = weight & 15, weight >> 4
    wide = torch.stack([low, high], -1).view(n, k).float() - 8
    scale = weight_scale.float().reshape(-1, n).T.repeat_interleave(group, 1)
    return (x.float() @ (wide * scale).T).to(x.dtype)


def unscaled_softmax(q, keys, values, lengths, window):
    """Forgets to divide scores by √head_dim."""
    return attend(q, keys, values, mask(q, keys, lengths, window), scale=1.0).to(q.dtype)


def missing_residual(x, weight, residual, eps):
    """Normalises what came in, without the residual stream."""
    return norm(x, weight, eps), (x.float() + residual.float()).to(x.dtype)


def fp16_overflow(x, weight, x_scale, weight_scale):
    """Sums products of 8-bit numbers in 16 bits."""
    return (F.linear(x.half(), weight.half()) * x_scale * weight_scale.T).bfloat16()


def uninitialised_memory(x, weight, eps):
    """Never writes the last row."""
    y = torch.empty_like(x)
    y[:-1] = norm(x, weight, eps)[:-1]
    return y


def view_of_input(x, width):
    """Writes its result over its input, and gives that part of it."""
    x[:, :width] = (F.silu(x[:, :width].float()) * x[:, width:].float()).to(x.dtype)
    return x[:, :width]


_SUMS = {}


def correct_only_for_first_call(x, weight, eps):
    """Adds to a workspace that it clears once."""
    key = x.data_ptr(), x.shape
    _SUMS[key] = _SUMS.get(key, 0.0) + norm(x, weight, eps).float()
    return _SUMS[key].to(x.dtype)


def correct_only_for_multiples_of_64(x, weight, eps):
    """Sums squares in whole blocks of 64."""
    wide = x.float()
    blocks = max(1, x.shape[1] // 64) * 64
    return (wide * torch.rsqrt(wide[:, :blocks].pow(2).mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def nan_for_masked_row(q, keys, values, lengths, window):
    """Takes keys in blocks and keeps a running maximum, which is −∞ − −∞ where a row sees nothing of a block."""
    seen = mask(q, keys, lengths, window)
    groups = q.shape[2] // keys.shape[2]
    wide = q.transpose(1, 2).float()
    k, v = (x.float().nan_to_num(0.0).transpose(1, 2).repeat_interleave(groups, 1) for x in (keys, values))
    most = torch.full((*wide.shape[:3], 1), float("-inf"))
    total, made = torch.zeros_like(most), torch.zeros_like(wide)
    for start in range(0, k.shape[2], 16):
        block = slice(start, start + 16)
        scores = wide @ k[:, :, block].transpose(-1, -2) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~seen[:, None, :, block], float("-inf"))
        now = torch.maximum(most, scores.amax(-1, keepdim=True))
        kept, weights = (most - now).exp(), (scores - now).exp()
        total, made, most = total * kept + weights.sum(-1, keepdim=True), made * kept + weights @ v[:, :, block], now
    return (made / total).transpose(1, 2).to(q.dtype)


def ignores_cached_prefix(q, keys, values, lengths, window):
    """Aligns the causal mask with the first key, as if nothing were cached."""
    places = torch.arange(keys.shape[1])
    seen = (places <= torch.arange(q.shape[1])[:, None]).expand(len(q), -1, -1)
    return attend(q, keys.nan_to_num(0.0), values.nan_to_num(0.0), seen).to(q.dtype)


def ignores_softcap(q, keys, values, lengths, window):
    """Leaves scores as they are."""
    return attend(q, keys, values, mask(q, keys, lengths, window)).to(q.dtype)


def rope_of_pairs(q, k, angles):
    """Turns neighbours against each other (GPT-J's form), not the halves of a head."""

    def turned(x):
        cos, sin = angles[:, None].chunk(2, -1)
        even, odd = x.float()[..., ::2], x.float()[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2).to(x.dtype)

    return turned(q), turned(k)


def last_expert_dropped(x, up, down, ids, shares):
    """Ends its loop one expert too early."""
    result = torch.zeros(x.shape)
    for expert in range(len(up) - 1):
        rows, places = (ids == expert).nonzero(as_tuple=True)
        gate, wide = (x[rows].float() @ up[expert].float().T).nan_to_num(0.0).chunk(2, -1)
        made = (F.silu(gate) * wide) @ down[expert].float().nan_to_num(0.0).T
        result.index_add_(0, rows, made * shares[rows, places, None])
    return result.to(x.dtype)


def one_token_too_many(logits, temperature, noise, k):
    """Keeps k + 1 tokens."""
    scaled = logits / temperature[:, None]
    least = scaled.sort(-1, descending=True).values.gather(-1, k[:, None].clamp_max(logits.shape[-1] - 1))
    return (scaled.masked_fill(scaled < least, float("-inf")).softmax(-1) / noise).argmax(-1)


def softmax_without_maximum(logits, temperature, noise):
    """Takes powers of e that overflow."""
    powers = (logits / temperature[:, None]).exp()
    return (powers / powers.sum(-1, keepdim=True) / noise).argmax(-1)


def last_token_of_odd_vocabulary(logits):
    """Takes two tokens at a time."""
    return logits[:, : logits.shape[1] // 2 * 2].argmax(-1)


def swapped_nibbles(x, weight, weight_scale, k, group):
    """Takes the high half of a byte for the even column."""
    wide = torch.stack([weight >> 4, weight & 15], -1).view(len(weight), k).float() - 8
    return (x.float() @ (wide * weight_scale.float().repeat_interleave(group, 1)).T).to(x.dtype)


def scale_of_a_tensor(x, weight, x_scale, weight_scale):
    """Takes the mean of the blocks' scales for all of them."""
    return (x.float() * x_scale.mean() @ (weight.float() * weight_scale.mean()).T).bfloat16()


def adapters_in_turn(x, weight, adapters):
    """Supposes that rows have the adapters in turn."""
    return torch.bmm(weight[torch.arange(len(x)) % adapters].float(), x.float()[:, :, None])[..., 0].to(x.dtype)


def clears_the_next_slot(k, v, keys, values, slots):
    """Writes a vector more than a token has."""
    for cache, new in ((keys, k), (values, v)):
        flat = cache.view(-1, *new.shape[1:])
        flat[(slots + 1) % len(flat)] = 0
        flat[slots] = new


def no_decay(q, k, v, beta, state, tokens):
    """Keeps all of the state."""
    made = []
    for i in range(tokens):
        query, key, value = (x[:, i].float()[:, :, None] for x in (q, k, v))
        state += key.transpose(-1, -2) @ ((value - key @ state) * beta[:, i][..., None, None])
        made.append((query @ state)[:, :, 0])
    return torch.stack(made, 1).to(q.dtype)


def state_not_kept(x, weight, bias, state):
    """Leaves the last inputs of the call before."""
    inputs = torch.cat((state, x.transpose(1, 2)), -1).float()
    return F.silu(F.conv1d(inputs, weight.float()[:, None], bias.float(), groups=len(weight))).mT.to(x.dtype)


def no_epsilon(x, weight):
    """Divides by the root of the mean alone."""
    return norm(x, weight, 0.0)


_VERSIONS = {}


def stale_until_written(x, weight, eps):
    """Keeps what it gave until torch counts a change of its operand, which no timing does."""
    key = x.data_ptr(), x.shape, x._version
    if key not in _VERSIONS:
        _VERSIONS.clear()
        _VERSIONS[key] = norm(x, weight, eps)
    return _VERSIONS[key].clone()


_PRODUCTS = {}


def stale_product(x, weight, x_scale, weight_scale):
    """Keeps the product of an address, and applies new scales to it."""
    key = x.data_ptr(), x.shape
    if key not in _PRODUCTS:
        _PRODUCTS.clear()
        _PRODUCTS[key] = x.float() @ weight.float().T
    return (_PRODUCTS[key] * x_scale * weight_scale.T).bfloat16()


_BUFFERS = {}


def one_buffer(x, weight, eps):
    """Gives the same memory after each call, which the next one overwrites."""
    return _BUFFERS.setdefault((x.shape, x.dtype), torch.empty_like(x)).copy_(norm(x, weight, eps))


def returns_early(x, weight, eps):
    """Leaves its work to a thread, for which nobody waits."""
    made = norm(x, weight, eps)
    threading.Timer(0.01, made.add_, (0,)).start()
    return made


KERNELS = [
    ("rms_norm", stale_output),
    ("rms_norm", missing_tail),
    ("linear", wrong_scale),
    ("rms_norm", race),
    ("rms_norm", input_mutation),
    ("rms_norm", wrong_dtype),
    ("decode_attention", past_valid_length),
    ("prefill_attention", off_by_one_causal_mask),
    ("prefill_attention", ignores_window),
    ("decode_attention", wrong_gqa_head_mapping),
    ("linear_int4_weights", transposed_scale),
    ("decode_attention", unscaled_softmax),
    ("rms_norm_residual", missing_residual),
    ("linear_int8", fp16_overflow),
    ("rms_norm", uninitialised_memory),
    ("swiglu", view_of_input),
    ("rms_norm", correct_only_for_first_call),
    ("rms_norm", correct_only_for_multiples_of_64),
    ("prefill_attention", nan_for_masked_row),
    ("prefill_attention", ignores_cached_prefix),
    ("decode_attention", ignores_softcap),
    ("rope", rope_of_pairs),
    ("experts", last_expert_dropped),
    ("sample_top_k", one_token_too_many),
    ("sample_temperature", softmax_without_maximum),
    ("sample_greedy", last_token_of_odd_vocabulary),
    ("linear_int4_weights", swapped_nibbles),
    ("linear_fp8_block", scale_of_a_tensor),
    ("lora_shrink", adapters_in_turn),
    ("kv_append_paged", clears_the_next_slot),
    ("gated_delta_rule", no_decay),
    ("causal_conv1d", state_not_kept),
    ("rms_norm", no_epsilon),
    ("rms_norm", stale_until_written),
    ("linear_int8", stale_product),
    ("rms_norm", one_buffer),
    ("rms_norm", returns_early),
]
