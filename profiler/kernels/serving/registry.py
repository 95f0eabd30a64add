"""The families and providers that a command can name: those of the list, and those of the user's kernel files.

A kernel file is Python with a function and its family's name; its parameters are names of operands, sizes or constants
of the family, and it returns the outputs. `KERNELS` lists several::

    FAMILY = "rms_norm"
    def kernel(x, weight, eps): ...

    KERNELS = [("rms_norm", fast_norm), ("linear", my_product)]
    FAMILIES = [Family(...)]          # families that the list does not have

A solution of FlashInfer-Bench (a JSON file with "definition", "spec" and "sources") is joined to the family that
`DEFINITIONS` names, at the sizes that its definition's name fixes. Code of a user is loaded here, in whatever process
calls; `profiler.kernels.serving.worker` tries it in one of its own first.
"""

import hashlib
import importlib.util
import inspect
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from profiler.kernels.serving.contract import Dims, Draw, Family, Kernel, Provider, Result, Tensors
from profiler.kernels.serving.families import FAMILIES
from profiler.record.suite_table import KernelId
from roofline.reading import Unreadable, one_line, parse_json, read_bytes

MOST_BYTES = 16 << 20
"""Bytes of a kernel file."""


class UserError(ValueError):
    """A kernel file that cannot be used, or a name that nothing has: one line, with the remedy."""


@dataclass(frozen=True, slots=True)
class Definition:
    """The family and sizes of one kind of FlashInfer-Bench definition."""

    pattern: re.Pattern[str]
    """Pattern of the definition's name; its groups are the sizes that the name fixes."""
    family: str
    dtype: str
    inputs: tuple[str, ...]
    """Our operands in the order of the definition's inputs."""


