"""Everything that a GPU is wanted for, in one command and within the time that there is.

    python scripts/gpu_campaign.py --minutes 20 --out results/campaign
    python scripts/gpu_campaign.py --minutes 3 --out /tmp/try --device cpu

The most valuable parts come first: what the device reaches, and its laws; the headline, decode of Llama-3.1-8B from a
CUDA graph; the same model eagerly and compiled; the laws on kernels not fitted to, and the spec for other tools;
sustained load; the other models; the suites. What does not fit is skipped and said so (exit code 3); the same command
goes on where it was. At the end `--out` holds `keep/`, small enough to commit: README.md with the conditions and
predicted against measured, summary.json, specs, exports and reports. On a CPU the same parts run with small models, to
try the campaign itself.

Nothing needs a network. What the machine lacks is said in one line, with how to carry it there.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.campaign import Campaign, Part
from scripts.campaign_report import keep

NEEDED = {
    "torch": "torch", "transformers": "transformers", "pynvml": "nvidia-ml-py", "numpy": "numpy", "scipy": "scipy",
    "pandas": "pandas", "pyarrow": "pyarrow", "pydantic": "pydantic", "typer": "typer", "rich": "rich",
    "plotly": "plotly", "packaging": "packaging", "psutil": "psutil", "jinja2": "jinja2",
}  # fmt: skip
"""Modules that the parts import, and the packages that hold them."""

START_S = 20.0
"""Of a process: torch and transformers load, the device's figures of `run --quick`, the reports."""
CELL_S = 6.0
"""Of a cell besides its passes: trace, inputs, warm-up, sessions of the profiler."""
CALIBRATION_S = 150.0
"""Of kernels for the laws of the device, in few sizes."""
QUICK_LOOK = ("--only", "memory,matmul,vector,host", "--processes", "1")
"""All that the campaign is tried with on a CPU."""
COMPILE_S = 45.0
"""Of a cell that is compiled, more."""


FILES = {"llm-viewer": ".py", "genz": ".py", "llm-analysis": ".json", "blis": ".json"}
"""Formats of one file that the spec is exported to."""
FOLDERS = ("aiconfigurator", "infersim")
"""And of many; Vidur's tables are of its own models, and large."""
FORMATS = (*FILES, *FOLDERS)


@dataclass(frozen=True)
class Model:
    """One model and the shapes it is measured at."""

    name: str
    layers: int | None = None
    """Repeated layers that run; None is all of them."""
    longest: int = 16384
    """Most tokens of context and prompt."""
    load_s: float = 20.0
    """To make its weights on the device."""


GPU_MODELS = (
    Model("llama-3.1-8b"),
    Model("qwen2.5-7b"),
    Model("gemma-2-9b", longest=8191),
    Model("mixtral-8x7b", layers=4),
    Model("llama-3.1-70b", layers=4),
    Model("gpt2", longest=1023, load_s=5.0),
    Model("deepseek-v2-lite", load_s=30.0),
)
CPU_MODELS = (Model("gpt2", layers=1, longest=32, load_s=2.0), Model("smollm2-135m", layers=1, longest=32, load_s=2.0))

SUITES: tuple[Part, ...] = (
    Part("transfers", ("hardware", "--quick", "--only", "transfer"), 60.0),
    Part("hardware-in-full", ("hardware",), 600.0),
)
"""What the project measures besides models; a new suite is a line."""


@dataclass(frozen=True)
class Shapes:
    """Of every model, cut at its longest."""

    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    """Of decode; prefill is of one sequence."""
    seconds: float
    """Of passes for each cell."""


GPU_SHAPES = Shapes((128, 2048, 8192), (1024, 16384), (1, 16, 64), 2.0)
CPU_SHAPES = Shapes((32,), (32,), (1,), 0.2)


def parts(device: str, models: Sequence[Model], shapes: Shapes) -> Iterator[Part]:
    """All parts, the most valuable first. Models run with the figures and the laws of the part `hardware`."""
    how, takes_s = (QUICK_LOOK, 40.0) if device == "cpu" else (("--calibrate",), 150.0 + CALIBRATION_S)
    yield Part("doctor", ("doctor", "--device", device), 10.0, keeps_run=False)
    yield Part("hardware", ("hardware", "--quick", "--device", device, *how), takes_s)
    first, *others = models
    yield from passes(device, [first], shapes, "cuda-graph")
    yield from passes(device, [first], shapes, "cuda-graph", cache="static")
    for mode in ("eager", "compile"):
        yield from passes(device, [first], shapes, mode)
    yield from judged(device)
    yield Part("sustained", ("hardware", "--device", device, "--only", "sustained,energy"), 120.0, unless=_cpu(device))
    for mode in ("eager", "cuda-graph", "compile"):
        yield from passes(device, others, shapes, mode)
    for suite in SUITES:
        yield suite if device != "cpu" else Part(suite.name, suite.arguments, suite.estimate_s, unless=_cpu(device))


