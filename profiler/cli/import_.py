"""`import`: other tools' measurement tables become an ordinary run, which `calibrate` fits and scores.

Wiring only: `calibrate.exchange.formats` reads and cleans, `profiler.record.kernel_table` keeps, and
`calibrate.report.kernels` shows.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiler.cli.measuring import new_run
from profiler.cli.options import AsJson, Out
from profiler.cli.output import console, print_json, stdout_to_stderr_if
from profiler.record.folder import RunFolder
from profiler.record.run import Environment, RequestError, roofcal_version
from roofline.hardware.spec import GPU, HardwareSpec

if TYPE_CHECKING:
    from calibrate.exchange.formats import Imported, Importer
    from calibrate.exchange.tables import ImportOptions

EXAMPLE = """
Examples:\n
python -m profiler import aiconfigurator gemm_perf.parquet context_attention_perf.parquet\n
python -m profiler import vidur mlp.csv --device nvidia-a100-sxm-80gb --json\n
python -m profiler import llmservingsim layers.csv --device nvidia-h100-sxm --model llama-3.1-8b
"""

ELSEWHERE = "imported"
"""Host of a run that was not measured here."""


def import_(
    format_name: Annotated[
        str, typer.Argument(metavar="FORMAT", help="Tool that wrote them: aiconfigurator, vidur or llmservingsim.")
    ],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="The tool's tables, all of one device.")],
    device: Annotated[
        str | None, typer.Option(help="Name of a device file, where the tables do not name a device that is known.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="llmservingsim: model that was timed. Default: the one that the files' folders name."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="vidur, llmservingsim: dtype that the kernels ran in, as bfloat16.")
    ] = None,
    out: Out = Path("results"),
    name: Annotated[str | None, typer.Option(help="Name of the run. Default: the format's name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Keep another tool's measured kernels as a run: in SI units, without rows that cannot be true, with provenance."""
    from calibrate.exchange.formats import import_format, import_tables

    importer = import_format(format_name)
    _refuse_in_vain(importer, model, dtype)
    with stdout_to_stderr_if(as_json):
        options, notes = _options(importer, files, device, model, dtype)
        imported = import_tables(format_name, files, options)
        folder = _write(imported, notes, format_name, files, out, name or format_name, options)
    _show(folder, imported, as_json)


def _refuse_in_vain(importer: "Importer", model: str | None, dtype: str | None) -> None:
    """Refuse options that would change nothing, and a dtype that is not one."""
    from roofline.dtypes import IMPORTED

    for option, value in (("--dtype", dtype), ("--model", model)):
        if value is not None and option in importer.refuses:
            raise RequestError(f"{option}: {importer.refuses[option]}; leave it out")
    if dtype is not None and dtype not in IMPORTED:
        raise RequestError(f"--dtype {dtype} is not known; use {', '.join(IMPORTED)}")


def _options(
    importer: "Importer", files: list[Path], device: str | None, model: str | None, dtype: str | None
) -> tuple["ImportOptions", tuple[str, ...]]:
    """What the command line says of the files, and what is left unknown."""
    from calibrate.exchange.tables import ImportOptions
    from profiler.models.catalogue import find

    if importer.model_of is None:
        return ImportOptions(device, dtype), ()
    models = {model} if model is not None else {importer.model_of(path) for path in files}
    if len(models) > 1:
        raise RequestError("the files' folders name several models; import each by itself")
    (known,) = models
    if known is not None and (model is not None or find(known) is not None):
        return ImportOptions(device, dtype, known, _sizes(known)), ()
    what = "the tables do not name their model" if known is None else f"the catalogue has no {known}"
    return ImportOptions(device, dtype, known), (f"{what}; with --model its modules get their shapes",)


def _sizes(model: str) -> dict[str, float]:
    """Sizes of a decoder, from its config. Raises RequestError where there is none of that name, or it lacks one."""
    from profiler.models.resolve import resolve

    config = resolve(model).config
    try:
        heads, hidden = config.num_attention_heads, config.hidden_size
        sizes = {
            "hidden": hidden,
            "inner": config.intermediate_size,
            "heads": heads,
            "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
            "head_dim": getattr(config, "head_dim", None) or hidden // heads,
            "vocab": config.vocab_size,
        }
    except AttributeError as error:
        raise RequestError(f"--model {model}: its config has no {error.name}; name a Llama-like decoder") from error
    return {name: float(size) for name, size in sizes.items()}


def _write(
    imported: "Imported", notes: tuple[str, ...], format_name: str, files: list[Path], out: Path, name: str,
    options: "ImportOptions",
) -> RunFolder:  # fmt: skip
    """The run's folder, finished."""
    from profiler.record.folder import IMPORT_OPTION
    from profiler.record.kernel_table import write_kernels

    spec = imported.device.spec
    environment = Environment(
        device=imported.device.name,
        device_kind=GPU if spec is None else spec.kind,
        hostname=ELSEWHERE,
        os="unknown",
        python="unknown",
        versions=_versions(imported),
        notes=(*notes, *imported.warnings),
    )
    given = {"device": options.device, "model": options.model, "dtype": options.dtype}
    run = new_run(name, environment, (), {IMPORT_OPTION: format_name, "files": " ".join(map(str, files)), **given})
    with RunFolder.create(out, run) as folder:
        write_kernels(folder.path, imported.kernels)
        folder.write_spec(spec or HardwareSpec(name=imported.device.name, kind=GPU))
        folder.finish()
    return folder


def _versions(imported: "Imported") -> dict[str, str]:
    """Versions of the frameworks that measured, each once, and of the roofcal that imports."""
    by_framework: dict[str, set[str]] = {}
    for source in imported.kernels.sources:
        for framework, version in source.versions.items():
            by_framework.setdefault(framework, set()).update(version.split(", "))
    versions = {framework: ", ".join(sorted(each)) for framework, each in by_framework.items()}
    versions["roofcal"] = roofcal_version()
    return versions


def _show(folder: RunFolder, imported: "Imported", as_json: bool) -> None:
    from calibrate.report.json import kernels_json
    from calibrate.report.kernels import kernels_document
    from calibrate.report.terminal import render

    if as_json:
        print_json(kernels_json(folder, imported.kernels))
    else:
        render(kernels_document(folder, imported.kernels), console())
        print(f"\nkept in {folder.path}", file=sys.stderr)
