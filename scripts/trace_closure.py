"""How much of the kernel time of timelines is classified, attributed and unexplained, a line for each device.

    python scripts/trace_closure.py FILE-OR-FOLDER… [--least 0.97]

Exit code 1 where the classified share of any device is below ``--least``.
"""

import argparse
from pathlib import Path

from calibrate.report.document import printable
from profiler.attribution.engine import read_ranks
from roofline.reading import Unreadable
from roofline.units import percent, seconds

SUFFIXES = (".json", ".gz", ".sqlite")


def main() -> int:
    """Print the table; a file that is refused is named and counts as a failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--least", type=float, default=0.97)
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
    return 0 if is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
