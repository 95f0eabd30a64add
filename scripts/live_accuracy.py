"""Predicted against measured on this machine: calibrations, each followed by models in interleaved fresh processes.

    python scripts/live_accuracy.py [--calibrations 3] [--processes 5] [--busy passes] [MODEL…]

A calibration is a run of its own with kernels whose shapes come from the catalogue's range. Then each round starts a
fresh process for each model, which is told the calibrated spec and measures the model's passes. `--busy` runs one busy
loop beside the passes, or beside the calibrations, so that the machine drifts in between.

A line is one pass of one model after one calibration: predicted ÷ measured − 1 of the wall and of the busy time, at the
level of the machine that reference probes read beside the pass; the same at the level of the calibration ("as
calibrated"), so that what the level explains is seen; floor, the standard deviation of the processes' logarithms of the
wall; layers, the mean over layer kinds of at least 1 % of the busy time of |predicted ÷ measured − 1|. All are of
medians over the processes. Below stand the mean of absolute errors, the largest, and whether all lines err to one side.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

MODELS = ("qwen2.5-0.5b", "gpt2", "gemma-3-270m", "opt-125m", "mamba-130m")
"""Shapes of 0.1 to 0.5 B parameters, only the first of them a Llama's; any others, folders too, can be named."""
COUNTED = 0.01
"""Share of the busy time from which a layer kind counts."""
FIGURES = ("wall", "busy", "wall as calibrated", "layers")


@dataclass(frozen=True)
class Line:
    """One pass of one model after one calibration; errors are predicted ÷ measured − 1."""

    calibration: int
    cell: str
    wall_s: float
    predicted_wall_s: float
    wall: float
    wall_as_calibrated: float
    busy: float
    layers: float
    floor: float
    roofline: float
    """Error of the busy time by the roofline at achieved peaks."""


def profile(options: Sequence[str]) -> dict[str, Any]:
    """The JSON of `python -m profiler run`, in a fresh process; of its passes, those that are not invalid (exit 4)."""
    done = subprocess.run(
        [sys.executable, "-m", "profiler", "run", "--json", *options], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in (0, 3, 4):
        raise SystemExit(f"run {' '.join(options)} ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"passes": [one for one in found["passes"] if one["status"] != "invalid"]}


@contextmanager
def busy_loop(wanted: bool) -> Iterator[None]:
    """One process beside that never waits."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def lines(calibration: int, passes: Sequence[dict[str, Any]]) -> Iterator[Line]:
    """A line for each cell, over the processes that measured it."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for one in passes:
        lengths = f"b{one['batch']} q{one['query_tokens']} c{one['context_tokens']}"
        key = f"{one['model']} {one['phase']} {lengths} {one['dtype']}"
        cells.setdefault(key, []).append(one)
    for key, found in cells.items():

        def off(predicted: str, measured: str, found: list[dict[str, Any]] = found) -> float:
            return _median(found, predicted) / _median(found, measured) - 1

        walls = np.array([one["wall_s"] for one in found])
        yield Line(
            calibration=calibration,
            cell=key,
            wall_s=float(np.median(walls)),
            predicted_wall_s=_median(found, "predicted_wall_s"),
            wall=off("predicted_wall_s", "wall_s"),
            wall_as_calibrated=off("predicted_wall_calibrated_s", "wall_s"),
            busy=off("predicted_busy_s", "busy_s"),
            layers=_layers(found),
            floor=float(np.std(np.log(walls), ddof=1)) if len(walls) > 1 else float("nan"),
            roofline=found[0]["rungs"]["executed"] / _median(found, "busy_s") - 1,
        )


def _median(found: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.median([one[name] for one in found]))


def _layers(found: Sequence[dict[str, Any]]) -> float:
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for one in found:
        for layer in one["layers"]:
            if layer["predicted_s"] is not None and layer["measured_s"] > COUNTED * one["busy_s"]:
                times.setdefault((layer["path"], layer["kind"]), []).append((layer["predicted_s"], layer["measured_s"]))
    medians = [np.median(pairs, axis=0) for pairs in times.values()]
    return float(np.mean([abs(predicted / measured - 1) for predicted, measured in medians]))


def summary(found: Sequence[Line]) -> dict[str, dict[str, float | bool]]:
    """Of each figure over all lines: mean of the absolute errors, the largest, whether all err to one side."""
    columns = {name: [getattr(line, name.replace(" ", "_")) for line in found] for name in FIGURES}
    return {
        name: {
            "mean": float(np.abs(values).mean()),
            "largest": float(np.abs(values).max()),
            "one_sided": len({np.sign(value) for value in values}) == 1,
        }
        for name, values in columns.items()
    }


def main() -> int:
    """Exit code 0; 3 where every pass was invalid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--calibrations", type=int, default=3)
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each model and calibration")
    parser.add_argument("--busy", choices=("none", "passes", "calibration"), default="none")
    parser.add_argument("--seconds", type=float, default=4.0, help="of passes, each cell and process")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of results")
    parser.add_argument("--json", action="store_true", dest="as_json")
    asked = parser.parse_args()
    common = ["--dtype", asked.dtype, "--seconds", str(asked.seconds), "--out", str(asked.out)]
    common += ["--threads", str(asked.threads)] if asked.threads else []
    found: list[Line] = []
    for calibration in range(asked.calibrations):
        with busy_loop(asked.busy == "calibration"):
            spec = (
                Path(profile([asked.models[0], *common, "--name", f"calibration-{calibration}"])["run"]) / "spec.json"
            )
        passes: list[dict[str, Any]] = []
        with busy_loop(asked.busy == "passes"):
            for round_ in range(asked.processes):
                for model in asked.models:
                    print(f"calibration {calibration + 1}, round {round_ + 1}: {model}", file=sys.stderr)
                    passes += profile([model, *common, "--hardware", str(spec), "--name", f"round-{round_}"])["passes"]
        found += lines(calibration, passes)
    if not found:
        print("every pass was invalid; see the runs for why", file=sys.stderr)
        return 3
    if asked.as_json:
        print(json.dumps({"lines": [asdict(line) for line in found], "summary": summary(found)}, indent=1))
        return 0
    names = ("wall", "floor", "busy", "layers", "as calibr.", "roofline")
    print(f"{'':46}{'measured':>10}{'predicted':>10}" + "".join(f"{name:>10}" for name in names))
    for line in found:
        times = f"{line.wall_s * 1e3:8.1f}ms{line.predicted_wall_s * 1e3:8.1f}ms"
        shares = (line.wall, line.floor, line.busy, line.layers, line.wall_as_calibrated, line.roofline)
        print(f"{line.calibration} {line.cell:44}{times}" + "".join(f"{share:+10.1%}" for share in shares))
    for name, one in summary(found).items():
        side = ", all to one side" if one["one_sided"] and name != "layers" else ""
        print(f"{name}: mean {one['mean']:.1%}, largest {one['largest']:.1%}{side}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
