"""T3: the operations of an executed graph priced with the calibrated laws of a device.

The most special law of the spec prices each operation: that of its operator ("aten::mul"), else that of its kind of
streaming ("pointwise"); a product with one row is a matrix-vector product, another kernel in every library. Operations
without a law keep the roofline's price and are counted. Two sizes depend on the moment when an operation runs: "cold",
the share of its bytes that no cache holds (`roofline.caches`), and "reach", the bytes touched since the same operator
last ran. Times at another level of the machine follow from the resources that each operation waits for (`waits`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from roofline.caches import Touches, bytes_since_last_run, level_bytes
from roofline.dtypes import ELEMENT_BYTES
from roofline.graph.op import EXPERT_PARALLEL, Kind, Op, OpGraph
from roofline.hardware.spec import OUTWARD, HardwareSpec, Peaks, facts_of
from roofline.laws.experts import expert_loads
from roofline.laws.fitted import PROBES, FittedLaw, LevelRatio
from roofline.laws.kinds import BATCHED, GROUPED, HOST_GAP, KINDS, MATVEC, OWN_ALL_REDUCE, ROW_MAJOR
from roofline.laws.law import Floats
from roofline.laws.work import OPERATIONS
from roofline.price import Prepared, Rates, roofs

BATCHED_OPERATORS = ("aten::bmm", "aten::baddbmm")
"""Operators that run other kernels than a single product does, even for a batch of one."""
COLLECTIVE, EXPERTS = "collective", "experts"
OF_BYTES = (COLLECTIVE, OWN_ALL_REDUCE)
"""Kinds besides streaming ones whose time follows bytes, whatever their dtype."""
SKEWS = np.array([0.0, *np.linspace(0.05, 1.2, 24)])
"""Exponents of experts' loads among which a routing's equal is sought: from even ones to AIConfigurator's steepest."""
NEAR = 0.25
"""Most that the number of experts hit may be off for a law to price them; its time follows it about in proportion."""


@dataclass(frozen=True, slots=True)
class LawInput:
    """One operation as laws see it."""

    kinds: tuple[str, ...]
    """Kinds of the laws that may price it, the most special first."""
    dtype: str
    dims: Mapping[str, float]
    share: float = 1.0
    """Part of the law's time that is this operation's: the products of a layer's experts share one law."""
    instead: "LawInput | None" = None
    """The kind whose law prices it where no law of `kinds` is known."""


def law_inputs(prepared: Prepared, cache_bytes: float) -> list[LawInput | None]:
    """The input of each operation, None without a law; `cache_bytes` is the size of the last-level cache."""
    ops = prepared.graph.ops
    cold = cold_shares(prepared.touches, cache_bytes)
    reach = bytes_since_last_run(ops, [operator(op.name) for op in ops])
    inputs = [law_input_of(op, *states) for op, *states in zip(ops, cold.tolist(), reach.tolist(), strict=True)]
    whole = whole_experts(prepared.graph)
    return [row and replace(row, instead=whole[i]) if i in whole else row for i, row in enumerate(inputs)]


def whole_experts(graph: OpGraph) -> dict[int, LawInput]:
    """Experts of each layer as one kernel, which the law of that kind prices with the activation between the products
    and the movement of rows: by the operations of an ideal graph, each with its part of the FLOPs. Operations of the
    executed graph are priced one by one."""
    layers: dict[str, list[int]] = {}
    for i, op in enumerate(graph.ops):
        if op.kind == Kind.GROUPED_MATMUL and op.routing is not None:
            layers.setdefault(op.path, []).append(i)
    if not any(op.also for op in graph.ops):
        return {}
    ranks = int(re.match(r"\d+", graph.options.get(EXPERT_PARALLEL, "1"))[0])  # type: ignore[index]
    weights, found = {tensor.id for tensor in graph.tensors if tensor.role == "weight"}, {}
    for places in layers.values():
        first, last = graph.ops[places[0]], graph.ops[places[-1]]
        flops = sum(graph.ops[i].matrix_flops for i in places)
        routing, hidden, inner = first.routing, float(first.dims["k"]), float(last.dims["k"])
        if routing is None or len(places) < 2 or not flops or not routing.tokens:
            continue
        read = sum(a.bytes for i in places for a in graph.ops[i].reads if a.tensor in weights)
        size = sum(graph.ops[i].dims["n"] * graph.ops[i].dims["k"] for i in places)
        dims = {
            "tokens": float(routing.tokens), "hidden": hidden, "inner": inner, "tp": 1.0, "ep": float(ranks),
            "topk": min(routing.per_token * ranks, routing.experts * ranks), "experts": float(routing.experts * ranks),
            "weight_bits": 8 * read / (routing.hit * size),
        }  # fmt: skip
        if (skew := skew_of(dims, routing.hit)) is None:
            continue
        dims["skew"] = skew
        for i in places:
            found[i] = LawInput((EXPERTS,), first.dtype, dims, share=graph.ops[i].matrix_flops / flops)
    return found


