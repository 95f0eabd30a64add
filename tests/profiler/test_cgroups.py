"""Limits of control groups from text and from folders, of both versions."""

from pathlib import Path

from profiler.cgroups import (
    memory_groups,
    parse_cgroups,
    parse_memory_limit,
    parse_quota_v1,
    parse_quota_v2,
    read_limits,
)
from profiler.host_memory import free_bytes, total_bytes


def test_control_groups() -> None:
    assert parse_cgroups("4:memory:/a/b\n1:cpu,cpuacct:/\n0::/user.slice\n") == {
        "memory": "/a/b", "cpu": "/", "cpuacct": "/", "": "/user.slice",
    }  # fmt: skip
    assert (parse_quota_v2("max 100000\n"), parse_quota_v2("150000 100000\n")) == (None, 1.5)
    assert (parse_quota_v1("-1\n", "100000\n"), parse_quota_v1("50000\n", "100000\n")) == (None, 0.5)
    assert parse_memory_limit("max\n") is None
    assert parse_memory_limit("9223372036854771712\n") is None
    assert parse_memory_limit("1073741824\n") == 1 << 30


def test_text_that_is_no_limit_limits_nothing() -> None:
    assert parse_cgroups("no colon\n\n0::/a\n") == {"": "/a"}
    assert [parse_quota_v2(text) for text in ("", "garbage", "1 0", "-1 5")] == [None] * 4
    assert parse_quota_v1("x", "") is None and parse_memory_limit("a lot") is None


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_tightest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    proc, sys_ = tmp_path / "proc", tmp_path / "sys"
    _put(proc / "self/cgroup", "0::/pod/box\n")
    root = sys_ / "fs/cgroup"
    _put(root / "pod/box/cpu.max", "max 100000\n")
    _put(root / "pod/box/memory.max", f"{8 << 30}\n")
    _put(root / "pod/cpu.max", "300000 100000\n")
    _put(root / "pod/memory.max", f"{4 << 30}\n")
    assert read_limits(proc, sys_) == (3.0, 4 << 30)


def test_limits_of_the_older_hierarchy_even_where_the_own_group_is_hidden(tmp_path: Path) -> None:
    proc, sys_ = tmp_path / "proc", tmp_path / "sys"
    _put(proc / "self/cgroup", "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n")
    root = sys_ / "fs/cgroup"
    _put(root / "cpu/cpu.cfs_quota_us", "200000\n")
    _put(root / "cpu/cpu.cfs_period_us", "100000\n")
    _put(root / "memory/memory.limit_in_bytes", f"{1 << 30}\n")
    assert read_limits(proc, sys_) == (2.0, 1 << 30)


def test_what_is_free_is_the_limit_less_what_cannot_be_reclaimed(tmp_path: Path) -> None:
    proc, sys_ = tmp_path / "proc", tmp_path / "sys"
    _put(proc / "self/cgroup", "0::/box\n")
    _put(proc / "meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    assert (total_bytes(proc, sys_), free_bytes(proc, sys_)) == (16 << 30, 8 << 30)
    _put(sys_ / "fs/cgroup/box/memory.max", f"{4 << 30}\n")
    _put(sys_ / "fs/cgroup/box/memory.current", f"{3 << 30}\n")
    assert (total_bytes(proc, sys_), free_bytes(proc, sys_)) == (4 << 30, 1 << 30)
    _put(sys_ / "fs/cgroup/box/memory.stat", f"anon 5\ninactive_file {1 << 30}\n")
    assert free_bytes(proc, sys_) == 2 << 30
    _put(sys_ / "fs/cgroup/box/memory.current", f"{9 << 30}\n")
    assert free_bytes(proc, sys_) == 0, "more is used than allowed: nothing is free"


def test_what_is_free_in_the_older_hierarchy(tmp_path: Path) -> None:
    proc, sys_ = tmp_path / "proc", tmp_path / "sys"
    _put(proc / "self/cgroup", "4:memory:/docker/abc\n")
    _put(sys_ / "fs/cgroup/memory/docker/abc/memory.limit_in_bytes", f"{2 << 30}\n")
    _put(sys_ / "fs/cgroup/memory/docker/abc/memory.usage_in_bytes", f"{1 << 30}\n")
    _put(sys_ / "fs/cgroup/memory/docker/abc/memory.stat", f"total_inactive_file {1 << 29}\n")
    (group,) = memory_groups(proc, sys_)
    assert (group.limit_bytes, group.left_bytes) == (2 << 30, 3 << 29)
