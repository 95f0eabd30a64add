"""How much of the kernel time of timelines is classified, attributed and unexplained, a line for each device.

    python scripts/trace_closure.py FILE-OR-FOLDER… [--least 0.97] [--hardware SPEC] [--join]

With ``--hardware``, a device's name or a spec with laws, each line also has the share of the window's time that has a
price, predicted ÷ measured time − 1 of what has one, and the median error of the layers.

With ``--join``, kineto's timelines also go through the join of `run` on a GPU (`profiler.attribution.kernels`), with
the outermost operators of torch as the operations of a pass. Exit code 1 where the classified share of any device is
below ``--least``.
"""

import argparse
from collections import Counter
from pathlib import Path

from calibrate.report.document import printable
from calibrate.report.engine_trace import priced
from profiler.attribution.engine import Price, read_ranks
from profiler.attribution.kernels import OpSpan, check, join
from profiler.attribution.priced import layer_rows
from profiler.attribution.timeline import Timeline, read_timeline
from profiler.models.recorded import Recorded
from profiler.record.engine_trace import TraceRank
from roofline.hardware.load import load_device
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
    parser.add_argument("--hardware", help="device's name, or spec.json")
    parser.add_argument("--join", action="store_true")
    arguments = parser.parse_args()
    price = None if arguments.hardware is None else pricing(arguments.hardware)
    files = [
        file for path in arguments.paths
        for file in (sorted(f for f in path.iterdir() if f.suffix in SUFFIXES) if path.is_dir() else [path])
    ]  # fmt: skip
    is_good = True
    columns = (
        "file · device · kernels · time · before window · in it · classified · attributed · in graphs · unexplained"
    )
    print(columns + (" · priced · error · median of layers" if price else ""))
    for file in files:
        try:
            ranks = read_ranks(file, price)
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
                percent(closure.unexplained), *(compared(rank) if price else ()),
            )  # fmt: skip
            print(printable(" · ".join(cells)))
    if arguments.join:
        print("file · operators · kernels · device time · joined · left · check")
        for file in (file for file in files if file.suffix != ".sqlite"):
            print(printable(joined(file)))
    return 0 if is_good else 1


def pricing(hardware: str) -> Price:
    """Compares the kernels of a device with predictions for this one."""
    spec = load_device(Path(hardware) if hardware.endswith(".json") else hardware)
    return lambda kernels: layer_rows(kernels, spec, Recorded())


def compared(rank: TraceRank) -> tuple[str, str, str]:
    """Share of the window with a price, error of its sum, median error of the layers."""
    priced_s, _, predicted_s, median = priced(rank)
    whole_s = rank.closure.window_s
    error = percent(predicted_s / priced_s - 1, signed=True) if priced_s else "–"
    return percent(priced_s / whole_s if whole_s else 0.0), error, "–" if median is None else percent(median)


if __name__ == "__main__":
    raise SystemExit(main())