def skew_of(dims: Mapping[str, float], hit: float) -> float | None:
    """The exponent of the experts' loads (`roofline.laws.experts`) at which about as many experts are hit; None
    where the routing is more uneven than any that the laws' tables hold."""
    tokens, topk, experts, ep = (np.full(len(SKEWS), dims[name]) for name in ("tokens", "topk", "experts", "ep"))
    off = np.abs(expert_loads(tokens, topk, experts, ep, SKEWS).hit / hit - 1)
    nearest = int(np.argmin(off))
    return float(SKEWS[nearest]) if off[nearest] < NEAR else None


def cold_shares(touches: Touches, cache_bytes: float) -> Floats:
    """Share of each operation's bytes that main memory serves, shape (operations,). Bytes that are never read again do
    not count: an allocator reuses the place of others."""
    moved, missed = np.zeros(len(touches.traffic_bytes)), np.zeros(len(touches.traffic_bytes))
    again = np.isfinite(touches.reach_bytes)
    np.add.at(moved, touches.step, np.where(again, touches.bytes, 0.0))
    np.add.at(missed, touches.step, np.where(again & (touches.reach_bytes > cache_bytes), touches.bytes, 0.0))
    return np.asarray(missed / np.maximum(moved, 1.0))


def law_input_of(op: Op, cold: float = 0.0, reach: float = 0.0) -> LawInput | None:
    """The input of one operation; None where no law describes it."""
    states = {"cold": cold, "reach": reach}
    if op.kind == Kind.COLLECTIVE:
        return _collective(op)
    if op.kind == Kind.GROUPED_MATMUL:
        return _grouped(op, states)
    if op.kind == Kind.MATMUL and (op.dims.get("b", 1) > 1 or op.name in BATCHED_OPERATORS):
        batch = float(op.dims.get("b", 1))
        kinds = (BATCHED, str(op.kind)) if batch == 1 else (BATCHED,)
        return LawInput(kinds, op.dtype, {"batch": batch, **{name: float(op.dims[name]) for name in "mnk"}, **states})
    if op.kind == Kind.MATMUL:
        sizes = {name: float(op.dims[name]) for name in "mnk"}
        kinds = (MATVEC, str(op.kind)) if op.dims["m"] == 1 else (str(op.kind),)
        if op.dims.get("row_major"):
            kinds = (f"{kinds[0]}{ROW_MAJOR}", *kinds)
        stored = {"rows": sizes["k" if op.dims.get("row_major") else "n"]}
        streamed = _streamed(op) | stored if op.dims["m"] == 1 else {}
        return LawInput(kinds, op.dtype, {**streamed, **sizes, **states})
    if op.kind == Kind.ATTENTION:
        return _attention(op, states)
    if op.kind == Kind.CONV and op.dims.get("groups", 1) == op.dims.get("out"):
        return LawInput((operator(op.name),), op.dtype, {**_streamed(op), **states})  # depthwise: little work a byte
    streams = next((row.name for row in KINDS.values() if op.kind in row.op_kinds), None)
    return None if streams is None else LawInput((operator(op.name), streams), op.dtype, {**_streamed(op), **states})


def _grouped(op: Op, states: Mapping[str, float]) -> LawInput:
    """The number of experts hit, from the weights that are read, and the mean rows of each of them."""
    m, n, k = (float(op.dims[name]) for name in "mnk")
    width = ELEMENT_BYTES.get(op.dtype, 2.0)
    weights = sum(access.bytes for access in op.reads) - width * m * k
    hit = float(np.clip(weights / (width * n * k), 1.0, op.dims["groups"]))
    return LawInput((GROUPED,), op.dtype, {"batch": hit, "m": max(1.0, m / hit), "n": n, "k": k, **states})


def _collective(op: Op) -> LawInput | None:
    """Collectives between devices of one kind, of any dtype; None over a network or to the host, which the laws' tables
    do not hold."""
    name = op.name.partition("::")[2]
    if op.link not in OUTWARD or name not in OPERATIONS:
        return None
    sizes = {"bytes": float(op.dims["bytes"]), "ranks": float(op.dims["ranks"])}
    kinds = (COLLECTIVE, OWN_ALL_REDUCE) if name == "all_reduce" else (COLLECTIVE,)
    return LawInput(kinds, op.dtype, {**sizes, "operation": float(OPERATIONS.index(name))})


