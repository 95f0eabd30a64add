"""State-space and linear attention: causal convolution, gated delta rule, selective scan; a step and a whole prompt.

A state is written in place, as engines keep it from token to token. Plain torch runs a prompt token by token: chunked
forms are what libraries are for.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from profiler.kernels.serving.contract import (
    Dims,
    Draw,
    Family,
    ModelStep,
    Tensors,
    amount,
    in_own_dtype,
    points,
    widened,
)
from profiler.kernels.serving.products import FLOATS, tolerance
from profiler.kernels.serving.providers import torch_and_inductor
from roofline.dtypes import ELEMENT_BYTES
from roofline.laws.work import Work

CONV_SIZES = ("batch", "tokens", "channels", "taps")


def _conv_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return tokens × channels of each sequence, and the last inputs before them, channels × taps − 1."""
    kind, history = getattr(torch, dtype), d["taps"] - 1
    return {
        "x": draw.normal(d["batch"], d["tokens"], d["channels"], dtype=kind),
        "weight": draw.normal(d["channels"], d["taps"], dtype=kind, scale=d["taps"] ** -0.5),
        "bias": draw.normal(d["channels"], dtype=kind),
        "state": draw.normal(d["batch"], d["channels"], history, dtype=kind),
    }


def _conv_parts(d: Dims, t: Tensors) -> tuple[Tensor, Tensor]:
    """Return the result, tokens × channels after SiLU, and the new state."""
    inputs = torch.cat((t["state"], t["x"].transpose(1, 2)), -1)
    result = F.conv1d(inputs, t["weight"][:, None], t["bias"], groups=d["channels"])
    return F.silu(result).transpose(1, 2), inputs[..., inputs.shape[-1] - d["taps"] + 1 :]


def _conv(d: Dims, t: Tensors) -> Tensor:
    result, state = _conv_parts(d, t)
    t["state"].copy_(state)
    return result


def _conv_reference(d: Dims, t: Tensors) -> Tensors:
    result, state = _conv_parts(d, widened(t))
    return {"y": result, "state": state}


def _conv_work(d: Dims, dtype: str) -> Work:
    rows, state = d["batch"] * d["tokens"] * d["channels"], d["batch"] * d["channels"] * (d["taps"] - 1)
    moved = 2 * rows + 2 * state + d["channels"] * (d["taps"] + 1)
    return amount(2 * rows * d["taps"], ELEMENT_BYTES[dtype] * moved)


def _conv_shapes(step: ModelStep) -> Iterable[dict[str, int]]:
    rows = [(step.workload.batch, step.workload.query_tokens, *convolution) for convolution in step.convolutions]
    return points(CONV_SIZES, *rows)


CAUSAL_CONV = Family(
    name="causal_conv1d",
    sizes=CONV_SIZES,
    dtypes=FLOATS,
    operands=_conv_operands,
    outputs=("y", "state"),
    reference=_conv_reference,
    returned=in_own_dtype("y", "state"),
    tolerance=lambda d, dtype: {"y": tolerance(dtype, 5, d["taps"]), "state": tolerance(dtype, 0, 1)},
    work=_conv_work,
    shapes=_conv_shapes,
    checks=points(CONV_SIZES, (1, 1, 64, 4), (3, 1, 33, 4), (2, 37, 19, 4), (1, 2, 48, 3)),
    mutates=("state",),
    weights=("weight", "bias"),
    providers=torch_and_inductor(_conv),
)

Steps = Callable[[Dims, Tensors, Tensor], tuple[Tensor, Tensor]]
"""The rows of all tokens and the last state, of operands and the first state, in its dtype."""
MOST_STEPS = 32
"""Most tokens of a sequence that are run one after another."""


def _stateful(
    name: str,
    sizes: tuple[str, ...],
    operands: Callable[[Dims, str, Draw], Tensors],
    steps: Steps,
    work: Callable[[Dims, str], Work],
    heads_of: Callable[[ModelStep], Iterable[tuple[int, int, int]]],
    roundings: int,
    terms: str,
) -> Family:
    """Return a family that updates a state token by token; a result sums as many terms a token as the size `terms`
    says."""

    def run(d: Dims, t: Tensors) -> Tensor:
        result, state = steps(d, t, t["state"])
        t["state"].copy_(state)
        return result.to(next(iter(t.values())).dtype)  # the first operand's: queries or inputs

    def reference(d: Dims, t: Tensors) -> Tensors:
        result, state = steps(d, t, t["state"].double())
        return {"y": result, "state": state}

    def shapes(step: ModelStep) -> Iterable[dict[str, int]]:
        pass_of = (step.workload.batch, step.workload.query_tokens)
        return points(sizes, *((*pass_of, *heads) for heads in heads_of(step) if pass_of[1] <= MOST_STEPS))

    return Family(
        name=name,
        sizes=sizes,
        dtypes=FLOATS,
        operands=operands,
        outputs=("y", "state"),
        reference=reference,
        returned=lambda dtype: {"y": getattr(torch, dtype), "state": torch.float32},
        tolerance=lambda d, dtype: {
            "y": tolerance(dtype, roundings, d[terms] * d["tokens"]),
            "state": tolerance("float32", 64, d[terms] * d["tokens"]),
        },
        work=work,
        shapes=shapes,
        checks=points(sizes, (1, 1, 2, 64, 64), (3, 1, 5, 33, 40), (2, 7, 3, 16, 24)),
        mutates=("state",),
        providers=torch_and_inductor(run),
        note="a prompt is run token by token, which takes minutes: only steps of few tokens are taken from models",
    )


