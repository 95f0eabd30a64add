"""A YAML file of models, workloads and devices, for `predict --file`.

All that is wrong in it is said at once, each with its place in the file, before any model is traced. Example::

    hardware: [nvidia-h100-sxm, amd-mi300x]
    models:
      - llama-3.1-8b
      - {name: llama-3.1-70b, what_if: ["quantise:weights=4"]}
    workloads:
      - {phase: decode, batch: [1, 16, 64], context: 4096}
      - {prompt: 1024, output: 256, batch: 8}
"""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ValidationInfo, field_validator
from pydantic import model_validator as checks_model

from profiler.cli import options as option
from profiler.record.plan_file import Texts, listed, named, not_empty, read_plan_file
from profiler.record.run import RequestError
from roofline.dtypes import MODEL_DTYPES
from roofline.reading import Unreadable, entry
from roofline.record import Record

MOST_CASES = 10_000
"""Most models × devices of a plan."""
MEND = "docs/predict.md has an example"


def _refusing(check: Callable[[str], object]) -> Callable[[str], str]:
    """A validator that a text passes unless `check` refuses it."""

    def validate(text: str) -> str:
        try:
            check(text)
        except (RequestError, Unreadable) as error:
            raise ValueError(str(error)) from None
        return text

    return validate


def _model_name(name: str) -> None:
    from profiler.models.catalogue import catalogue, find

    if find(name) is None and "/" not in name and entry(name) != "folder":
        near = get_close_matches(name, catalogue(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "`models` lists the catalogue"
        raise RequestError(f"no model {name!r:.60}; {hint}")


def _dtype(name: str) -> str:
    return option.words("dtype", option.dtype(name), MODEL_DTYPES)[0]


Change = Annotated[str, AfterValidator(_refusing(lambda text: option.what_ifs([text])))]


class PlannedModel(Record):
    """A model, and what is changed of it."""

    name: Annotated[str, AfterValidator(_refusing(_model_name))]
    what_if: Annotated[tuple[Change, ...], BeforeValidator(listed)] = ()
    dtype: Annotated[str, AfterValidator(_refusing(_dtype))] | None = None

    @checks_model(mode="after")
    def _go_together(self) -> "PlannedModel":
        _refusing(lambda _: option.what_ifs(self.what_if))("")
        return self


class PlannedWorkload(Record):
    """Passes, or whole requests where it has an output; each number may be a list."""

    phase: Texts | None = None
    prompt: Texts = "2048"
    context: Texts = "2048"
    batch: Texts = "1"
    logits: str = "last"
    mix: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    output: Texts | None = None

    @checks_model(mode="after")
    def _is_possible(self) -> "PlannedWorkload":
        _refusing(lambda _: self.asked("bfloat16"))("")
        return self

    def asked(self, dtype: str) -> option.Asked:
        """Return its passes and requests. Raises RequestError for sizes that are none."""
        phase = self.phase or option.Sizes.phase
        sizes = option.Sizes(phase, self.prompt, self.context, self.batch, self.logits, self.mix, self.output)
        asked = sizes.asked(dtype)
        is_other = self.phase is None and (self.mix or self.output is not None)
        return option.Asked(dtype, () if is_other else asked.workloads, asked.mixes, asked.requests)


class Plan(Record):
    """Models × workloads × devices."""

    models: Annotated[tuple[Annotated[PlannedModel, BeforeValidator(named)], ...], BeforeValidator(not_empty)]
    workloads: Annotated[tuple[PlannedWorkload, ...], BeforeValidator(not_empty)] = (PlannedWorkload(),)
    hardware: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()

    @field_validator("hardware")
    @classmethod
    def _is_found(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        wrong = []
        for name in names:
            try:
                option.find_hardware(name, info.context or Path())
            except (RequestError, Unreadable) as error:
                wrong.append(str(error))
        if wrong:
            raise ValueError("; ".join(wrong))
        return tuple(dict.fromkeys(names))

    def asked(self, dtype: str) -> option.Asked:
        """Return all passes and requests of the file, each once."""
        parts = [workload.asked(dtype) for workload in self.workloads]
        joined = (dict.fromkeys(one for part in parts for one in getattr(part, name)) for name in option.Asked.LISTS)
        return option.Asked(dtype, *map(tuple, joined))


def read_plan(path: Path, results: Path) -> Plan:
    """The plan in a file; `results` holds the runs that it may name.

    Raises RequestError, one line with all that is wrong.
    """
    plan = read_plan_file(path, Plan, MEND, results)
    if (cases := len(plan.models) * max(1, len(plan.hardware))) > MOST_CASES:
        raise RequestError(f"{path} asks for {cases} models × devices; use at most {MOST_CASES}")
    return plan
