"""Transfers through a pretended device: what is copied, on which stream, and what is refused."""

import pytest
import torch
from pretended import pretend_accelerator, quiet_bench

from profiler.microbench.transfer import (
    BOTH,
    DIRECTIONS,
    FROM,
    LAST_BYTES,
    MEMORIES,
    QUICK_STEP,
    STEP,
    TO,
    Copy,
    sizes,
    transfer,
    transfer_case,
)

CPU = torch.device("cpu")


def test_a_cpu_has_one_memory() -> None:
    (only,) = transfer(quiet_bench())
    assert (only.status, only.reason) == ("failed", "no device memory apart from the host's")


def test_every_route_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_accelerator(monkeypatch)
    found = list(transfer(quiet_bench(quick=True, limit_bytes=2 << 20)))
    assert [one.reason for one in found if one.status != "done"] == []
    expected = [
        (memory, direction, size)
        for memory in MEMORIES
        for direction in DIRECTIONS
        for size in (1 << 10, 32 << 10, 1 << 20)
    ]
    assert [(p["memory"], p["direction"], p["bytes"]) for p in (one.parameters for one in found)] == expected
    assert found[2].case == "pinned to device 1048576"
    for one in found:
        both = one.parameters["direction"] == BOTH
        assert one.work == one.parameters["bytes"] * (2 if both else 1) and one.unit == "B/s"


def test_sizes_end_at_a_gibibyte() -> None:
    assert len(sizes(STEP)) == 11 and len(sizes(QUICK_STEP)) == 5
    assert sizes(STEP)[-1] == sizes(QUICK_STEP)[-1] == LAST_BYTES
    assert sizes(STEP)[0] == sizes(QUICK_STEP)[0] == 1024


def test_no_case_exceeds_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_accelerator(monkeypatch)
    found = list(transfer(quiet_bench(quick=True, limit_bytes=1 << 20)))
    largest = {d: max(one.parameters["bytes"] for one in found if one.parameters["direction"] == d) for d in DIRECTIONS}
    assert largest == {TO: 1 << 20, FROM: 1 << 20, BOTH: 32 << 10}


def test_both_ways_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = pretend_accelerator(monkeypatch)
    monkeypatch.setattr(Copy, "enqueue", lambda self: accelerator.steps.append("copy"))
    case = transfer_case("pinned", BOTH, 4096, CPU)
    case.run(case.make())
    assert accelerator.steps == ["fork", "copy", "side", "copy", "main", "join"]


def test_a_copy_that_is_not_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_accelerator(monkeypatch)
    for direction in DIRECTIONS:
        case = transfer_case("pageable", direction, 1 << 16, CPU)
        copies = case.make()
        with pytest.raises(ArithmeticError, match="differs from its source"):
            case.check(copies, None)
        case.run(copies)
        case.check(copies, None)
        copies[-1].target[-1] = 7.0
        with pytest.raises(ArithmeticError, match=f"a pageable copy of 65536 bytes, {direction}"):
            case.check(copies, None)


def test_pageable_copies_wait_for_the_device_within_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = pretend_accelerator(monkeypatch)
    monkeypatch.setattr(Copy, "enqueue", lambda self: accelerator.steps.append("copy"))
    for memory in MEMORIES:
        case = transfer_case(memory, TO, 4096, CPU)
        case.run(case.make())
    assert accelerator.steps == ["copy", "copy", "idle"]


def test_an_unknown_route_is_refused() -> None:
    with pytest.raises(ValueError, match="no transfer 'unified'"):
        transfer_case("unified", TO, 4096, CPU)
