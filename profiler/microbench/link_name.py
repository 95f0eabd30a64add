"""What lies between the ranks of a measurement, named as in `Peaks.links`, from what the ranks can see.

- "network": they run on more than one host (the slowest link of a ring is what it is as fast as);
- "loopback": gloo within one host, TCP through the kernel: nothing that a device is connected by, so no device file
  has it;
- "infinity-fabric": AMD's GPUs within one host;
- "nvlink": NVIDIA's, where the driver says so of every pair;
- "pcie": NVIDIA's otherwise; also GPUs of one host that reach each other through its memory only;
- "unknown": NVIDIA's, where the driver cannot be asked. No `Link` is made of such measurements.

Example: ``link_name(backend="nccl", hosts=1, rocm=False, nvlinked=lambda: True)`` → "nvlink"
"""

from collections.abc import Callable, Sequence
from itertools import combinations

import pynvml

UNKNOWN = "unknown"


def link_name(*, backend: str, hosts: int, rocm: bool, nvlinked: Callable[[], bool]) -> str:
    """The name; `nvlinked` is asked only where it matters."""
    if hosts > 1:
        return "network"
    if backend == "gloo":
        return "loopback"
    if rocm:
        return "infinity-fabric"
    try:
        return "nvlink" if nvlinked() else "pcie"
    except pynvml.NVMLError:
        return UNKNOWN


def all_nvlinked(uuids: Sequence[str]) -> bool:
    """Whether the driver says that every two GPUs of this host ("GPU-…") reach each other over NVLink.

    Raises pynvml.NVMLError where the driver cannot be asked.
    """
    pynvml.nvmlInit()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        states = (
            pynvml.nvmlDeviceGetP2PStatus(a, b, pynvml.NVML_P2P_CAPS_INDEX_NVLINK) for a, b in combinations(handles, 2)
        )
        return all(state == pynvml.NVML_P2P_STATUS_OK for state in states)
    finally:
        pynvml.nvmlShutdown()
