"""Reads the YAML files that people write: plans of predictions and of campaigns.

All that is wrong in a file is said at once, each with its place. Example: ``read_plan_file(path, Plan, "see docs")``
"""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BeforeValidator, ValidationError

from profiler.record.run import RequestError
from roofline.reading import DAMAGED, Unreadable, one_line, problems_in, read_bytes, together
from roofline.record import Record

R = TypeVar("R", bound=Record)

MOST_BYTES = 1 << 20
"""Bytes of a plan: thousands of models and workloads."""


def texts(value: Any) -> Any:
    """The text of an option from what YAML makes of it: 16, "16,64", [16, 64]."""
    parts = value if isinstance(value, list) else [value]
    if not parts or any(isinstance(part, bool) or not isinstance(part, int | str) for part in parts):
        raise ValueError(f"give a whole number, a word, or a list of them; not {value!r:.60}")
    return ",".join(map(str, parts))


Texts = Annotated[str, BeforeValidator(texts)]


def listed(value: Any) -> Any:
    """A list of one where a single text is written."""
    return [value] if isinstance(value, str) else value


def not_empty(value: Any) -> Any:
    """A list as it is. Raises ValueError for anything else, and for an empty one."""
    if not isinstance(value, list) or not value:
        raise ValueError("give a list of at least one")
    return value


def named(value: Any) -> Any:
    """The fields of an entry of which only the name is written."""
    return {"name": value} if isinstance(value, str) else value


class _Loader(yaml.SafeLoader):
    """Refuses what makes a small file grow without end, and a key that stands twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := next((key for i, key in enumerate(keys) if key in keys[:i]), None):
            raise yaml.YAMLError(f"the key {twice!r:.60} stands twice in one place")
        return super().construct_mapping(node, deep)


def read_plan_file(path: Path, record: type[R], mend: str, context: Any = None) -> R:
    """Return the plan in a YAML or JSON file.

    Args: `mend`, where an example stands; `context`, what the record's validators need.
    Raises RequestError, one line with all that is wrong.
    """
    try:
        content = yaml.load(read_bytes(path, MOST_BYTES, mend).decode("utf-8"), _Loader)
    except Unreadable as error:
        raise RequestError(str(error)) from error
    except (yaml.YAMLError, *DAMAGED) as error:
        raise RequestError(f"{path} is not valid YAML ({one_line(error)}); {mend}") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} holds {type(content).__name__}, not fields by name; {mend}")
    try:
        return record.model_validate(content, context=context)
    except ValidationError as error:
        raise RequestError(f"{path}: {together(problems_in(error))}; {mend}") from error
