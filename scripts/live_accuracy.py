"""Predicted against measured on this machine: one calibration, then models in interleaved fresh processes.

    python scripts/live_accuracy.py [--processes 5] [--out DIR] [--json] [MODEL…]

One run calibrates the device with kernels whose shapes follow from it alone. Then each round starts a fresh process for
each model, which is told the calibrated spec and measures the model's passes. A pass's
prediction is compared with the median over the processes; beside it stands the noise floor, the standard deviation of
the processes' logarithms of the same time. Within: off by at most 5 %, or twice the floor. Inconclusive: a floor above
4 % hides what is asked. Layers: mean over layer kinds of at least 1 % of the busy time, each |predicted ÷ measured − 1|
of medians.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

MODELS = ("qwen2.5-0.5b", "gpt2", "smollm2-135m")
"""Qwen, GPT-2 and Llama shapes of 0.1 to 0.5 B parameters."""
VISITS = 6
"""Of each kernel: a calibration of about two minutes."""
WITHIN, LAYERS_WITHIN = 0.05, 0.10
HIDDEN = 0.04
"""Noise floor above which nothing is concluded."""
COUNTED = 0.01
"""Share of the busy time from which a layer kind counts."""


@dataclass(frozen=True)
class Line:
    """One pass of one model."""

    cell: str
    wall_s: float
    predicted_wall_s: float
    busy_s: float
    predicted_busy_s: float
    floor: float
    layers: float
    roofline: float
    """Error of the busy time by the roofline at achieved peaks."""

    @property
    def wall_error(self) -> float:
        return self.predicted_wall_s / self.wall_s - 1

    @property
    def busy_error(self) -> float:
        return self.predicted_busy_s / self.busy_s - 1

    @property
    def verdict(self) -> str:
        if self.floor > HIDDEN:
            return "inconclusive"
        within = abs(self.wall_error) <= max(WITHIN, 2 * self.floor) and self.layers <= LAYERS_WITHIN
        return "within" if within else "BEYOND"


def profile(options: Sequence[str]) -> dict[str, Any]:
    """The JSON of `python -m profiler run`, in a fresh process; of its passes, those that are not invalid (exit 4)."""
    done = subprocess.run(
        [sys.executable, "-m", "profiler", "run", "--json", *options], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in (0, 3, 4):
        raise SystemExit(f"run {' '.join(options)} ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"passes": [one for one in found["passes"] if one["status"] != "invalid"]}


def lines(passes: Sequence[dict[str, Any]]) -> Iterator[Line]:
    """A line for each cell, over the processes that measured it."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for one in passes:
        lengths = f"b{one['batch']} q{one['query_tokens']} c{one['context_tokens']}"
        key = f"{one['model']} {one['phase']} {lengths} {one['dtype']}"
        cells.setdefault(key, []).append(one)
    for key, found in cells.items():
        walls = np.array([one["wall_s"] for one in found])
        yield Line(
            cell=key,
            wall_s=float(np.median(walls)),
            predicted_wall_s=float(np.median([one["predicted_wall_s"] for one in found])),
            busy_s=float(np.median([one["busy_s"] for one in found])),
            predicted_busy_s=float(np.median([one["predicted_busy_s"] for one in found])),
            floor=float(np.std(np.log(walls), ddof=1)) if len(walls) > 1 else float("inf"),
            layers=_layers(found),
            roofline=found[0]["rungs"]["executed"] / float(np.median([one["busy_s"] for one in found])) - 1,
        )


def _layers(found: Sequence[dict[str, Any]]) -> float:
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for one in found:
        for layer in one["layers"]:
            if layer["predicted_s"] is not None and layer["measured_s"] > COUNTED * one["busy_s"]:
                times.setdefault((layer["path"], layer["kind"]), []).append((layer["predicted_s"], layer["measured_s"]))
    medians = [np.median(pairs, axis=0) for pairs in times.values()]
    return float(np.mean([abs(predicted / measured - 1) for predicted, measured in medians]))


def main() -> int:
    """Exit code: 0 where no pass is beyond, 1 where one is, 3 where nothing could be concluded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each model")
    parser.add_argument("--seconds", type=float, default=4.0, help="of passes, each cell and process")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of results")
    parser.add_argument("--json", action="store_true", dest="as_json")
    asked = parser.parse_args()
    common = ["--dtype", asked.dtype, "--seconds", str(asked.seconds), "--out", str(asked.out)]
    common += ["--threads", str(asked.threads)] if asked.threads else []
    first = profile([asked.models[0], *common, "--visits", str(VISITS), "--name", "calibration"])
    spec = Path(first["run"]) / "spec.json"
    passes: list[dict[str, Any]] = []
    for round_ in range(asked.processes):
        for model in asked.models:
            print(f"round {round_ + 1} of {asked.processes}: {model}", file=sys.stderr)
            passes += profile([model, *common, "--hardware", str(spec), "--name", f"round-{round_ + 1}"])["passes"]
    found = list(lines(passes))
    if asked.as_json:
        print(json.dumps([asdict(line) | {"verdict": line.verdict} for line in found], indent=1))
    else:
        names = ("wall", "predicted", "off", "floor", "busy off", "layers", "roofline")
        print(f"{'':44}" + "".join(f"{name:>10}" for name in names))
        for line in found:
            times = f"{line.wall_s * 1e3:8.1f}ms{line.predicted_wall_s * 1e3:8.1f}ms"
            shares = (line.wall_error, line.floor, line.busy_error, line.layers, line.roofline)
            print(f"{line.cell:44}{times}" + "".join(f"{share:+10.1%}" for share in shares) + f"  {line.verdict}")
    verdicts = {line.verdict for line in found}
    return 1 if "BEYOND" in verdicts else 0 if "within" in verdicts else 3


if __name__ == "__main__":
    sys.exit(main())
