"""`predict`: how fast a model could run on a device, from its operations and the device's figures alone.

Wiring only: options become workloads, what-ifs and a device, which `roofline.predict.question` answers. With --graph
no torch is loaded.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer import Argument, Option

from profiler.cli import options as option
from profiler.cli.output import show, stdout_to_stderr_if
from profiler.record.files import read_record, replacing
from profiler.record.run import RequestError
from roofline.graph.op import GRAPH_SCHEMA, OpGraph
from roofline.hardware.load import device_names
from roofline.predict.passes import Prediction
from roofline.predict.question import Device, Question, Speculation, answer
from roofline.sweep.family import Form, Source, StoredGraphs, source
from roofline.whatif.registry import WHAT_IFS, WhatIf, help_text
from roofline.workload import Logits, Workload

EXAMPLE = """
Examples:\n
python -m profiler predict llama-3.1-8b --hardware nvidia-h100-sxm\n
python -m profiler predict llama-3.1-70b --hardware nvidia-h100-sxm --what-if quantise:weights=4\n
python -m profiler predict qwen3-8b --hardware nvidia-l40s --batch 1,2,4,8,16,32,64 --output 256 --html qwen3.html\n
python -m profiler predict llama-2-7b --hardware nvidia-rtx-a6000 --accounting paper
"""


def predict(
    invocation: typer.Context,
    model: Annotated[str | None, Argument(metavar="MODEL", help=option.MODEL)] = None,
    hardware: option.Hardware = None,
    peaks: Annotated[
        str,
        Option(help="Price with: datasheet or measured peaks, calibrated laws, or auto (laws if any, else measured)."),
    ] = "auto",
    phase: option.Phases = "prefill,decode",
    prompt: option.Prompts = "2048",
    context: option.Contexts = "2048",
    batch: option.Batches = "1",
    logits: Annotated[
        str, Option(help="New tokens whose logits are computed: last, or all (to verify drafted tokens).")
    ] = "last",
    mix: Annotated[
        list[str] | None, Option(help="One step of a mixed batch: SEQUENCESxNEW@CACHED,…, as 1x512@0,32x1@1024.")
    ] = None,
    output: Annotated[str | None, Option(help="Predict whole requests with so many output tokens, as 128,256.")] = None,
    dtype: Annotated[str, Option(help="Dtype of weights and activations.")] = "bfloat16",
    form: Annotated[
        str,
        Option(
            help="Graph to price: fused (ideal kernels), executed (as transformers runs it), or auto (executed where "
            "laws of single operators price it)."
        ),
    ] = "auto",
    what_if: Annotated[
        list[str] | None, Option(help="A change, as quantise:weights=4; repeat for several; 'list' lists them.")
    ] = None,
    attn: option.Attention = "default",
    experts: option.Experts = "default",
    cache: option.Cache = "dynamic",
    draft: Annotated[str | None, Option(help="Draft model of speculative decoding.")] = None,
    speculate: Annotated[int, Option(help="Tokens drafted before each pass.", min=1)] = 4,
    acceptance: Annotated[float, Option(help="Probability that a drafted token is accepted.", min=0, max=1)] = 0.8,
    decode_hardware: Annotated[
        str | None, Option(help="Device that decodes, where only prefill runs on --hardware (see what-if send_kv).")
    ] = None,
    largest: Annotated[bool, Option("--largest", help="Also find the largest batch and context that fit.")] = False,
    accounting: Annotated[str, Option(help="Rules of counting: roofcal, or paper (arXiv 2402.16363).")] = "roofcal",
    bits: Annotated[str, Option(help="For the paper: bits of weights, activations, KV cache.")] = "16,16,16",
    flash: Annotated[bool, Option("--flash", help="For the paper: its fused attention.")] = False,
    module: Annotated[
        str | None, Option(help="Any nn.Module: package.module:factory, which returns (module, example inputs).")
    ] = None,
    graph: Annotated[Path | None, Option(help="A graph file instead of a model; no torch is needed.")] = None,
    save_graph: Annotated[Path | None, Option(help="Write the model's graphs to a file for --graph.")] = None,
    trust_remote_code: option.TrustRemoteCode = False,
    results: option.Results = Path("results"),
    csv: Annotated[
        Path | None, Option(help="Write CSV: a row for each operation, or for each workload of a sweep.")
    ] = None,
    html: Annotated[Path | None, Option(help="Write a page with tables and plots.")] = None,
    as_json: option.AsJson = False,
) -> None:
    """Predict time and memory of each layer on a device.

    The device need not be here: a datasheet or a spec describes it.
    """
    if hardware == "list" or what_if == ["list"]:
        print("\n".join(device_names() if hardware == "list" else map(help_text, WHAT_IFS)))
        return
    written = option.written_options(invocation)
    option.refuse_in_vain(written, accounting)
    tracing = {"dtype": dtype, "attn": attn, "experts": experts, "cache": cache}
    subject = _Subject(model, module, graph, trust_remote_code, tracing)
    if model is None and (vain := written & {"--attn", "--experts", "--cache", "--trust-remote-code"}):
        raise RequestError(f"{option.listed(vain)} says how MODEL is traced; leave it out without a MODEL")
    if hardware is None and save_graph is None:
        raise RequestError("name a device with --hardware (--hardware list lists them), or give its JSON file")
    on = None if hardware is None else option.device(hardware, peaks, results)
    is_paper = option.words("--accounting", accounting, ("roofcal", "paper"))[0] == "paper"
    shape = _form(option.words("--form", form, ("auto", "fused", "executed"))[0], on)
    changes = option.what_ifs(what_if or ())
    if shape == "fused" and any(change.name == "unfuse_attention" for change in changes):
        raise RequestError("--form fused undoes what-if unfuse_attention; add --form executed")
    dtype = dtype if "--dtype" in written else subject.dtype or dtype
    scope: Logits = "all" if option.words("--logits", logits, get_args(Logits))[0] == "all" else "last"
    texts = {"--prompt": prompt, "--context": context, "--batch": batch}
    prompts, contexts, batches = (option.distinct(name, text) for name, text in texts.items())
    lengths = option.Lengths(prompts, contexts, batches, dtype, scope)
    workloads = lengths.workloads(option.words("--phase", phase, ("prefill", "decode", "chunk")))
    mixes = tuple(option.mixed(text, dtype) for text in mix or ())
    requests = lengths.requests(option.distinct("--output", output)) if output is not None else ()
    if not written & option.SIZES:
        workloads = subject.only or (() if mixes else workloads)
    with option.one_line():
        with stdout_to_stderr_if(as_json):
            if save_graph is not None:
                subject.save(save_graph)
            if on is None:
                return
            if not is_paper:
                decode = None
                if decode_hardware:  # send_kv belongs to the prefill
                    kept = [change for change in changes if change.name != "send_kv"]
                    decode = subject.source(kept, shape), option.device(decode_hardware, peaks, results)
                question = Question(
                    workloads=workloads,
                    mixes=mixes,
                    requests=requests,
                    dtype=dtype,
                    largest=largest,
                    decode=decode,
                    speculation=_speculation(subject, draft, speculate, acceptance, shape) if draft else None,
                )
                notes = subject.notes(_longest(question))
                prediction = answer(subject.source(changes, shape), question, on, shape, notes)
                _write(prediction, on, csv, html)
        if is_paper:
            _paper(subject, on, lengths, option.numbers("--bits", bits), flash, as_json)
        else:
            _show(prediction, as_json)


def _form(word: str, on: Device | None) -> Form:
    """The graph to price; "auto" is the one that the device's prices are for."""
    if word == "auto":
        return on.form if on is not None else "fused"
    return "fused" if word == "fused" else "executed"


