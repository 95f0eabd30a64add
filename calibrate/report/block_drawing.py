"""The graph of a block as inline SVG: a box for each operation with its numbers, an arrow for what it passes on.

All names are escaped. Hovering shows the rest of the numbers. Boxes stand in rows by the longest way to them; an edge
that passes a row does so in a lane at the right, so that none runs through a box.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from calibrate.passes.table import layer_kind
from calibrate.report.block import Block, Node, blocks
from calibrate.report.document import printable
from calibrate.report.run_rows import key_of
from calibrate.report.theme import KIND
from roofline.graph.op import ANCHORS
from roofline.predict.passes import PassPrediction
from roofline.units import UNKNOWN, dtype, flops, flops_per_s, magnitude, number, percent, seconds, shortened, size

WIDTH, MARGIN, LINE = 224.0, 10.0, 15.0
"""Pixels of a box, around the graph, and of a line of text."""
TITLE, OPERATOR = 29, 18
"""Characters of a path in a box, and of an operator; an operation with a longer name shows its kind."""
SMALLEST = 0.68
"""Share of its natural size to which a wide graph shrinks before it scrolls."""
PLAIN, AROUND = "#7d8aa0", "#c8553d"
"""Colours of edges: to the next operation, and around others."""
GAP, BETWEEN, LANE = 26.0, 44.0, 16.0
"""Pixels between two boxes of a row, between two rows, and between two edges that pass rows."""
LEGEND = (
    '<div class="legend">'
    f'<span><i style="border-color:{PLAIN}"></i>reads what the operation above wrote</span>'
    f'<span><i style="border-color:{AROUND}"></i>passes other operations by, as a residual does</span>'
    '<span><b style="background:#fbe7b2">W</b>weights read</span>'
    '<span><b style="background:#bfe6dd">KV</b>cache read ↑ and written ↓</span>'
    "<span>shaded: share of the layer's time</span></div>"
)


Edge = tuple[int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """Places in pixels, x to the right and y down, all of them at least 0."""

    boxes: tuple[Point, ...]
    """Upper left corner of each box."""
    routes: dict[Edge, tuple[Point, ...]]
    """Pairs of points of each edge: the ends of its straight ways through its first row, its lane, its last row."""
    width: float
    height: float


def drawings(step: PassPrediction, name: str) -> str | None:
    """The kinds of block of a pass, each under its path; None where there is none."""
    parts = []
    for n, block in enumerate(blocks(step)):
        name_ = f"<code>{escape(block.path)}</code>" if block.path else "the model"
        alike = f", one of {number(block.layers)} alike" if block.layers > 1 else ""
        times = seconds(block.time_s)
        if block.measured_s is not None:
            times = f"{seconds(block.measured_s)} measured, {times} predicted"
        parts.append(f"<p><b>{name_}</b>{alike}: {times} a layer; the numbers are of one layer.</p>")
        parts.append(svg(block, f"{name}-{n}"))
    return LEGEND + "".join(parts) if parts else None


def svg(block: Block, name: str) -> str:
    """The drawing; `name` is unique in the page."""
    sizes = [(WIDTH, _height(node)) for node in block.nodes]
    places = layout(sizes, block.edges)
    wide, high = places.width + 2 * MARGIN, places.height + 2 * MARGIN
    around = block.shortcuts()
    edges = "".join(_edge(places.routes[edge], edge in around, name) for edge in block.edges)
    boxes = "".join(_box(node, places, i) for i, node in enumerate(block.nodes))
    arrows = "".join(
        f'<marker id="{escape(name)}-{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{colour}"/></marker>'
        for kind, colour in (("plain", PLAIN), ("around", AROUND))
    )
    return (
        f'<div class="drawing"><svg class="block" id="{escape(name)}" role="img" viewBox="0 0 {wide:.0f} {high:.0f}" '
        f'style="width:100%;max-width:{wide:.0f}px;min-width:{SMALLEST * wide:.0f}px">'
        f"<defs>{arrows}</defs>"
        f'<g transform="translate({MARGIN:g},{MARGIN:g})">{edges}{boxes}</g></svg></div>'
    )


def _height(node: Node) -> float:
    return 12 + LINE * (len(_lines(node)) + bool(_marks(node))) if node.ops else 26.0


def _box(node: Node, places: Layout, i: int) -> str:
    x, y = places.boxes[i]
    start = f'<g transform="translate({x:.1f},{y:.1f})"'
    rect = f'<rect width="{WIDTH:g}" height="{(high := _height(node)):g}"'
    if not node.ops:
        return (
            f'{start} class="outside">{rect} rx="13" fill="#f7f9fc" stroke="#9aa5b8"/>'
            f'<text x="{WIDTH / 2:g}" y="17" text-anchor="middle" class="numbers">{escape(node.title)}</text></g>'
        )
    filled = WIDTH * min(max(node.share or 0.0, 0.0), 1.0)
    outside = ' class="outside"' if node.part == "feed" else ""
    lines = "".join(
        f'<text x="12" y="{17 + LINE * n:g}" class="{kind}">{escape(text)}</text>'
        for n, (kind, text) in enumerate(_lines(node))
    )
    return (
        f'{start}{outside} data-key="{escape(key_of(node.ops[0].path, node.ops[0].kind.value))}">'
        f"<title>{escape(_hover(node))}</title>"
        f'{rect} rx="5" fill="#ffffff" stroke="#b8c0cc"/>'
        f'<rect x="1" y="1" width="{max(filled - 2, 0):.1f}" height="{high - 2:g}" rx="4" fill="#e3ebf7"/>'
        f'<rect width="5" height="{high:g}" rx="2" fill="{KIND.get(node.ops[0].kind.value, "#000000")}"/>'
        f"{lines}{_chips(node)}</g>"
    )


def _lines(node: Node) -> list[tuple[str, str]]:
    """(class, text) of each line; small operations show their operator, for many of those have one kind and path."""
    measured_s = node.measured_s
    share = f" ({percent(node.share)})" if node.share is not None else ""
    time = seconds(node.time_s if measured_s is None else measured_s) + share
    priced = [("numbers", f"predicted {seconds(node.time_s)}")] if measured_s is not None else []
    intensity = magnitude(node.flops / node.bytes.total) if node.bytes.total else UNKNOWN
    operator = node.ops[0].name.rpartition("::")[2]
    small = len(node.ops) == 1 and node.ops[0].kind not in ANCHORS and len(operator) <= OPERATOR
    return [
        ("name", shortened([printable(node.title)], TITLE)[0]),
        ("numbers", f"{printable(operator) if small else node.kind} · {time}"),
        *priced,
        ("numbers", f"{flops(node.flops)} · {size(node.bytes.total)}"),
        ("numbers", f"{intensity} FLOP/B · bound: {printable(node.bound) or UNKNOWN}"),
    ]


def _marks(node: Node) -> list[tuple[str, str]]:
    """(text, colour) of the weights and the cache that a box touches."""
    traffic = node.bytes
    cache = [f"{way} {size(value)}" for way, value in (("↑", traffic.kv_read), ("↓", traffic.kv_write)) if value]
    weights = [(f"W {size(traffic.weight_read)}", "#fbe7b2")] if traffic.weight_read else []
    return weights + ([(f"KV {' '.join(cache)}", "#bfe6dd")] if cache else [])


def _chips(node: Node) -> str:
    parts, x, y = [], 12.0, 6 + len(_lines(node)) * LINE
    for text, colour in _marks(node):
        wide = 6.4 * len(text) + 8
        parts.append(
            f'<rect x="{x:.1f}" y="{y:g}" width="{wide:.1f}" height="14" rx="3" fill="{colour}"/>'
            f'<text x="{x + 4:.1f}" y="{y + 11:g}">{escape(text)}</text>'
        )
        x += wide + 5
    return "".join(parts)


def _hover(node: Node) -> str:
    first = node.ops[0]
    rate = node.flops / node.time_s if node.time_s else None
    names = ", ".join(dict.fromkeys(op.name for op in node.ops))
    kinds = " + ".join(dict.fromkeys(op.kind.value for op in node.ops))
    dims = ", ".join(f"{key} {value}" for key, value in first.dims.items()) if len(node.ops) == 1 else ""
    also = [f"also {layer_kind(words)}" for op in node.ops for words in op.also][:12]
    traffic = node.bytes.model_dump().items()
    moved = ", ".join(f"{name.replace('_', ' ')} {size(value)}" for name, value in traffic if value)
    link = sum(op.link_bytes for op in node.ops) / node.layers
    lines = [
        layer_kind(first.path) or "(model)",
        f"{names}, {kinds}, {dtype(first.dtype)}" + (f": {dims}" if dims else ""),
        f"{seconds(node.time_s)}, {flops_per_s(rate)}, bound: {node.bound or UNKNOWN}",
        f"{flops(node.flops)}; {moved or 'no memory traffic'}" + (f"; link {size(link)}" if link else ""),
        f"{number(sum(op.count for op in node.ops) / node.layers)} executions" if node.part == "operation" else "",
        *also,
    ]
    return "\n".join(printable(line) for line in lines if line)


def _edge(route: tuple[Point, ...], around: bool, name: str) -> str:
    kind, colour, width = ("around", AROUND, 1.8) if around else ("plain", PLAIN, 1.3)
    steps = [f"M{route[0][0]:.1f},{route[0][1]:.1f}"]
    for n, ((x0, y0), (x1, y1)) in enumerate(pairwise(route)):
        if n % 2 == 0:  # through a row
            steps += [f"L{x1:.1f},{y1:.1f}"] if y1 != y0 else []  # an arrow has no direction in no length
        else:
            bend = (y1 - y0) / 2
            steps.append(f"C{x0:.1f},{y0 + bend:.1f} {x1:.1f},{y1 - bend:.1f} {x1:.1f},{y1:.1f}")
    return (
        f'<path d="{" ".join(steps)}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'marker-end="url(#{escape(name)}-{kind})"/>'
    )


def layout(sizes: Sequence[tuple[float, float]], edges: Sequence[Edge]) -> Layout:
    """Place boxes of (width, height); every edge goes to a later box.

    Raises: ValueError for an edge that does not.
    """
    if wrong := [edge for edge in edges if not 0 <= edge[0] < edge[1] < len(sizes)]:
        raise ValueError(f"edge {wrong[0]} does not go to a later box; number the {len(sizes)} boxes in order")
    rank = _ranks(len(sizes), edges)
    rows = _rows(rank, edges)
    spans = [sum(sizes[i][0] for i in row) + GAP * (len(row) - 1) for row in rows]
    wide = max(spans, default=0.0)
    tall = [max(sizes[i][1] for i in row) for row in rows]
    top = [sum(tall[:r]) + BETWEEN * r for r in range(len(rows))]
    boxes: dict[int, Point] = {}
    for r, row in enumerate(rows):
        x = (wide - spans[r]) / 2
        for i in row:
            boxes[i] = (x, top[r] + (tall[r] - sizes[i][1]) / 2)
            x += sizes[i][0] + GAP
    lanes = _lanes([edge for edge in edges if rank[edge[1]] - rank[edge[0]] > 1], rank)
    at = {edge: wide + LANE * (lane + 1) for edge, lane in lanes.items()}

    def port(box: int, end: int, edge: Edge) -> float:
        """Where an edge touches a box: side by side with the others, in the order of where they go."""
        there = {other: at.get(other, boxes[other[1 - end]][0]) for other in edges if other[end] == box}
        ordered = sorted(there, key=lambda other: (there[other], other))
        apart = min(28.0, 0.8 * sizes[box][0] / len(ordered))
        return boxes[box][0] + sizes[box][0] / 2 + apart * (ordered.index(edge) - (len(ordered) - 1) / 2)

    routes = {}
    for edge in edges:
        source, target = edge
        out, into = port(source, 0, edge), port(target, 1, edge)
        first, last = rank[source], rank[target]
        points = [(out, boxes[source][1] + sizes[source][1]), (out, top[first] + tall[first])]
        if edge in at:
            points += [(at[edge], top[first + 1]), (at[edge], top[last - 1] + tall[last - 1])]
        routes[edge] = (*points, (into, top[last]), (into, boxes[target][1]))
    return Layout(
        boxes=tuple(boxes[i] for i in range(len(sizes))),
        routes=routes,
        width=wide + LANE * (max(lanes.values(), default=-1) + 1),
        height=top[-1] + tall[-1] if rows else 0.0,
    )


def _ranks(count: int, edges: Sequence[Edge]) -> list[int]:
    """Row of each box: the longest way to it; what nothing feeds stands just above the first that it feeds."""
    rank, fed = [0] * count, {target for _, target in edges}
    for source, target in sorted(edges):
        rank[target] = max(rank[target], rank[source] + 1)
    for i in set(range(count)) - fed:
        below = [rank[target] for source, target in edges if source == i]
        rank[i] = min(below) - 1 if below else 0
    return rank


def _rows(rank: Sequence[int], edges: Sequence[Edge]) -> list[list[int]]:
    """The boxes of each row from left to right: each near the middle of what it reads from."""
    rows: list[list[int]] = [[i for i in range(len(rank)) if rank[i] == r] for r in range(max(rank, default=-1) + 1)]
    place = {i: (n + 0.5) / len(row) for row in rows for n, i in enumerate(row)}
    for row in rows:
        near = {i: [place[source] for source, target in edges if target == i] for i in row}
        row.sort(key=lambda i: sum(near[i]) / len(near[i]) if near[i] else place[i])
        place |= {i: (n + 0.5) / len(row) for n, i in enumerate(row)}
    return rows


def _lanes(edges: Sequence[Edge], rank: Sequence[int]) -> dict[Edge, int]:
    """A lane at the right for each edge that passes a row; no two in one lane pass the same row, short ones inside."""
    taken: list[set[int]] = []
    lanes: dict[Edge, int] = {}
    for edge in sorted(edges, key=lambda edge: (rank[edge[1]] - rank[edge[0]], edge)):
        passed = set(range(rank[edge[0]], rank[edge[1]] + 1))
        lane = next((n for n, rows in enumerate(taken) if not rows & passed), len(taken))
        taken += [set()] if lane == len(taken) else []
        taken[lane] |= passed
        lanes[edge] = lane
    return lanes
