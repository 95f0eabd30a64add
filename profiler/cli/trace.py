"""`trace`: where the time of a real engine went, from its own timeline. Wiring only; no torch, no device."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from profiler.cli import output
from profiler.cli.options import AsJson, Asked, Hardware, Html, Results, device, find_hardware, what_ifs
from profiler.record.files import replacing, require_separate
from profiler.record.run import RequestError

if TYPE_CHECKING:
    from profiler.attribution.engine import Price
    from profiler.record.engine_trace import TraceRank

EXAMPLE = """
Examples:\n
python -m profiler trace rank0.pt.trace.json.gz rank1.pt.trace.json.gz --csv kernels.csv\n
python -m profiler trace report.sqlite --json > report.json\n
python -m profiler trace rank0.pt.trace.json.gz --hardware results/nvidia-h200/20261130T175949Z-h200\n
To make report.sqlite:\n
nsys export --type sqlite report.nsys-rep
"""


def trace(
    files: Annotated[
        list[Path],
        Argument(metavar="FILE", help="Traces of torch.profiler (.json, .gz) or exports of Nsight Systems (.sqlite)."),
    ],
    hardware: Hardware = None,
    model: Annotated[
        str | None,
        Option(help="Model that the engine ran: compare its steps part by part with --hardware.", metavar="MODEL"),
    ] = None,
    engine: Annotated[str, Option(help="Engine that ran --model: vllm, sglang or trtllm.")] = "vllm",
    what_if: Annotated[
        list[str] | None, Option(help="How --model ran, as tensor_parallel:degree=2 or quantise:weights=8; repeatable.")
    ] = None,
    results: Results = Path("results"),
    csv: Annotated[Path | None, Option(help="Also write CSV: a row for each kernel.")] = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Show which kernels ran in an engine's timeline, and where.

    Kernels are shown by step and module, and so is what remains unexplained. Give one file for each rank. The metadata
    of a file is never copied. With --hardware, a spec with calibrated laws or a device's name, layers are compared with
    predictions; the timeline must have the sizes of operators (`record_shapes=True` of torch.profiler). With --model as
    well, so are the parts of the steps whose annotation states their sizes, also where kernels ran in a graph.
    """
    require_separate({"--csv": csv, "--html": html}, files)
    price, priced_by = (None, None) if hardware is None else _price(hardware, results)
    from calibrate.report.engine_trace import trace_document, trace_json, write_trace_csv
    from profiler.attribution.engine import read_ranks
    from profiler.record.engine_trace import EngineTrace

    with output.stdout_to_stderr_if(as_json), output.progress(len(files)) as step:
        ranks = []
        for done, path in enumerate(files):
            step(path.name, done)
            ranks += read_ranks(path, price)
        if model is not None:
            ranks = _compared(ranks, model, engine, what_if or [], hardware, results)
    read = EngineTrace(ranks=tuple(ranks), hardware=priced_by, model=model)
    if csv is not None:
        with replacing(csv) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            write_trace_csv(read, file)
    output.show(as_json, lambda: trace_json(read), lambda: trace_document(read), html=html)


def _price(hardware: str, results: Path) -> "tuple[Price, str]":
    """Return what compares a device's kernels with predictions, and the spec's name. Raises RequestError, one line,
    for an unknown device."""
    spec, _ = find_hardware(hardware, results)
    if spec.datasheet is None and spec.measured is None:
        raise RequestError(f"--hardware: {hardware} has neither a datasheet nor measured figures; name another device")
    from profiler.attribution.priced import layer_rows
    from profiler.models.recorded import Recorded

    return lambda kernels: layer_rows(kernels, spec, Recorded()), spec.name


def _compared(
    ranks: "list[TraceRank]", model: str, engine: str, what_if: list[str], hardware: str | None, results: Path
) -> "list[TraceRank]":
    """The ranks with the parts of their steps. Raises RequestError, one line, where no step states its sizes."""
    from profiler.attribution.priced import doubt_of, part_rows, workloads_of
    from profiler.cli.served import Question, predicted_steps

    if hardware is None:
        raise RequestError("--model is compared with a device; name one with --hardware")
    found = []
    for rank in ranks:
        steps = [(step, work) for step in rank.steps if (work := workloads_of(step))]
        if not steps:
            raise RequestError(
                f"{rank.file}: no step states its sizes, as vLLM's and SGLang's annotations do; leave --model out"
            )
        asked = Question(engine, model, "auto", what_ifs(what_if), Asked("bfloat16", ()), stored_bits=True)
        spec, named = device(hardware, "auto", results).spec, [step for step, _ in steps]
        predicted, attentions = predicted_steps(asked, spec, [work for _, work in steps])
        doubt = doubt_of(named, model, attentions)
        left_out = (*rank.left_out, doubt) if doubt else rank.left_out
        found.append(rank.model_copy(update={"parts": part_rows(named, predicted), "left_out": left_out}))
    return found
