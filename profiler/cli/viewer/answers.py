"""The predictions and measurements of a setting, from graphs, devices and runs that are kept between questions.

A prediction is made by the code of `predict`, with graphs that are traced and fitted once for each model, dtype and
list of what-ifs (`roofline.sweep.kept`); everything else is arithmetic on them.

Example: ``Answers(Path("results")).answer(Setting(model="qwen3-8b", batch="16")).prediction.passes[0].time_s``
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from calibrate.passes.pass_report import PassReport
from calibrate.passes.reports import load
from profiler.cli import options as option
from profiler.cli.cases import Case, How, predicted
from profiler.cli.subject import Subject
from profiler.cli.viewer.state import Setting
from profiler.record.folder import RunFolder, RunSummary, list_runs
from roofline.predict.passes import Prediction
from roofline.predict.question import Device, Question
from roofline.sweep.family import Form, Source
from roofline.sweep.kept import kept
from roofline.whatif.registry import WhatIf

Over = Literal["batch", "length"]
BATCHES = tuple(2**i for i in range(10))
LENGTHS = tuple(2**i for i in range(8, 18))
"""Sequences and tokens that the curves go through: a serving engine's usual batches, today's contexts."""
MODELS, SOURCES, ANSWERS, RUNS = 8, 16, 64, 8
"""Most models, lists of what-ifs of each, predictions and runs that are kept."""


class KeptSubject(Subject):
    """A model whose sources of graphs are kept."""

    def __init__(self, model: str, dtype: str) -> None:
        tracing = {"dtype": dtype, "attn": "default", "experts": "default", "cache": "dynamic"}
        super().__init__(model, None, None, False, tracing, True)
        self._kept: dict[tuple[str, Form, frozenset[str]], Source] = {}

    def source(self, changes: Sequence[WhatIf], form: Form, on: Device) -> Source:
        key = repr(changes), form, frozenset(on.peaks.matrix)
        if key not in self._kept:
            if len(self._kept) >= SOURCES:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = kept(super().source(changes, form, on))
        return self._kept[key]


@dataclass(frozen=True, eq=False)
class Measured:
    """A measured pass."""

    name: str
    """Name of its run."""
    folder: RunFolder
    report: PassReport


@dataclass(frozen=True, eq=False)
class Swept:
    """Prefill and decode over a range; one object as long as the question is the same, so that a plot of it is kept."""

    prediction: Prediction


@dataclass(frozen=True, eq=False)
class Answer:
    """The predictions of one setting, and the passes that were measured at its workload."""

    setting: Setting
    device: Device
    prediction: Prediction
    """Its pass, with operations, and its requests."""
    batches: Swept
    """Over `BATCHES`."""
    lengths: Swept
    """Over `LENGTHS`."""
    measured: tuple[Measured, ...]
    elsewhere: tuple[Setting, ...]
    """Settings of other measured passes of the model on the device."""


class Answers:
    """Answers for the runs of one folder."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self._lock = RLock()  # a model is traced in one thread, for torch and transformers keep global state
        self._subject = lru_cache(MODELS)(KeptSubject)
        self._answer = lru_cache(ANSWERS)(self._make_answer)
        self._swept = lru_cache(ANSWERS)(self._sweep)
        self._reports = lru_cache(RUNS)(self._read_reports)

    @cached_property
    def _runs(self) -> dict[str, RunSummary]:
        return {run.path.relative_to(self.results).as_posix(): run for run in list_runs(self.results)}

    def refresh(self) -> None:
        """Look at the runs anew."""
        with self._lock:
            self.__dict__.pop("_runs", None)
            self._reports.cache_clear()
            self._answer.cache_clear()
            self._swept.cache_clear()

    @property
    def specs(self) -> dict[str, str]:
        """Runs with figures of a device: name -> title."""
        return {
            name: f"{run.device}: {run.name} ({run.started[:10]})"
            for name, run in reversed(self._runs.items())
            if run.state != "unreadable" and (run.path / "spec.json").is_file()
        }

    def first(self, name: str) -> Setting:
        """The setting of the first measured pass of a run, on its device."""
        reports = self._reports(name)[1] if self._runs[name].kind == "passes" else []
        setting = Setting(hardware=name)
        return _like(replace(setting, model=reports[0].model), reports[0]) if reports else setting

    @property
    def unreadable(self) -> list[str]:
        """A line for each run that cannot be read."""
        return [f"{name}: {run.why}" for name, run in self._runs.items() if run.state == "unreadable"]

    def answer(self, setting: Setting) -> Answer:
        """The predictions of a setting. Raises RequestError or ValueError, one line, where there are none."""
        with self._lock:
            return self._answer(setting.check(self.specs))

    def exact(self, setting: Setting) -> Prediction:
        """The prediction that the command line makes, each operation of each layer apart. Raises as `answer`."""
        with self._lock:
            setting.check(self.specs)
            plain = Subject(setting.model, None, None, False, self._subject(setting.model, setting.dtype).tracing, True)
            return self._predicted(plain, setting, setting.asked(), Question())

    def _make_answer(self, setting: Setting) -> Answer:
        subject = self._subject(setting.model, setting.dtype)
        device = option.device(setting.hardware, setting.peaks, self.results)
        measured, elsewhere = self._measured(setting, device)
        return Answer(
            setting=setting,
            device=device,
            prediction=self._predicted(subject, setting, setting.asked(), Question()),
            batches=self._swept(replace(setting, phase="decode", output="1", batch="1"), "batch"),
            lengths=self._swept(replace(setting, phase="decode", output="1", prompt="1", context="1"), "length"),
            measured=measured,
            elsewhere=elsewhere,
        )

    def _sweep(self, setting: Setting, over: Over) -> Swept:
        """Prefill and decode of the setting over the batch or the length."""
        sizes: dict[str, Any] = {"prompts": (int(setting.prompt),), "contexts": (int(setting.context),)}
        sizes |= {"batches": (int(setting.batch),)}
        sizes |= {"batches": BATCHES} if over == "batch" else {"prompts": LENGTHS, "contexts": LENGTHS}
        workloads = option.Lengths(**sizes, dtype=setting.dtype).workloads(("prefill", "decode"))
        subject = self._subject(setting.model, setting.dtype)
        asked = option.Asked(setting.dtype, workloads)
        return Swept(self._predicted(subject, setting, asked, Question(exact=False)))

    def _predicted(self, subject: Subject, setting: Setting, asked: option.Asked, question: Question) -> Prediction:
        device = option.device(setting.hardware, setting.peaks, self.results)
        how = How(setting.form, lambda name: device, question=question)
        with option.one_line():
            return predicted(Case(subject, option.what_ifs(setting.what_if), asked), device, how)

    def _read_reports(self, name: str) -> tuple[RunFolder, list[PassReport]]:
        folder = RunFolder.open(self.results / name)
        return folder, load(folder)[0]

    def _measured(self, setting: Setting, device: Device) -> tuple[tuple[Measured, ...], tuple[Setting, ...]]:
        """Passes of the model on the device that were measured: at this workload, and settings of the others."""
        same: list[Measured] = []
        others: dict[Setting, None] = {}
        for name, run in self._runs.items():
            is_there = name == setting.hardware or run.device in (device.spec.name, *device.spec.matches)
            if run.kind != "passes" or setting.model not in run.models or not is_there:
                continue
            folder, reports = self._reports(name)
            for report in (report for report in reports if report.model == setting.model):
                if report.workload == setting.workload:
                    same.append(Measured(name, folder, report))
                elif report.workload.logits == "last":
                    others[_like(setting, report)] = None
        return tuple(same), tuple(others)


def _like(setting: Setting, report: PassReport) -> Setting:
    """The setting with the workload of a measured pass."""
    w = report.workload
    prompt = setting.prompt if w.phase == "decode" else str(w.query_tokens)
    context = setting.context if w.phase == "prefill" else str(w.context_tokens)
    return replace(setting, phase=w.phase, batch=str(w.batch), prompt=prompt, context=context, dtype=w.dtype)