DEFINITIONS = (
    Definition(re.compile(r"gemm_n(?P<n>\d+)_k(?P<k>\d+)"), "linear", "float16", ("x", "weight")),
    Definition(re.compile(r"rmsnorm_h(?P<width>\d+)"), "rms_norm", "bfloat16", ("x", "weight")),
)
"""Definitions whose inputs and outputs are those of a family; the others need arrangements that no family has."""
LANGUAGES = ("python", "triton")
"""Languages of solutions that need no build."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A kernel that a file adds."""

    family: str
    provider: str
    fixed: Mapping[str, int] = field(default_factory=dict)
    """Sizes that it is made for; empty: all."""
    dtypes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Registry:
    """Families by name, with the providers of the user's files among theirs."""

    families: Mapping[str, Family]
    listed: Mapping[tuple[str, str], tuple[str, Listed]] = field(default_factory=dict)
    """(family, provider) -> the file that it is from, and what it says of itself."""

    @classmethod
    def of(cls, files: Iterable[str] = ()) -> "Registry":
        """Return the list with the kernels of these files. Raises UserError for a file that cannot be used."""
        families = {family.name: family for family in FAMILIES}
        listed: dict[tuple[str, str], tuple[str, Listed]] = {}
        for file in files:
            for family in _own_families(file):
                if family.name in families:
                    raise UserError(f"{file}: there is a family {family.name} already; give it another name")
                families[family.name] = family
                listed |= {
                    (family.name, provider.name): (file, Listed(family.name, provider.name))
                    for provider in family.providers
                }
            for kernel, provider in kernels_of(file, families):
                family = families[kernel.family]
                if (kernel.family, kernel.provider) in listed or kernel.provider in _names(family):
                    raise UserError(f"{file}: {kernel.family} has a {kernel.provider} already; rename the file")
                families[kernel.family] = replace(family, providers=(*family.providers, provider))
                listed[kernel.family, kernel.provider] = file, kernel
        return cls(families, listed)

    def family(self, name: str) -> Family:
        """Return the family. Raises UserError with the nearest names."""
        if name not in self.families:
            raise UserError(unknown("kernel family", name, self.families))
        return self.families[name]

    def find(self, kernel: KernelId) -> tuple[Family, Provider]:
        """Return the family and provider of a kernel. Raises UserError for names that nothing has."""
        family = self.family(kernel.family)
        for provider in family.providers:
            if provider.name == kernel.provider:
                return family, provider
        raise UserError(unknown(f"provider of {family.name}", kernel.provider, _names(family)))

    def file_of(self, family: str, provider: str) -> str | None:
        """Return the user's file that a provider is from."""
        return self.listed.get((family, provider), (None, None))[0]


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return one line for a name that nothing has, with the nearest names."""
    known = list(dict.fromkeys(known))
    near = get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
    return f"no {what} {name!r:.60}; {hint}"


def _names(family: Family) -> list[str]:
    return [provider.name for provider in family.providers]


def kernels_of(file: str, families: Mapping[str, Family]) -> list[tuple[Listed, Provider]]:
    """Return the kernels of a file. Raises UserError, one line, for a file that cannot be used."""
    path = Path(file)
    if path.suffix == ".json":
        return [_solution(path, families)]
    module = _module(path)
    entries = list(getattr(module, "KERNELS", ()))
    if hasattr(module, "FAMILY"):
        functions = [getattr(module, "kernel", None)] if hasattr(module, "kernel") else _functions(module)
        if len(functions) != 1:
            found = ", ".join(function.__name__ for function in functions if function) or "none"
            raise UserError(f"{file}: FAMILY needs one function named kernel; the file has: {found}")
        entries.append((module.FAMILY, functions[0]))
    if not entries and not hasattr(module, "FAMILIES"):
        raise UserError(f'{file} names no kernel; add FAMILY = "rms_norm" and def kernel(x, weight, eps), or KERNELS')
    result = []
    for entry in entries:
        if not isinstance(entry, tuple | list) or len(entry) != 2 or not callable(entry[1]):
            raise UserError(f"{file}: KERNELS holds pairs of a family's name and a function, not {entry!r:.60}")
        name, function = entry
        if name not in families:
            raise UserError(f"{file}: {unknown('kernel family', str(name), families)}")
        own = path.stem if len(entries) == 1 else f"{path.stem}:{function.__name__}"
        result.append((Listed(name, own), provider_of(own, function, families[name], file)))
    return result


def _own_families(file: str) -> list[Family]:
    """Return families that a file of Python defines."""
    if Path(file).suffix == ".json":
        return []
    families = list(getattr(_module(Path(file)), "FAMILIES", ()))
    if wrong := next((family for family in families if not isinstance(family, Family)), None):
        raise UserError(f"{file}: FAMILIES holds rows of Family, not {wrong!r:.60}")
    return families


_MODULES: dict[str, ModuleType] = {}
"""Modules of kernel files by path: a second look must not run them again."""


def _module(path: Path) -> ModuleType:
    """Run a file of Python as a module. Raises UserError, one line, for whatever it raises."""
    key = str(path.resolve())
    if key in _MODULES:
        return _MODULES[key]
    if path.suffix != ".py":
        raise UserError(f"{path} is no kernel file; name one that ends in .py, or a solution that ends in .json")
    try:
        read_bytes(path, MOST_BYTES)
    except Unreadable as error:
        raise UserError(str(error)) from error
    name = f"roofcal_kernels_{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # torch.compile and dataclasses look it up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the file raises
        del sys.modules[name]
        raise UserError(f"{path} does not import ({type(error).__name__}: {one_line(error)}); mend it") from error
    _MODULES[key] = module
    return module


def _functions(module: ModuleType) -> list[Callable[..., Any]]:
    own = inspect.getmembers(module, lambda each: inspect.isfunction(each) and each.__module__ == module.__name__)
    return [function for name, function in own if not name.startswith("_")]


def provider_of(name: str, function: Callable[..., Any], family: Family, file: str) -> Provider:
    """Return a provider that calls a user's function. Raises UserError for a parameter that the family does not
    have."""
    taken = parameters(function)
    plain = {*family.sizes, *family.constants, "dtype"}
    if asked := [name for name in taken or () if name not in plain]:
        drawn = family.operands(family.checks[0], family.dtypes[0], Draw(torch.device("cpu"), seed=0))
        if lacking := [name for name in asked if name not in drawn]:
            has = ", ".join(sorted({*drawn, *plain}))
            raise UserError(f"{file}: {unknown(f'operand of {family.name}', lacking[0], drawn)}; it has {has}")

    def bind(dims: Dims, dtype: str, operands: Tensors) -> Kernel:
        fixed = {**family.constants, **dims, "dtype": getattr(torch, dtype, dtype)}
        names = taken if taken is not None else tuple(operands)

        def run(tensors: Tensors) -> Result:
            result: Result = function(*[tensors[each] if each in tensors else fixed[each] for each in names])
            return tuple(result) if isinstance(result, list) else result

        return run

    return Provider(name, "torch", bind)


def parameters(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """Return names of a function's parameters, less those with defaults; None where it takes any or does not say."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    kinds = inspect.Parameter
    if any(each.kind is kinds.VAR_POSITIONAL for each in signature.parameters.values()):
        return None
    return tuple(
        name
        for name, each in signature.parameters.items()
        if each.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD) and each.default is kinds.empty
    )


