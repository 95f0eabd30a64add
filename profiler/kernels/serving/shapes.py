"""The kernels of a model's step, and suites: which models, at which points, on how many ranks.

Products, experts, norms, gates, convolutions and sums over ranks are read from the traced graph of the pass, as
`predict` prices it; heads, latents and states from the config, divided as tensor parallelism divides them. A suite is a
JSON file of `suites`, or a user's. Equal shapes of several models are one kernel that names all of them.

Example: ``kernels([model_step("llama-3.1-8b", workload, tp=2)], "bfloat16")``
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from transformers import PretrainedConfig

from profiler.kernels.serving.contract import AttentionShape, Family, ModelStep
from profiler.kernels.serving.families import FAMILIES, family_named
from profiler.models.catalogue import head_layouts
from profiler.models.graphs import ModelGraphs, Tracing, model_source
from profiler.models.resolve import resolve
from profiler.record.files import requested
from profiler.record.run import RequestError
from roofline import reading
from roofline.dtypes import ELEMENT_BYTES
from roofline.graph.linear import linear_of
from roofline.graph.op import Kind, Op, OpGraph
from roofline.reading import one_line, record_of
from roofline.record import Record
from roofline.sweep.family import Source
from roofline.whatif.registry import WhatIf
from roofline.workload import Workload

FOLDER = Path(__file__).with_name("suites")
MOST_SUITE_BYTES = 1 << 20
"""Bytes of a suite's file; those here have under 1 kB."""
CACHED = 64
"""Cached tokens of a traced pass at most: what is read from the graph depends on whether there are any, and attention
takes their number from the workload."""
LINK = "nvlink"
"""A link has to be named to divide a graph; shapes do not depend on it."""
DELTA_RULE = (("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim"),)
STATE_SPACE = (
    ("mamba_n_heads", "mamba_d_head", "mamba_d_state"),
    ("mamba_num_heads", "mamba_head_dim", "ssm_state_size"),
)
"""Fields of configs with the heads, head width and state width of linear attention (Qwen 3.5) and of Mamba-2 (Granite,
Nemotron)."""
GATES = {"silu": "swiglu", "gelu": "geglu", "tanh": "geglu"}
"""The operator inside a gated activation -> family; GELU by its tanh form is some operators, one of them tanh."""


class Point(Record):
    """Passes of one phase, every batch with every length."""

    phase: Literal["prefill", "decode", "verify"]
    batch: tuple[int, ...] = Field(min_length=1)
    context: tuple[int, ...] = (0,)
    """Cached tokens of a sequence before the pass; a prefill may have a cached prefix."""
    query: int = Field(default=1, ge=1)
    """New tokens of a sequence: 1 in decode, the drafted ones and one more in verify, the prompt in prefill."""

    def workloads(self, dtype: str) -> list[Workload]:
        """Return the passes. Raises ValueError: a decode without context, or of several tokens."""
        if self.phase != "prefill" and min(self.context) < 1:
            raise ValueError(f"{self.phase} needs a context of at least 1 token")
        if self.phase == "decode" and self.query != 1:
            raise ValueError("decode adds one token; several are phase verify")
        logits: Literal["last", "all"] = "all" if self.phase == "verify" else "last"
        return [
            Workload(batch=b, query_tokens=self.query, context_tokens=c, dtype=dtype, logits=logits)
            for b in self.batch
            for c in self.context
        ]


class Group(Record):
    """Models at the same points."""

    models: tuple[str, ...] = Field(min_length=1)
    tp: tuple[int, ...] = (1,)
    """Ranks of tensor parallelism."""
    points: tuple[Point, ...] = Field(min_length=1)
    families: tuple[str, ...] = ()
    """Families that these models are for; empty: all that their steps have."""


class Suite(Record):
    """The kernels that one name stands for."""

    title: str
    dtype: str = "bfloat16"
    """Dtype of the passes; a family without it has its own."""
    groups: tuple[Group, ...] = Field(min_length=1)
    families: tuple[str, ...] = ()
    """Families by name; empty: all."""
    without: tuple[str, ...] = ()
    """Providers that are left out."""
    shapes_of_a_family: int = Field(default=0, ge=0)
    """Most shapes of a family, those in the middle by their traffic; 0: all."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One kernel at one shape, and the models that run it."""

    family: Family
    dtype: str
    dims: dict[str, int]
    models: tuple[str, ...]
    """"llama-3.1-8b tp2 decode-b8-q1-c1024-bfloat16", …"""

    @property
    def key(self) -> str:
        """Return a name that is unique among kernels, the same in every run."""
        sizes = "-".join(f"{name}{self.dims[name]}" for name in self.family.sizes)
        return f"{self.family.name}-{self.dtype}-{sizes}"


