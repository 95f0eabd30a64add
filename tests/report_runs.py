"""Stored runs with times that are written down here, for the tests of reports: each of three layers is slower."""

from pathlib import Path

import report_samples
from graphs import WORKLOAD, GraphBuilder, peaks

from profiler.record.folder import RunFolder
from profiler.record.run import CellResult, Closure, OpTimes
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec

LAYERS = 3
KERNEL = "kernel_of_{}"
UP = "model.layers.*.mlp.up"


def layered(hostile: str = "") -> OpGraph:
    """An embedding, a norm, a product and an addition in each layer, and the head; `hostile` ends every path."""
    b = GraphBuilder()
    b.weight("embedding", 4000)
    b.op("embedding", ["embedding"], {"h0": 400}, path="model.embed" + hostile, vector=0)
    for i in range(LAYERS):
        b.weight(f"w{i}", 4000)
        path = f"model.layers.{i}"
        b.op("norm", [f"h{i}"], {f"n{i}": 400}, path=f"{path}.norm" + hostile, vector=40)
        b.op(
            "matmul", [f"n{i}", f"w{i}"], {f"u{i}": 400}, path=f"{path}.mlp.up" + hostile, matrix=8000, m=4, n=25, k=25
        )
        b.weight(f"d{i}", 4000)
        b.op("matmul", [f"u{i}", f"d{i}"], {f"d{i}o": 400}, path=f"{path}.mlp.down" + hostile, matrix=8000)
        b.op("pointwise", [f"h{i}", f"d{i}o"], {f"h{i + 1}": 400}, path=path + hostile, vector=4)
    b.weight("head", 8000)
    b.op("matmul", [f"h{LAYERS}", "head"], {"logits": 800}, path="lm_head" + hostile, matrix=16000)
    return b.graph()


def times_of(graph: OpGraph) -> list[float]:
    """Seconds of each operation: in layer i (i + 1) times 10 µs for the product up, 5 µs for down, 1 µs for others."""
    times = []
    for op in graph.ops:
        layer = int(op.path.split(".")[2]) if op.path.startswith("model.layers") else 0
        products_s = 5e-6 if ".mlp.down" in op.path else 10e-6
        times.append((layer + 1) * (products_s if op.kind == "matmul" else 1e-6))
    return times


def stored(base: Path, *, name: str = "main", hostile: str = "", slower: float = 1.0) -> RunFolder:
    """A finished run with one pass of `layered`, each time `slower` than it is written down."""
    graph, run = layered(hostile), report_samples.run("cpu")
    asked = report_samples.failed()[0].cell
    cell = asked.model_copy(update={"model": "example" + hostile, "workload": WORKLOAD})
    times_s = [slower * time_s for time_s in times_of(graph)]
    ops = tuple(
        OpTimes(
            op=i, device_s=(time_s,) * 4, gap_s=(0.0,) * 4, kernels=(KERNEL.format(graph.ops[i].kind.value) + hostile,)
        )
        for i, time_s in enumerate(times_s)
    )
    whole = sum(times_s)
    result = CellResult(
        cell=cell,
        status="done",
        graph="",
        wall_s=(1.01 * whole,) * 4,
        profiled_wall_s=(1.01 * whole,) * 4,
        ops=ops,
        tail_gap_s=(0.01 * whole,) * 4,
        unattributed_s=(0.0,) * 4,
        closure=Closure(attributed=1.0, spans_plus_gaps=1.0, instrumented_ratio=1.0),
        ran={"attention": "math" + hostile},
        clock="by hand",
    )
    with RunFolder.create(base, run.model_copy(update={"name": name, "cells": (cell,), "finished": None})) as folder:
        folder.write_spec(HardwareSpec(name="example", kind="cpu", measured=peaks(1e9, 1e8, (("DRAM", 1e9, 1e9),))))
        folder.append(result.model_copy(update={"graph": folder.write_graph(cell, graph)}))
        folder.finish()
    return folder
