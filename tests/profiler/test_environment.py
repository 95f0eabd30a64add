from pathlib import Path

import pytest
import torch

from profiler.environment import collect, findings, version_findings
from profiler.findings.finding import Finding
from profiler.nvml import NvmlMissing, read_gpu


def test_the_cpu_is_described() -> None:
    found = Finding(severity="warns", what="it is noisy", mend="wait")
    environment = collect("cpu", [found, Finding(severity="note", what="by the way", mend="nothing")])
    assert environment.device_kind == "cpu"
    assert environment.device
    assert environment.threads == torch.get_num_threads()
    assert environment.versions["torch"] == torch.__version__
    assert environment.memory_bytes > 1 << 28
    assert environment.notes == ("it is noisy",)


def test_findings_come_worst_first_and_name_a_remedy(tmp_path: Path) -> None:
    order = ["invalidates", "warns", "note"]
    found = findings("cpu", tmp_path / "not" / "yet", interval_s=0.05)
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=order.index)
    assert all(f.what and f.mend for f in found)


def test_a_gpu_that_nvml_does_not_know_says_so() -> None:
    with pytest.raises(NvmlMissing, match="NVML"):
        read_gpu("ffffffff:ff:1f.0")


@pytest.mark.gpu
def test_a_gpu_is_described() -> None:
    environment = collect("cuda")
    assert environment.device_kind == "cuda"
    assert environment.device_uuid is not None
    assert environment.memory_bytes == torch.cuda.get_device_properties(0).total_memory
    assert {"cuda", "driver"} <= set(environment.versions)


def test_older_versions_than_supported_are_found() -> None:
    requirements = ["torch>=2.11", "numpy>=1.26", "scipy>=1.13", "pytest>=8; extra == 'test'"]
    found = version_findings(requirements, {"torch": "2.10.1+cpu", "numpy": "2.4.6", "scipy": None})
    assert [f.what for f in found] == [
        "torch 2.10.1+cpu; roofcal needs >=2.11",
        "scipy is missing; roofcal needs >=1.13",
    ]
    assert version_findings(["torch>=2.11"], {"torch": "2.13.0+cpu"}) == ()
    assert version_findings(["torch>=2.11"], {"torch": "2.14.0.dev20260101"}) == ()
    assert [f.severity for f in version_findings([], {})] == ["note"]
