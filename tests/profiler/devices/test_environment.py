from pathlib import Path

import pytest
import torch

from profiler.devices.conditions import Finding
from profiler.devices.environment import collect, findings
from profiler.devices.nvml import NvmlMissing, read_gpu


def test_the_cpu_is_described() -> None:
    found = Finding(severity="warns", what="it is noisy", why="times vary", mend="wait")
    environment = collect("cpu", [found, Finding(severity="note", what="by the way", why="", mend="nothing")])
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
    assert all(f.what and f.why and f.mend for f in found)


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
