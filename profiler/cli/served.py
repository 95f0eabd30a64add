"""`predict --engine`: a model's steps as a serving engine runs them.

Wiring only: options become an engine, a serving graph and the laws of a device, which `roofline.serving.predict` prices
and `calibrate.report.served` reports.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from profiler.cli import options as option
from profiler.cli.output import show, stdout_to_stderr_if
from profiler.cli.vain import listed
from profiler.record.run import RequestError
from roofline.hardware.spec import HardwareSpec, facts_of
from roofline.serving.engine import Engine, asked_engine
from roofline.serving.find import check_experts
from roofline.serving.predict import EngineStep, limits, requests, steps
from roofline.serving.step import Parallel, Pricer, Scheme
from roofline.whatif.registry import WhatIf
from roofline.workload import Workload

if TYPE_CHECKING:
    from calibrate.report.served import EnginePrediction

TAKEN = frozenset({
    "--model", "--engine", "--hardware", "--phase", "--prompt", "--context", "--batch", "--mix", "--output",
    "--what-if", "--peaks", "--bits-of-checkpoint", "--results", "--as-json",
})  # fmt: skip
"""Options of `predict` that a serving graph answers to."""

SCHEMES: dict[tuple[tuple[str, object], ...], str] = {
    (("activations", 8), ("weight_format", "float"), ("weights", 8)): "float8_e4m3fn",
    (("activations", 8), ("weights", 8)): "int8",
    (("weights", 8),): "int8_wo",
    (("weights", 4),): "int4_wo",
    (("preset", "awq"),): "int4_wo",
    (("preset", "fp8_block"),): "fp8_block",
}
"""What-ifs of quantisation that name a kernel of an engine, with its name in kernel tables."""


@dataclass(frozen=True)
class Question:
    """A question to an engine, as `predict` has read it."""

    engine: str
    model: str | None
    peaks: str
    changes: Sequence[WhatIf]
    asked: option.Asked
    stored_bits: bool
    """Whether weights have the bits of a quantised checkpoint."""


def predict_served(question: Question, spec: HardwareSpec, written: frozenset[str], as_json: bool) -> None:
    """Print the prediction. Raises RequestError, one line, for what an engine does not do."""
    if vain := written - TAKEN:
        raise RequestError(f"{listed(vain)} means nothing to --engine; leave it out, or leave --engine out")
    with option.one_line():
        engine, doubts = asked_engine(question.engine)
        with stdout_to_stderr_if(as_json):
            prediction = _predicted(question, engine, spec, doubts)

    from calibrate.report.served import served_document, served_json

    show(as_json, lambda: served_json(prediction), lambda: served_document(prediction))


def predicted_steps(
    question: Question, spec: HardwareSpec, asked: Sequence[Sequence[Workload]]
) -> tuple[list[EngineStep], int]:
    """The steps of an engine that do this work, in its order, and the model's number of attention layers. Raises
    RequestError, one line."""
    with option.one_line():
        engine, doubts = asked_engine(question.engine)
        of = replace(question, asked=option.Asked("bfloat16", (), tuple(tuple(one) for one in asked)))
        prediction = _predicted(of, engine, spec, doubts)
        return list(prediction.steps), round(prediction.attentions)


def _predicted(question: Question, engine: Engine, spec: HardwareSpec, doubts: list[str]) -> "EnginePrediction":
    from calibrate.report.served import EnginePrediction
    from profiler.models.catalogue import silence
    from profiler.models.served import native_dtypes, served_model, served_name

    if question.model is None:
        raise RequestError("--engine runs a model; name one")
    facts = facts_of(spec)
    if facts.cores:
        raise RequestError(f"{spec.name} is a CPU; --engine describes what engines run on GPUs")
    wanted = {change.name: change.options for change in question.changes if change.name != "quantise"}
    ranks, parallel = _parallel(wanted)
    group = ranks * parallel.attention_dp
    if group > 1 and facts.link_bytes_per_s is None:
        raise RequestError(f"{spec.name} has no link to others of its kind for {group} ranks; use one rank")
    silence()
    name = served_name(question.model)
    model = served_model(name, ranks)
    check_experts(model, parallel.moe_ep)
    native = native_dtypes(name) if question.stored_bits else None
    quantised = [change.options for change in question.changes if change.name == "quantise"]
    scheme = _scheme(quantised, engine, native)
    laws = {} if question.peaks == "datasheet" else {(law.kind, law.dtype): law for law in spec.calibrated}
    pricer = Pricer(laws, facts)
    peaks = spec.datasheet or spec.measured
    memory = peaks.levels[-1].capacity_bytes if peaks else float("inf")
    asked = [*((workload,) for workload in question.asked.workloads), *question.asked.mixes]
    found = steps(model, engine, scheme, parallel, asked, pricer)
    served = requests(model, engine, scheme, parallel, question.asked.requests, pricer, memory)
    notes = [*doubts, *limits(model, scheme, parallel, found, memory)]
    if not pricer.laws:
        notes.append(f"no law of {spec.name} prices a kernel: all have the datasheet's price; calibrate it")
    return EnginePrediction(
        question.model, spec.name, engine, scheme, ranks, parallel, tuple(found), tuple(served), tuple(notes),
        sum(attention.count for attention in model.attentions),
    )  # fmt: skip


def _parallel(wanted: Mapping[str, Mapping[str, object]]) -> tuple[int, Parallel]:
    """Ranks that divide the attention, and how those of the group divide the rest."""
    if unknown := sorted(set(wanted) - {"tensor_parallel", "expert_parallel"}):
        raise RequestError(
            f"--engine knows no what-if {', '.join(unknown)}; use tensor_parallel, expert_parallel, quantise"
        )
    degrees = {name: options["degree"] for name, options in wanted.items()}
    ranks, spread = (int(str(degrees.get(name, 1))) for name in ("tensor_parallel", "expert_parallel"))
    for name, degree in (("tensor_parallel", ranks), ("expert_parallel", spread)):
        if degree < 1:
            raise RequestError(f"what-if {name}: degree is {degree}; use 1 or more")
    if "expert_parallel" not in wanted:
        return ranks, Parallel(moe_tp=ranks)
    if wanted["expert_parallel"].get("attention") == "tensor":
        return spread, Parallel(moe_ep=spread)
    if spread % ranks:
        raise RequestError(f"expert_parallel of {spread} does not divide into groups of {ranks} ranks; use a multiple")
    return ranks, Parallel(attention_dp=spread // ranks, moe_ep=spread)


def _scheme(quantised: Sequence[Mapping[str, object]], engine: Engine, native: tuple[str, str] | None) -> Scheme:
    """dtypes of the parts: those of the checkpoint, or of what-if quantise."""
    layer, experts = native or ("bfloat16", "bfloat16")
    cache_bits = engine.cache_bits.get(layer, 16)
    for options in quantised:
        kept = {name: value for name, value in options.items() if name != "kv"}
        if kept:
            named = SCHEMES.get(tuple(sorted(kept.items())))
            if named is None:
                known = "; ".join(",".join(f"{k}={v}" for k, v in row) for row in SCHEMES)
                raise RequestError(f"--engine has no kernel for that what-if quantise; use one of {known}; and kv=8")
            if native is not None:
                raise RequestError(
                    f"the checkpoint is quantised already, as {layer}; add --bits-of-checkpoint no for 16 bits"
                )
            layer = experts = named
            cache_bits = engine.cache_bits.get(layer, 16)
        if "kv" in options:
            cache_bits = int(float(str(options["kv"])))
    return Scheme(layer, experts, cache_bits / 8)
