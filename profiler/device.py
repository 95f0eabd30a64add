"""The device that a user names, and its address.

Example: ``parse_device("auto").type`` is "cuda" where torch sees a GPU, else "cpu"
"""

from typing import Any

import torch

from profiler import host_memory
from profiler.record.run import RequestError


def parse_device(name: str | torch.device) -> torch.device:
    """Torch's device of that name. Raises RequestError: unknown, of another kind, or not in this machine."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(name)
    except RuntimeError as error:
        raise RequestError(f"--device {name} is unknown; use auto, cpu, cuda or cuda:N") from error
    if where.type not in ("cpu", "cuda"):
        raise RequestError(f"--device {name} is not measured by roofcal; use auto, cpu, cuda or cuda:N")
    if where.type == "cuda":
        if not torch.cuda.is_available():
            build = "this torch is built without CUDA: install a CUDA build of torch"
            driver = "torch finds no usable GPU or driver: see that nvidia-smi lists one"
            raise RequestError(f"--device {name}: {driver if torch.version.cuda else build}, or use --device cpu")
        count = torch.cuda.device_count()
        if where.index is not None and where.index >= count:
            raise RequestError(f"--device {name}: this machine has {count}, from cuda:0 to cuda:{count - 1}")
    return where


def pci_bus_id(device: torch.device) -> str:
    """The PCI address of a CUDA device as NVML writes it, "domain:bus:device.0"."""
    found: Any = torch.cuda.get_device_properties(device)  # torch's stubs leave the PCI address out
    return f"{found.pci_domain_id:08x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"


def free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody uses now; on a CPU, what a control group leaves of it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return host_memory.free_bytes()
