"""Times the kernels of one Python file in this process: what a gate starts afresh for every sample.

It is started by path under any interpreter from 3.8 on, also one without roofcal, and imports nothing but the standard
library. A kernel is a function without arguments named `kernel`, or `kernel_` and its name; `setup`, if there is one,
runs before. Work that a kernel only queues on a GPU is waited for.

    python worker.py REQUEST RESULTS

REQUEST is a JSON file {"file", "kernels": [names] or null to list them, "seconds", "path"}; RESULTS gets a line of JSON
for each thing that happens, so that a crash costs no more than the kernel that runs.
"""

import gc
import importlib.util
import json
import sys
import time
from pathlib import Path

LEAST_BATCH_S = 1e-3
"""Seconds of a batch of calls: the clock and the loop then cost less than a thousandth."""
LEAST_SAMPLES, WARM_S = 5, 0.05
MOST_CALLS = 1_000_000


def _main(request_file: str, results_file: str) -> None:
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    with Path(results_file).open("w", encoding="utf-8") as results:

        def tell(**what: object) -> None:
            results.write(json.dumps(what) + "\n")
            results.flush()

        sys.path[0] = str(Path(request["file"]).parent)  # as if the file itself had been started, not this one
        if request["path"]:
            sys.path.insert(0, request["path"])
        try:
            functions = _functions(request["file"])
        except BaseException as error:  # noqa: BLE001  whatever a user's file does, it is one line
            tell(broken=_line(error))
            return
        torch = sys.modules.get("torch")
        tell(
            found=sorted(functions),
            versions={"python": sys.version.split()[0], **({"torch": str(torch.__version__)} if torch else {})},
            devices=_devices() if request["kernels"] is None else [],
        )
        for name in request["kernels"] or ():
            tell(starts=name)
            try:
                tell(name=name, seconds=_time(functions[name], request["seconds"]))
            except BaseException as error:  # noqa: BLE001
                tell(name=name, failed=_line(error))


def _functions(file: str) -> dict:
    spec = importlib.util.spec_from_file_location("kernels_under_test", file)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if hasattr(module, "setup"):
        module.setup()
    named = {name: value for name, value in vars(module).items() if callable(value)}
    functions = {name[len("kernel_") :]: value for name, value in named.items() if name.startswith("kernel_")}
    if "kernel" in named:
        functions["kernel"] = named["kernel"]
    return functions


def _time(function, seconds: float) -> float:  # type: ignore[no-untyped-def]
    """Seconds of a call, the fastest tenth of batches of calls: other work can only make one slower."""
    wait = _wait()
    calls, end = 1, time.perf_counter() + max(WARM_S, seconds / 4)
    while True:
        taken = _batch(function, calls, wait)
        if taken < LEAST_BATCH_S and calls < MOST_CALLS:
            calls *= 2
        elif time.perf_counter() >= end:
            break
    samples: list = []
    end = time.perf_counter() + seconds
    gc.collect()
    gc.disable()
    while len(samples) < LEAST_SAMPLES or time.perf_counter() < end:
        samples.append(_batch(function, calls, wait) / calls)
    gc.enable()
    return sorted(samples)[len(samples) // 10]


def _batch(function, calls: int, wait) -> float:  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    for _ in range(calls):
        function()
    wait()
    return time.perf_counter() - start


def _wait():  # type: ignore[no-untyped-def]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.synchronize
    return lambda: None


def _devices() -> list:
    """Names of the GPUs that this process may use, in order; none where its file does not use torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