def _longest(question: Question) -> int:
    """Tokens of the longest sequence."""
    passes = (*question.workloads, *(part for parts in question.mixes for part in parts))
    lengths = [w.query_tokens + w.context_tokens for w in passes]
    return max((*lengths, *(prompt + output for _, prompt, output in question.requests)), default=0)


class _Subject:
    """The subject of a prediction: a model, a module, or a file of graphs."""

    def __init__(
        self, model: str | None, module: str | None, graph: Path | None, trust: bool, tracing: dict[str, Any]
    ) -> None:
        named = [name for name, value in (("MODEL", model), ("--module", module), ("--graph", graph)) if value]
        if len(named) != 1:
            raise RequestError(f"name one of MODEL, --module, --graph; got {' and '.join(named) or 'none'}")
        self.model, self.module, self.file = model, module, graph
        self.trust, self.tracing = trust, tracing
        self.stored = _read(graph) if graph is not None else None

    @property
    def only(self) -> tuple[Workload, ...]:
        """The workload of a single graph, which has but one; empty for a family of graphs."""
        if isinstance(self.stored, OpGraph):
            return (self.stored.workload,)
        return (self._traced_module.workload,) if self.module is not None else ()

    @property
    def dtype(self) -> str | None:
        """The dtype of a file's graphs or of a module's weights; None where the options choose it."""
        if isinstance(self.stored, StoredGraphs):
            return self.stored.regimes[0].graph.template.workload.dtype if self.stored.regimes else None
        return self.only[0].dtype if self.only else None

    def source(self, changes: Sequence[WhatIf], form: Form) -> Source:
        if self.stored is not None:
            return source(self.stored, changes, form)
        if self.module is not None:
            return source(self._traced_module, changes, form)
        from profiler.models.graphs import model_source

        return model_source(self._model[0], changes, form)

    def notes(self, longest: int) -> list[str]:
        """Notes on the model, where the longest sequence has so many tokens."""
        if self.model is None:
            return []
        from profiler.models.graphs import length_notes

        graphs, notes = self._model
        return [*notes, *length_notes(graphs, longest)]

    def save(self, path: Path) -> None:
        if self.model is None:
            raise RequestError("--save-graph saves the graphs of a model; name one")
        from profiler.models.graphs import stored_graphs

        _save(path, stored_graphs(self._model[0]).model_dump_json())

    @cached_property
    def _model(self) -> tuple[Any, list[str]]:
        """The model's graphs, and notes on its config."""
        from profiler.models.catalogue import silence
        from profiler.models.graphs import Tracing, model_graphs

        silence()
        return model_graphs(str(self.model), Tracing(**self.tracing), trust_remote_code=self.trust)

    @cached_property
    def _traced_module(self) -> OpGraph:
        from profiler.models.module import trace_module

        return trace_module(str(self.module))


