"""Runs `gate` many times on this machine beside other work, and counts what it said.

    python scripts/live_gates.py gates.jsonl [--gates 200] [--every 2] [--pairs 10] [--seconds 0.05] [--count]

Each gate compares two kernels with themselves. After every `--every` of them, one more gate compares them with kernels
that do 5 % more work. A gate is a line of the JSON file, written when it ends, so that a script that is started again
goes on where it was stopped; `--count` only counts the lines. Another process works and rests at random meanwhile.

A slowdown is *found* where the kernel is called slower, and *told beforehand* where the self-test said that this
machine is too noisy for 5 %. What is neither was *missed*. The exit code is 1 if a gate of unchanged kernels was red.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from profiler.cli.app import main as roofcal

MORE = 0.05
KERNELS = """
import hashlib
loops, data = {loops}, bytes({size})
def kernel_interpreter():
    total = 0
    for i in range(loops):
        total += i * i
def kernel_hash(): hashlib.sha256(data)
"""
"""One kernel that the interpreter runs, and one that is compiled code."""
LOOPS, SIZE = 20_000, 1 << 20
BURSTS = (
    "import time, random\nwhile True:\n e = time.time() + random.random()\n while time.time() < e: pass\n time.sleep(1)"
)
"""Half a second of work on average, then a second of rest."""


def gate(base: Path, new: Path, pairs: int, seconds: float) -> dict[str, Any]:
    """Verdict of one gate, and the state of the machine."""
    began, out = time.monotonic(), io.StringIO()
    asked = ["gate", str(base), str(new), "--json", "--pairs", str(pairs), "--seconds", str(seconds)]
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        code = roofcal([*asked, "--tolerance", str(MORE)])
    if code not in (0, 1, 3):
        raise SystemExit(f"gate ended with exit code {code}; try: python -m profiler {' '.join(asked)}")
    document = json.loads(out.getvalue())
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "took_s": round(time.monotonic() - began, 1),
        "load": os.getloadavg()[0],
        "exit_code": code,
        "spread": document["self_test"]["spread"],
        "kernels": {
            row["name"]: {
                "verdict": row["verdict"],
                "ratio": row["ratio"],
                "detectable": document["self_test"]["detectable"].get(row["name"]),
            }
            for row in document["rows"]
        },
    }


def counted(lines: list[dict[str, Any]]) -> int:
    """Print the counts; the exit code."""
    same = [line for line in lines if line["more_work"] == 0]
    slow = [kernel for line in lines if line["more_work"] for kernel in line["kernels"].values()]
    codes = Counter(line["exit_code"] for line in same)
    told = Counter(
        "found" if kernel["verdict"] == "slower" else "told beforehand" if kernel["detectable"] > MORE else "missed"
        for kernel in slow
    )
    if lines:
        spreads, loads = sorted(line["spread"] for line in lines), sorted(line["load"] for line in lines)
        print(f"{len(lines)} gates; processes differ by {spreads[0]:.2%} to {spreads[-1]:.2%}, median "
              f"{spreads[len(spreads) // 2]:.2%}; load {loads[0]:.1f} to {loads[-1]:.1f}")  # fmt: skip
    print(f"unchanged kernels: {len(same)} gates, {codes[1]} red, {codes[0]} green, {codes[3]} without a verdict")
    detectable = told["found"] + told["missed"]
    share = f", {told['found'] / detectable:.1%} of those not told beforehand" if detectable else ""
    print(f"{MORE:.0%} more work: {len(slow)} kernels, {told['found']} found{share}, "
          f"{told['told beforehand']} told beforehand, {told['missed']} missed")  # fmt: skip
    return 1 if codes[1] else 0


def main() -> None:
    """Run the gates that the file lacks, and count all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines, one for each gate; what it holds is not measured again")
    parser.add_argument("--gates", type=int, default=200, help="gates of unchanged kernels")
    parser.add_argument("--every", type=int, default=2, help="of these, so many for each one with more work")
    parser.add_argument("--pairs", type=int, default=10, help="as of gate")
    parser.add_argument("--seconds", type=float, default=0.05, help="as of gate")
    parser.add_argument("--count", action="store_true", help="count the lines that are there; measure nothing")
    chosen = parser.parse_args()
    text = chosen.file.read_text(encoding="utf-8") if chosen.file.exists() else ""
    lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    order = [more for i in range(chosen.gates) for more in ([0.0, MORE] if i % chosen.every == 0 else [0.0])]
    for line in lines:
        if line["more_work"] in order:
            order.remove(line["more_work"])
    if chosen.count or not order:
        raise SystemExit(counted(lines))
    other = subprocess.Popen([sys.executable, "-c", BURSTS])
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = {}
            for more in (0.0, MORE):
                files[more] = Path(folder) / f"more-{more}.py"
                grown = (round((1 + more) * size) for size in (LOOPS, SIZE))
                files[more].write_text(KERNELS.format(**dict(zip(("loops", "size"), grown, strict=True))))
            for done, more in enumerate(order, 1):
                line = {"more_work": more, **gate(files[0.0], files[more], chosen.pairs, chosen.seconds)}
                with chosen.file.open("a", encoding="utf-8") as appended:
                    appended.write(json.dumps(line) + "\n")
                lines.append(line)
                print(f"{done} of {len(order)}: exit code {line['exit_code']}, {line['took_s']} s", file=sys.stderr)
    finally:
        other.kill()
        other.wait()
    raise SystemExit(counted(lines))


if __name__ == "__main__":
    main()
