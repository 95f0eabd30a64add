"""How a number is printed: SI prefixes, three significant digits, and "–" for what is not known; how a name is cut.

Values come in SI units (seconds, bytes, FLOPs, fractions) and become text here and nowhere else.
A number that is not finite is a mistake upstream and raises ValueError.

Example: ``seconds(0.0821) == "82.1 ms"``, ``bytes_per_s(4.8e12) == "4.80 TB/s"``, ``percent(None) == "–"``
"""

import math
from collections.abc import Collection, Iterable, Sequence
from functools import partial

from roofline.dtypes import SHORT

UNKNOWN = "–"
"""Stands for null: not known, not measured, not applicable. Never for zero."""
MINUS = "−"
"""The sign that is as wide as "+", so that signed columns line up."""
_PREFIXES = {-5: "f", -4: "p", -3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}
"""SI prefix by power of 1000."""


def _prefixed(
    value: float | None, unit: str = "", lowest: int = 0, highest: int = 5, signed: bool = False, digits: int = 3
) -> str:
    if value is None:
        return UNKNOWN
    _finite(value)
    if value == 0:
        return f"0 {unit}".rstrip()
    rounded = float(f"{abs(value):.{digits - 1}e}")  # first, so that 999.6 µs becomes 1.00 ms
    power = min(max(math.floor(math.log10(rounded) / 3 + 1e-9), lowest), highest)
    number = rounded / 1000.0**power
    decimals = _decimals(number, most=digits + 2, digits=digits)
    if number < 0.5 * 10.0**-decimals:  # less than the smallest figure that is printed
        return f"0 {unit}".rstrip()
    return f"{_sign(value, signed)}{number:.{decimals}f} {_PREFIXES[power]}{unit}".rstrip()


def seconds(value: float | None, signed: bool = False) -> str:
    """A time in ns, µs, ms or s."""
    return _prefixed(value, "s", -3, 0, signed)


size = partial(_prefixed, unit="B")
"""Bytes; GB is 1e9."""
flops = partial(_prefixed, unit="FLOP")
"""A count of FLOPs."""
flops_per_s = partial(_prefixed, unit="FLOP/s")
"""A rate of work; TFLOP/s is 1e12."""
bytes_per_s = partial(_prefixed, unit="B/s")
"""A bandwidth; GB/s is 1e9."""
magnitude = partial(_prefixed, unit="")
"""A number whose unit stands in the column's header: "12.3 G"."""


def in_unit(value: float | None, unit: str) -> str:
    """A figure in the SI unit that it is recorded in: "s", "B/s", "FLOP/s", "J/FLOP", "W"; "B" is a capacity."""
    if unit == "B":
        return binary(value)
    lowest, highest = {"s": (-3, 0), "W": (-3, 5)}.get(unit, (-5, 5) if unit.startswith("J") else (0, 5))
    return _prefixed(value, unit, lowest, highest)


def precise(value: float, unit: str = "") -> str:
    """A figure with five digits, as in the tables of papers: "28.751 T"."""
    return _prefixed(value, unit, -3, 5, digits=5)


def megahertz(value: float) -> str:
    """A clock in hertz as "1605 MHz"."""
    return f"{value / 1e6:.0f} MHz"