def _read(path: Path) -> OpGraph | StoredGraphs:
    mend = "save it again with --save-graph"
    try:
        is_family = "regimes" in json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        is_family = False
    if is_family:
        return read_record(path, StoredGraphs, GRAPH_SCHEMA, mend)
    return read_record(path, OpGraph, GRAPH_SCHEMA, mend)


def _speculation(subject: _Subject, draft: str, tokens: int, acceptance: float, form: Form) -> Speculation:
    model = _Subject(draft, None, None, subject.trust, subject.tracing)
    return Speculation(model.source((), form), tokens, acceptance)


def _write(prediction: Prediction, on: Device, csv: Path | None, html: Path | None) -> None:
    if csv is not None:
        from calibrate.report.json import write_csv

        with replacing(csv) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            write_csv(prediction, file, by="op" if any(step.ops for step in prediction.passes) else "workload")
    if html is not None:
        from calibrate.report.html import render
        from calibrate.report.prediction import prediction_document

        _save(html, render(prediction_document(prediction, on.peaks)))


def _save(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _show(prediction: Prediction, as_json: bool) -> None:
    from calibrate.report.json import prediction_json
    from calibrate.report.prediction import prediction_document

    show(as_json, lambda: prediction_json(prediction), lambda: prediction_document(prediction))


def _paper(
    subject: _Subject, on: Device, lengths: option.Lengths, bits: tuple[int, ...], flash: bool, as_json: bool
) -> None:
    from calibrate.report.json import paper_json
    from calibrate.report.prediction import paper_document
    from roofline.paper.rules import paper_shape
    from roofline.paper.table import paper_table

    if len(bits) not in (1, 3) or len(lengths.prompts) * len(lengths.batches) != 1:
        raise RequestError("--accounting paper takes one --prompt, one --batch and --bits WEIGHTS,ACTIVATIONS,KV")
    first = subject.only[0] if subject.only else lengths.workloads(("prefill",))[0]
    with stdout_to_stderr_if(as_json):
        shape = paper_shape(subject.source((), "executed").whole(first))
    weight, activation, cache = bits if len(bits) == 3 else bits * 3
    (batch,), (prompt,) = lengths.batches, lengths.prompts
    table = paper_table(shape, on.peaks, batch, prompt, weight, activation, cache, use_flash=flash)
    about = (table, subject.model or str(subject.file or subject.module), on.spec.name)
    show(as_json, lambda: paper_json(*about), lambda: paper_document(*about))
