"""The machine and its software, as a run records them, and what about them spoils a measurement.

`collect` gives the record; `findings` looks at the machine for half a second and gives what `doctor` prints.
A device is a torch device or its name: "cpu", "cuda", "cuda:1".

Example: ``collect("cpu").device``, ``[finding.what for finding in findings("cpu")]``
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from packaging.requirements import Requirement

from profiler.devices.activity import read_host
from profiler.devices.backend import backend_of, parse_device
from profiler.devices.conditions import ORDER, Finding
from profiler.devices.findings import (
    DISTRIBUTION,
    disk_findings,
    host_findings,
    installed,
    requirements,
    variable_findings,
    version_findings,
)
from profiler.devices.host import usable_cpus
from profiler.record.run import Environment
from roofline.reading import entry

RECORDED = ("torch", "transformers", "numpy", "triton", "flash-attn", "flashinfer-python", "nvidia-ml-py")
"""Distributions whose version can change a time; those not installed are left out."""
GIT_S = 10.0
"""Seconds that git may take to compare a working tree with its commit; without an answer the run has no commit."""


def collect(device: str | torch.device, known: Sequence[Finding] | None = None) -> Environment:
    """Describe the machine; `known` are findings just made, looked for now if None.

    Raises RequestError where there is no such device.
    """
    chosen = parse_device(device)
    backend = backend_of(chosen)
    name, uuid, extra = backend.describe(chosen)
    return Environment(
        device=name,
        device_kind=backend.type,
        device_uuid=uuid,
        cores=len(usable_cpus()),
        threads=torch.get_num_threads(),
        memory_bytes=backend.memory_bytes(chosen),
        hostname=platform.node(),
        os=platform.platform(),
        python=platform.python_version(),
        clocks=backend.clock_settings(chosen),
        versions={**versions(), **extra, **({"commit": found} if (found := commit()) else {})},
        notes=tuple(
            finding.what for finding in (findings(device) if known is None else known) if finding.severity != "note"
        ),
    )


def versions() -> dict[str, str]:
    """Installed versions of roofcal and of what can change a time; torch's with its build, as in 2.11.0+cu130."""
    known = {name: version for name in (DISTRIBUTION, *RECORDED) if (version := installed(name)) is not None}
    return {**known, "torch": str(torch.__version__)}


def commit(folder: Path = Path()) -> str | None:
    """The commit of the git repository that holds this folder, with "-dirty" where a file that git tracks has changed;
    None where there is no repository, no commit or no git."""
    command = ["git", "-c", "core.fsmonitor=false", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=GIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def findings(
    device: str | torch.device, results: Path = Path("results"), interval_s: float = 0.5
) -> tuple[Finding, ...]:
    """Return the conditions that spoil a measurement on this device now, the worst first; this takes `interval_s`.

    Raises RequestError where there is no such device.
    """
    chosen = parse_device(device)
    backend, threads, needed = backend_of(chosen), torch.get_num_threads(), requirements()
    folder = next(path for path in (results.absolute(), *results.absolute().parents) if entry(path))
    all_findings = (
        *host_findings(read_host(threads, interval_s), backend.is_host),
        *variable_findings(os.environ, backend.variables, threads if backend.is_host else None),
        *backend.findings(chosen),
        *disk_findings(shutil.disk_usage(folder).free, str(results)),
        *version_findings(needed, {name: installed(name) for name in (Requirement(line).name for line in needed)}),
    )
    return tuple(sorted(all_findings, key=lambda finding: ORDER.index(finding.severity)))