def suite_named(name: str) -> Suite:
    """Return a suite of this package by name, or of a file. Raises RequestError, one line."""
    known = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
    path = known.get(name, Path(name))
    if name not in known and (not name.endswith(".json") or reading.entry(path) is None):
        near = ", ".join(get_close_matches(name, known, n=3, cutoff=0.0))
        raise RequestError(f"no suite {name!r} (known: {near}); name one of these, or a JSON file")
    with requested():
        text = reading.read_bytes(path, MOST_SUITE_BYTES, "name a file of a suite")
    try:
        suite = record_of(Suite, text)
        for family in (*suite.families, *(name for group in suite.groups for name in group.families)):
            family_named(family)
        for group in suite.groups:
            for point in group.points:
                point.workloads(suite.dtype)
    except ValueError as error:
        raise RequestError(f"{path} is no suite: {one_line(error)}; repair it") from error
    return suite


def wanted_of(suite: Suite) -> list[Wanted]:
    """Return the kernels of a suite, families in their order. Raises RequestError for an unknown model, or one that its
    ranks cannot divide."""
    steps = [
        (group, model_step(model, workload, tp))
        for group in suite.groups
        for model in group.models
        for point in group.points
        for workload in point.workloads(suite.dtype)
        for tp in group.tp  # one trace for all degrees
    ]
    made: list[Wanted] = []
    for family in (family for family in FAMILIES if not suite.families or family.name in suite.families):
        of_family = [step for group, step in steps if not group.families or family.name in group.families]
        own = kernels(of_family, suite.dtype, [family])
        if most := suite.shapes_of_a_family:
            own.sort(key=lambda each: float(each.family.work(each.dims, each.dtype).bytes))
            first = max(0, len(own) - most) // 2
            own = own[first : first + most]
        made += own
    return made


def kernels(steps: Sequence[ModelStep], dtype: str, families: Iterable[Family] | None = None) -> list[Wanted]:
    """Return the kernels of all steps, equal shapes once; families without the dtype in each of their own."""
    made: list[Wanted] = []
    for family in FAMILIES if families is None else families:
        users: dict[tuple[int, ...], dict[str, None]] = {}
        for step in steps:
            for dims in family.shapes(step):
                name = f"{step.model} tp{step.tp} {step.workload.key}"
                users.setdefault(tuple(dims[size] for size in family.sizes), {})[name] = None
        for dtype_of in (dtype,) if dtype in family.dtypes else _own(family):
            made += [
                Wanted(family, dtype_of, dict(zip(family.sizes, row, strict=True)), tuple(names))
                for row, names in users.items()
            ]
    return made


def _own(family: Family) -> tuple[str, ...]:
    """Return the dtypes of a family that no model has: 8 and 4 bits, or float32 where it is the only one."""
    return family.dtypes


def model_step(model: str, workload: Workload, tp: int = 1) -> ModelStep:
    """Return the shapes of one pass of a model on one of `tp` ranks. Raises RequestError, one line, as `resolve` and
    the division of the graph do."""
    cached = min(workload.context_tokens, CACHED)
    return replace(_step(model, workload.model_copy(update={"context_tokens": cached}), tp), workload=workload)


@lru_cache(maxsize=16)
def _source(model: str, dtype: str) -> tuple[PretrainedConfig, Source]:
    config = resolve(model).config
    graphs = ModelGraphs(config, model, Tracing(dtype=dtype)).of_each_kind()
    return config.get_text_config(decoder=True), model_source(graphs, (), "executed")


@lru_cache(maxsize=8)
def _pass(model: str, workload: Workload) -> OpGraph:
    return _source(model, workload.dtype)[1].whole(workload)


@lru_cache(maxsize=1024)
def _step(model: str, workload: Workload, tp: int) -> ModelStep:
    config, _ = _source(model, workload.dtype)
    if tp < 1:
        raise RequestError(f"--tp {tp} is no number of ranks; use 1 or more")
    graph = _pass(model, workload)
    if tp > 1:
        try:
            graph = WhatIf("tensor_parallel", {"degree": tp, "link": LINK})(graph)
        except ValueError as error:
            raise RequestError(f"{model}: {error}") from error
    tokens = workload.batch * workload.query_tokens
    chosen = {_block(op.path): op.dims for op in graph.ops if op.name == "aten::topk" and "chosen" in op.dims}
    products: dict[tuple[int, int, int], None] = {}
    routers: dict[tuple[int, int, int, int], None] = {}
    grouped: dict[tuple[int, int, int, int, int], None] = {}
    latent = _latent(config, tp)
    for i, op in enumerate(graph.ops):
        if op.kind is Kind.GROUPED_MATMUL and op.routing is not None:
            routing = op.routing
            row = (routing.experts, round(routing.per_token), round(routing.tokens), op.dims["n"], op.dims["k"])
            grouped[row] = None
        elif op.kind is Kind.MATMUL and op.dims.get("b", 1) == 1:
            m, n, k = (op.dims[name] for name in "mnk")
            choice = chosen.get(_block(op.path), {})
            expanded = (
                latent and m > tokens
            )  # latents of the whole context, which absorbed attention leaves as they are
            if choice.get("of") == n:  # of a copy of its weights in float32, perhaps
                routers[m, n, k, choice["chosen"]] = None
            elif linear_of(graph, i) is not None and not expanded:
                products[m, n, k] = None
    hidden = int(config.hidden_size)
    return ModelStep(
        model=model,
        tp=tp,
        workload=workload,
        hidden=hidden,
        vocabulary=int(config.vocab_size),
        embeddings=_unique((op.dims["rows"], op.dims["width"]) for op in graph.ops if _looks_up(op, tokens)),
        products=tuple(products),
        routers=tuple(routers),
        grouped=tuple(grouped),
        attention=() if latent else _attention(config, graph, tp),
        latent=latent,
        norms=_unique(_norms(graph, hidden, workload)),
        gates=_unique(_gates(graph)),
        rotary=any("rotary" in op.path for op in graph.ops),
        convolutions=_unique(
            (op.dims["groups"], op.dims["window"])
            for op in graph.ops
            if op.kind is Kind.CONV and op.dims.get("groups", 1) > 1
        ),
        delta_rules=_of_config(config, DELTA_RULE),
        state_spaces=_of_config(config, STATE_SPACE),
        reduced=_unique(
            (size, hidden)
            for op in graph.ops
            if op.name == "collective::all_reduce" and (size := _rows_of(op, hidden, workload))
        ),
    )


