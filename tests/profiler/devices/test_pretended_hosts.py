"""What is read of a host's topology, and that everything that measures survives every host."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretended_hosts import GIB, HOSTS, MIB, Host, pretend

from profiler.devices import caches as effective_module
from profiler.devices import host as host_memory
from profiler.devices.activity import read_host
from profiler.devices.caches import (
    TRUSTED_BYTES,
    cache_capacities,
    curve_of,
    effective_cache,
    main_capacity,
    parse_size,
    probe_sizes,
    read_cpu_caches,
)
from profiler.devices.environment import collect, findings
from profiler.devices.host import parse_cpu_list, read_processor, usable_cpus
from profiler.microbench import memory, pointwise
from profiler.microbench.bench import Bench

CPU = torch.device("cpu")


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    pretend(monkeypatch, tmp_path, HOSTS[request.param])
    monkeypatch.setattr(effective_module, "read_curve", lambda device: None)  # no probe of the real machine
    monkeypatch.setattr(memory, "read_curve", lambda device: None)
    return HOSTS[request.param]


def stated(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path, threads: int) -> dict[str, float]:
    """MiB by level."""
    pretend(monkeypatch, folder, HOSTS[name])
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    return {one.name: one.bytes / MIB for one in cache_capacities(CPU)}


@pytest.mark.parametrize(
    ("name", "threads", "expected"),
    [
        ("l3-260m", 2, {"L1": 0.09375, "L2": 1, "L3": 260}),
        ("l3-260m", 1, {"L1": 0.046875, "L2": 0.5, "L3": 260}),
        ("l3-1.2g", 4, {"L1": 0.1875, "L2": 2, "L3": 1152}),
        ("256 cores", 256, {"L1": 12, "L2": 128, "L3": 1024}),
        ("256 cores", 4, {"L1": 0.1875, "L2": 2, "L3": 128}),  # wherever the threads run
        ("two sockets", 8, {"L1": 0.375, "L2": 4, "L3": 32}),
        ("two of many cores", 2, {"L1": 0.09375, "L2": 1, "L3": 64}),
        ("P and E cores", 16, {"L1": 0.625, "L2": 24, "L3": 36}),
        ("P and E cores", 2, {"L1": 0.09375, "L2": 8, "L3": 36}),
        ("SMT", 2, {"L2": 2, "L3": 8}),
        ("no sysfs", 2, {}),
        ("no sizes", 2, {}),
        ("garbage", 2, {}),
        ("cache larger than memory", 2, {"L1": 0.09375, "L2": 1}),
    ],
)  # fmt: skip
def test_caches_that_an_operation_reaches(
    name: str, threads: int, expected: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert stated(name, monkeypatch, tmp_path, threads) == expected


def test_instances_are_told_apart_and_instructions_left_out(tmp_path: Path) -> None:
    sys_ = HOSTS["two sockets"].build(tmp_path) / "sys"
    found = read_cpu_caches(range(8), sys_)
    assert [(one.name, sorted(one.cpus)) for one in found if one.name == "L3"] == [
        ("L3", [0, 1, 2, 3]),
        ("L3", [4, 5, 6, 7]),
    ]
    assert len([one for one in found if one.name == "L1"]) == 8
    assert read_cpu_caches(range(8), tmp_path / "nowhere") == ()


def test_sizes_and_lists() -> None:
    assert [parse_size(text) for text in ("48K\n", "33M", "512", "1G")] == [49152, 33 << 20, 512, GIB]
    assert [parse_size(text) for text in ("", "K", "many", "-4K", "0K", "\ufffd")] == [None] * 6
    assert parse_cpu_list("0-2,8\n") == (0, 1, 2, 8)


def test_memory_is_that_of_the_group_or_the_machine(host: Host) -> None:
    total, free = host_memory.total_bytes(), host_memory.free_bytes()
    limit = host.limit_bytes or host.total_bytes
    assert total == min(host.total_bytes, limit)
    assert free == min(host.free_bytes, limit - host.used_bytes)
    assert main_capacity(CPU).bytes == total
    assert Bench(CPU).limit_bytes == min(3 << 29, free // 8)


def test_what_describes_a_host_survives_it(host: Host) -> None:
    allowed = parse_cpu_list(host.allowed) if host.allowed else tuple(range(host.cpus))
    assert usable_cpus() == allowed
    reading = read_host(sleep=lambda seconds: None)
    assert (reading.cores, reading.cpu_quota_cores) == (len(allowed), host.quota)
    processor = read_processor(allowed)
    if host.has_sys:
        assert processor.physical_cores == len(allowed) // host.siblings
        assert processor.numa_nodes == (host.sockets if host.allowed is None else 1)
    found = collect("cpu", findings("cpu", interval_s=0.0))
    assert (found.device, found.cores, found.memory_bytes) == ("Pretended CPU", len(allowed), host_memory.total_bytes())


def test_every_host_has_a_cache_to_get_past_and_says_where_it_is_from(host: Host) -> None:
    found = effective_cache(CPU)
    capacities = cache_capacities(CPU)
    if not capacities:
        assert (found.bytes, found.stated_bytes, found.source) == (TRUSTED_BYTES, None, "assumed")
    else:
        largest = max(one.bytes for one in capacities)
        assert (found.bytes, found.stated_bytes) == (largest, largest)
        assert found.source == ("stated" if largest <= TRUSTED_BYTES else "assumed")
    bench = Bench(CPU)
    assert (bench.cache_bytes, bench.cache_source, bench.cache_reason) == (found.bytes, found.source, found.reason)


def test_operands_of_main_memory_fit_what_is_free_or_are_missing_with_their_reason(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is allocated: the bench is asked for the operands, and told that each case worked."""
    bench = Bench(CPU)
    asked: list[int] = []

    def time(family: str, kernel: str, build: object, **given: object) -> object:
        asked.append(int(given["parameters"]["operand_bytes"]))  # type: ignore[index]
        return bench.missing(family, kernel, unit="B/s", reason="not run")

    monkeypatch.setattr(Bench, "time", lambda self, *args, **given: time(*args, **given))
    found = list(memory.main_memory(bench))
    assert len(found) == len(memory.KERNELS)
    sizes: list[int] = []
    monkeypatch.setattr(Bench, "time", lambda self, *args, **given: sizes.append(given["parameters"]["elements"]))
    assert len(list(pointwise.vector(bench))) == len(sizes) > 0
    l2_bytes = max([one.bytes for one in cache_capacities(CPU) if one.name == "L2"], default=2 * MIB)
    assert all(0 < 2 * 2 * size <= l2_bytes for size in sizes), "input and output of 16 bits or more fit in L2"
    if asked:
        assert all(3 * size <= (bench.limit_bytes or 0) for size in asked)
    else:
        assert host is HOSTS["almost nothing free"]
        (reason,) = {one.reason for one in found}
        assert reason is not None and f"{bench.limit_bytes} are allowed" in reason


