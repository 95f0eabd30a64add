"""Kinds of kernels by their names, and steps by their annotations: the rules of ``kernel_rules.json``.

The first rule counts whose pattern occurs in the name. A kernel that none knows has the kind of the operator that
launched it, where the timeline knows it. Each rule states a name that it is for.

Example: ``kind_of("ncclDevKernel_AllReduce_Sum_bf16_RING_LL").kind == "collective"``
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

LONGEST = 2048
"""Characters of a name that are looked at: templates of kernels fill pages, and begin with what they are."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table."""

    kind: str
    family: str
    pattern: re.Pattern[str]
    example: str


@dataclass(frozen=True, slots=True)
class StepForm:
    """One form of annotations of steps."""

    engine: str
    pattern: re.Pattern[str]
    example: str


@cache
def _table() -> dict[str, list[dict[str, str]]]:
    text = files("profiler.attribution").joinpath("kernel_rules.json").read_text(encoding="utf-8")
    table: dict[str, list[dict[str, str]]] = json.loads(text)
    return table


@cache
def kernel_rules() -> tuple[Rule, ...]:
    """The rules by names of kernels."""
    return tuple(Rule(r["kind"], r["family"], re.compile(r["pattern"]), r["example"]) for r in _table()["kernels"])


@cache
def operator_rules() -> tuple[Rule, ...]:
    """The rules by names of operators."""
    return tuple(Rule(r["kind"], "by operator", re.compile(r["pattern"]), r["example"]) for r in _table()["operators"])


@cache
def step_forms() -> tuple[StepForm, ...]:
    """The forms of annotations, an engine's own before the profiler's."""
    return tuple(StepForm(r["engine"], re.compile(r["pattern"]), r["example"]) for r in _table()["steps"])


def kind_of(kernel: str, operator: str | None = None) -> Rule | None:
    """The rule that knows a kernel, or else its operator; None where none does."""
    return _first("kernels", kernel[:LONGEST]) or (operator and _first("operators", operator[:LONGEST])) or None


@cache
def _first(table: str, name: str) -> Rule | None:
    rules = kernel_rules() if table == "kernels" else operator_rules()
    return next((rule for rule in rules if rule.pattern.search(name)), None)


_SUMS = re.compile(r"sq(\d+)sk(\d+)sqsq(\d+)sqsk(\d+)")
_OLD_SUMS = re.compile(r"(\d+)_(\d+)")
_PAIR = re.compile(r"(\w+)=(\d+)")


def form_of(annotation: str) -> StepForm | None:
    """The form of a step's annotation; None for any other text."""
    return next((form for form in step_forms() if form.pattern.search(annotation[:LONGEST])), None)


def step_sizes(annotation: str) -> dict[str, float]:
    """Read what a step's annotation states of its work, as sums over the sequences; nothing where it has no known form.

    Tokens are Σq, context is Σkv, and attention counts the pairs of a query and a key that causal attention works on,
    Σq·kv − Σq²/2 + Σq/2: a query sees the keys up to its own.
    """
    form = form_of(annotation)
    found = form.pattern.search(annotation[:LONGEST]) if form is not None else None
    groups = {key: text[:200] for key, text in found.groupdict().items() if text} if found is not None else {}
    sizes: dict[str, float] = {}
    for part in ("prefill", "decode"):
        if count := groups.get(f"{part}_sequences"):
            sizes[f"{part}_sequences"] = float(count[:15])
        if sums := _SUMS.fullmatch(groups.get(part, "")):
            q, kv, qq, qkv = (float(number[:18]) for number in sums.groups())
            sizes |= {f"{part}_tokens": q, f"{part}_context": kv, f"{part}_attention": qkv - qq / 2 + q / 2}
        elif old := _OLD_SUMS.fullmatch(groups.get(part, "")):
            sizes[f"{part}_tokens"] = float(old[1][:18])
    return sizes | {key[:20]: float(number[:18]) for key, number in _PAIR.findall(groups.get("facts", ""))}
