"""Functions with options that people write as ``name:option=value,option=value``: what-ifs, scenarios.

Items of a list have | between them: ``"quantise:weights=4,where=*.mlp.*|*.self_attn.*"``, which a shell needs quoted.
The options of a name are parameters of its function or class, with their types, defaults and docstring.

Example: ``Written("what-if", WHAT_IFS).parse("offload:weights=0.5")`` returns ``("offload", {"weights": 0.5})``
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

PLAIN = {bool: ("true|false", "true or false"), int: (r"[+-]?\d+", "a whole number")}
"""How booleans and integers are written; pydantic alone would also take "no" and "8.0"."""


@dataclass(frozen=True)
class Written:
    """A table of such functions."""

    what: str
    """The word for one of them in an error."""
    table: Mapping[str, Callable[..., Any]]
    absent: Mapping[str, str] = field(default_factory=dict)
    """Maps an option to what stands for it where it is not written, instead of its default."""
    first: int = 1
    """Number of the first parameter that is an option."""

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """The options of a name: the parameters of its function from the first that is one."""
        return dict(list(inspect.signature(self.table[name]).parameters.items())[self.first :])

    def usage(self, name: str) -> str:
        """The form of one, with its defaults: "tensor_parallel:degree=,link="."""
        options = ",".join(
            f"{p.name}={'' if p.name in self.absent else _written(p.default)}" for p in self.parameters(name).values()
        )
        return f"{name}:{options}" if options else name

    def help_text(self, name: str) -> str:
        """The form of one, its summary, and a line for each option with its values."""
        doc = inspect.getdoc(self.table[name]) or ""
        lines = [self.usage(name), f"    {doc.partition(chr(10))[0]}"]
        described, types = _described(doc), get_type_hints(self.table[name])
        for option, parameter in self.parameters(name).items():
            default = parameter.default
            without = "" if default in (None, ()) else f"; {_written(default)} if not given"
            end = "" if default is parameter.empty else without
            if option in self.absent:
                end = f"; {self.absent[option]} if not given"
            lines.append(f"      {option}: {described.get(option, '')} ({_values(types[option])}{end})")
        return "\n".join(lines)

    def parse(self, text: str) -> tuple[str, dict[str, Any]]:
        """Read one, as its name and the options that are written.

        Raises: ValueError, one line, for an unknown name or option, a value of the wrong type, an option that is given
            twice, or one without a default that is not given.
        """
        name, _, rest = text.partition(":")
        if name not in self.table:
            near = get_close_matches(name, self.table, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(self.table)}"
            raise ValueError(f"no {self.what} {name!r:.60}; {hint}")
        parameters, types = self.parameters(name), get_type_hints(self.table[name])
        options: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            option, equals, value = part.partition("=")
            if option not in parameters or not equals:
                raise ValueError(f"{self.what} {text!r}: {part!r} is not one of its options; write {self.usage(name)}")
            if option in options:
                raise ValueError(f"{self.what} {text!r}: {option} is given twice; give it once")
            try:
                options[option] = _value(types[option], value)
            except ValueError as error:
                wrong = f"{self.what} {name}: {option}={value!r} should be {error}"
                raise ValueError(f"{wrong}; write {self.usage(name)}") from None
        missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
        if missing:
            raise ValueError(f"{self.what} {text!r} needs {', '.join(missing)}; write {self.usage(name)}")
        return name, options


def _described(doc: str) -> dict[str, str]:
    """The words of a docstring for each argument."""
    described: dict[str, str] = {}
    name = ""
    for line in doc.partition("Args:\n")[2].splitlines():
        if not line.startswith("    "):
            break
        if not line.startswith("     ") and ": " in line:
            name, _, text = line.strip().partition(": ")
            described[name] = text.rstrip(".")
        else:
            described[name] = f"{described[name]} {line.strip()}".rstrip(".")
    return described


def _values(kind: Any) -> str:
    """The values of a type, in words."""
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is Sequence:
        return f"{_values(get_args(kind)[0])}, several with | between them"
    kinds = [k for k in get_args(kind) if k is not type(None)] or [kind]
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kinds[0]]


def _value(kind: Any, text: str) -> Any:
    """A value of this type from its text. Raises ValueError, which says what should stand there."""
    items = tuple(text.split("|")) if get_origin(kind) is Sequence else (text,)
    for plain, (pattern, wanted) in PLAIN.items():
        if plain in (kind, *get_args(kind)) and not all(re.fullmatch(pattern, item) for item in items):
            raise ValueError(wanted)
    try:
        return TypeAdapter(kind).validate_python(items if get_origin(kind) is Sequence else text)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Input should be ").partition(", unable")[0]) from None


def _written(default: Any) -> str:
    if default is inspect.Parameter.empty or default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return "|".join(map(str, default)) if isinstance(default, tuple) else str(default)
