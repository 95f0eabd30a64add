"""`predict`: how fast a model could run on a device, from its operations and the device's figures alone.

Wiring only: options become workloads, what-ifs and a device, which `roofline.predict.question` answers. With --graph
no torch is loaded.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer import Argument, Option

from profiler.cli import options as option
from profiler.cli.output import print_wrapped, show, stdout_to_stderr_if
from profiler.models.apart import MODULE_S, trace_apart
from profiler.record.files import replacing, requested, require_separate, write_text
from profiler.record.run import RequestError
from roofline.graph.op import OpGraph
from roofline.hardware.load import device_names
from roofline.predict.passes import Prediction
from roofline.predict.question import Device, Question, Speculation, answer
from roofline.reading import one_line
from roofline.sweep.family import Form, Source, StoredGraphs, read_graphs, source
from roofline.whatif.draft import DRAFTS
from roofline.whatif.registry import WHAT_IFS, WhatIf, help_text, ordered, stages_of
from roofline.workload import Logits, Workload

NOT_OF_IMAGES = option.SIZES - {"--batch"} | {"--mix", "--output", "--largest", "--source", "--experts", "--cache"}
"""Options of passes over tokens, which a vision tower has not."""

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
    link: Annotated[
        list[str] | None,
        Option(help="A link of the device by hand: NAME=BYTES_PER_S,SECONDS of a message, as network=50e9,5e-6."),
    ] = None,
    attn: option.Attention = "default",
    experts: option.Experts = "default",
    cache: option.Cache = "dynamic",
    part: Annotated[
        str, Option(help="Part of a multimodal model: language, or vision (one pass over --batch images).")
    ] = "language",
    source: Annotated[
        int | None, Option(help="Tokens that the encoder of an encoder-decoder has read.", min=1, max=2**20)
    ] = None,
    draft: Annotated[
        str | None, Option(help="Draft of speculative decoding: a model, or mtp or eagle for the model's own.")
    ] = None,
    speculate: Annotated[int, Option(help="Tokens drafted before each pass.", min=1, max=1024)] = 4,
    acceptance: Annotated[
        float, Option(help="Probability that a drafted token is accepted.", min=0, max=1, callback=option.finite)
    ] = 0.8,
    decode_hardware: Annotated[
        str | None, Option(help="Device that decodes, where only prefill runs on --hardware (see what-if send_kv).")
    ] = None,
    micro_batches: Annotated[
        int, Option(help="Parts of the batch that follow each other through the stages of a pipeline.", min=1)
    ] = 1,
    largest: Annotated[
        bool, Option("--largest", help="Also find the largest batch, context and KV cache that fit.")
    ] = False,
    memory_utilisation: Annotated[
        float, Option(help="For --largest: share of the memory that the server takes, as 0.9.", max=1)
    ] = 1.0,
    overhead: Annotated[
        str, Option(help="For --largest: memory of that share that the server needs besides, as 2GiB.")
    ] = "0",
    accounting: Annotated[str, Option(help="Rules of counting: roofcal, or paper (arXiv 2402.16363).")] = "roofcal",
    bits: Annotated[str, Option(help="For the paper: bits of weights, activations, KV cache.")] = "16,16,16",
    flash: Annotated[bool, Option("--flash", help="For the paper: its fused attention.")] = False,
    module: Annotated[
        str | None, Option(help="Any nn.Module: package.module:factory, which returns (module, example inputs).")
    ] = None,
    module_seconds: Annotated[
        float, Option(help="Most seconds of --module.", min=1, max=86400, callback=option.finite)
    ] = MODULE_S,
    graph: Annotated[Path | None, Option(help="A graph file instead of a model; no torch is needed.")] = None,
    save_graph: Annotated[Path | None, Option(help="Write the model's graphs to a file for --graph.")] = None,
    trust_remote_code: option.TrustRemoteCode = False,
    bits_of_checkpoint: Annotated[
        str, Option(help="Whether weights have the bits of a quantised checkpoint: yes, or no (all in --dtype).")
    ] = "yes",
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
        print_wrapped("\n".join(device_names() if hardware == "list" else map(help_text, WHAT_IFS)))
        return
    written = option.written_options(invocation)
    option.refuse_in_vain(written, accounting)
    dtype = option.dtype(dtype)
    if not memory_utilisation > 0:
        raise RequestError(f"--memory-utilisation is a share of the memory above 0, as 0.9; not {memory_utilisation:g}")
    overhead_bytes = option.size_bytes("--overhead", overhead)
    read = [Path(name) for name in (graph, hardware, decode_hardware) if name is not None]
    require_separate({"--csv": csv, "--html": html, "--save-graph": save_graph}, read)
    tracing = {"dtype": dtype, "attn": attn, "experts": experts, "cache": cache, "source": source}
    stored_bits = option.words("--bits-of-checkpoint", bits_of_checkpoint, ("yes", "no"))[0] == "yes"
    images = None
    if option.words("--part", part, ("language", "vision"))[0] == "vision":
        if vain := written & NOT_OF_IMAGES:
            raise RequestError(f"{option.listed(vain)} means nothing to --part vision; leave it out")
        if len(images_each := option.distinct("--batch", batch)) != 1:
            raise RequestError("--part vision takes one --batch of images")
        images = images_each[0]
    subject = _Subject(model, module, graph, trust_remote_code, tracing, stored_bits, module_seconds, images)
    of_model = {"--attn", "--experts", "--cache", "--trust-remote-code", "--bits-of-checkpoint", "--source", "--part"}
    if model is None and (vain := written & of_model):
        raise RequestError(f"{option.listed(vain)} says how MODEL is traced; leave it out without a MODEL")
    if hardware is None and save_graph is None:
        raise RequestError("name a device with --hardware (--hardware list lists them), or give its JSON file")
    on = None if hardware is None else option.device(hardware, peaks, results, link or ())
    is_paper = option.words("--accounting", accounting, ("roofcal", "paper"))[0] == "paper"
    shape = _form(option.words("--form", form, ("auto", "fused", "executed"))[0], on)
    asked = option.what_ifs(what_if or ())
    changes = option.linked(asked, on) if on is not None else asked
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
    if images is not None or not written & option.SIZES:
        workloads = subject.only or (() if mixes else workloads)
    with option.one_line():
        with stdout_to_stderr_if(as_json):
            if save_graph is not None:
                subject.save(save_graph)
            if on is None:
                return
            if not is_paper:
                decode, decode_stages = None, []
                if decode_hardware:  # send_kv belongs to the prefill
                    decode_on = option.device(decode_hardware, peaks, results, link or ())
                    kept = option.linked([change for change in asked if change.name != "send_kv"], decode_on)
                    decode = subject.source(kept, shape, decode_on), decode_on
                    decode_stages = stages_of(kept) if requests else []
                stages = stages_of(changes) if requests else []
                if "--micro-batches" in written and not stages:
                    raise RequestError(
                        "--micro-batches changes nothing without a pipeline; add --what-if pipeline_stage:stages=4"
                    )
                question = Question(
                    workloads=workloads,
                    mixes=mixes,
                    requests=requests,
                    dtype=dtype,
                    largest=largest,
                    memory_utilisation=memory_utilisation,
                    overhead_bytes=overhead_bytes,
                    decode=decode,
                    pipeline=tuple(subject.source(stage, shape, on) for stage in stages),
                    decode_pipeline=tuple(subject.source(stage, shape, decode_on) for stage in decode_stages),
                    micro_batches=micro_batches,
                    speculation=_speculation(subject, draft, speculate, acceptance, shape, on, changes)
                    if draft
                    else None,
                )
                notes = subject.notes(_longest(question), on)
                try:
                    prediction = answer(subject.source(changes, shape, on), question, on, shape, notes)
                except (ArithmeticError, LookupError) as error:
                    if subject.file is None:
                        raise
                    raise RequestError(
                        f"{subject.file} lacks what prices are made from ({one_line(error)}); save it again"
                    ) from error
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
        self,
        model: str | None,
        module: str | None,
        graph: Path | None,
        trust: bool,
        tracing: dict[str, Any],
        stored_bits: bool,
        module_s: float = MODULE_S,
        images: int | None = None,
    ) -> None:
        named = [name for name, value in (("MODEL", model), ("--module", module), ("--graph", graph)) if value]
        if len(named) != 1:
            raise RequestError(f"name one of MODEL, --module, --graph; got {' and '.join(named) or 'none'}")
        self.model, self.module, self.file = model, module, graph
        self.trust, self.tracing, self.stored_bits, self.module_s = trust, tracing, stored_bits, module_s
        self.images = images
        """Images that the vision tower of `model` sees; None: the subject is its language part."""
        with requested():
            self.stored = read_graphs(graph) if graph is not None else None

    @property
    def only(self) -> tuple[Workload, ...]:
        """The workload of a single graph, which has but one; empty for a family of graphs."""
        if isinstance(self.stored, OpGraph):
            return (self.stored.workload,)
        return () if self._traced is None else (self._traced.workload,)

    @property
    def dtype(self) -> str | None:
        """The dtype of a file's graphs or of a module's weights; None where the options choose it."""
        if isinstance(self.stored, StoredGraphs):
            return self.stored.regimes[0].graph.template.workload.dtype if self.stored.regimes else None
        return self.only[0].dtype if self.only else None

    def source(self, changes: Sequence[WhatIf], form: Form, on: Device) -> Source:
        if self.stored is not None:
            return source(self.stored, changes, form)
        if self._traced is not None:
            return source(self._traced, changes, form)
        from profiler.models.graphs import model_source

        return model_source(self._model[0], changes, form, on.peaks.matrix.__contains__)

    def notes(self, longest: int, on: Device) -> list[str]:
        """Notes on the model and its stored bits, where the longest sequence has so many tokens."""
        if self.images is not None:
            return self._vision[1]
        if self.model is None:
            return []
        from profiler.models.graphs import length_notes, stored_notes

        graphs, notes = self._model
        return [*notes, *stored_notes(graphs, on.peaks.matrix.__contains__), *length_notes(graphs, longest)]

    def save(self, path: Path) -> None:
        if self.model is None or self.images is not None:
            raise RequestError("--save-graph saves the graphs of a language model; name one")
        from profiler.models.graphs import stored_graphs

        write_text(path, stored_graphs(self._model[0]).model_dump_json())

    @cached_property
    def _model(self) -> tuple[Any, list[str]]:
        """The model's graphs, and notes on its config."""
        from profiler.models.catalogue import silence
        from profiler.models.graphs import Tracing, model_graphs

        silence()
        tracing = Tracing(**self.tracing)
        return model_graphs(str(self.model), tracing, trust_remote_code=self.trust, stored_bits=self.stored_bits)

    @cached_property
    def _vision(self) -> tuple[OpGraph, list[str]]:
        """One pass of the model's vision tower, and notes on it."""
        from profiler.models.catalogue import silence
        from profiler.models.vision import vision_graph

        silence()
        dtype, attn = self.tracing["dtype"], self.tracing["attn"]
        return vision_graph(str(self.model), self.images or 1, dtype, attn, trust_remote_code=self.trust)

    @property
    def _traced(self) -> OpGraph | None:
        """The graph of a module or a vision tower, of which there is but one; None for other subjects."""
        if self.images is not None:
            return self._vision[0]
        return None if self.module is None else trace_apart(self.module, self.module_s)


