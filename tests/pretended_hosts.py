"""Hosts that this machine pretends to be: proc and sys trees with the topology, the caches and the memory of another.

`profiler.devices.host` reads them where ROOFCAL_PRETEND_HOST names their folder. To run the tests on one of them:
``ROOFCAL_PRETEND_HOST=$(python -P tests/pretended_hosts.py /tmp/host l3-260m) python -m pytest tests/profiler``

Example: ``pretend(monkeypatch, tmp_path, HOSTS["l3-260m"])``
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from profiler.devices.host import VARIABLE

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Cache:
    """A cache of every group of CPUs that share one."""

    level: int
    size: str
    shared_by: int = 1
    kind: str = "Unified"
    cpus: range | None = None
    """The CPUs that have it; None: all."""


@dataclass(frozen=True)
class Host:
    """What the trees say."""

    cpus: int = 2
    allowed: str | None = None
    """CPUs that this process may use, as in "0-3,8"; None: all."""
    caches: Sequence[Cache] = ()
    siblings: int = 1
    """SMT threads of a core."""
    sockets: int = 1
    total_bytes: int = 16 * GIB
    free_bytes: int = 8 * GIB
    cgroup: str | None = None
    """"v1", "v2"."""
    limit_bytes: int | None = None
    used_bytes: int = 0
    quota: float | None = None
    has_sys: bool = True
    garbage: bool = False
    """Whether the files of the caches hold bytes that mean nothing."""

    def build(self, folder: Path) -> Path:
        """Write the trees; returns the folder."""
        allowed = self.allowed or f"0-{self.cpus - 1}"
        _put(folder / "proc/self/status", f"Name:\tpython\nCpus_allowed_list:\t{allowed}\n")
        _put(folder / "proc/cpuinfo", "processor\t: 0\nmodel name\t: Pretended CPU\nflags\t\t: fpu hypervisor\n")
        _put(
            folder / "proc/meminfo",
            f"MemTotal: {self.total_bytes >> 10} kB\nMemAvailable: {self.free_bytes >> 10} kB\n",
        )
        _put(folder / "proc/self/cgroup", {"v1": "4:memory:/box\n1:cpu:/box\n", None: ""}.get(self.cgroup, "0::/box\n"))
        if self.has_sys:
            self._sys(folder / "sys")
        return folder

    def _sys(self, root: Path) -> None:
        system = root / "devices/system"
        _put(system / "cpu/online", f"0-{self.cpus - 1}\n")
        for cpu in range(self.cpus):
            first = cpu // self.siblings * self.siblings
            _put(system / f"cpu/cpu{cpu}/topology/thread_siblings_list", f"{first}-{first + self.siblings - 1}\n")
            (system / f"cpu/cpu{cpu}/node{cpu * self.sockets // self.cpus}").mkdir()
            mine = [cache for cache in self.caches if cache.cpus is None or cpu in cache.cpus]
            for index, cache in enumerate(mine):
                self._cache(system / f"cpu/cpu{cpu}/cache/index{index}", cache, cpu)
        if self.cgroup == "v1":
            _put(root / "fs/cgroup/memory/box/memory.limit_in_bytes", f"{self.limit_bytes or 1 << 62}\n")
            _put(root / "fs/cgroup/memory/box/memory.usage_in_bytes", f"{self.used_bytes}\n")
            _put(root / "fs/cgroup/cpu/box/cpu.cfs_quota_us", f"{int((self.quota or -1e-5) * 100_000)}\n")
            _put(root / "fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n")
        if self.cgroup == "v2":
            _put(root / "fs/cgroup/box/memory.max", f"{self.limit_bytes or 'max'}\n")
            _put(root / "fs/cgroup/box/memory.current", f"{self.used_bytes}\n")
            _put(root / "fs/cgroup/box/cpu.max", f"{int(self.quota * 100_000) if self.quota else 'max'} 100000\n")

    def _cache(self, folder: Path, cache: Cache, cpu: int) -> None:
        if self.garbage:
            folder.mkdir(parents=True)
            for name in ("level", "type", "size", "shared_cpu_list"):
                (folder / name).write_bytes(b"\xff\xfe-many\x00K")
            return
        first = cpu // cache.shared_by * cache.shared_by
        _put(folder / "level", f"{cache.level}\n")
        _put(folder / "type", f"{cache.kind}\n")
        _put(folder / "shared_cpu_list", f"{first}-{min(first + cache.shared_by, self.cpus) - 1}\n")
        if cache.size:
            _put(folder / "size", f"{cache.size}\n")


def core(l3: str, shared_by: int) -> tuple[Cache, ...]:
    """The caches of a server core with its share of an L3."""
    return Cache(1, "48K", kind="Data"), Cache(1, "32K", kind="Instruction"), Cache(2, "512K"), Cache(3, l3, shared_by)


P_AND_E = (
    Cache(1, "48K", kind="Data", cpus=range(8)), Cache(2, "2048K", cpus=range(8)),
    Cache(1, "32K", kind="Data", cpus=range(8, 16)), Cache(2, "4096K", 4, cpus=range(8, 16)), Cache(3, "36M", 16),
)  # fmt: skip

HOSTS = {
    "l3-1m": Host(caches=core("1M", 2)),
    "l3-32m": Host(caches=core("32M", 2)),
    "l3-260m": Host(caches=core("260M", 2), total_bytes=32 * GIB, free_bytes=24 * GIB),
    "l3-1.2g": Host(cpus=4, caches=core("1179648K", 4), total_bytes=64 * GIB, free_bytes=48 * GIB),
    "one core": Host(cpus=1, caches=core("16M", 1)),
    "256 cores": Host(cpus=256, caches=core("32M", 8), total_bytes=512 * GIB, free_bytes=500 * GIB),
    "two sockets": Host(cpus=8, caches=core("16M", 4), sockets=2),
    "two of many cores": Host(cpus=32, allowed="8-9", caches=core("64M", 32)),
    "P and E cores": Host(cpus=16, caches=P_AND_E),
    "SMT": Host(cpus=4, caches=(Cache(2, "1M", 2), Cache(3, "8M", 4)), siblings=2),
    "cgroup v1": Host(caches=core("16M", 2), cgroup="v1", limit_bytes=4 * GIB, used_bytes=GIB, quota=1.5),
    "cgroup v2": Host(caches=core("16M", 2), cgroup="v2", limit_bytes=4 * GIB, used_bytes=GIB, quota=1.5),
    "cgroup without limits": Host(caches=core("16M", 2), cgroup="v2"),
    "no sysfs": Host(has_sys=False),
    "1 GiB free": Host(caches=core("32M", 2), free_bytes=GIB),
    "1 GiB free, 260 MiB of L3": Host(caches=core("260M", 2), free_bytes=GIB),
    "almost nothing free": Host(caches=core("32M", 2), free_bytes=64 * MIB),
    "no sizes": Host(caches=[replace(cache, size="") for cache in core("", 2)]),
    "garbage": Host(caches=core("32M", 2), garbage=True),
    "cache larger than memory": Host(caches=core("999G", 2)),
}


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, host: Host) -> None:
    """Be this host from now on, in this process and in those that it starts."""
    monkeypatch.setenv(VARIABLE, str(host.build(folder / "pretended host")))


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    folder, name = sys.argv[1:]
    sys.stdout.write(f"{HOSTS[name].build(Path(folder))}\n")
