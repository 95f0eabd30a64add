"""roofcal in a notebook: three calls that return pandas DataFrames (docs/api.md).

    predict  how long each layer of a model would take on a device
    load     a run as it was measured
    price    each operation of a run by a device's figures, measured and predicted side by side

Times are in seconds, sizes in bytes, work in FLOPs, and NaN is not known. A request that cannot be done raises
`RequestError`, a ValueError of one line with the remedy. `load` and `price` need neither torch nor the device, and
nothing is read or written but what a call names.

Example: ``predict("llama-3.1-8b", "nvidia-h100-sxm", phase="decode", batch=[1, 16])``
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from profiler.record.run import RequestError
from roofline.hardware.spec import HardwareSpec

if TYPE_CHECKING:
    import pandas as pd

    from calibrate.passes.reports import MeasuredPass
    from profiler.record.folder import RunFolder
    from roofline.predict.question import Device

__all__ = ["RequestError", "load", "predict", "price"]

Sizes = int | Iterable[int]
Hardware = str | Path | HardwareSpec
"""A device's name, a JSON file, a run (a folder, the end of its name, or "last"), or a spec in memory."""


def predict(
    model: str | Path,
    hardware: Hardware | Sequence[Hardware],
    *,
    phase: str | Sequence[str] = ("prefill", "decode"),
    prompt: Sizes = 2048,
    context: Sizes = 2048,
    batch: Sizes = 1,
    dtype: str = "bfloat16",
    what_if: str | Sequence[str] = (),
    peaks: Literal["auto", "datasheet", "measured", "calibrated"] = "auto",
    form: Literal["auto", "fused", "executed"] = "auto",
    by: Literal["kind", "op", "workload"] = "kind",
    results: str | Path = "results",
) -> "pd.DataFrame":
    """Predict time and work of a model's passes on one or several devices, as the command `predict` does.

    Args:
        model: a name of the catalogue, a folder with config.json, a hub id, or a file of graphs (.json) that
            ``predict --save-graph`` wrote.
        hardware: one device or several.
        phase: one or several of prefill, decode, chunk; each combination of it and the sizes is a pass.
        prompt: new tokens of prefill and chunk.
        context: cached tokens that decode and chunk follow.
        batch: sequences.
        what_if: changes of the model, as "quantise:weights=4".
        peaks: what prices: "auto" takes laws, else measured peaks, else the datasheet.
        form: which graph is priced, as the option of ``predict``.
        by: a row for each layer kind, each operation, or each pass. More than 6 passes are a sweep, by "workload" only.
    Returns: the columns of ``predict --csv``.
    Raises: RequestError.
    """
    import pandas as pd

    from calibrate.report.json import rows_by
    from profiler.cli import options
    from profiler.cli.cases import Case, How, predicted
    from profiler.cli.subject import Subject

    is_graph = str(model).endswith(".json")
    tracing = {"dtype": options.dtype(dtype), "attn": "default", "experts": "default", "cache": "dynamic"}
    sizes = options.Sizes(_text(phase), _text(prompt), _text(context), _text(batch))
    changes = options.what_ifs([what_if] if isinstance(what_if, str) else list(what_if))
    several = [hardware] if isinstance(hardware, Hardware) else list(hardware)
    if not several:
        raise RequestError("name a device, as nvidia-h100-sxm; the command `devices` lists them")
    with options.one_line():
        devices = [_device(each, peaks, Path(results)) for each in several]
        subject = Subject(
            None if is_graph else str(model), None, Path(model) if is_graph else None, False, tracing, stored_bits=True
        )
        case = Case(subject, changes, sizes.asked(subject.dtype or tracing["dtype"]))
        how = How(options.words("--form", form, ("auto", "fused", "executed"))[0], lambda name: devices[0])
        rows = rows_by(by, [predicted(case, device, how) for device in devices])
    table = pd.DataFrame(rows)
    lengths = ["batch", "query_tokens", "context_tokens"]
    return table.astype(dict.fromkeys(lengths, "int64")) if len(table) else table


