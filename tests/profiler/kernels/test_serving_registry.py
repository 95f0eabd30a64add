"""Kernels of a user's file and of a FlashInfer-Bench solution stand beside the list's, or are refused in one line."""

import json
from pathlib import Path

import pytest
import torch

from profiler.kernels.serving.check import Subject, check_kernel
from profiler.kernels.serving.registry import Registry, UserError
from profiler.record.suite_table import Check, KernelId

RIGHT = "return x * (x.float().pow(2).mean(-1, keepdim=True) + eps).rsqrt().to(x.dtype) * weight"
SOLUTION = {
    "name": "by_hand",
    "definition": "gemm_n48_k96",
    "author": "nobody",
    "spec": {
        "language": "python",
        "target_hardware": ["cpu"],
        "entry_point": "main.py::run",
        "destination_passing_style": True,
    },
    "sources": [
        {
            "path": "main.py",
            "content": "from part.helper import product\ndef run(A, B, C):\n    C.copy_(product(A, B))\n",
        },
        {"path": "part/helper.py", "content": "def product(a, b):\n    return (a.float() @ b.float().T).to(a.dtype)\n"},
    ],
}
"""As docs/flashinfer-trace/solution.mdx of FlashInfer-Bench describes one."""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def checked(registry: Registry, family: str, provider: str, dtype: str = "float32", **dims: int) -> Check:
    chosen = registry.family(family)
    subject = Subject(chosen, chosen.provider(provider), dtype, torch.device("cpu"))
    return check_kernel(subject, dims or None, draws=1)


def test_a_function_and_a_familys_name_are_enough(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", f'FAMILY = "rms_norm"\ndef kernel(x, weight, eps):\n    {RIGHT}\n')
    registry = Registry.of([file])
    assert registry.file_of("rms_norm", "mine") == file and registry.file_of("rms_norm", "torch") is None
    assert checked(registry, "rms_norm", "mine").status == "passed"


def test_a_file_lists_several_and_brings_families_of_its_own(tmp_path: Path) -> None:
    file = write(
        tmp_path / "own.py",
        "from dataclasses import replace\n"
        "from profiler.kernels.serving.families import FAMILIES as known\n"
        'norm = next(family for family in known if family.name == "rms_norm")\n'
        'FAMILIES = [replace(norm, name="my_norm")]\n'
        f"def one(x, weight, eps):\n    {RIGHT}\n"
        f"def two(x, width, weight, eps, dtype):\n    assert x.shape[1] == width and x.dtype == dtype\n    {RIGHT}\n"
        'KERNELS = [("rms_norm", one), ("my_norm", two)]\n',
    )
    registry = Registry.of([file])
    assert checked(registry, "rms_norm", "own:one").status == "passed"
    assert checked(registry, "my_norm", "own:two").status == "passed"
    assert checked(registry, "my_norm", "torch").status == "passed"


@pytest.mark.parametrize("style", [True, False])
def test_a_solution_runs_at_the_sizes_of_its_definition(tmp_path: Path, style: bool) -> None:
    content = json.loads(json.dumps(SOLUTION))
    content["spec"]["destination_passing_style"] = style
    if not style:
        content["sources"][0]["content"] = "from part.helper import product\ndef run(A, B):\n    return product(A, B)\n"
    registry = Registry.of([write(tmp_path / "solution.json", json.dumps(content))])
    _, listed = registry.listed["linear", "by_hand"]
    assert dict(listed.fixed) == {"n": 48, "k": 96} and listed.dtypes == ("float16",)
    assert checked(registry, "linear", "by_hand", "float16", m=5, n=48, k=96).status == "passed"


BAD = (
    ("none.py", None, "none.py"),
    ("text.txt", "x = 1", "ends in .py"),
    ("syntax.py", "def kernel(:\n", "does not import (SyntaxError"),
    ("exits.py", "raise SystemExit(3)", "does not import (SystemExit"),
    ("empty.py", "x = 1", "names no kernel"),
    ("family.py", 'FAMILY = "rms_nrm"\ndef kernel(x): return x', "no kernel family 'rms_nrm'; did you mean rms_norm"),
    ("operand.py", 'FAMILY = "rms_norm"\ndef kernel(y, weight): return y', "no operand of rms_norm 'y'"),
    ("two.py", 'FAMILY = "rms_norm"\ndef a(x): return x\ndef b(x): return x', "needs one function named kernel"),
    ("pairs.py", 'KERNELS = [("rms_norm",)]', "KERNELS holds pairs"),
    ("broken.json", "{", "broken.json"),
    ("other.json", '{"name": "x"}', "no solution of FlashInfer-Bench"),
    ("mla.json", json.dumps(SOLUTION | {"definition": "mla_paged_decode"}), "no family is joined to the definition"),
    (
        "cuda.json",
        json.dumps(SOLUTION | {"spec": SOLUTION["spec"] | {"language": "cuda"}}),  # type: ignore[operator]
        "solutions in 'cuda' are not built here",
    ),
)


@pytest.mark.parametrize(("name", "text", "said"), BAD, ids=[name for name, *_ in BAD])
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as refused:
        Registry.of([str(path)])
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_source_that_leaves_its_folder_is_a_compile_error(tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    content = SOLUTION | {"sources": [*SOLUTION["sources"], {"path": str(outside), "content": "x = 1"}]}  # type: ignore[misc]
    registry = Registry.of([write(tmp_path / "solution.json", json.dumps(content))])
    check = checked(registry, "linear", "by_hand", "float16", m=5, n=48, k=96)
    assert check.status == "compile error" and not outside.exists()


def test_unknown_names_are_refused_with_the_nearest() -> None:
    registry = Registry.of(())
    with pytest.raises(UserError, match="did you mean rms_norm"):
        registry.family("rms_nrom")
    with pytest.raises(UserError, match="did you mean torch"):
        registry.find(KernelId(family="rms_norm", provider="torhc", dtype="float32", dims={}))