DELTA_SIZES = ("batch", "tokens", "heads", "key_dim", "value_dim")


def _delta_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return queries and keys of length 1, values, decay (log, ≤ 0) and write strength of each head; states in
    float32."""
    kind, rows = getattr(torch, dtype), (d["batch"], d["tokens"], d["heads"])
    unit = d["key_dim"] ** -0.5
    return {
        "q": draw.normal(*rows, d["key_dim"], dtype=kind, scale=unit),
        "k": draw.normal(*rows, d["key_dim"], dtype=kind, scale=unit),
        "v": draw.normal(*rows, d["value_dim"], dtype=kind),
        "decay": draw.uniform(-1.0, -0.01, *rows, dtype=torch.float32),
        "beta": draw.uniform(0.2, 0.9, *rows, dtype=torch.float32),
        "state": draw.normal(d["batch"], d["heads"], d["key_dim"], d["value_dim"], dtype=torch.float32),
    }


def _delta_steps(d: Dims, t: Tensors, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run S ← e^g S; S ← S + k ⊗ β (v − Sᵀk); y = Sᵀq (Gated DeltaNet, arXiv 2412.06464, equation 10)."""
    made = []
    for i in range(d["tokens"]):
        q, k, v = (t[name][:, i].to(state.dtype)[:, :, None] for name in ("q", "k", "v"))
        decay, beta = (t[name][:, i].to(state.dtype)[..., None, None] for name in ("decay", "beta"))
        state = state * decay.exp()
        state = state + k.transpose(-1, -2) @ ((v - k @ state) * beta)
        made.append((q @ state)[:, :, 0])
    return torch.stack(made, 1), state


def _delta_work(d: Dims, dtype: str) -> Work:
    rows, size = d["batch"] * d["tokens"] * d["heads"], ELEMENT_BYTES[dtype]
    states = 2 * 4 * d["batch"] * d["heads"] * d["key_dim"] * d["value_dim"]
    moved = rows * (size * (2 * d["key_dim"] + 2 * d["value_dim"]) + 8) + states
    return amount(6 * rows * d["key_dim"] * d["value_dim"], moved)


DELTA_RULE = _stateful(
    "gated_delta_rule",
    DELTA_SIZES,
    _delta_operands,
    _delta_steps,
    _delta_work,
    lambda step: step.delta_rules,
    6,
    "key_dim",
)

SPACE_SIZES = ("batch", "tokens", "heads", "head_dim", "state_dim")


def _space_operands(d: Dims, dtype: str, draw: Draw) -> Tensors:
    """Return inputs, steps and decays (log, ≤ 0) of each head, input and output maps that all heads share (one
    group)."""
    kind, rows = getattr(torch, dtype), (d["batch"], d["tokens"])
    return {
        "x": draw.normal(*rows, d["heads"], d["head_dim"], dtype=kind),
        "step": draw.uniform(0.01, 0.5, *rows, d["heads"], dtype=torch.float32),
        "rate": draw.uniform(-4.0, -0.5, d["heads"], dtype=torch.float32),
        "b": draw.normal(*rows, d["state_dim"], dtype=kind),
        "c": draw.normal(*rows, d["state_dim"], dtype=kind, scale=d["state_dim"] ** -0.5),
        "skip": draw.normal(d["heads"], dtype=torch.float32),
        "state": draw.normal(d["batch"], d["heads"], d["head_dim"], d["state_dim"], dtype=torch.float32),
    }


def _space_steps(d: Dims, t: Tensors, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run h ← e^(Δ·a) h + (Δ·x) ⊗ b; y = h·c + D x (Mamba-2, arXiv 2405.21060, section 2, scalar a for each head)."""
    made, kind = [], state.dtype
    for i in range(d["tokens"]):
        x, step = t["x"][:, i].to(kind), t["step"][:, i].to(kind)
        b, c = (t[name][:, i].to(kind)[:, None, None].expand(-1, d["heads"], -1, -1) for name in ("b", "c"))
        state = state * (step * t["rate"].to(kind)).exp()[..., None, None] + (x * step[..., None])[..., None] @ b
        made.append((state @ c.transpose(-1, -2))[..., 0] + t["skip"].to(kind)[:, None] * x)
    return torch.stack(made, 1), state


def _space_work(d: Dims, dtype: str) -> Work:
    rows, size = d["batch"] * d["tokens"], ELEMENT_BYTES[dtype]
    states = d["batch"] * d["heads"] * d["head_dim"] * d["state_dim"]
    moved = rows * (size * 2 * (d["heads"] * d["head_dim"] + d["state_dim"]) + 4 * d["heads"])
    flops = 4 * rows * d["heads"] * d["head_dim"] * d["state_dim"]
    return amount(flops, moved + 2 * 4 * states + 8 * d["heads"])


STATE_SPACE = _stateful(
    "state_space_scan",
    SPACE_SIZES,
    _space_operands,
    _space_steps,
    _space_work,
    lambda step: step.state_spaces,
    8,
    "state_dim",
)

FAMILIES = (CAUSAL_CONV, DELTA_RULE, STATE_SPACE)