def load(run: str | Path, *, hardware: Hardware | None = None, results: str | Path = "results") -> "pd.DataFrame":
    """A run as it was measured: a row for each layer kind of each pass.

    A run of `hardware` has a row for each figure instead, one of `calibrate` or `import` a row for each kernel.

    Args:
        run: a run's folder, the end of its name, or "last".
        hardware: predict passes with these figures instead of the run's own.
        results: the folder in which runs are looked for by name.
    Returns: the columns of ``show --csv``; a pass without a result is one row with its `status` and `reason`.
    Raises: RequestError.
    """
    import pandas as pd

    from profiler.cli import options
    from profiler.record.folder import find_run

    with options.one_line():
        folder = find_run(str(run), Path(results))
        content = folder.content
        if content == "passes":
            from calibrate.passes.reports import load as load_reports
            from calibrate.report.run_csv import LAYER, PASS, layer_rows

            reports, failed = load_reports(folder, _spec(hardware, Path(results)))
            return pd.DataFrame(layer_rows(reports, failed), columns=[*PASS, *LAYER])
        if hardware is not None:
            raise RequestError(f"hardware predicts passes, and {folder.path} has none; leave it out")
        folder.require_whole()
        if content == "kernels":
            from profiler.record.kernel_table import read_kernels

            kernels: pd.DataFrame = read_kernels(folder.path).table.to_pandas()
            return kernels
        if content == "hardware":
            return _figures(folder)
    raise RequestError(f"{folder.path} holds serving kernels; read them with: python -m profiler show RUN --csv FILE")


def price(run: str | Path, hardware: Hardware | None = None, *, results: str | Path = "results") -> "pd.DataFrame":
    """Price each operation of a run's passes by a device's figures, beside its measured time.

    Args:
        run: as in `load`.
        hardware: the figures that price; None for the run's own. A spec in memory may have changed figures.
        results: as in `load`.
    Returns: a row for each operation in the order they ran. Its times are of one of its `count` executions:
        `measured_s`, the idle `gap_s` before it, and those of the rungs `ideal_s`, `achieved_s`, `executed_s`,
        `calibrated_s` and `calibrated_at_level_s` (docs/architecture.md). `bound` is what limits its roofline.
    Raises: RequestError, also where no pass of the run has a result.
    """
    import pandas as pd

    from calibrate.passes.reports import load_passes
    from profiler.cli import options
    from profiler.record.folder import find_run

    with options.one_line():
        folder = find_run(str(run), Path(results))
        if folder.content != "passes":
            raise RequestError(
                f"{folder.path} has no passes of a model to price; name a run of: python -m profiler run"
            )
        passes, failed = load_passes(folder, _spec(hardware, Path(results)))
        if not passes:
            why = next((one.reason for one in failed if one.reason), "no cell was measured")
            raise RequestError(f"{folder.path} has no measured pass: {why}")
    return pd.DataFrame([row for each in passes for row in _operations(each)])


def _operations(one: "MeasuredPass") -> Iterable[dict[str, Any]]:
    cell, table = one.result.cell, one.table
    sizes = ("phase", "batch", "query_tokens", "context_tokens", "dtype")
    start = {"model": cell.model, **{name: getattr(cell.workload, name) for name in sizes}, "mode": cell.mode}
    for i, op in enumerate(one.graph.ops):
        yield {
            **start,
            "op": i,
            "path": op.path,
            "name": op.name,
            "kind": op.kind.value,
            "count": op.count,
            "measured_s": table.measured_s[i],
            "gap_s": table.gap_s[i],
            **{f"{rung}_s": times[i] for rung, times in table.rungs.items() if rung != "measured"},
            "bound": table.bound[i],
            "matrix_flops": op.matrix_flops,
            "vector_flops": op.vector_flops,
            "bytes": sum(access.bytes for access in (*op.reads, *op.writes)),
            "kernels": "; ".join(table.kernels[i]),
        }


def _figures(folder: "RunFolder") -> "pd.DataFrame":
    import pandas as pd

    from calibrate.report.json import device_json
    from calibrate.report.run_csv import FIGURE
    from profiler.record.hardware_table import read_measurements

    if (spec := folder.read_spec()) is None:
        raise RequestError(f"{folder.path} has no figures yet; finish it: python -m profiler hardware --resume RUN")
    figures = device_json(folder.path / "spec.json", spec, read_measurements(folder.path), folder.run)["figures"]
    return pd.DataFrame(figures, columns=list(FIGURE))


def _spec(hardware: Hardware | None, results: Path) -> HardwareSpec | None:
    from profiler.cli import options

    if hardware is None or isinstance(hardware, HardwareSpec):
        return hardware
    return options.find_hardware(str(hardware), results)[0]


def _device(hardware: Hardware, peaks: str, results: Path) -> "Device":
    from profiler.cli import options

    if isinstance(hardware, HardwareSpec):
        return options.device_of(hardware, hardware.name, peaks)
    return options.device(str(hardware), peaks, results)


def _text(values: str | int | Iterable[Any]) -> str:
    """Values as the command line has them: "1,16"."""
    return ",".join(map(str, [values] if isinstance(values, str | int) else values))
