import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from profiler.devices import environment
from profiler.devices.backend import CPU, CUDA
from profiler.devices.conditions import Finding
from profiler.devices.environment import collect, commit, findings
from profiler.devices.nvml import NvmlMissing, read_gpu


def test_the_cpu_is_described() -> None:
    found = Finding(severity="warns", what="it is noisy", why="times vary", mend="wait")
    described = collect("cpu", [found, Finding(severity="note", what="by the way", why="", mend="nothing")])
    assert described.device_kind == "cpu"
    assert described.device
    assert described.threads == torch.get_num_threads()
    assert described.versions["torch"] == torch.__version__
    assert described.memory_bytes > 1 << 28
    assert described.notes == ("it is noisy",)


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_commit_of_the_measured_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "commit" not in collect("cpu", ()).versions, "no repository"
    git(tmp_path, "init")
    assert commit() is None, "no commit yet"
    (tmp_path / "kernel.py").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a")
    git(tmp_path, "tag", "v1")
    known = collect("cpu", ()).versions["commit"]
    assert len(known) == 40 and int(known, 16)
    (tmp_path / "new.py").write_text("a file that git does not track")
    assert commit() == known
    (tmp_path / "kernel.py").write_text("b")
    assert commit() == f"{known}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None, "no git"


def test_findings_come_worst_first_and_name_a_remedy(tmp_path: Path) -> None:
    order = ["invalidates", "warns", "note"]
    found = findings("cpu", tmp_path / "not" / "yet", interval_s=0.05)
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=order.index)
    assert all(f.what and f.why and f.mend for f in found)


def test_threads_of_products_matter_on_the_host_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for kind, expected in ((CPU, True), (CUDA, False)):
        backend = SimpleNamespace(is_host=kind.is_host, variables=kind.variables, findings=lambda device: ())
        monkeypatch.setattr(environment, "backend_of", lambda device, backend=backend: backend)
        said = [finding.what for finding in findings("cpu", tmp_path, interval_s=0.01)]
        assert any(what.startswith("MKL_NUM_THREADS=1, while torch uses 2") for what in said) == expected, kind.label


def test_a_gpu_that_nvml_does_not_know_says_so() -> None:
    with pytest.raises(NvmlMissing, match="NVML"):
        read_gpu("ffffffff:ff:1f.0")


@pytest.mark.gpu
def test_a_gpu_is_described() -> None:
    described = collect("cuda")
    assert described.device_kind == "cuda"
    assert described.device_uuid is not None
    assert described.memory_bytes == torch.cuda.get_device_properties(0).total_memory
    assert {"cuda", "driver"} <= set(described.versions)
