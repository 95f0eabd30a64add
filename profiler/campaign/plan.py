"""A campaign's plan, one YAML or JSON file, and the commands of `python -m profiler` that it stands for.

Example (docs/campaign.md explains each field; `plans/` holds the plans that are shipped)::

    device: cuda
    minutes: 20
    models: [llama-3.1-8b, {name: mixtral-8x7b, layers: 4}]
    parts:
      - doctor
      - hardware
      - {phase: decode, mode: cuda-graph, context: [1024, 16384], batch: [1, 16, 64]}
      - {suite: smoke, command: kernels --suite smoke, estimate_s: 300}

Parts run in the order of the file, each model of a row of passes as a part of its own.
"""

import hashlib
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from profiler.record.plan_file import Texts, listed, named, not_empty, read_plan_file
from profiler.record.run import Mode, RequestError
from roofline.hardware.spec import GPU
from roofline.reading import entry
from roofline.record import Record

PLANS = Path(__file__).parent / "plans"
MEND = "docs/campaign.md has an example"

START_S = 20.0
"""Seconds of a process: it loads torch and transformers, measures the device with `run --quick`, writes the reports."""
CELL_S = 6.0
"""Seconds of a cell besides its passes: trace, inputs, warm-up, sessions of the profiler."""
COMPILE_S = 45.0
"""Seconds to compile the model of a cell."""
MOST_PARTS = 10_000

MODE_FLAGS: Mapping[Mode, tuple[str, ...]] = {
    "eager": (),
    "cuda-graph": ("--cuda-graph",),
    "compile": ("--compile",),
    "compile-cuda-graph": ("--compile", "--cuda-graph"),
}
LENGTH = {"decode": "context", "prefill": "prompt", "chunk": "prompt"}
"""The length by which a model's `longest` cuts a phase."""


@dataclass(frozen=True)
class Part:
    """One command of `python -m profiler`."""

    name: str
    arguments: tuple[str, ...]
    """"{run}" stands for the run folder of the part `on`, "{out}" for a folder of the shard's own files."""
    estimate_s: float
    """Seconds on a device of the plan; corrected by how long the parts before took."""
    each: bool = False
    """Whether every device measures it, instead of one shard."""
    keeps_run: bool = True
    """Whether it writes a run folder, of its own name, which `--resume` can continue."""
    uses: str | None = None
    """Part whose spec.json it uses (`--hardware`), if there is one, instead of measuring the device."""
    on: str | None = None
    """Part whose run it reads; without that run it is skipped."""


EXPORTS = {"llm-viewer": ".py", "genz": ".py", "llm-analysis": ".json", "blis": ".json", "tracelens-arch": ".json",
           "aiconfigurator": "", "infersim": ""}  # fmt: skip
"""Formats that the spec is exported to, with the suffix of those of one file. Vidur's tables are of its own models."""


def _suite(name: str, command: str, estimate_s: float, **fields: Any) -> Part:
    return Part(name, tuple(shlex.split(command)), estimate_s, each=True, **fields)


SUITES: Mapping[str, tuple[Part, ...]] = {
    "doctor": (_suite("doctor", "doctor --device {device}", 10.0, keeps_run=False),),
    "hardware": (_suite("hardware", "hardware --quick --device {device} --calibrate", 300.0),),
    # Half of the kernels are fitted to and the others scored; the spec of that half has a file of its own.
    "held-out": (
        _suite("held-out", "calibrate {run} --out {out}/held-out.spec.json", 40.0, keeps_run=False, on="hardware"),
    ),
    "exports": tuple(
        _suite(
            f"export-{form}",
            f"export {{run}} --to {form} --out {{out}}/exports/{form}" + (f"/{form}{suffix}" if suffix else ""),
            5.0, keeps_run=False, on="hardware",
        )
        for form, suffix in EXPORTS.items()
    ),
    "sustained": (_suite("sustained", "hardware --device {device} --only sustained,energy", 120.0),),
    "transfers": (_suite("transfers", "hardware --device {device} --quick --only transfer", 60.0),),
    "collectives": (_suite("collectives", "hardware --device {device} --quick --only collective", 120.0),),
    "hardware-in-full": (_suite("hardware-in-full", "hardware --device {device}", 600.0),),
    "kernels": (_suite("kernels", "kernels --suite smoke --device {device}", 600.0),),
}  # fmt: skip
"""Suites that a plan names; every device measures them."""