@pytest.mark.parametrize("name", ["l3-1m", "l3-260m", "1 GiB free, 260 MiB of L3", "no sysfs", "garbage", "SMT"])
def test_measured_bandwidth_on_a_pretended_host(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path, HOSTS[name])
    monkeypatch.setattr(effective_module, "MOST_BYTES", 32 * MIB)
    bench = Bench(CPU, budget_s=0.01, quick=True, limit_bytes=min(96 * MIB, host_memory.free_bytes() // 8))
    found = list(memory.main_memory(bench))
    assert [one.reason for one in found if not one.has_value] == []
    for one in found:
        assert one.cache is not None and one.cache.cache_source == bench.cache_source
        assumed = [label.what for label in one.labels if "the last-level cache is taken as" in label.what]
        assert bool(assumed) == (bench.cache_source != "stated")
        if one.cache.holds is False:
            assert any(label.severity == "warns" and "cold" in label.what for label in one.labels)


def true_cache(size: int, stated_bytes: int | None, *, cached: float = 40e9, main: float = 10e9) -> object:
    """The curve of a machine whose cache holds `size` bytes: beyond them a share of each pass comes from memory."""

    def read(buffer: int) -> float:
        hit = min(buffer, max(0, 2 * size - buffer))  # half of the cache is gone at 1.5 times its size
        return hit / cached + (buffer - hit) / main

    sizes = probe_sizes(max(stated_bytes or effective_module.MOST_BYTES, TRUSTED_BYTES), 4 * GIB)
    return curve_of(sizes, read, lambda: 0.0)


def test_the_part_of_a_shared_cache_that_a_guest_has_is_found() -> None:
    for truth in (10, 24, 40, 60, 100):
        found = effective_module.judged(260 * MIB, true_cache(truth * MIB, 260 * MIB))  # type: ignore[arg-type]
        assert found.source == "measured" and truth * MIB <= found.bytes <= max(TRUSTED_BYTES, 4 * truth * MIB), truth
        assert "260 MiB" in found.reason
    small = effective_module.judged(260 * MIB, true_cache(4 * MIB, 260 * MIB))  # type: ignore[arg-type]
    assert small.source == "assumed", "the whole curve lies past it"


def test_never_more_than_stated_nor_less_than_is_trusted() -> None:
    most = effective_module.judged(40 * MIB, true_cache(36 * MIB, 40 * MIB))  # type: ignore[arg-type]
    assert (most.bytes, most.source) == (40 * MIB, "measured")
    below = effective_module.judged(260 * MIB, true_cache(10 * MIB, 260 * MIB))  # type: ignore[arg-type]
    assert below.bytes == TRUSTED_BYTES


def test_a_cache_that_really_is_that_large_is_kept() -> None:
    found = effective_module.judged(1152 * MIB, true_cache(1152 * MIB, 1152 * MIB))  # type: ignore[arg-type]
    assert (found.bytes, found.source) == (1152 * MIB, "assumed")


def test_without_a_statement_the_curve_decides() -> None:
    shown = effective_module.judged(None, true_cache(60 * MIB, None))  # type: ignore[arg-type]
    assert shown.source == "measured" and 60 * MIB <= shown.bytes <= 240 * MIB
    flat = effective_module.judged(None, true_cache(1, None))  # type: ignore[arg-type]
    assert (flat.bytes, flat.source) == (TRUSTED_BYTES, "assumed") and "states no cache" in flat.reason


def test_other_work_during_a_round_does_not_make_the_cache_smaller() -> None:
    calls = 0

    def read(size: int) -> float:
        nonlocal calls
        calls += 1
        slow = 5.0 if calls <= 2 * len(sizes) else 1.0  # all of the first round
        return slow * size / (40e9 if size <= 64 * MIB else 10e9)

    sizes = probe_sizes(260 * MIB, 4 * GIB)
    found = curve_of(sizes, read, lambda: 0.0)
    assert found is not None and found.past_bytes is not None and 64 * MIB < found.past_bytes <= 96 * MIB


def test_a_size_that_other_work_always_met_does_not_end_the_cache() -> None:
    sizes = probe_sizes(260 * MIB, 4 * GIB)

    def read(size: int) -> float:
        return size / (8e9 if size == sizes[2] else 40e9 if size <= 64 * MIB else 10e9)

    found = curve_of(sizes, read, lambda: 0.0)
    assert found is not None and found.past_bytes is not None and found.past_bytes > 64 * MIB


def test_the_probe_ends_at_its_deadline() -> None:
    now = 0.0

    def read(size: int) -> float:
        nonlocal now
        now += 0.3
        return 0.3

    assert curve_of(probe_sizes(260 * MIB, 4 * GIB), read, lambda: now) is None
    assert now <= effective_module.DEADLINE_S + 2 * 0.3


def test_the_probe_takes_no_more_memory_than_it_may() -> None:
    for limit_mib in (0, 7, 8, 20, 100, 4096):
        sizes = probe_sizes(260 * MIB, limit_mib * MIB)
        assert all(size <= min(limit_mib * MIB, effective_module.MOST_BYTES) for size in sizes), limit_mib
        assert bool(sizes) == (limit_mib >= 8), limit_mib


def test_a_started_process_pretends_the_same_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path, HOSTS["P and E cores"])
    code = "import json, profiler.devices.host as m; print(json.dumps(m.usable_cpus()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert json.loads(done.stdout) == list(range(16))
