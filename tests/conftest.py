"""What every test may use: runs made by hand, and the marker of tests that need a GPU."""

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from profiler.record.run import Cell, CellResult, Closure, Environment, OpTimes, Run
from roofline.graph.op import Access, Kind, Op, OpGraph, Tensor
from roofline.workload import Workload

if TYPE_CHECKING:
    from browser import Opened
    from playwright.sync_api import Browser

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Read when torch loads, here and in processes that tests start: threads of several workers, which wait for each other
by spinning, take three times the time of one each."""
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
"""Read with it: where a test asks for two threads, one that waits for the other leaves its core to it. On a busy
machine the other may be off its core for milliseconds at each of a pass's thousands of meetings."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background jobs ignore Ctrl-C, and processes inherit that: those that tests interrupt must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """One Chromium for all tests of a process."""
    from browser import started

    with started() as running:
        yield running


@pytest.fixture
def opened(browser: "Browser") -> "Iterator[Opened]":
    """Opens files in a browser without a network."""
    from browser import offline

    with offline(browser) as opens:
        yield opens


@pytest.fixture
def environment() -> Environment:
    return Environment(
        device="Example CPU @ 2.0 GHz",
        device_kind="cpu",
        cores=2,
        threads=2,
        memory_bytes=8 << 30,
        hostname="host",
        os="Linux",
        python="3.11.7",
        versions={"torch": "2.13.0"},
    )


@pytest.fixture
def cell() -> Cell:
    return Cell(
        model="example",
        workload=Workload(batch=1, query_tokens=4, context_tokens=0, dtype="float32"),
        attn="sdpa",
        experts="default",
        cache="dynamic",
    )


@pytest.fixture
def decode_cell(cell: Cell) -> Cell:
    return cell.model_copy(
        update={"workload": Workload(batch=1, query_tokens=1, context_tokens=4, dtype="float32")},
    )


@pytest.fixture
def run(environment: Environment, cell: Cell, decode_cell: Cell) -> Run:
    return Run(
        name="main",
        started="2026-05-09T10:11:12+00:00",
        command=("profiler", "run"),
        environment=environment,
        cells=(cell, decode_cell),
        options={"quick": True},
    )


@pytest.fixture
def graph(cell: Cell) -> OpGraph:
    """A 4×8 by 8×2 matmul and an addition over its result."""
    tensors = (
        Tensor(id=0, storage_bytes=128, role="activation"),
        Tensor(id=1, storage_bytes=64, role="weight", name="lin.weight"),
        Tensor(id=2, storage_bytes=32, role="activation"),
        Tensor(id=3, storage_bytes=32, role="activation"),
    )
    matmul = Op(
        path="lin",
        name="aten::mm",
        kind=Kind.MATMUL,
        dims={"b": 1, "m": 4, "n": 2, "k": 8},
        dtype="float32",
        matrix_flops=128,
        vector_flops=0,
        reads=(Access(tensor=0, bytes=128), Access(tensor=1, bytes=64)),
        writes=(Access(tensor=2, bytes=32),),
    )
    add = Op(
        path="",
        name="aten::add",
        kind=Kind.POINTWISE,
        dims={"elements": 8},
        dtype="float32",
        matrix_flops=0,
        vector_flops=8,
        reads=(Access(tensor=2, bytes=32),),
        writes=(Access(tensor=3, bytes=32),),
        count=3,
    )
    return OpGraph(model="example", workload=cell.workload, ops=(matmul, add), tensors=tensors)


@pytest.fixture
def result(cell: Cell) -> CellResult:
    """Two profiled passes of `graph` that close exactly: 3 + 1 + 1 + 0.5 + 0.5 = 6 µs."""
    return CellResult(
        cell=cell,
        status="done",
        graph=f"graphs/{cell.key}.json",
        wall_s=(5.5e-6, 5.75e-6),
        profiled_wall_s=(6e-6, 6e-6),
        ops=(
            OpTimes(op=0, device_s=(3e-6, 3e-6), gap_s=(1e-6, 1e-6), kernels=("mkl_sgemm",)),
            OpTimes(op=1, device_s=(1e-6, 1e-6), gap_s=(0.5e-6, 0.5e-6)),
        ),
        tail_gap_s=(0.5e-6, 0.5e-6),
        unattributed_s=(0.0, 0.0),
        closure=Closure(attributed=1.0, spans_plus_gaps=1.0, instrumented_ratio=1.07),
        ran={"attention": "math"},
        clock="profiler spans",
        peak_memory_bytes=1024,
    )