class PlannedModel(Record):
    """One model, and the limits of its shapes."""

    name: str
    layers: int | None = Field(default=None, ge=1)
    """Repeated layers that run; None for all of them."""
    longest: int | None = Field(default=None, ge=1)
    """Most tokens of context or prompt; longer ones are cut to it."""
    load_s: float = Field(default=20.0, ge=0)
    """Seconds to make its weights on the device."""


class Suite(Record):
    """A measurement besides models: one of `SUITES`, or a command of its own."""

    suite: str
    command: str | None = None
    """Arguments of `python -m profiler`; None for those of `SUITES`."""
    estimate_s: float | None = Field(default=None, gt=0)
    keeps_run: bool = True
    each: bool = True
    """Whether every device measures it, instead of one shard."""

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.command is None and self.suite not in SUITES:
            raise ValueError(f"no suite {self.suite!r:.60}; give its command, or one of {', '.join(SUITES)}")
        if self.command is not None and self.estimate_s is None:
            raise ValueError(f"suite {self.suite!r:.60} has a command of its own; say its estimate_s too")
        return self

    def parts(self) -> Iterator[Part]:
        """The parts of the suite."""
        if self.command is None:
            yield from (replace(part, estimate_s=self.estimate_s or part.estimate_s) for part in SUITES[self.suite])
            return
        assert self.estimate_s is not None
        on = "hardware" if "{run}" in self.command else None
        yield Part(self.suite, tuple(shlex.split(self.command)), self.estimate_s, self.each, self.keeps_run, on=on)


class Passes(Record):
    """Passes of one phase in one mode; every combination of its sizes is a cell."""

    phase: Literal["prefill", "decode", "chunk"]
    mode: Mode = "eager"
    cache: Literal["dynamic", "static"] = "dynamic"
    prompt: Texts = "128"
    context: Texts = "128"
    batch: Texts = "1"
    models: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """Names of models of the plan; empty for all of them."""
    options: str = ""
    """Further options of `run`, as "--attn eager"."""

    @field_validator("prompt", "context", "batch")
    @classmethod
    def _are_sizes(cls, text: str) -> str:
        if not all(word.isascii() and word.isdigit() and 0 < int(word) < 2**40 for word in text.split(",")):
            raise ValueError(f"give whole numbers from 1; not {text!r:.60}")
        return text

    def part(self, model: PlannedModel, plan: "CampaignPlan") -> Part:
        """The command for one model."""
        lengths = {name: self._fitting(getattr(self, name), model.longest) for name in ("prompt", "context")}
        sizes = {"prefill": ("prompt",), "decode": ("context",), "chunk": ("prompt", "context")}[self.phase]
        batches = self.batch.split(",")
        cells = len(batches) * int.__mul__(*(len(lengths[name]) if name in sizes else 1 for name in lengths))
        each_s = CELL_S + plan.seconds + (COMPILE_S if self.mode.startswith("compile") else 0.0)
        suffix = "" if self.cache == "dynamic" else f"-{self.cache}"
        command = [
            "run", model.name, "--device", "{device}", "--quick", "--no-calibrate", "--seconds", f"{plan.seconds:g}",
            "--phase", self.phase, "--dtype", plan.dtype,
            *(word for name in sizes for word in (f"--{name}", ",".join(map(str, lengths[name])))),
            "--batch", ",".join(batches), *(["--layers", str(model.layers)] if model.layers else []),
            *(["--cache", self.cache] if suffix else []), *MODE_FLAGS[self.mode], *shlex.split(self.options),
        ]  # fmt: skip
        name = f"{Path(model.name).name}-{self.phase}-{self.mode}{suffix}"
        return Part(name, tuple(command), START_S + model.load_s + each_s * cells, uses="hardware")

    @staticmethod
    def _fitting(text: str, longest: int | None) -> list[int]:
        return sorted({min(int(word), longest or int(word)) for word in text.split(",")})


