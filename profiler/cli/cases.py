"""What `predict` is asked of one model on one device, and its answer.

Example: ``predicted(Case(subject, changes, asked), device, How("auto", find)).passes``
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from profiler.cli import options as option
from profiler.cli.subject import Subject, speculation
from profiler.record.run import RequestError
from roofline.predict.passes import Prediction
from roofline.predict.question import Device, Question, answer
from roofline.reading import one_line
from roofline.sweep.family import Form
from roofline.whatif.registry import WhatIf, stages_of


@dataclass(frozen=True)
class Case:
    """One model, how it is changed, and what is asked of it."""

    subject: Subject
    changes: list[WhatIf]
    asked: option.Asked


Predicted = tuple[Case, Device, Prediction]


@dataclass(frozen=True)
class How:
    """Options that are the same for all models and devices of a prediction."""

    form: str
    device: Callable[[str], Device]
    """Finds the device of a name."""
    decode_hardware: str | None = None
    micro_batches: int | None = None
    """None where it is not asked for."""
    speculation: tuple[str, int, float] | None = None
    """Draft model, tokens that it drafts, and how often one is accepted."""
    question: Question = field(default_factory=Question)
    """Without passes and requests."""


def predicted(case: Case, on: Device, how: How) -> Prediction:
    """The prediction of one model on one device. Raises RequestError or ValueError where it cannot be made."""
    subject, requests = case.subject, case.asked.requests
    shape, changes = form_on(how.form, on), option.linked(case.changes, on)
    decode, decode_stages = None, []
    if how.decode_hardware:  # send_kv belongs to the prefill
        decode_on = how.device(how.decode_hardware)
        kept = option.linked([change for change in case.changes if change.name != "send_kv"], decode_on)
        decode = subject.source(kept, shape, decode_on), decode_on
        decode_stages = stages_of(kept) if requests else []
    stages = stages_of(changes) if requests else []
    if how.micro_batches is not None and not stages:
        raise RequestError("--micro-batches changes nothing without a pipeline; add --what-if pipeline_stage:stages=4")
    question = replace(
        how.question,
        workloads=case.asked.workloads,
        mixes=case.asked.mixes,
        requests=requests,
        dtype=case.asked.dtype,
        decode=decode,
        pipeline=tuple(subject.source(stage, shape, on) for stage in stages),
        decode_pipeline=tuple(subject.source(stage, shape, decode_on) for stage in decode_stages),
        micro_batches=how.micro_batches or 1,
        speculation=speculation(subject, *how.speculation, shape, on, changes) if how.speculation else None,
    )
    notes = subject.notes(_longest(question), on)
    try:
        return answer(subject.source(changes, shape, on), question, on, shape, notes)
    except (ArithmeticError, LookupError) as error:
        if subject.file is None:
            raise
        raise RequestError(
            f"{subject.file} lacks what prices are made from ({one_line(error)}); save it again"
        ) from error


def form_on(word: str, on: Device) -> Form:
    """The graph to price; "auto" is the one that the device's prices are for."""
    if word == "auto":
        return on.form
    return "fused" if word == "fused" else "executed"


def _longest(question: Question) -> int:
    """Tokens of the longest sequence."""
    passes = (*question.workloads, *(part for parts in question.mixes for part in parts))
    lengths = [w.query_tokens + w.context_tokens for w in passes]
    return max((*lengths, *(prompt + output for _, prompt, output in question.requests)), default=0)
