"""`import`: other tools' measurement tables become an ordinary run, which `calibrate` fits and scores.

Wiring only: `calibrate.exchange.importing` reads and cleans, `profiler.record.kernels` keeps, and
`calibrate.report.kernels` shows.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiler.cli.output import console, print_json, stdout_to_stderr_if
from profiler.record.errors import RequestError
from profiler.record.run import Environment, Run
from profiler.record.store import RunFolder
from profiler.record.version import roofcal_version
from roofline.hardware import HardwareSpec

if TYPE_CHECKING:
    from calibrate.exchange.importing import Asked, Imported

EXAMPLE = """
Examples:\n
python -m profiler import aiconfigurator gemm_perf.parquet context_attention_perf.parquet\n
python -m profiler import vidur mlp.csv --device nvidia-a100-sxm-80gb --json\n
python -m profiler import llmservingsim layers.csv --device nvidia-h100-sxm --model llama-3.1-8b
"""

ELSEWHERE = "imported"
"""Host of a run that was not measured here."""


def import_(
    format_name: Annotated[str, typer.Argument(metavar="FORMAT", help="aiconfigurator, vidur or llmservingsim.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Its tables, all of one device.")],
    device: Annotated[
        str | None, typer.Option(help="A device file's name, where the tables' own name is not enough.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="llmservingsim: whose modules; the folders' names, if not given.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="vidur, llmservingsim: what they ran in, as bfloat16.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("results"),
    name: Annotated[str | None, typer.Option(help="Name of the run; the format's, if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, everything else on stderr.")] = False,
) -> None:
    """Other tools' measured kernels as a run: units converted, rows cleaned by rule and counted, provenance kept."""
    from calibrate.exchange.importing import import_tables, require_format

    require_format(format_name)
    _refuse_in_vain(format_name, model, dtype)
    with stdout_to_stderr_if(as_json):
        asked, notes = _asked(format_name, files, device, model, dtype)
        imported = import_tables(format_name, files, asked)
        folder = _write(imported, notes, format_name, files, out, name or format_name, asked)
    _show(folder, imported, as_json)


def _refuse_in_vain(format_name: str, model: str | None, dtype: str | None) -> None:
    """Options that would change nothing, and a dtype that is none."""
    from calibrate.exchange.dtypes import NAMES

    if format_name == "aiconfigurator" and dtype is not None:
        raise RequestError("--dtype: AIConfigurator's tables name their own; leave it out")
    if format_name != "llmservingsim" and model is not None:
        raise RequestError(f"--model: {format_name}'s tables hold their shapes; leave it out")
    if dtype is not None and dtype not in NAMES.values():
        raise RequestError(f"--dtype {dtype} is not known; use {', '.join(dict.fromkeys(NAMES.values()))}")


def _asked(
    format_name: str, files: list[Path], device: str | None, model: str | None, dtype: str | None
) -> tuple["Asked", tuple[str, ...]]:
    """What the command line says of the files, and what is left unknown."""
    from calibrate.exchange.importing import Asked

    if format_name != "llmservingsim":
        return Asked(device, dtype), ()
    from calibrate.exchange.llmservingsim import model_of
    from profiler.models.catalogue import find

    given = {model} if model is not None else {model_of(path) for path in files}
    if len(given) > 1:
        raise RequestError("the files' folders name several models; import each by itself")
    (known,) = given
    if known is not None and (model is not None or find(known) is not None):
        return Asked(device, dtype, known, _sizes(known)), ()
    what = "the tables do not name their model" if known is None else f"the catalogue has no {known}"
    return Asked(device, dtype, known), (f"{what}; with --model its modules get their shapes",)


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
    asked: "Asked",
) -> RunFolder:  # fmt: skip
    """The run's folder, finished."""
    from profiler.record.kernels import OPTION, write

    spec = imported.device.spec
    run = Run(
        name=name,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(sys.argv[1:]),
        environment=Environment(
            device=imported.device.name,
            device_kind="cpu" if spec is not None and spec.kind == "cpu" else "cuda",
            hostname=ELSEWHERE,
            os="unknown",
            python="unknown",
            versions=_versions(imported),
            notes=(*notes, *imported.warnings),
        ),
        cells=(),
        options={
            OPTION: format_name,
            "files": " ".join(map(str, files)),
            "device": asked.device,
            "model": asked.model,
            "dtype": asked.dtype,
        },
    )
    with RunFolder.create(out, run) as folder:
        write(folder.path, imported.kernels)
        folder.write_spec(spec or HardwareSpec(name=imported.device.name, kind="cuda"))
        folder.finish()
    return folder


def _versions(imported: "Imported") -> dict[str, str]:
    """Of the frameworks that measured, each version once; and of what imported them."""
    found: dict[str, set[str]] = {}
    for source in imported.kernels.sources:
        for framework, version in source.versions.items():
            found.setdefault(framework, set()).update(version.split(", "))
    versions = {framework: ", ".join(sorted(each)) for framework, each in found.items()}
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