def operator(name: str) -> str:
    """An operator's name without the suffix of its in-place form: "aten::mul_" → "aten::mul"."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def by_law(
    inputs: Sequence[LawInput | None], known: Mapping[tuple[str, str], object]
) -> dict[tuple[str, str], list[int]]:
    """Indices of the operations that each known law, by kind and dtype, prices; others are left out. A streaming
    operator or a collective in a dtype without a law is priced as the same bytes of another dtype."""
    places: dict[tuple[str, str], list[int]] = {}
    for place, law_input in enumerate(inputs):
        if law_input is not None and (key := _law_key(law_input, known)) is not None:
            places.setdefault(key, []).append(place)
    return places


def _law_key(law_input: LawInput, known: Mapping[tuple[str, str], object]) -> tuple[str, str] | None:
    for kind in law_input.kinds:
        if (kind, law_input.dtype) in known:
            return kind, law_input.dtype
    streaming = [kind for kind in law_input.kinds if kind in KINDS and (KINDS[kind].op_kinds or kind in OF_BYTES)]
    return next((key for kind in streaming for key in known if key[0] == kind), None)


def _chosen(law_input: LawInput | None, known: Mapping[tuple[str, str], object]) -> LawInput | None:
    """The input itself, or the one instead of it where only that has a law."""
    if law_input is None or law_input.instead is None or _law_key(law_input, known) is not None:
        return law_input
    return law_input.instead if _law_key(law_input.instead, known) is not None else law_input


def _attention(op: Op, states: Mapping[str, float]) -> LawInput | None:
    """Kind and sizes; None where no law applies: values of another width than keys, or several rows that see all
    keys."""
    dims = {name: float(value) for name, value in op.dims.items()}
    if dims["value_dim"] != dims["head_dim"] or op.dtype not in ELEMENT_BYTES:
        return None
    sizes = {name: dims[name] for name in ("batch", "heads", "kv_heads", "head_dim", "window", "kv")}
    sizes |= {"kv_bytes": ELEMENT_BYTES[op.dtype], **states}
    if dims["query"] == 1:
        return LawInput(("decode_attention",), op.dtype, sizes)
    if not dims["causal"]:
        return None
    sizes |= {"query": dims["query"], "context": dims["kv"] - dims["query"]}
    return LawInput(("prefill_attention",), op.dtype, sizes)


def _streamed(op: Op) -> dict[str, float]:
    written = float(sum(access.bytes for access in op.writes))
    return {
        "bytes_read": float(sum(access.bytes for access in op.reads)),
        "bytes_written": written,
        "kernels": 1.0,
        "elements": float(op.dims.get("elements") or op.dims.get("n") or written),
        "flops": op.vector_flops + op.matrix_flops,
        "gathered": float(op.kind == Kind.EMBEDDING),
        "strided": float(op.dims.get("strided", 0)),
    }


HELD = "resident"
"""Constant of the laws that determine which part of the last-level cache holds operands between kernels."""


@dataclass(frozen=True, eq=False)
class LawPrices:
    """Prices of the operations of a graph, in its order."""

    time_s: Floats
    """Seconds of one execution; NaN where neither a law nor the roofline knows it."""
    by_law: NDArray[np.bool_]
    """True where a law priced it."""
    outside: NDArray[np.bool_]
    """True where a law priced it beyond the sizes that the law was fitted on."""
    law: NDArray[np.int_]
    """Index of the law in `HardwareSpec.calibrated`; −1 without a law."""
    low_s: Floats
    """Lower end of the law's 90 % interval; NaN without a law or where intervals were not requested."""
    high_s: Floats
    refused: tuple[int, ...] = ()
    """Indices of the laws that describe an operation but price none, because of their error."""


def law_prices(prepared: Prepared, spec: HardwareSpec, otherwise: Floats, *, with_intervals: bool = False) -> LawPrices:
    """Price every operation; `otherwise` has the times of operations without a law. Raises ValueError where the spec
    has laws but not the facts that they need."""
    time_s, priced = np.array(otherwise, dtype=float), np.zeros(len(otherwise), dtype=bool)
    outside, number = np.zeros(len(otherwise), dtype=bool), np.full(len(otherwise), -1)
    low_s, high_s = np.full((2, len(otherwise)), np.nan)
    known = {(law.kind, law.dtype): i for i, law in enumerate(spec.calibrated) if law.is_usable}
    doubted = {(law.kind, law.dtype): i for i, law in enumerate(spec.calibrated) if _is_refused(law)}
    if not known and not doubted:
        return LawPrices(time_s, priced, outside, number, low_s, high_s)
    facts = facts_of(spec)
    every = law_inputs(prepared, facts.cache_bytes)
    inputs = [_chosen(row, known) for row in every]
    for key, places in by_law(inputs, known).items():
        law, rows = spec.calibrated[known[key]], [row for place in places if (row := inputs[place]) is not None]
        names = set.intersection(*(set(row.dims) for row in rows))
        dims = {name: np.array([row.dims[name] for row in rows]) for name in names}
        if (held := law.values.get(HELD, 1.0)) < 1:
            dims["cold"] = cold_shares(prepared.touches, held * facts.cache_bytes)[places]
        share = np.array([row.share for row in rows])
        time_s[places] = share * law.time_s(dims, facts)
        priced[places], outside[places] = True, law.outside(dims)
        number[places] = known[key]
        if with_intervals:
            low_s[places], high_s[places] = (share * end_s for end_s in law.interval(dims, facts))
    left = [None if priced[place] else _chosen(row, doubted) for place, row in enumerate(every)]
    refused = tuple(sorted(doubted[key] for key in by_law(left, doubted)))
    return LawPrices(time_s, priced, outside, number, low_s, high_s, refused)