def judged(device: str) -> Iterator[Part]:
    """What the calibration is worth on kernels that it was not fitted to, and its spec for other tools."""
    unless = "the look at a CPU is not calibrated" if device == "cpu" else None
    spec = "{out}/held-out.spec.json"  # of half the kernels; the calibrated one stays that of all
    yield Part(
        "held-out", ("calibrate", "{run}", "--out", spec), 40.0, keeps_run=False, unless=unless, on="hardware"
    )  # fmt: skip
    for form in FORMATS:
        target = f"{{out}}/exports/{form}" + ("" if form in FOLDERS else f"/{form}{FILES[form]}")
        yield Part(
            f"export-{form}", ("export", "{run}", "--to", form, "--out", target), 5.0, keeps_run=False, on="hardware"
        )


def passes(device: str, models: Sequence[Model], shapes: Shapes, mode: str, cache: str = "dynamic") -> Iterator[Part]:
    """Decode and prefill of models in one mode; of CUDA graphs decode alone, where the host is most of the time.

    Compiled, the first two lengths of one sequence stand for all: each takes a compilation.
    """
    flags = {"eager": [], "cuda-graph": ["--cuda-graph"], "compile": ["--compile"]}[mode]
    for model in models:
        for phase in ("decode",) if mode == "cuda-graph" else ("decode", "prefill"):
            lengths = shapes.contexts if phase == "decode" else shapes.prompts
            fitting = sorted({min(length, model.longest) for length in lengths})
            batches = shapes.batches if phase == "decode" else (1,)
            if mode == "compile":
                fitting, batches = fitting[:2], batches[:1]
            if cache != "dynamic":
                suffix, kept = f"-{cache}", ["--cache", cache]
            else:
                suffix, kept = "", []
            layers = ["--layers", str(model.layers)] if model.layers else []
            each_s = CELL_S + shapes.seconds + (COMPILE_S if mode == "compile" else 0.0)
            option = "--context" if phase == "decode" else "--prompt"
            yield Part(
                f"{Path(model.name).name}-{phase}-{mode}{suffix}",
                (
                    "run", model.name, "--device", device, "--quick", "--no-calibrate",
                    "--seconds", str(shapes.seconds), "--phase", phase,
                    "--dtype", "float32" if device == "cpu" else "bfloat16",
                    option, ",".join(map(str, fitting)), "--batch", ",".join(map(str, batches)), *layers, *kept, *flags,
                ),
                START_S + model.load_s + each_s * len(fitting) * len(batches),
                unless=_cpu(device) if mode == "cuda-graph" else None,
                uses="hardware",
            )  # fmt: skip


def missing() -> str | None:
    """What this machine lacks and how to carry it here, in one line; None if nothing."""
    lacking = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if not lacking:
        return None
    version, names = f"{sys.version_info[0]}.{sys.version_info[1]}", " ".join(lacking)
    return (
        f"this machine lacks {', '.join(lacking)}; with a network: pip download --only-binary :all: --python-version "
        f"{version} -d wheels {names}; then here: pip install --no-index --find-links wheels {names}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """0: everything ran; 2: wrong request; 3: something was left out."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, required=True, help="Time that there is.")
    options.add_argument("--out", type=Path, required=True, help="Folder of the campaign; an old one is gone on with.")
    options.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu, with small models.")
    options.add_argument("--models", help="Only these of the list, or other names and folders, separated by commas.")
    given = options.parse_args(arguments)
    lacking = missing()
    if lacking or given.minutes <= 0:
        return _refuse(lacking or f"--minutes {given.minutes:g} is no time; give more than 0")
    known = CPU_MODELS if given.device == "cpu" else GPU_MODELS
    models = _chosen(given.models, known) if given.models else known
    if given.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            return _refuse(f"--device {given.device}: torch sees no GPU; try the campaign with --device cpu")
    shapes = CPU_SHAPES if given.device == "cpu" else GPU_SHAPES
    todo = list(parts(given.device, models, shapes))
    campaign = Campaign(todo, given.out, given.minutes)
    # Parts inherit an ignored Ctrl-C, as of background jobs, and are ended with the campaign whatever ends it.
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.default_int_handler)
    try:
        ended = campaign.run()
    finally:
        keep(given.out, todo, campaign.ended())
    print(f"kept in {given.out / 'keep'}", file=sys.stderr)
    whole = all(line["status"] in ("done", "inconclusive") for line in ended)
    return 0 if whole else 3


def _chosen(names: str, known: Sequence[Model]) -> tuple[Model, ...]:
    by_name = {model.name: model for model in known}
    usual = known[0]
    return tuple(by_name.get(name, Model(name, usual.layers, usual.longest)) for name in names.split(","))


def _cpu(device: str) -> str | None:
    return "needs a CUDA device" if device == "cpu" else None


def _refuse(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
