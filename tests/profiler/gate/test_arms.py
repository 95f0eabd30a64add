"""The processes of a gate, started for real; kernels keep a diary of who ran, and no test looks at a time."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from profiler.gate.arms import Turns, sides
from profiler.record.run import RequestError

DIARY = """
import os, signal, time
diary = open({diary!r}, "a")
print({side!r}, os.getpid(), file=diary, flush=True)
def kernel_a(): pass
def kernel_b(): pass
"""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def turns(tmp_path: Path, base: str, new: str, timeout_s: float = 60, kernels: Path | None = None) -> Turns:
    with sides(base, new, kernels) as (old, now):
        return Turns(old, now, random.Random(1), seconds=0.001, timeout_s=timeout_s)


def files(tmp_path: Path, more: str = "") -> tuple[str, str, Path]:
    diary = tmp_path / "diary"
    base, new = (tmp_path / f"{side}.py" for side in ("base", "new"))
    write(base, DIARY.format(diary=str(diary), side="base"))
    write(new, DIARY.format(diary=str(diary), side="new") + more)
    return str(base), str(new), diary


def test_sides_take_turns_in_processes_of_their_own(tmp_path: Path) -> None:
    base, new, diary = files(tmp_path)
    run = turns(tmp_path, base, new)
    pairs, failed = run.draw(["a", "b"], 6)
    assert failed == {} and {name: len(times) for name, times in pairs.items()} == {"a": 6, "b": 6}
    assert all(time > 0 for times in pairs.values() for pair in times for time in pair)
    lines = [line.split() for line in diary.read_text().splitlines()]
    assert len({pid for _, pid in lines}) == len(lines) == 12 == run.processes
    order = "".join(side[0] for side, _ in lines)
    assert {order[i : i + 4] for i in range(0, 12, 4)} <= {"bnnb", "nbbn"}
    diary.write_text("")
    run.draw(["a"], 2, against_itself=True)
    assert [line.split()[0] for line in diary.read_text().splitlines()] == ["base"] * 4


GPUS = """
import sys, types
cuda = types.SimpleNamespace(is_available=lambda: True, is_initialized=lambda: False, device_count=lambda: 2,
                             get_device_name=lambda i: {names}[i])
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda, __version__="0")
print(os.environ.get("CUDA_VISIBLE_DEVICES"), file=diary, flush=True)
"""


@pytest.mark.parametrize(
    ("names", "visible", "second"),
    [(["H200", "H200"], "", "1"), (["H200", "H200"], "3,5", "5"), (["H200", "T4"], "", None)],
)
def test_a_second_gpu_of_the_same_kind_draws_again(
    names: list[str], visible: str, second: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    base, new, diary = files(tmp_path)
    for path in (base, new):
        write(Path(path), Path(path).read_text() + GPUS.format(names=names))
    run = turns(tmp_path, base, new)
    assert run.list(run.base).devices == tuple(names) and run.second == second
    for again in (False, True):
        diary.write_text("")
        pairs, failed = run.draw(["a"], 1, again=again)
        assert not failed and len(pairs["a"]) == 1
        seen = {line for line in diary.read_text().split("\n")[1::2] if line}
        assert seen == ({second} if again and second else {visible} if visible else set())


CRASHES = """
def kernel_dies(): os.kill(os.getpid(), signal.SIGSEGV)
def kernel_leaves(): os._exit(7)
def kernel_raises(): raise ValueError("wrong \\x1b[2J shape")
def kernel_hangs(): time.sleep(600)
"""


def test_a_crash_costs_one_kernel(tmp_path: Path) -> None:
    base, new, _ = files(tmp_path, CRASHES)
    write(Path(base), Path(base).read_text() + "".join(f"def kernel_{name}(): pass\n" for name in
          ("dies", "leaves", "raises", "hangs")))  # fmt: skip
    run = turns(tmp_path, base, new, timeout_s=4)
    pairs, failed = run.draw(["a", "dies", "leaves", "raises", "hangs", "b"], 2)
    assert pairs.keys() == {"a", "b"} and all(len(times) == 2 for times in pairs.values())
    assert failed["dies"] == "new: it was ended by SIGSEGV"
    assert failed["leaves"] == "new: it ended with code 7"
    assert failed["raises"].startswith("new: ValueError: wrong")
    assert failed["hangs"] == "new: it took more than 4 s"


@pytest.mark.parametrize(
    ("text", "why"),
    [("def kernel_a(: pass", "SyntaxError"), ("import nothing_of_this_name", "No module named"),
     ("x = 1", "found no kernel"), ("raise SystemExit(3)", "SystemExit"), ("import os; os._exit(9)", "code 9")],
)  # fmt: skip
def test_a_file_that_cannot_run_is_refused(tmp_path: Path, text: str, why: str) -> None:
    file = write(tmp_path / "k.py", text)
    run = turns(tmp_path, file, file)
    with pytest.raises(RequestError, match=why) as refusal:
        run.list(run.base)
    assert "\n" not in str(refusal.value)


def test_commits_run_one_file_of_kernels_with_their_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()

    def git(*arguments: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *name, *arguments], cwd=repository, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    for value in (1, 2):
        write(repository / "code_under_test.py", f"VALUE = {value}\n")
        git("add", ".")
        git("commit", "-qm", str(value))
    kernels = repository / "bench.py"
    write(kernels, f"import code_under_test\nopen({str(tmp_path / 'seen')!r}, 'a').write(str(code_under_test.VALUE))\n"
          "def kernel(): pass\n")  # fmt: skip
    monkeypatch.chdir(repository)
    with sides("HEAD~1", "HEAD", kernels) as (old, now):
        run = Turns(old, now, random.Random(1), seconds=0.001)
        assert run.list(old).found == ("kernel",)
        run.sample(old, ["kernel"])
        run.sample(now, ["kernel"])
        assert git("worktree", "list").count("\n") == 3
    assert (tmp_path / "seen").read_text() == "112"
    assert git("worktree", "list").count("\n") == 1
    with sides(str(repository), sys.executable, kernels) as (tree, interpreter):
        assert run.list(tree).found == run.list(interpreter).found == ("kernel",)


def test_sides_that_are_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    file, text = write(tmp_path / "k.py", "def kernel(): pass"), write(tmp_path / "notes.txt", "")
    bad = [
        ("nothing", file, None, "--kernels"), ("nothing", "HEAD", Path(file), "no commit"),
        (text, text, Path(file), "neither a Python file nor an interpreter"), (file, file, Path(file), "leave out"),
        ("HEAD", "HEAD", Path("gone.py"), "no file of kernels"), ("--force", "x", Path(file), "no commit"),
    ]  # fmt: skip
    for base, new, kernels, why in bad:
        with pytest.raises(RequestError, match=why), sides(base, new, kernels):
            pass
