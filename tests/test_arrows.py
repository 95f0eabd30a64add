"""Keeps the import arrows of the design: `calibrate -> profiler.record -> roofline`, and only `profiler.cli` on top."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("roofline", "profiler", "calibrate")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

MAY_IMPORT = {
    "roofline": ("roofline",),
    "profiler.record": ("profiler.record", "roofline"),
    "calibrate": ("calibrate", "profiler.record", "roofline"),
    "profiler.cli": ("profiler", "calibrate", "roofline"),
    "profiler.__main__": ("profiler.cli",),
    "profiler": ("profiler", "roofline"),
}
"""Room -> rooms that it may import; a module belongs to the longest name that fits."""

NOT_FROM_BELOW = "profiler.cli"
"""Imported by itself and by `profiler.__main__` alone."""

ROOFLINE_NEEDS = {"numpy", "pydantic"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def room_of(module: str) -> str:
    return max((room for room in MAY_IMPORT if within(module, room)), key=len)


def imported(source: str, module: str) -> Iterator[str]:
    """Every module that the source imports, also inside functions; ``from a import b`` may mean a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def against_the_arrows(source: str, module: str) -> list[str]:
    room = room_of(module)
    wrong = []
    for name in imported(source, module):
        if name.split(".")[0] not in PACKAGES:
            continue
        allowed = any(within(name, target) for target in MAY_IMPORT[room])
        from_below = within(name, NOT_FROM_BELOW) and room not in (NOT_FROM_BELOW, "profiler.__main__")
        if not allowed or from_below:
            wrong.append(f"{module} imports {name}")
    return wrong


def test_there_is_something_to_check() -> None:
    assert {room_of(module_name(path)) for path in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    assert against_the_arrows(path.read_text(encoding="utf-8"), module_name(path)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("roofline.graph.op", "import profiler"),
        ("roofline.graph.op", "def f():\n    from calibrate.kernels.fit import fit"),
        ("profiler.record.folder", "from profiler import timing"),
        ("profiler.record.folder", "import calibrate.kernels.fit"),
        ("calibrate.kernels.fit", "from profiler.timing.cell import measure_cell"),
        ("calibrate.kernels.fit", "import profiler"),
        ("profiler.timing.cell", "from calibrate import efficiency"),
        ("profiler.timing.cell", "from profiler.cli import progress"),
        ("profiler.job", "from profiler.cli.app import main"),
    ],
)
def test_an_import_against_the_arrows_is_noticed(module: str, source: str) -> None:
    assert len(against_the_arrows(source, module)) == 1


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=module_name)
def test_init_files_are_empty(path: Path) -> None:
    assert path.read_bytes() == b""


@pytest.mark.parametrize("path", [path for path in FILES if within(module_name(path), "roofline")], ids=module_name)
def test_roofline_needs_numpy_and_pydantic_only(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"), module_name(path))}
    assert tops - {"roofline", *ROOFLINE_NEEDS} <= sys.stdlib_module_names


@pytest.mark.parametrize("room", ["roofline", "profiler.record", "calibrate"])
def test_loads_without_torch(room: str) -> None:
    modules = [module_name(path) for path in FILES if within(module_name(path), room)]
    program = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'pynvml')))\n"  # None: importing it is an error
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *modules], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_front_door_answers_without_torch() -> None:
    program = (
        "import sys\n"
        "from profiler.cli.app import main\n"
        "assert main(['--help']) == main(['list']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
