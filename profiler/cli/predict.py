"""`predict`: how fast a model could run on a device, from its operations and the device's figures alone.

Wiring only: options become workloads, what-ifs and a device, which `roofline.predict.question` answers. With --graph
no torch is loaded.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from profiler.cli import options as option
from profiler.cli.cases import Case, How, Predicted, form_on, predicted
from profiler.cli.output import INCONCLUSIVE, print_wrapped, show, stdout_to_stderr_if
from profiler.cli.subject import Subject
from profiler.cli.vain import NOT_OF_IMAGES, OF_MODEL, OF_ONE_MODEL, listed, refuse_in_vain, written_options
from profiler.models.apart import MODULE_S
from profiler.record.files import replacing, require_separate, write_text
from profiler.record.run import RequestError
from roofline.hardware.load import device_names
from roofline.predict.question import Device, Question
from roofline.reading import one_line
from roofline.whatif.registry import WHAT_IFS, help_text

if TYPE_CHECKING:
    from calibrate.report.document import Document

EXAMPLE = """
Examples:\n
python -m profiler predict llama-3.1-8b --hardware nvidia-h100-sxm\n
python -m profiler predict llama-3.1-70b --hardware nvidia-h100-sxm --what-if quantise:weights=4\n
python -m profiler predict qwen3-8b --hardware nvidia-l40s --batch 1,2,4,8,16,32,64 --output 256 --html qwen3.html\n
python -m profiler predict llama-3.1-8b --hardware nvidia-h100-sxm,nvidia-l40s,amd-mi300x --phase decode --batch 1,16\n
python -m profiler predict llama-3.1-70b --engine vllm:0.18.0 --hardware SPEC.json --what-if tensor_parallel:degree=4\n
python -m profiler predict llama-3.1-70b --hardware nvidia-h100-sxm,amd-mi300x --find ttft=500ms,tpot=30ms\n
python -m profiler predict --file plan.yaml --csv plan.csv\n
python -m profiler predict llama-2-7b --hardware nvidia-rtx-a6000 --accounting paper
"""


def predict(
    invocation: typer.Context,
    model: Annotated[str | None, option.MODEL] = None,
    hardware: option.HardwareList = None,
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
    output: Annotated[
        str | None, Option(help="Predict whole requests with this many output tokens, as 128,256.")
    ] = None,
    dtype: Annotated[str, Option(help="Dtype of weights and activations.")] = "bfloat16",
    form: Annotated[
        str,
        Option(
            help="Graph to price: fused (ideal kernels), executed (as transformers runs it), or auto (executed where "
            "laws of single operators price it)."
        ),
    ] = "auto",
    what_if: Annotated[
        list[str] | None, Option(help="A change of the model, as quantise:weights=4; repeatable; 'list' lists all.")
    ] = None,
    link: Annotated[
        list[str] | None,
        Option(help="Set a link of the device: NAME=BYTES_PER_S,SECONDS (its latency), as network=50e9,5e-6."),
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
        str, Option(help="For --largest: memory of that share that the model cannot use, as 2GiB.")
    ] = "0",
    engine: Annotated[
        str | None,
        Option(help="Price what a serving engine runs: vllm, sglang or trtllm, with a version as vllm:0.18.0."),
    ] = None,
    find: Annotated[
        str | None,
        Option(help="Find the configurations with the most tokens/s within these times, as ttft=500ms,tpot=30ms."),
    ] = None,
    over: Annotated[
        list[str] | None,
        Option(help="For --find: values of tp, pp, ep, batch or dtype, as tp=1,2,4,8; repeatable."),
    ] = None,
    cost: Annotated[
        list[str] | None, Option(help="For --find: cost of a device for an hour, as nvidia-h100-sxm=2.5; repeatable.")
    ] = None,
    accounting: Annotated[str, Option(help="Rules of counting: roofcal, or paper (arXiv 2402.16363).")] = "roofcal",
    bits: Annotated[str, Option(help="For --accounting paper: bits of weights, activations, KV cache.")] = "16,16,16",
    flash: Annotated[bool, Option("--flash", help="For --accounting paper: its fused attention.")] = False,
    module: Annotated[
        str | None, Option(help="Any nn.Module: package.module:factory, which returns (module, example inputs).")
    ] = None,
    module_seconds: Annotated[
        float, Option(help="Most seconds that --module may take.", min=1, max=86400, callback=option.finite)
    ] = MODULE_S,
    graph: Annotated[Path | None, Option(help="A graph file instead of a model; no torch is needed.")] = None,
    file: Annotated[
        Path | None,
        Option(help="A YAML file of models, workloads and devices instead of MODEL (docs/predict.md has an example)."),
    ] = None,
    save_graph: Annotated[Path | None, Option(help="Write the model's graphs to a file for --graph.")] = None,
    trust_remote_code: option.TrustRemoteCode = False,
    bits_of_checkpoint: Annotated[
        str, Option(help="Whether weights have the bits of a quantised checkpoint: yes, or no (all in --dtype).")
    ] = "yes",
    workloads: Annotated[
        Path | None,
        Option(help="A parquet file with columns batch, query_tokens, context_tokens instead of sizes; needs --out."),
    ] = None,
    shard: Annotated[
        str | None, Option(help="Price only a part of --workloads, as 1/4.", rich_help_panel="Workload")
    ] = None,
    out: Annotated[Path | None, Option(help="Parquet file for the times of --workloads.")] = None,
    results: option.Results = Path("results"),
    csv: Annotated[
        Path | None, Option(help="Write CSV: a row for each operation, or for each workload of a sweep.")
    ] = None,
    html: Annotated[Path | None, Option(help="Write an HTML page with tables and plots.")] = None,
    as_json: option.AsJson = False,
) -> None:
    """Predict time and memory of each layer on a device.

    The device need not be here: a datasheet or a spec describes it.
    """
    if hardware == "list" or what_if == ["list"]:
        print_wrapped("\n".join(device_names() if hardware == "list" else map(help_text, WHAT_IFS)))
        return
    written = written_options(invocation)
    refuse_in_vain(written, accounting)
    if find is not None:
        from profiler.cli.find import Question as FindQuestion
        from profiler.cli.find import predict_found

        of_find = FindQuestion(
            find, over or (), cost or (), engine, model, option.hardware_list(hardware), prompt, output, peaks,
            option.words("--bits-of-checkpoint", bits_of_checkpoint, ("yes", "no"))[0] == "yes", results, html, csv,
        )  # fmt: skip
        predict_found(of_find, written, as_json)
        return
    dtype = option.dtype(dtype)
    if not memory_utilisation > 0:
        raise RequestError(f"--memory-utilisation is a share of the memory above 0, as 0.9; not {memory_utilisation:g}")
    overhead_bytes = option.size_bytes("--overhead", overhead)
    if file is not None and (
        vain := written & (OF_ONE_MODEL | option.SIZES) or ({"MODEL"} if model is not None else set())
    ):
        raise RequestError(f"{listed(vain)}: --file says that for each of its models; leave it out")
    tracing = {"dtype": dtype, "attn": attn, "experts": experts, "cache": cache, "source": source}
    stored_bits = option.words("--bits-of-checkpoint", bits_of_checkpoint, ("yes", "no"))[0] == "yes"
    asked = option.what_ifs(what_if or ())
    sizes = option.Sizes(phase, prompt, context, batch, logits, tuple(mix or ()), output)
    images = None
    if option.words("--part", part, ("language", "vision"))[0] == "vision":
        if vain := written & NOT_OF_IMAGES:
            raise RequestError(f"{listed(vain)} means nothing to --part vision; leave it out")
        if len(images_each := option.distinct("--batch", batch)) != 1:
            raise RequestError("--part vision takes one --batch of images")
        images = images_each[0]
    names, cases = option.hardware_list(hardware), []
    if engine is not None:
        from profiler.cli.served import Question as EngineQuestion
        from profiler.cli.served import predict_served

        if len(names) != 1:
            raise RequestError("--engine takes one device; name one with --hardware")
        of_engine = EngineQuestion(engine, model, peaks, asked, sizes.asked("bfloat16"), stored_bits)
        predict_served(of_engine, option.device(names[0], peaks, results).spec, written, as_json)
        return
    if file is not None:
        from profiler.cli.plan import read_plan

        plan = read_plan(file, results)
        names = names or list(plan.hardware)
        for each in plan.models:
            own = option.dtype(each.dtype or dtype)
            subject = Subject(each.name, None, None, trust_remote_code, tracing | {"dtype": own}, stored_bits)
            changes = option.what_ifs(list(dict.fromkeys([*(what_if or ()), *each.what_if])))
            cases.append(Case(subject, changes, plan.asked(own)))
    else:
        subject = Subject(model, module, graph, trust_remote_code, tracing, stored_bits, module_seconds, images)
        if model is None and (vain := written & OF_MODEL):
            raise RequestError(f"{listed(vain)} says how MODEL is traced; leave it out without a MODEL")
    read = [Path(name) for name in (graph, file, *names, decode_hardware) if name is not None]
    require_separate({"--csv": csv, "--html": html, "--save-graph": save_graph}, read)
    if not names and save_graph is None:
        raise RequestError("name a device with --hardware (--hardware list lists them), or give its JSON file")
    devices = [option.device(name, peaks, results, link or ()) for name in names]
    if workloads is not None:
        from profiler.cli.stream import IN_VAIN, predict_stream

        if vain := written & IN_VAIN:
            raise RequestError(f"{listed(vain)} means nothing to --workloads; leave it out")
        own = dtype if "--dtype" in written else subject.dtype or dtype
        word = option.words("--form", form, ("auto", "fused", "executed"))[0]
        shapes = {form_on(word, on) for on in devices}
        if len(shapes) != 1:
            raise RequestError("these devices price different graphs; name one with --form")
        with option.one_line():
            predict_stream(workloads, out, shard, subject, own, asked, devices, shapes.pop())
        return
    if vain := written & {"--shard", "--out"}:
        raise RequestError(f"{listed(vain)} means nothing without --workloads; leave it out")
    is_paper = option.words("--accounting", accounting, ("roofcal", "paper"))[0] == "paper"
    if is_paper and len(devices) > 1:
        raise RequestError("--accounting paper takes one device; name one with --hardware")
    form = option.words("--form", form, ("auto", "fused", "executed"))[0]
    for shape in [form_on(form, on) for on in devices]:
        for changes in [case.changes for case in cases] or [asked]:
            if shape == "fused" and any(change.name == "unfuse_attention" for change in changes):
                raise RequestError("--form fused undoes what-if unfuse_attention; add --form executed")
    if file is None:
        what_is_asked = sizes.asked(dtype if "--dtype" in written else subject.dtype or dtype)
        if images is not None or not written & option.SIZES:
            only = subject.only or (() if what_is_asked.mixes else what_is_asked.workloads)
            what_is_asked = replace(what_is_asked, workloads=only)
        cases.append(Case(subject, asked, what_is_asked))
    how = How(
        form=form,
        device=lambda name: option.device(name, peaks, results, link or ()),
        decode_hardware=decode_hardware,
        micro_batches=micro_batches if "--micro-batches" in written else None,
        speculation=(draft, speculate, acceptance) if draft else None,
        question=Question(largest=largest, memory_utilisation=memory_utilisation, overhead_bytes=overhead_bytes),
    )
    failed: dict[str, str] = {}
    predictions: list[Predicted] = []
    with option.one_line():
        with stdout_to_stderr_if(as_json):
            if save_graph is not None:
                cases[0].subject.save(save_graph)
            if not devices:
                return
            if not is_paper:
                is_alone = len(cases) * len(devices) == 1
                for case, on in itertools.product(cases, devices):
                    try:
                        predictions.append((case, on, predicted(case, on, how)))
                    except (RequestError, ValueError) as error:
                        if is_alone:
                            raise
                        failed[f"{case.subject.name} on {on.spec.name}"] = one_line(error)
                if not predictions:
                    raise RequestError("; ".join(f"{name}: {why}" for name, why in failed.items()))
                _write(predictions, failed, csv, html)
        if is_paper:
            _paper(
                subject, devices[0], sizes.lengths(what_is_asked.dtype), option.numbers("--bits", bits), flash, as_json
            )
        else:
            _show(predictions, failed, as_json)
    if failed:
        raise typer.Exit(INCONCLUSIVE)


def _write(predictions: Sequence[Predicted], failed: Mapping[str, str], csv: Path | None, html: Path | None) -> None:
    if csv is not None:
        from calibrate.report.json import write_csv

        whole = [prediction for _, _, prediction in predictions]
        by_op = len(whole) == 1 and any(step.ops for step in whole[0].passes)
        with replacing(csv) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            write_csv(whole, file, by="op" if by_op else "workload")
    if html is not None:
        from calibrate.report.html import render

        write_text(html, render(_document(predictions, failed, page=True)))


def _document(predictions: Sequence[Predicted], failed: Mapping[str, str], page: bool = False) -> "Document":
    """The report of one prediction, or of several side by side; a page has the peaks for its plots."""
    if len(predictions) == 1 and not failed:
        from calibrate.report.prediction import prediction_document

        _, on, prediction = predictions[0]
        return prediction_document(prediction, on.peaks if page else None)
    from calibrate.report.side_by_side import side_by_side

    cases = itertools.groupby(predictions, lambda predicted: id(predicted[0]))
    return side_by_side([[prediction for _, _, prediction in of] for _, of in cases], failed)


def _show(predictions: Sequence[Predicted], failed: Mapping[str, str], as_json: bool) -> None:
    from calibrate.report.json import prediction_json

    def document() -> dict[str, Any]:
        whole = [prediction_json(prediction) for _, _, prediction in predictions]
        return whole[0] if len(whole) == 1 and not failed else {"predictions": whole, "failed": dict(failed)}

    show(as_json, document, lambda: _document(predictions, failed))


def _paper(
    subject: Subject, on: Device, lengths: option.Lengths, bits: tuple[int, ...], flash: bool, as_json: bool
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
    about = (table, subject.name, on.spec.name)
    show(as_json, lambda: paper_json(*about), lambda: paper_document(*about))