def combined(law: NDArray[np.int_], widths: Floats) -> float:
    """Half the interval of a total: operations of one law are off together, since they share its constants, and the
    laws independently. `widths`, in the total's unit, is 0 for operations without a law."""
    return float(np.linalg.norm(np.bincount(law + 1, weights=widths)))


def total_interval(prices: LawPrices, count: Floats) -> tuple[float, float]:
    """Ends of the 90 % interval of a pass's total in seconds; operations without a law add their price as it is."""
    total = float(prices.time_s @ count)
    below, above = (
        combined(prices.law, np.where(prices.by_law, np.abs(end_s - prices.time_s) * count, 0.0))
        for end_s in (prices.low_s, prices.high_s)
    )
    return max(total - below, 0.0), total + above


def law_notes(laws: Iterable[FittedLaw]) -> list[str]:
    """A sentence for each of these laws that is not used, and why."""
    return [
        f"the law of {law.kind} {law.dtype} is off by {100 * law.unseen:.0f} % on kernels that it was not fitted to "
        "and is not used; its operations have the roofline's price: calibrate again on a quieter machine"
        for law in laws
        if _is_refused(law) and law.unseen is not None
    ]


def _is_refused(law: FittedLaw) -> bool:
    return not law.is_usable and law.unseen is not None and law.kind != HOST_GAP


def waits(prepared: Prepared, peaks: Peaks, kind: str) -> Floats:
    """Share of each operation's time that follows each probe of `PROBES`, shape (operations, probes).

    The executed roofline splits an operation's time: bytes of main memory follow the probe "memory"; arithmetic and
    bytes of caches, which depend on the clock of the cores, "product"; on a CPU (`kind`) the fixed cost of an
    operation, the interpreter's and the dispatcher's, "host". The rest (a link, the fixed cost of a GPU's kernel) keeps
    the calibration's level. A row is 0 where a peak that the operation needs is unknown. On a CPU the probe "memory" is
    a product with one row, and so all of these follow it, whatever the roofline says.
    """
    ops = prepared.graph.ops
    if not ops:
        return np.zeros((0, len(PROBES)))
    rates, moved = Rates.of(ops, peaks), level_bytes(prepared.touches, peaks, "in situ")
    matrix_flops, vector_flops, link_bytes, messages = (
        np.array([getattr(op, name) for op in ops], dtype=float)
        for name in ("matrix_flops", "vector_flops", "link_bytes", "messages")
    )
    matrix_s, vector_s, _, link_s = roofs(rates, matrix_flops, vector_flops, moved, link_bytes, messages)
    levels_s = moved * rates.level_s
    fixed = peaks.host_s_per_op.value if peaks.host_s_per_op and kind == "cpu" else 0.0
    cores_s = matrix_s + vector_s + levels_s[:, :-1].sum(axis=1)
    parts = np.stack((levels_s[:, -1], cores_s, np.full(len(ops), fixed)), axis=1)
    whole = parts.sum(axis=1) + link_s
    if kind == "cpu":
        rows_of_one = [op.kind == Kind.MATMUL and op.dims.get("m") == 1 and op.dims.get("b", 1) == 1 for op in ops]
        streamed = np.array(rows_of_one)
        parts[streamed, 0] += parts[streamed, 1]
        parts[streamed, 1] = 0.0
    shares = np.divide(parts, whole[:, None], out=np.zeros_like(parts), where=whole[:, None] > 0)
    return np.where(np.isnan(whole)[:, None], 0.0, shares)


def level_factors(shares: Floats, levels: Mapping[str, LevelRatio]) -> Floats:
    """Factor on the time of each operation; a probe without a ratio is at the calibration's level."""
    return np.asarray(1 + shares @ np.array([ratio_of(levels, probe) - 1 for probe in PROBES]))


def ratio_of(levels: Mapping[str, LevelRatio], probe: str) -> float:
    """The ratio of a probe; 1 where it has none."""
    return levels[probe].ratio if probe in levels else 1.0
