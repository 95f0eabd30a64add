"""Compares predicted with measured times on this machine: calibrations, each followed by models in fresh processes.

    python scripts/live_accuracy.py [--calibrations 3] [--processes 5] [--busy passes] [MODEL…]

A calibration is a run of its own. Then each round starts a fresh process for each model, which measures the model's
passes and predicts them with the calibrated spec. `--busy` runs a busy loop beside the passes, or beside the
calibrations, so that the machine drifts in between.

A line is one pass of one model after one calibration; its figures are medians over the processes:

    wall, busy      predicted ÷ measured − 1, at the level of the machine that reference probes read beside the pass
    as calibrated   the same for the wall, at the level of the calibration: the difference is what the level explains
    floor           standard deviation of ln(wall) over the processes
    layers          mean of |predicted ÷ measured − 1| over the layer kinds with at least 1 % of the busy time

Below stand the mean and the largest absolute error, and whether all lines err to one side.
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
"""Models of 0.1 to 0.5 B parameters; only the first has the layers of a Llama. Others, and folders, can be named."""
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
    """The JSON of `python -m profiler run`, in a fresh process, without invalid passes."""
    done = subprocess.run(
        [sys.executable, "-m", "profiler", "run", "--json", *options], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in (0, 3, 4):
        raise SystemExit(f"run {' '.join(options)} ended with exit code {done.returncode}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document | {"passes": [measured for measured in document["passes"] if measured["status"] != "invalid"]}


@contextmanager
def busy_loop(wanted: bool) -> Iterator[None]:
    """If wanted, another process that never waits."""
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
    for measured in passes:
        key = "{model} {phase} b{batch} q{query_tokens} c{context_tokens} {dtype}".format_map(measured)
        cells.setdefault(key, []).append(measured)
    names = ("wall_s", "busy_s", "predicted_wall_s", "predicted_wall_calibrated_s", "predicted_busy_s")
    for key, repeats in cells.items():
        median = {name: float(np.median([measured[name] for measured in repeats])) for name in names}
        walls = np.array([measured["wall_s"] for measured in repeats])
        yield Line(
            calibration=calibration,
            cell=key,
            wall_s=median["wall_s"],
            predicted_wall_s=median["predicted_wall_s"],
            wall=median["predicted_wall_s"] / median["wall_s"] - 1,
            wall_as_calibrated=median["predicted_wall_calibrated_s"] / median["wall_s"] - 1,
            busy=median["predicted_busy_s"] / median["busy_s"] - 1,
            layers=_layers(repeats),
            floor=float(np.std(np.log(walls), ddof=1)) if len(walls) > 1 else float("nan"),
            roofline=repeats[0]["rungs"]["executed"] / median["busy_s"] - 1,
        )


def _layers(repeats: Sequence[dict[str, Any]]) -> float:
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for measured in repeats:
        for layer in measured["layers"]:
            if layer["predicted_s"] is not None and layer["measured_s"] > COUNTED * measured["busy_s"]:
                times.setdefault((layer["path"], layer["kind"]), []).append((layer["predicted_s"], layer["measured_s"]))
    medians = [np.median(pairs, axis=0) for pairs in times.values()]
    return float(np.mean([abs(predicted / measured - 1) for predicted, measured in medians]))


def summary(results: Sequence[Line]) -> dict[str, dict[str, float | bool]]:
    """The mean and the largest absolute error of each figure, and whether all errors are to one side."""
    columns = {name: [getattr(line, name.replace(" ", "_")) for line in results] for name in FIGURES}
    return {
        name: {
            "mean": float(np.abs(values).mean()),
            "largest": float(np.abs(values).max()),
            "one_sided": len({np.sign(value) for value in values}) == 1,
        }
        for name, values in columns.items()
    }


def main() -> int:
    """Print the lines and their summary; the exit code is 3 where every pass was invalid, else 0."""
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
    options = parser.parse_args()
    common = ["--dtype", options.dtype, "--seconds", str(options.seconds), "--out", str(options.out)]
    common += ["--threads", str(options.threads)] if options.threads else []
    results: list[Line] = []
    for calibration in range(options.calibrations):
        with busy_loop(options.busy == "calibration"):
            run = profile([options.models[0], *common, "--name", f"calibration-{calibration}"])["run"]
        spec, passes = Path(run) / "spec.json", []
        with busy_loop(options.busy == "passes"):
            for round_ in range(options.processes):
                for model in options.models:
                    print(f"calibration {calibration + 1}, round {round_ + 1}: {model}", file=sys.stderr)
                    passes += profile([model, *common, "--hardware", str(spec), "--name", f"round-{round_}"])["passes"]
        results += lines(calibration, passes)
    if not results:
        print("every pass was invalid; `python -m profiler show RUN` says why", file=sys.stderr)
        return 3
    if options.as_json:
        print(json.dumps({"lines": [asdict(line) for line in results], "summary": summary(results)}, indent=1))
        return 0
    names = ("wall", "floor", "busy", "layers", "as calibr.", "roofline")
    print(f"{'':46}{'measured':>10}{'predicted':>10}" + "".join(f"{name:>10}" for name in names))
    for line in results:
        times = f"{line.wall_s * 1e3:8.1f}ms{line.predicted_wall_s * 1e3:8.1f}ms"
        shares = (line.wall, line.floor, line.busy, line.layers, line.wall_as_calibrated, line.roofline)
        print(f"{line.calibration} {line.cell:44}{times}" + "".join(f"{share:+10.1%}" for share in shares))
    for name, errors in summary(results).items():
        side = ", all to one side" if errors["one_sided"] and name != "layers" else ""
        print(f"{name}: mean {errors['mean']:.1%}, largest {errors['largest']:.1%}{side}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