def _speculation(
    subject: _Subject,
    draft: str,
    tokens: int,
    acceptance: float,
    form: Form,
    on: Device,
    changes: Sequence[WhatIf],
) -> Speculation:
    """A draft model as it is, or the model's own draft with the changes that are not those of its layers."""
    if draft in DRAFTS:
        kept = [change for change in changes if change.name not in OF_LAYERS]
        own = subject.source(ordered([WhatIf("draft_head", {}), *kept]), form, on)
        return Speculation(replace(own, name=f"the model's own {draft} layer"), tokens, acceptance, is_own=True)
    model = _Subject(draft, None, None, subject.trust, subject.tracing | {"source": None}, subject.stored_bits)
    return Speculation(model.source((), form, on), tokens, acceptance)


OF_LAYERS = frozenset({"remove_layers", "early_exit", "draft_head", "pipeline_stage", "send_kv"})
"""What-ifs on all layers of a model, which its draft of one layer has not."""


def _write(prediction: Prediction, on: Device, csv: Path | None, html: Path | None) -> None:
    if csv is not None:
        from calibrate.report.json import write_csv

        with replacing(csv) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            write_csv(prediction, file, by="op" if any(step.ops for step in prediction.passes) else "workload")
    if html is not None:
        from calibrate.report.html import render
        from calibrate.report.prediction import prediction_document

        write_text(html, render(prediction_document(prediction, on.peaks)))


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
        shape = paper_shape(subject.source((), "executed", on).whole(first))
    weight, activation, cache = bits if len(bits) == 3 else bits * 3
    (batch,), (prompt,) = lengths.batches, lengths.prompts
    table = paper_table(shape, on.peaks, batch, prompt, weight, activation, cache, use_flash=flash)
    about = (table, subject.model or str(subject.file or subject.module), on.spec.name)
    show(as_json, lambda: paper_json(*about), lambda: paper_document(*about))
