"""Keeps the import arrows of the design, imports inside functions included.

`profiler.api` → `profiler.cli` → everything; `calibrate.report`, `calibrate.exchange` → the rest of `calibrate` →
`profiler.record` → `roofline`; what measures in `profiler` → `profiler.record` → `roofline`; and nothing goes in a
circle.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("roofline", "profiler", "calibrate")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

ARROWS = {
    "roofline": (("roofline",), ()),
    "profiler.record": (("profiler.record", "roofline"), ()),
    "profiler": (("profiler", "roofline"), ("profiler.cli",)),
    "profiler.cli": (PACKAGES, ()),
    "profiler.__main__": (("profiler.cli",), ()),
    "profiler.api": (PACKAGES, ()),
    "calibrate": (("calibrate", "profiler.record", "roofline"), ("calibrate.report", "calibrate.exchange")),
    "calibrate.report": (("calibrate", "profiler.record", "roofline"), ("calibrate.exchange",)),
    "calibrate.exchange": (("calibrate", "profiler.record", "roofline"), ("calibrate.report",)),
}
"""Room -> rooms that it may import, and those among them that it may not; a module is in the longest name that fits."""

ROOFLINE_NEEDS = {"roofline", "numpy", "pydantic"}
WITHOUT_TORCH = ("roofline", "profiler.record", "calibrate")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, rooms: Iterable[str]) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


def imported(source: str) -> Iterator[str]:
    """Everything that the source imports; ``from a import b`` may mean the module a.b or a name in a."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports() -> dict[str, tuple[str, ...]]:
    return {module_name(path): tuple(imported(path.read_text(encoding="utf-8"))) for path in FILES}


def against_the_arrows(module: str, names: Iterable[str]) -> list[str]:
    allowed, forbidden = ARROWS[max((room for room in ARROWS if within(module, [room])), key=len)]
    ours = [name for name in names if within(name, PACKAGES)]
    return [f"{module} imports {name}" for name in ours if not within(name, allowed) or within(name, forbidden)]


def circle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """Names of which each imports the next, the first again at the end; empty where there is no circle."""
    below: dict[str, set[str]] = {}
    for user, used in edges:
        below.setdefault(user, set()).update({used} - {user})
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        return list(error.args[1][::-1])
    return []


def room(module: str) -> str:
    """A folder of a package, or a file that lies in none."""
    return ".".join(module.split(".")[:2])


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stderr if done.returncode else ""


def test_imports_go_one_way() -> None:
    assert len(imports()) > 100
    assert [line for module, names in imports().items() for line in against_the_arrows(module, names)] == []


def test_an_import_against_the_arrows_is_noticed() -> None:
    for module, source in (
        ("roofline.record", "import profiler"),
        ("roofline.graph.op", "def f():\n    from calibrate.kernels.fit import fit"),
        ("profiler.record.folder", "from profiler import timing"),
        ("profiler.record.folder", "import calibrate.kernels.fit"),
        ("calibrate.kernels.fit", "from profiler.passes.measure import measure_cell"),
        ("calibrate.passes.reports", "from calibrate.report import run"),
        ("calibrate.report.run", "import calibrate.exchange.formats"),
        ("calibrate.exchange.formats", "import profiler"),
        ("profiler.timing.engine", "from calibrate.passes import efficiency"),
        ("profiler.timing.engine", "from profiler.cli import output"),
        ("profiler.__main__", "from profiler.passes import job"),
    ):
        assert len(against_the_arrows(module, imported(source))) == 1, (module, source)


def test_nothing_goes_in_a_circle() -> None:
    modules = imports().keys()
    edges = [
        (module, name if name in modules else name.rpartition(".")[0])
        for module, names in imports().items()
        for name in names
        if within(name, PACKAGES)
    ]
    assert circle(edges) == [], "files"
    assert circle((room(user), room(used)) for user, used in edges) == [], "folders"
    assert sorted(circle([("a", "b"), ("b", "c"), ("c", "a")])[1:]) == ["a", "b", "c"]


def test_init_files_are_empty() -> None:
    assert [path for path in FILES if path.name == "__init__.py" and path.read_bytes()] == []


def test_roofline_needs_numpy_and_pydantic_only() -> None:
    used = {name.split(".")[0] for module, names in imports().items() if within(module, ["roofline"]) for name in names}
    assert used - ROOFLINE_NEEDS <= sys.stdlib_module_names


def test_what_only_computes_loads_without_torch() -> None:
    program = (
        "import importlib, sys\n"
        "class Refusal:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        assert name not in ('torch', 'transformers', 'pynvml'), name\n"
        "sys.meta_path.insert(0, Refusal)\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
    )
    assert run(program, *(module for module in imports() if within(module, WITHOUT_TORCH))) == ""


def test_the_front_door_answers_without_torch() -> None:
    program = (
        "import sys\n"
        "from profiler.cli.app import main\n"
        "assert main(['--help']) == main(['list']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert run(program) == ""
