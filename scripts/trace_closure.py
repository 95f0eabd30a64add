"""How much of the kernel time of timelines is classified, attributed and unexplained, a line for each device.

    python scripts/trace_closure.py FILE-OR-FOLDER… [--least 0.97] [--join]

With ``--join``, kineto's timelines also go through the join of `run` on a GPU (`profiler.attribution.kernels`), with
the outermost operators of torch as the operations of a pass. Exit code 1 where the classified share of any device is
below ``--least``.
"""

import argparse
from collections import Counter
from pathlib import Path

from calibrate.report.document import printable
from profiler.attribution.engine import read_ranks
from profiler.attribution.kernels import OpSpan, check, join
from profiler.attribution.timeline import Timeline, read_timeline
from roofline.reading import Unreadable
from roofline.units import percent, seconds

SUFFIXES = (".json", ".gz", ".sqlite")


def operators(timeline: Timeline) -> tuple[tuple[float, float], list[OpSpan]]:
    """The window from the first operator to the last kernel, and the outermost operators of the thread that has most.

    Raises ValueError where the timeline has no operators of torch.
    """
    aten = [event for event in timeline.host if event.name.startswith("aten::")]
    if not aten or not timeline.device:
        raise ValueError("the timeline has no operators of torch, or no kernels")
    thread = Counter(event.tid for event in aten).most_common(1)[0][0]
    spans: list[OpSpan] = []
    for event in sorted(aten, key=lambda event: (event.start_s, -event.end_s)):
        if event.tid == thread and (not spans or event.start_s >= spans[-1].end_s):
            spans.append(OpSpan(len(spans), event.start_s, event.end_s, event.tid))
    return (spans[0].start_s, max(spans[-1].end_s, *(event.end_s for event in timeline.device))), spans


def joined(file: Path) -> str:
    """A line on the join of one file."""
    try:
        timeline = read_timeline(file)
        done = join(timeline, *operators(timeline))
    except ValueError as error:
        return f"{file.name} · refused: {error}"
    share = sum(op.device_s for op in done.ops) / done.device_s if done.device_s else 0.0
    others = Counter(kernel.reason for kernel in done.unattributed)
    cells = (
        file.name, f"{len(done.ops):,} operators", f"{done.kernels:,} kernels", seconds(done.device_s), percent(share),
        f"{sum(others.values())} kernels of no operator, as {next(iter(others))}" if others else "none left",
        "; ".join(check(done)) or "closes",
    )  # fmt: skip
    return " · ".join(cells)


def main() -> int:
    """Print the table; a file that is refused is named and counts as a failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--least", type=float, default=0.97)
    parser.add_argument("--join", action="store_true")
    arguments = parser.parse_args()
    files = [
        file for path in arguments.paths
        for file in (sorted(f for f in path.iterdir() if f.suffix in SUFFIXES) if path.is_dir() else [path])
    ]  # fmt: skip
    is_good = True
    print("file · device · kernels · time · before window · in it · classified · attributed · in graphs · unexplained")
    for file in files:
        try:
            ranks = read_ranks(file)
        except Unreadable as error:
            print(printable(f"{file.name} · refused: {error}"))
            is_good = False
            continue
        for rank in ranks:
            closure = rank.closure
            is_good &= closure.classified >= arguments.least
            graphs = closure.graph_s / closure.window_s if closure.window_s else 0.0
            cells = (
                rank.file, str(rank.device), f"{closure.kernels:,}", seconds(closure.kernel_s), f"{closure.outside:,}",
                seconds(closure.window_s), percent(closure.classified), percent(closure.attributed), percent(graphs),
                percent(closure.unexplained),
            )  # fmt: skip
            print(printable(" · ".join(cells)))
    if arguments.join:
        print("file · operators · kernels · device time · joined · left · check")
        for file in (file for file in files if file.suffix != ".sqlite"):
            print(printable(joined(file)))
    return 0 if is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
