"""From measured transfers and graph replays to what a prediction needs: a fixed cost, and a rate.

Time = latency + size ÷ bandwidth, fitted over the sizes. For a graph the size is its number of nodes, so that the
latency is the cost of a replay and 1 ÷ bandwidth that of a node.

Example: ``transfer_costs(measurements)["pinned", "to device"].bandwidth_bytes_per_s``
"""

from collections import defaultdict
from collections.abc import Iterable

from profiler.microbench.linear_cost import LinearCost, fit
from profiler.record.measurement import Measurement

Route = tuple[str, str]
"""Memory of the host, and direction."""
FEWEST = 3
"""Sizes: two are always on a line."""


def transfer_costs(measurements: Iterable[Measurement]) -> dict[Route, LinearCost]:
    """The line of each route with three sizes or more; both ways at once count the bytes of both.

    Points of several processes are fitted together. What failed or is invalid is left out.
    """
    points: dict[Route, list[tuple[float, float]]] = defaultdict(list)
    for one in measurements:
        if one.benchmark == "transfer" and one.status == "done":
            route = str(one.parameters["memory"]), str(one.parameters["direction"])
            points[route].append((one.work, one.work / one.value()))
    return {route: line for route, found in points.items() if (line := _line(found)) is not None}


def graph_cost(measurements: Iterable[Measurement]) -> LinearCost | None:
    """The line over the nodes of replayed graphs; None with fewer than three sizes."""
    return _line(
        [
            (float(one.parameters["nodes"]), one.value())
            for one in measurements
            if one.benchmark == "launch" and one.status == "done" and "nodes" in one.parameters
        ]
    )


def _line(points: list[tuple[float, float]]) -> LinearCost | None:
    if len({size for size, _ in points}) < FEWEST:
        return None
    ordered = sorted(points)
    return fit([size for size, _ in ordered], [time_s for _, time_s in ordered])