def binary(value: float | None) -> str:
    """Bytes where powers of two are meant (a cache, a working set): "512 KiB", "1.5 MiB"."""
    if value is None:
        return UNKNOWN
    _finite(value)
    power = min(max(math.floor(math.log2(value) / 10 + 1e-9), 0), 4) if value > 0 else 0
    number = value / 1024.0**power
    return f"{f'{number:.3g}' if number < 999.5 else f'{number:.0f}'} {('', 'Ki', 'Mi', 'Gi', 'Ti')[power]}B"


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction as a percentage: 0.873 is "87.3 %"; as a factor from ten on: 149.0 is "149×"."""
    if value is None:
        return UNKNOWN
    _finite(value)
    sign = _sign(value, signed)
    if value == 0:
        return "0 %"
    if abs(value) < 1e-4:  # the digits are noise in any measurement, so only the bound is printed
        return f"{sign}<0.01 %"
    if abs(value) >= 10:
        return f"{sign}{abs(value):.3g}×"
    number = 100 * float(f"{abs(value):.2e}")
    return f"{sign}{number:.{_decimals(number, most=2)}f} %"


def whole_percent(fraction: float, signed: bool = False) -> str:
    """A fraction in a sentence, where digits would be noise: 0.124 is "12 %", 0.004 "<1 %"."""
    _finite(fraction)
    size = abs(100 * fraction)
    return f"{_sign(fraction, signed)}{'<1' if 0 < size < 1 else f'{size:.0f}'} %"


def duration(value: float) -> str:
    """Seconds of waiting in whole ones: "75 s", "2 min 20 s"."""
    _finite(value)
    whole = round(value)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"


def plus_minus(low: float | None, high: float | None, of: float) -> str:
    """Half an interval as a share of the figure, two significant digits: "1.7 %"; "–" where it is not known."""
    if low is None or high is None or of == 0:
        return UNKNOWN
    share = 50 * (high - low) / abs(of)
    _finite(share)
    if 0 < share < 0.01:
        return "<0.01 %"
    if share >= 1000:
        return percent(share / 100)
    return f"{share:.0f} %" if share >= 99.5 or share == 0 else f"{share:.2g} %"


def number(value: float | None) -> str:
    """A plain count: no prefix, no decimals it does not need."""
    if value is None:
        return UNKNOWN
    _finite(value)
    return f"{value:.4g}" if value != int(value) else f"{int(value)}"


def dtype(name: str) -> str:
    """The short name of a type."""
    return SHORT.get(name, name)


def aligned(cells: Sequence[str]) -> list[str]:
    """Pad the part after the first space, so that right-aligned cells have their digits one below another."""
    parts = [cell.partition(" ") for cell in cells]
    width = max((len(space + unit) for _, space, unit in parts), default=0)
    padded = [value + (space + unit).ljust(width) for value, space, unit in parts]
    widest = max(map(len, padded), default=0)
    return [cell.rjust(widest) for cell in padded]


def known_sum(values: Iterable[float | None]) -> float | None:
    """The sum; it is not known where one part is not."""
    parts = tuple(values)
    return None if None in parts else sum(part for part in parts if part is not None)


def ratio(part: float | None, whole: float | None) -> float | None:
    """A share; not known where a side is not, or the whole is not above zero."""
    return None if part is None or whole is None or whole <= 0 or not math.isfinite(part / whole) else part / whole


def _decimals(number: float, most: int, digits: int = 3) -> int:
    """Decimals that leave `digits` significant digits."""
    return min(max(digits - 1 - math.floor(math.log10(number) + 1e-9), 0), most)


def _sign(value: float, signed: bool) -> str:
    if value < 0:
        return MINUS
    return "+" if signed and value > 0 else ""


def _finite(value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a figure to show: use None for what is not known")


Cut = tuple[str, str]
"""The parts of a name before and after the "…"."""
MOST_PARTS = 64
"""Parts of a path beyond which it is no module's, and is cut anywhere."""


def shortened(paths: Sequence[str], width: int) -> list[str]:
    """Module paths of at most `width` characters, cut in the middle, at dots where possible, none that could be
    another's: ``shortened(["model.layers.*.self_attn.q_proj"], 23) == ["model…self_attn.q_proj"]``.

    Only where `width` is too small to tell two paths apart do they look alike. It is the one way in which a name is cut
    for a reader: on the terminal, in pages, in plots.
    """
    chosen = {path: path if len(path) <= width else _cut(path, set(paths), width) for path in paths}
    return [chosen[path] for path in paths]


def _cut(path: str, paths: Collection[str], width: int) -> str:
    cuts = [cut for cut in (*_at_dots(path), *_anywhere(path, width)) if len("…".join(cut)) <= width]
    sure = (cut for cut in cuts if sum(other.startswith(cut[0]) and other.endswith(cut[1]) for other in paths) == 1)
    return "…".join(next(sure, cuts[0]))


def _at_dots(path: str) -> list[Cut]:
    """Whole parts of a path, the best first: its start and more than one part of its end, as long as possible."""
    parts = path.split(".")
    if len(parts) > MOST_PARTS:
        return []
    cuts = [(parts[:i], parts[-j:]) for i in range(len(parts)) for j in range(1, len(parts) - i)]
    cuts.sort(key=lambda cut: (bool(cut[0]), cut[1][0] != "*", len(cut[1]) > 1, sum(map(len, cut[0] + cut[1]))))
    return [(".".join(start), ".".join(end)) for start, end in reversed(cuts)]


def _anywhere(path: str, width: int) -> list[Cut]:
    """Cuts within a word that fill the width, those with a third of it at the start first."""
    kept = max(width - 1, 0)
    heads = sorted(range(kept + 1), key=lambda head: abs(head - kept // 3))
    return [(path[:head], path[len(path) - (kept - head) :]) for head in heads]
