"""`import`: other tools' measurement tables become a run, which `calibrate` fits laws to.

Wiring only: `calibrate.exchange.formats` reads and cleans, `profiler.record.kernel_table` stores the kernels.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from profiler.cli.look import show_kernels
from profiler.cli.measuring import new_run
from profiler.cli.options import AsJson, Out
from profiler.cli.output import stdout_to_stderr_if
from profiler.record.folder import RunFolder
from profiler.record.run import Environment, RequestError, roofcal_version
from roofline.hardware.spec import GPU, HardwareSpec
from roofline.reading import entry

if TYPE_CHECKING:
    from calibrate.exchange.formats import Imported, Importer
    from calibrate.exchange.tables import ImportOptions

EXAMPLE = """
Examples:\n
python -m profiler import aiconfigurator gemm_perf.parquet context_attention_perf.parquet\n
python -m profiler import aiconfigurator data/h200_sxm/vllm/0.14.0 --name h200\n
python -m profiler import vidur mlp.csv --device nvidia-a100-sxm-80gb --json\n
python -m profiler import llmservingsim layers.csv --device nvidia-h100-sxm --model llama-3.1-8b
"""

ELSEWHERE = "imported"
"""Host of a run that was not measured here."""


def import_(
    format_name: Annotated[
        str, Argument(metavar="FORMAT", help="Tool that wrote the tables: aiconfigurator, vidur or llmservingsim.")
    ],
    files: Annotated[
        list[Path], Argument(metavar="FILE", help="The tool's tables, or folders of them, all of one device.")
    ],
    device: Annotated[
        str | None, Option(help="Device of the tables, as nvidia-h100-sxm, where they do not name a known one.")
    ] = None,
    model: Annotated[
        str | None, Option(help="For llmservingsim: the timed model. Default: the one in the files' folders.")
    ] = None,
    dtype: Annotated[str | None, Option(help="For vidur and llmservingsim: dtype of the kernels, as bfloat16.")] = None,
    out: Out = Path("results"),
    name: Annotated[str | None, Option(help="Name of the run. Default: the format's name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Store another tool's measured kernels as a run.

    Figures are in SI units, and rows that cannot be true are left out.
    """
    from calibrate.exchange.formats import import_format, import_tables
    from roofline.dtypes import IMPORTED, dtype_named

    importer = import_format(format_name)
    for option, value in (("--dtype", dtype), ("--model", model)):
        if value is not None and option in importer.refuses:
            raise RequestError(f"{option}: {importer.refuses[option]}; leave it out")
    dtype = None if dtype is None else dtype_named(dtype) or dtype
    if dtype is not None and dtype not in IMPORTED:
        raise RequestError(f"--dtype {dtype} is not known; use {', '.join(IMPORTED)}")
    with stdout_to_stderr_if(as_json):
        from calibrate.exchange.tables import tables_in

        inside = [found for path in files if entry(path) == "folder" for found in tables_in(path)]
        files = [path for path in files if entry(path) != "folder"]
        files += (path for path in dict.fromkeys(inside) if path not in files)
        options, notes = _options(importer, files, device, model, dtype)
        imported = import_tables(format_name, files, options, inside)
        folder = _write(imported, notes, format_name, files, out, name or format_name, options)
    show_kernels(folder, as_json, kept=folder.path)


def _options(
    importer: "Importer", files: list[Path], device: str | None, model: str | None, dtype: str | None
) -> tuple["ImportOptions", tuple[str, ...]]:
    """Return the options that the command line gives for the files, and notes on what stays unknown."""
    from calibrate.exchange.tables import ImportOptions
    from profiler.models.catalogue import find

    if importer.model_of is None:
        return ImportOptions(device, dtype), ()
    models = {model} if model is not None else {importer.model_of(path) for path in files}
    if len(models) > 1:
        raise RequestError("the files' folders name several models; import the files of each model by themselves")
    (known,) = models
    if known is not None and (model is not None or find(known) is not None):
        return ImportOptions(device, dtype, known, _sizes(known)), ()
    why = "the tables do not name their model" if known is None else f"the catalogue has no {known}"
    return ImportOptions(device, dtype, known), (f"{why}; name it with --model, so that its modules get their shapes",)


def _sizes(model: str) -> dict[str, float]:
    """Sizes of a decoder, from its config. Raises RequestError for an unknown model, or a config without a size."""
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
    """Write the run's folder."""
    from profiler.record.folder import IMPORT_OPTION
    from profiler.record.kernel_table import write_kernels

    spec = imported.device.spec
    environment = Environment(
        device=imported.device.name,
        device_kind=GPU if spec is None else spec.kind,
        hostname=ELSEWHERE,
        os="unknown",
        python="unknown",
        versions=_versions(imported) | {"roofcal": roofcal_version()},
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
    """Versions of the frameworks that were measured."""
    versions: dict[str, set[str]] = {}
    for source in imported.kernels.sources:
        for framework, version in source.versions.items():
            versions.setdefault(framework, set()).update(version.split(", "))
    return {framework: ", ".join(sorted(names)) for framework, names in versions.items()}