def _part(value: Any) -> Any:
    return {"suite": value} if isinstance(value, str) else value


class CampaignPlan(Record):
    """Return the parts that are measured, on every device together, and the time of each."""

    device: str = GPU
    """Device of a shard: cuda (one GPU, the shard's own) or cpu."""
    minutes: float = Field(gt=0, le=7 * 24 * 60)
    """Time of each device."""
    models: Annotated[tuple[Annotated[PlannedModel, BeforeValidator(named)], ...], BeforeValidator(listed)] = ()
    dtype: str = "bfloat16"
    seconds: float = Field(default=2.0, ge=0.1, le=3600)
    """Seconds of passes for each cell."""
    parts: Annotated[tuple[Annotated[Suite | Passes, BeforeValidator(_part)], ...], BeforeValidator(not_empty)]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.device not in (GPU, "cpu"):
            raise ValueError(f"device is cuda or cpu, not {self.device!r:.40}; a shard has one GPU, by its UUID")
        known = [model.name for model in self.models]
        for row in self.parts:
            if isinstance(row, Passes) and (unknown := [name for name in row.models if name not in known]):
                raise ValueError(f"parts name the model {unknown[0]!r:.60}, which models does not list")
            if isinstance(row, Passes) and not known:
                raise ValueError(f"parts have a row of {row.phase} passes; list models")
        if len(self.measured()) > MOST_PARTS:
            raise ValueError(f"more than {MOST_PARTS} parts")
        return self

    @property
    def sha256(self) -> str:
        """A checksum of what is measured, whatever the file's layout and the time of each device."""
        return hashlib.sha256(self.model_dump_json(exclude={"minutes"}).encode()).hexdigest()

    def measured(self) -> list[Part]:
        """All parts in their order; a name that stands twice gets a number."""
        found: list[Part] = []
        for row in self.parts:
            if isinstance(row, Suite):
                found += row.parts()
            else:
                found += [row.part(m, self) for m in self.models if not row.models or m.name in row.models]
        taken: set[str] = set()
        unique = []
        for part in found:
            names = itertools.chain([part.name], (f"{part.name}-{i}" for i in itertools.count(2)))
            name = next(name for name in names if name not in taken)
            taken.add(name)
            arguments = tuple(word.replace("{device}", self.device) for word in part.arguments)
            unique.append(replace(part, name=name, arguments=arguments))
        return unique


def read_plan(name: str) -> tuple[str, CampaignPlan]:
    """Name and content of a plan: a file, or one of `plans/` by its name. Raises RequestError, one line."""
    shipped = PLANS / f"{name}.yaml"
    is_shipped = entry(name) != "file" and "/" not in name and shipped.is_file()
    path = shipped if is_shipped else Path(name)
    if not is_shipped and entry(path) is None:
        known = ", ".join(sorted(file.stem for file in PLANS.glob("*.yaml")))
        raise RequestError(f"no plan {name!r:.200}; name a YAML file, or one of {known}")
    return path.stem, read_plan_file(path, CampaignPlan, MEND)


def assigned(parts: Sequence[Part], shards: int) -> list[int | None]:
    """The shard of each part, from 1; None where every device measures it.

    The longest parts go first, each to the shard with the least to do (Graham's LPT rule): every machine that reads the
    same plan finds the same.
    """
    loads = [0.0] * shards
    owner: dict[str, int] = {}
    for part in sorted((part for part in parts if not part.each), key=lambda part: -part.estimate_s):
        shard = loads.index(min(loads))
        loads[shard] += part.estimate_s
        owner[part.name] = shard + 1
    return [owner.get(part.name) for part in parts]
