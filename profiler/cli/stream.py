"""`predict --workloads`: a file of any number of workloads, priced on many devices into another file.

Wiring only: `profiler.record.sweep_table` reads and writes, `roofline.sweep.stream` prices.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from profiler.cli import options as option
from profiler.cli.output import progress, say
from profiler.cli.subject import Subject
from profiler.record.files import require_separate
from profiler.record.run import RequestError
from profiler.record.sweep_table import BLOCK, Workloads, with_prices, written
from roofline.predict.question import Device
from roofline.sweep.family import Form
from roofline.sweep.stream import Extremes, Stream
from roofline.whatif.registry import WhatIf

IN_VAIN = option.SIZES | {
    "--mix", "--output", "--largest", "--csv", "--html", "--json", "--engine", "--accounting", "--module", "--file",
    "--part", "--draft", "--decode-hardware", "--save-graph",
}  # fmt: skip
"""Options of `predict` that mean nothing to a file of workloads."""


def predict_stream(
    source: Path, out: Path | None, shard: str | None, subject: Subject, dtype: str, changes: Sequence[WhatIf],
    devices: Sequence[Device], form: Form,
) -> None:  # fmt: skip
    """Write the prices of every workload of the file, or of one shard of it. Raises RequestError, one line."""
    if out is None:
        raise RequestError("--workloads writes a parquet file; name it with --out")
    require_separate({"--out": out}, [source, *([subject.file] if subject.file else [])])
    if laws := [device.spec.name for device in devices if device.with_laws]:
        raise RequestError(f"--workloads prices with peaks, and {laws[0]} has laws; add --peaks measured or datasheet")
    linked = [option.linked(changes, device) for device in devices]
    if any(each != linked[0] for each in linked):
        raise RequestError("these what-ifs differ from device to device; ask for the devices one by one")
    number, count = option.shard_of(shard) if shard is not None else (1, 1)
    with Workloads(source) as rows:
        if not rows.rows:
            raise RequestError(f"{source} has no rows; give it workloads")
        family = subject.source(linked[0], form, devices[0]).family()
        extremes = Extremes(family.windows, family.chunks)
        for _, sweep in rows.blocks(sizes_only=True):  # all of them, so that shards have the same graphs
            extremes.look(sweep)
        stream = Stream(family, extremes, dtype)
        first, last = (rows.rows * part // count for part in (number - 1, number))
        names = [device.spec.name for device in devices]
        peaks = [device.peaks for device in devices]
        with progress(max(1, -(-(last - first) // BLOCK))) as step, written(out) as write:
            for done, (table, sweep) in enumerate(rows.blocks(first, last)):
                step(f"rows {first + done * BLOCK:,}: {len(names)} devices", done)
                priced = stream.price(sweep, peaks)
                totals = {**priced.totals, "memory_bytes": priced.memory_bytes}
                write(with_prices(table, totals, list(zip(names, priced.time_s, strict=True))))
    for note in family.notes:
        say(f"note: {note}", sys.stderr)
    say(f"{last - first:,} workloads on {len(names)} devices are in {out}", sys.stderr)
