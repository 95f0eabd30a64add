"""Places the boxes of a directed graph in rows from top to bottom, so that none overlap and no edge runs through a box.

The steps of Sugiyama, Tagawa and Toda (IEEE Trans. SMC 11(2), 1981): rows by longest path, a place in every row that
a long edge passes, an order of each row with few crossings (barycentres), and places in a row near their neighbours'
(the least squares that keep the order, by pooling adjacent violators).

Example: ``layout([(200, 60), (200, 60)], [(0, 1)]).boxes[1]`` → (x, y) of the upper left corner, pixels
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

GAP = 26.0
"""Pixels between two boxes of a row."""

PASSAGE = 14.0
"""Width of an edge that passes a row."""

BETWEEN = 44.0
"""Pixels between two rows."""

SWEEPS = 24
"""Rounds of ordering and of placing; small graphs settle in fewer."""

Edge = tuple[int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """Places in pixels, x to the right and y down, all of them at least 0."""

    boxes: tuple[Point, ...]
    """Upper left corner of each box."""
    routes: dict[Edge, tuple[Point, ...]]
    """Of each edge: pairs of points, the ends of its straight ways through its first row, each it passes, its last."""
    width: float
    height: float


def layout(sizes: Sequence[tuple[float, float]], edges: Sequence[Edge]) -> Layout:
    """Place boxes of (width, height); every edge goes to a later box.

    Raises: ValueError for an edge that does not.
    """
    if wrong := [edge for edge in edges if not 0 <= edge[0] < edge[1] < len(sizes)]:
        raise ValueError(f"edge {wrong[0]} does not go to a later box; number the {len(sizes)} boxes in order")
    rank = _ranks(len(sizes), edges)
    widths = [width for width, _ in sizes]
    ranks = list(rank)
    chains: dict[Edge, list[int]] = {}
    links: list[Edge] = []
    for edge in edges:  # a place in every row between
        chain = [edge[0]]
        for row in range(rank[edge[0]] + 1, rank[edge[1]]):
            chain.append(len(widths))
            widths.append(PASSAGE)
            ranks.append(row)
        chain.append(edge[1])
        chains[edge] = chain
        links += pairwise(chain)
    rows = _ordered(ranks, links)
    centre = _placed(rows, widths, links, len(sizes))
    left = min((centre[i] - widths[i] / 2 for i in range(len(widths))), default=0.0)
    centre = [x - left for x in centre]
    tall = [max((sizes[i][1] for i in row if i < len(sizes)), default=0.0) for row in rows]
    top = [sum(tall[:r]) + BETWEEN * r for r in range(len(rows))]
    boxes = tuple((centre[i] - w / 2, top[rank[i]] + (tall[rank[i]] - h) / 2) for i, (w, h) in enumerate(sizes))
    return Layout(
        boxes=boxes,
        routes=_routes(chains, sizes, boxes, centre, ranks, top, tall),
        width=max((centre[i] + widths[i] / 2 for i in range(len(widths))), default=0.0),
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


def _ordered(ranks: Sequence[int], links: Sequence[Edge]) -> list[list[int]]:
    """The places of each row, from left to right: of the orders tried, that with the fewest crossings."""
    rows: list[list[int]] = [[] for _ in range(max(ranks, default=-1) + 1)]
    for i, rank in enumerate(ranks):
        rows[rank].append(i)
    above, below = _neighbours(links)
    best, fewest = [list(row) for row in rows], _crossings(rows, links)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            at = {i: (n + 0.5) / len(same) for same in rows for n, i in enumerate(same)}
            near = above if down else below
            row.sort(key=lambda i: sum(at[j] for j in near[i]) / len(near[i]) if near[i] else at[i])
        if (found := _crossings(rows, links)) < fewest:
            best, fewest = [list(row) for row in rows], found
    return best


def _crossings(rows: Sequence[Sequence[int]], links: Sequence[Edge]) -> int:
    at = {i: n for row in rows for n, i in enumerate(row)}
    row_of = {i: r for r, row in enumerate(rows) for i in row}
    by_row: dict[int, list[Edge]] = defaultdict(list)
    for source, target in links:
        by_row[row_of[source]].append((at[source], at[target]))
    return sum(
        (a - c) * (b - d) < 0 for found in by_row.values() for n, (a, b) in enumerate(found) for c, d in found[:n]
    )


def _placed(rows: Sequence[Sequence[int]], widths: Sequence[float], links: Sequence[Edge], boxes: int) -> list[float]:
    """Centre of each place: near its neighbours', in the order of the row, and no two closer than their widths."""
    above, below = _neighbours(links)
    centre = [0.0] * len(widths)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            wanted, weights = [], []
            for i in row:
                near = (above if down else below)[i] or (below if down else above)[i]
                wanted.append(sum(centre[j] for j in near) / len(near) if near else centre[i])
                weights.append(1.0 if i < boxes else 4.0)  # passages that stay straight are easier to follow
            offsets = [0.0]
            for a, b in pairwise(row):
                offsets.append(offsets[-1] + (widths[a] + widths[b]) / 2 + GAP)
            shifts = _rising([want - offset for want, offset in zip(wanted, offsets, strict=True)], weights)
            for i, shift, offset in zip(row, shifts, offsets, strict=True):
                centre[i] = shift + offset
    return centre


def _rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The never falling sequence that is nearest in weighted squares."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for value, weight in zip(values, weights, strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (m1, w1, n1), (m2, w2, n2) = pools[-2:]
            pools[-2:] = [((m1 * w1 + m2 * w2) / (w1 + w2), w1 + w2, n1 + n2)]
    return [mean for mean, _, count in pools for _ in range(count)]


def _neighbours(links: Sequence[Edge]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    above: dict[int, list[int]] = defaultdict(list)
    below: dict[int, list[int]] = defaultdict(list)
    for source, target in links:
        above[target].append(source)
        below[source].append(target)
    return above, below


def _routes(
    chains: dict[Edge, list[int]],
    sizes: Sequence[tuple[float, float]],
    boxes: Sequence[Point],
    centre: Sequence[float],
    ranks: Sequence[int],
    top: Sequence[float],
    tall: Sequence[float],
) -> dict[Edge, tuple[Point, ...]]:
    leaving, entering = defaultdict(list), defaultdict(list)
    for edge, chain in chains.items():
        leaving[edge[0]].append((centre[chain[1]], edge))
        entering[edge[1]].append((centre[chain[-2]], edge))
    start = {edge: x for box, found in leaving.items() for edge, x in _ports(centre[box], sizes[box][0], found)}
    end = {edge: x for box, found in entering.items() for edge, x in _ports(centre[box], sizes[box][0], found)}
    routes = {}
    for edge, chain in chains.items():
        first, last = ranks[chain[0]], ranks[chain[-1]]
        points = [(start[edge], boxes[edge[0]][1] + sizes[edge[0]][1]), (start[edge], top[first] + tall[first])]
        for place in chain[1:-1]:
            row = ranks[place]
            points += [(centre[place], top[row]), (centre[place], top[row] + tall[row])]
        routes[edge] = (*points, (end[edge], top[last]), (end[edge], boxes[edge[1]][1]))
    return routes


def _ports(centre: float, width: float, found: Sequence[tuple[float, Edge]]) -> list[tuple[Edge, float]]:
    """Ends of edges side by side on a box, in the order of where they go."""
    apart = min(28.0, 0.8 * width / len(found))
    ordered = sorted(found)
    return [(edge, centre + apart * (n - (len(ordered) - 1) / 2)) for n, (_, edge) in enumerate(ordered)]
