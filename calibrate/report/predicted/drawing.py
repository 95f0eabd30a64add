"""The graph of a block as inline SVG: a box an operation with its numbers, an arrow what it passes on.

No scripts, no fonts, no links; all names are escaped. Hovering shows the rest of an operation's numbers.

Example: ``markup = svg(blocks(prediction.passes[0])[0], "block-0")``
"""

from html import escape
from itertools import pairwise

from calibrate.passes.table import layer_kind
from calibrate.report.charts import KIND_COLOUR
from calibrate.report.paths import shortened
from calibrate.report.predicted.block import Block, Node
from calibrate.report.predicted.layout import Layout, Point, layout
from calibrate.report.units import UNKNOWN, dtype, flops, flops_per_s, magnitude, number, percent, seconds, size
from roofline.graph.op import ANCHORS

WIDTH = 224.0
MARGIN = 10.0

TITLE = 29
"""Characters of a path in a box."""

OPERATOR = 18
"""Characters of an operator's name in a box; one with a longer name shows its kind."""

LINE = 15.0
"""Pixels of a line of text."""

SMALLEST = 0.68
"""Share of its natural size to which a wide graph shrinks before it scrolls."""

PLAIN, AROUND = "#7d8aa0", "#c8553d"
"""Colours of edges: to the next operation, and around others."""

STYLE = """
.block { display: block; margin: 0 auto; font: 11px system-ui, "DejaVu Sans", sans-serif; }
.block .name { font: 600 11.5px ui-monospace, "DejaVu Sans Mono", monospace; }
.block .numbers { fill: #3b4656; }
.block .outside rect { stroke-dasharray: 4 3; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 12px; color: #5b6675; margin: 4px 0 10px; }
.legend i { display: inline-block; width: 22px; height: 0; border-top: 2px solid; vertical-align: middle;
            margin-right: 6px; }
.legend b { border-radius: 3px; padding: 0 5px; font-weight: 600; margin-right: 6px; }
"""

LEGEND = (
    '<div class="legend">'
    f'<span><i style="border-color:{PLAIN}"></i>reads what the other wrote</span>'
    f'<span><i style="border-color:{AROUND}"></i>around other operations: residuals among them</span>'
    '<span><b style="background:#fbe7b2">W</b>weights read</span>'
    '<span><b style="background:#bfe6dd">KV</b>cache read ↑ and written ↓</span>'
    "<span>filled: share of the layer's time</span></div>"
)


def svg(block: Block, name: str) -> str:
    """The drawing; `name` is unique in the page."""
    sizes = [(WIDTH, _height(node)) for node in block.nodes]
    places = layout(sizes, block.edges)
    wide, high = places.width + 2 * MARGIN, places.height + 2 * MARGIN
    around = block.shortcuts()
    edges = "".join(_edge(places.routes[edge], edge in around, name) for edge in block.edges)
    boxes = "".join(_box(node, places, i) for i, node in enumerate(block.nodes))
    return (
        f'<div class="scroll"><svg class="block" id="{escape(name)}" role="img" viewBox="0 0 {wide:.0f} {high:.0f}" '
        f'style="width:100%;max-width:{wide:.0f}px;min-width:{SMALLEST * wide:.0f}px">'
        f"<defs>{_arrow(name, 'plain', PLAIN)}{_arrow(name, 'around', AROUND)}</defs>"
        f'<g transform="translate({MARGIN:g},{MARGIN:g})">{edges}{boxes}</g></svg></div>'
    )


def _height(node: Node) -> float:
    if not node.ops:
        return 26.0
    return 12 + LINE * (4 + bool(_marks(node)))