def _unique(rows: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(rows))


def _block(path: str) -> str:
    """Return the block of a router's module: gpt-oss's and Mixtral's choose outside of it, Qwen's inside."""
    parent, _, name = path.rpartition(".")
    return parent if name in ("gate", "router", "shared_expert_gate") else path


def _looks_up(op: Op, tokens: int) -> bool:
    return op.kind is Kind.EMBEDDING and "width" in op.dims and op.dims.get("rows") == tokens


def _rows_of(op: Op, width: int, workload: Workload) -> int:
    return int(op.dims["bytes"] / ELEMENT_BYTES[workload.dtype]) // width


def _latent(config: PretrainedConfig, tp: int) -> tuple[tuple[int, int, int], ...]:
    latent, rotated = getattr(config, "kv_lora_rank", None), getattr(config, "qk_rope_head_dim", None)
    if not latent or not rotated:
        return ()
    return ((math.ceil(config.num_attention_heads / tp), int(latent), int(rotated)),)


def _attention(config: PretrainedConfig, graph: OpGraph, tp: int) -> tuple[AttentionShape, ...]:
    """Return head layouts of a rank, with each window of the model's layers."""
    windows = dict.fromkeys(module.window or 0 for module in graph.attention_modules) or {0: None}
    softcap = round(getattr(config, "attn_logit_softcapping", None) or 0)
    if not graph.attention_modules:
        return ()
    return tuple(
        AttentionShape(math.ceil(heads / tp), max(1, math.ceil(kv_heads / tp)), head_dim, window, softcap)
        for heads, kv_heads, head_dim in head_layouts(config)
        for window in windows
    )


def _norms(graph: OpGraph, hidden: int, workload: Workload) -> Iterable[tuple[str, int, int]]:
    """Yield norms by the operators inside them: an RMSNorm has one reciprocal root a row."""
    rows = {op.path: op.dims["elements"] for op in graph.ops if op.name == "aten::rsqrt" and op.dims.get("elements")}
    for op in graph.ops:
        elements = op.dims.get("elements", 0)
        if op.name == "aten::mean" and op.path in rows and elements % rows[op.path] == 0:
            yield "rms_norm", rows[op.path], elements // rows[op.path]
        elif op.name == "aten::native_layer_norm" and elements % hidden == 0:
            yield "layer_norm", elements // hidden, hidden


def _gates(graph: OpGraph) -> Iterable[tuple[str, int, int]]:
    """Yield activations that are multiplied with another half of the same size, in the module or the one around it."""
    products = [
        (op.path, op.dims["m"], op.dims["n"])
        for op in graph.ops
        if op.kind in (Kind.MATMUL, Kind.GROUPED_MATMUL) and "n" in op.dims
    ]
    for op, after in zip(graph.ops, (*graph.ops[1:], None), strict=False):
        family = GATES.get(op.name.removeprefix("aten::").rstrip("_"))
        elements = op.dims.get("elements", 0)
        if family is None or not elements or after is None:
            continue
        block = op.path.rpartition(".")[0] if op.path.endswith(("act", "act_fn", "activation_fn")) else op.path
        wide = [m for path, m, n in products if path.startswith(block) and m * n in (elements, 2 * elements)]
        pairs = sum(m * n == elements for path, m, n in products if path.startswith(block))
        if wide and (pairs > 1 or pairs < len(wide)) and elements % wide[0] == 0:
            yield family, wide[0], elements // wide[0]


def _of_config(config: PretrainedConfig, names: Sequence[tuple[str, str, str]]) -> tuple[tuple[int, int, int], ...]:
    """Return sizes that a config names; a rank of tensor parallelism keeps states whole, as `tensor_parallel_plan`
    does."""
    found = [tuple(getattr(config, name, None) for name in fields) for fields in names]
    return tuple((int(a), int(b), int(c)) for a, b, c in found if a and b and c)