def _solution(path: Path, families: Mapping[str, Family]) -> tuple[Listed, Provider]:
    """Return the kernel of a FlashInfer-Bench solution (docs/flashinfer-trace/solution.mdx in its repository)."""
    try:
        content = parse_json(read_bytes(path, MOST_BYTES))
        name, wanted, spec, sources = (content[key] for key in ("name", "definition", "spec", "sources"))
        entry, language = str(spec["entry_point"]), str(spec["language"])
        files = {str(source["path"]): str(source["content"]) for source in sources}
    except Unreadable as error:
        raise UserError(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no solution of FlashInfer-Bench ({one_line(error)} is missing or wrong)") from error
    found = next((row for row in DEFINITIONS if row.pattern.fullmatch(str(wanted))), None)
    if found is None or found.family not in families:
        known = ", ".join(row.pattern.pattern.replace("\\d+", "…") for row in DEFINITIONS)
        raise UserError(f"{path}: no family is joined to the definition {wanted!r:.60}; known: {known}")
    if language not in LANGUAGES:
        raise UserError(f"{path}: solutions in {language!r:.30} are not built here; use {' or '.join(LANGUAGES)}")
    file, _, function = entry.partition("::")
    if file not in files or not function.isidentifier():
        raise UserError(f"{path}: its entry point {entry!r:.60} is none of its sources")
    family, match = families[found.family], found.pattern.fullmatch(str(wanted))
    assert match is not None
    listed = Listed(found.family, str(name), {size: int(value) for size, value in match.groupdict().items()},
                    (found.dtype,))  # fmt: skip
    fills = bool(spec.get("destination_passing_style", True))

    def bind(dims: Dims, dtype: str, operands: Tensors) -> Kernel:
        run = _entry(files, file, function)
        if not fills:
            return lambda tensors: run(*[tensors[each] for each in found.inputs])
        shapes = {each: output.shape for each, output in family.reference(dims, operands).items()}
        types = family.returned(dtype)
        like = operands[found.inputs[0]]

        def fill(tensors: Tensors) -> Result:
            outputs = [torch.empty(shapes[each], dtype=types[each], device=like.device) for each in family.outputs]
            run(*[tensors[each] for each in found.inputs], *outputs)
            return tuple(outputs)

        return fill

    return listed, replace(Provider(str(name), "torch", bind), dtypes=(found.dtype,))


_UNPACKED: dict[str, Path] = {}


def _entry(files: Mapping[str, str], file: str, function: str) -> Callable[..., Any]:
    """Return the function of unpacked sources; whatever loading them raises is the kernel's compile error."""
    key = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    if key not in _UNPACKED:
        folder = Path(tempfile.mkdtemp(prefix="roofcal-solution-"))
        for name, text in files.items():
            target = (folder / name).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise UserError(f"a source named {name!r:.60} does not lie in the solution's folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        _UNPACKED[key] = folder
    folder = _UNPACKED[key]
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    run: Callable[..., Any] = getattr(_module(folder / file), function)
    return run