def _box(node: Node, places: Layout, i: int) -> str:
    x, y = places.boxes[i]
    high = _height(node)
    if not node.ops:
        return (
            f'<g transform="translate({x:.1f},{y:.1f})" class="outside"><rect width="{WIDTH:g}" height="{high:g}" '
            f'rx="13" fill="#f7f9fc" stroke="#9aa5b8"/><text x="{WIDTH / 2:g}" y="17" text-anchor="middle" '
            f'class="numbers">{escape(node.title)}</text></g>'
        )
    colour = KIND_COLOUR.get(node.ops[0].kind.value, "#000000")
    filled = WIDTH * min(max(node.share or 0.0, 0.0), 1.0)
    outside = ' class="outside"' if node.part == "feed" else ""
    lines = "".join(
        f'<text x="12" y="{17 + LINE * n:g}" class="{kind}">{escape(text)}</text>'
        for n, (kind, text) in enumerate(_lines(node))
    )
    return (
        f'<g transform="translate({x:.1f},{y:.1f})"{outside}><title>{escape(_hover(node))}</title>'
        f'<rect width="{WIDTH:g}" height="{high:g}" rx="5" fill="#ffffff" stroke="#b8c0cc"/>'
        f'<rect x="1" y="1" width="{max(filled - 2, 0):.1f}" height="{high - 2:g}" rx="4" fill="#e3ebf7"/>'
        f'<rect width="5" height="{high:g}" rx="2" fill="{colour}"/>{lines}{_chips(node)}</g>'
    )


def _lines(node: Node) -> list[tuple[str, str]]:
    title = shortened([_printable(node.title)], TITLE)[0]
    time = f"{seconds(node.time_s)}" + (f" ({percent(node.share)})" if node.share is not None else "")
    intensity = magnitude(node.flops / node.bytes.total) if node.bytes.total else UNKNOWN
    return [
        ("name", title),
        ("numbers", f"{_work(node)} · {time}"),
        ("numbers", f"{flops(node.flops)} · {size(node.bytes.total)}"),
        ("numbers", f"{intensity} FLOP/B · bound: {_printable(node.bound) or UNKNOWN}"),
    ]


def _work(node: Node) -> str:
    """The kind of an anchor, the operator of what is small: many of those have one kind and path."""
    operator = node.ops[0].name.rpartition("::")[2]
    if len(node.ops) == 1 and node.ops[0].kind not in ANCHORS and len(operator) <= OPERATOR:
        return _printable(operator)
    return node.kind


def _marks(node: Node) -> list[tuple[str, str]]:
    """(text, colour) of the weights and the cache that a box touches."""
    moved = node.bytes
    cache = [f"{way} {size(value)}" for way, value in (("↑", moved.kv_read), ("↓", moved.kv_write)) if value]
    weights = [(f"W {size(moved.weight_read)}", "#fbe7b2")] if moved.weight_read else []
    return weights + ([(f"KV {' '.join(cache)}", "#bfe6dd")] if cache else [])


def _chips(node: Node) -> str:
    parts, x, y = [], 12.0, 6 + 4 * LINE
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
    moved = ", ".join(
        f"{key.replace('_', ' ')} {size(value)}" for key, value in node.bytes.model_dump().items() if value
    )
    link = sum(op.link_bytes for op in node.ops) / node.layers
    lines = [
        layer_kind(first.path) or "(model)",
        f"{names}, {kinds}, {dtype(first.dtype)}" + (f": {dims}" if dims else ""),
        f"{seconds(node.time_s)}, {flops_per_s(rate)}, bound: {node.bound or UNKNOWN}",
        f"{flops(node.flops)}; {moved or 'no memory traffic'}" + (f"; link {size(link)}" if link else ""),
        f"{number(sum(op.count for op in node.ops) / node.layers)} executions" if node.part == "operation" else "",
        *also,
    ]
    return "\n".join(_printable(line) for line in lines if line)


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


def _arrow(name: str, kind: str, colour: str) -> str:
    return (
        f'<marker id="{escape(name)}-{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{colour}"/></marker>'
    )


def _printable(text: str) -> str:
    """Control characters are no part of XML."""
    return "".join(c if c.isprintable() else "�" for c in text)
