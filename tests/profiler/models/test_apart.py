"""A user's module in a process of its own: whatever its factory does, the program goes on."""

from pathlib import Path

import pytest

from profiler.models.apart import trace_apart
from profiler.record.run import RequestError

FACTORIES = """
import os, sys, threading, time
import torch

def exits(): sys.exit(3)
def never():
    while True:
        try: time.sleep(60)
        except BaseException: pass
def forks():
    print("noise")
    threading.Thread(target=never).start()
    os.fork()
    return torch.nn.Linear(4, 3), (torch.zeros(2, 4),)
def refused(): raise ValueError("no\\nsuch thing")
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "factories_apart.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    return "factories_apart"


@pytest.mark.starts_product
def test_a_factory_that_ends_forks_or_never_returns(factories: str, capfd: pytest.CaptureFixture[str]) -> None:
    graph = trace_apart(f"{factories}:forks")
    assert sum(op.matrix_flops for op in graph.ops) == 2 * 2 * 4 * 3
    out, err = capfd.readouterr()
    assert out == "" and err.count("noise") == 1
    for factory, seconds, why in (
        ("exits", 60, r"it ended its process \(exit code 3\) before it returned a module"),
        ("never", 2, "it did not return within 2 s; give it longer with --module-seconds"),
        ("refused", 60, r"the factory failed \(ValueError: no\)"),
    ):
        with pytest.raises(RequestError, match=f"--module {factories}:{factory}: {why}"):
            trace_apart(f"{factories}:{factory}", seconds)
    with pytest.raises(RequestError, match=r"write it as package\.module:factory"):
        trace_apart("nothing")
