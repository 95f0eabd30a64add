"""What collectives cost, from their measurements: latency and bandwidth of each operation, and a link for `Peaks`.

`costs` describes: one line for each operation, over the bytes that cross a rank's link, its latency that of the whole
operation. `link` is for pricing: `roofline.whatif.collectives` gives every operation the bytes and messages of a ring,
and a `Link` has one bandwidth and one latency of a message for all of them. The bandwidth is what the better of
all-gather and send/receive reaches at large sizes, where a device does nothing but send and receive; the latency is
then the one with the least relative errors over all operations and sizes that are priced. Real libraries leave the
ring where messages are small (trees, sums in the switch), so that the errors are part of the answer: `errors`.

Example: ``name, link = measured_link(found); priced_s(link, "all_reduce", 1 << 20, ranks=8)``
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from profiler.microbench.busbw import factor, messages
from profiler.microbench.linear_cost import FEWEST, LinearCost, fit
from profiler.microbench.link_name import UNKNOWN
from profiler.record.measurement import Measurement, quantile_of
from roofline.hardware.spec import Figure, Link

PRICED = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
"""Operations that the analytical side inserts."""
ONLY_MOVES = ("all_gather", "send_recv")
"""Of them, those that the bandwidth is made of."""
LEAST_S = 1e-9
"""A message's latency below it is none: `roofline.hardware.load` holds it for a wrong unit."""
LARGE_PART = 0.5
"""Of an operation's sizes, the larger ones that its bandwidth at large sizes is fitted to."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One measured size of one operation."""

    operation: str
    size: int
    """Bytes as nccl-tests counts them."""
    ranks: int
    time_s: float
    """Of one call, at the measurement's own quantile."""

    @property
    def bus_bytes(self) -> float:
        """That cross a rank's link."""
        return self.size * factor(self.operation, self.ranks)


def costs(measurements: Iterable[Measurement]) -> dict[str, LinearCost]:
    """Latency of a call, and bus bandwidth, of each operation with three sizes or more; others are left out.

    Raises ValueError for collectives among different numbers of ranks or over different links.
    """
    found = timed(measurements)
    return {
        operation: fit([one.bus_bytes for one in own], [one.time_s for one in own])
        for operation, own in _by_operation(found).items()
        if _distinct(own) >= FEWEST
    }


def measured_link(measurements: Sequence[Measurement]) -> tuple[str, Link]:
    """The link between the ranks, by its name in `Peaks.links`, so that a priced collective takes as long as it did.

    Its latency is None where messages cost nothing beside their bytes. Raises ValueError where neither all-gather nor
    send/receive has three sizes, where the link's name is not known, and as `costs`.
    """
    found = timed(measurements)
    best, rate = _rate(_by_operation(found))
    if (between := str(_one("link", measurements))) == UNKNOWN:
        raise ValueError("what lies between the ranks is not known: NVML could not be asked; set the parameter link")
    where = f"{found[0].ranks} ranks, {_one('backend', measurements)}"
    bandwidth = Figure(
        value=rate.bandwidth_bytes_per_s,
        source=f"bus bandwidth of {best} at large sizes, {where}",
        low=_finite(rate.bandwidth_interval[0]),
        high=_finite(rate.bandwidth_interval[1]),
    )
    message_s = _message_s([one for one in found if one.operation in PRICED], bandwidth.value)
    if message_s < LEAST_S:
        return between, Link(bandwidth=bandwidth)
    source = f"least relative errors over collectives, {where}"
    link = Link(bandwidth=bandwidth, latency_s=Figure(value=message_s, source=source))
    off = "; ".join(f"{name} {low:+.0%} to {high:+.0%}" for name, (low, high) in errors(link, measurements).items())
    latency = Figure(value=message_s, source=f"{source}; priced against measured: {off}")
    return between, link.model_copy(update={"latency_s": latency})


def priced_s(link: Link, operation: str, size: int, ranks: int) -> float:
    """Seconds that the roofline's link roof gives an operation: bytes ÷ bandwidth + messages × latency."""
    latency_s = link.latency_s.value if link.latency_s else 0.0
    return size * factor(operation, ranks) / link.bandwidth.value + messages(operation, ranks) * latency_s


def errors(link: Link, measurements: Iterable[Measurement]) -> dict[str, tuple[float, float]]:
    """Lowest and highest priced ÷ measured − 1 over the sizes of each operation that is priced."""
    found: dict[str, tuple[float, float]] = {}
    for name, own in _by_operation(timed(measurements)).items():
        if name in PRICED:
            off = [priced_s(link, name, one.size, one.ranks) / one.time_s - 1 for one in own]
            found[name] = min(off), max(off)
    return found


def timed(measurements: Iterable[Measurement]) -> list[Timed]:
    """The collectives among the measurements that are done. Raises ValueError where they are not of one kind."""
    done = _done(measurements)
    for what in ("ranks", "link", "backend"):
        if done:
            _one(what, done)
    return [
        Timed(
            operation=str(one.parameters["operation"]),
            size=int(one.parameters["bytes"]),
            ranks=int(one.parameters["ranks"]),
            time_s=quantile_of(one.samples, one.quantile),
        )
        for one in done
    ]


def _rate(own: dict[str, list[Timed]]) -> tuple[str, LinearCost]:
    """Which of `ONLY_MOVES` is faster at large sizes, and its line there. Raises ValueError for none."""
    rates = {name: _large(own[name]) for name in ONLY_MOVES if name in own and _distinct(own[name]) >= FEWEST}
    rates = {name: cost for name, cost in rates.items() if math.isfinite(cost.bandwidth_bytes_per_s)}
    if not rates:
        raise ValueError(
            f"a link needs {FEWEST} or more sizes of {' or '.join(ONLY_MOVES)}, their time growing; measure more"
        )
    return max(rates.items(), key=lambda item: item[1].bandwidth_bytes_per_s)


def _message_s(found: Sequence[Timed], bandwidth: float) -> float:
    """The λ of least Σ ((bytes / bandwidth + messages · λ) / time − 1)²."""
    weights = [messages(one.operation, one.ranks) / one.time_s for one in found]
    left = [1 - one.bus_bytes / bandwidth / one.time_s for one in found]
    return sum(w * rest for w, rest in zip(weights, left, strict=True)) / sum(w * w for w in weights)


def _large(own: Sequence[Timed]) -> LinearCost:
    """The line through an operation's larger sizes."""
    sizes = sorted({one.size for one in own})
    kept = sizes[-max(FEWEST, math.ceil(LARGE_PART * len(sizes))) :]
    return fit(
        [one.bus_bytes for one in own if one.size >= kept[0]], [one.time_s for one in own if one.size >= kept[0]]
    )


def _by_operation(found: Iterable[Timed]) -> dict[str, list[Timed]]:
    groups: dict[str, list[Timed]] = {}
    for one in found:
        groups.setdefault(one.operation, []).append(one)
    return groups


def _distinct(own: Iterable[Timed]) -> int:
    return len({one.size for one in own})


def _done(measurements: Iterable[Measurement]) -> list[Measurement]:
    return [one for one in measurements if one.benchmark == "collective" and one.status == "done"]


def _one(what: str, measurements: Iterable[Measurement]) -> int | float | str:
    """A parameter that all collectives must share. Raises ValueError where they do not."""
    found = {one.parameters[what] for one in _done(measurements)}
    if len(found) != 1:
        raise ValueError(f"collectives of one {what} at a time, not {', '.join(sorted(map(str, found)))}")
    return found.pop()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) and value > 0 else None
