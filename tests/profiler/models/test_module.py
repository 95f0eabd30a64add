"""Any module: examples against published figures and torch's counter, and factories that are refused."""

import sys
from pathlib import Path

import pytest
import torch
from each import each
from torch.utils.flop_counter import FlopCounterMode

from profiler.models.examples.dit import bert_base, dit_xl_2
from profiler.models.module import trace_module
from profiler.record.run import RequestError
from roofline.graph.op import Kind, OpGraph

DIT = "profiler.models.examples.dit:dit_xl_2"
ENCODER = "profiler.models.examples.dit:bert_base"


def matrix_flops(graph: OpGraph) -> float:
    return sum(op.matrix_flops for op in graph.ops)


def test_dit_xl_2_is_the_papers() -> None:
    graph = trace_module(DIT)
    assert graph.parameters == pytest.approx(675.1e6, rel=1e-3)
    assert matrix_flops(graph) / 2 == pytest.approx(118.64e9, rel=0.01)
    with torch.device("meta"):
        module, inputs = dit_xl_2()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    assert matrix_flops(graph) == counter.get_total_flops()
    assert (graph.workload.batch, graph.workload.query_tokens, graph.workload.dtype) == (1, 1, "float32")
    assert (graph.inactive, graph.uncounted, graph.traced_on) == ((), (), "meta")


def test_an_encoder_attends_to_all_pairs() -> None:
    graph = trace_module(ENCODER)
    with torch.device("meta"):
        module, inputs = bert_base()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(**inputs)
    assert matrix_flops(graph) == counter.get_total_flops()
    assert {op.dims["pairs"] for op in graph.ops if op.kind == Kind.ATTENTION} == {128 * 128}
    assert (graph.workload.batch, graph.workload.query_tokens, graph.workload.context_tokens) == (8, 128, 0)


FACTORIES = """
import torch
from torch import nn

def both(): return nn.Linear(4, 3).to(torch.bfloat16), ((torch.zeros(5, 4, dtype=torch.bfloat16),), {})
def sequence(): return nn.Linear(4, 3), {"input": torch.zeros(5, 7, 4)}
class Picks(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
    def forward(self, x): return x[self.inner(x).sum(-1) > -1e9]
def decides(): return Picks(), (torch.zeros(5, 4),)
def numpy_weights():
    return nn.Linear(4, 3).to("cpu"), (torch.from_numpy(__import__("numpy").zeros((5, 4), "float32")),)
def raises(): raise KeyError("no weights")
def alone(): return nn.Linear(4, 3)
def listed(): return nn.Linear(4, 3), [torch.zeros(5, 4)]
def scalars(): return nn.Linear(4, 3), (3,)
def wrong(): return nn.Linear(4, 3), (torch.zeros(5, 6),)
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "some_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("some_factories", None)
    return "some_factories"


@each(
    ("name", "batch", "query", "dtype", "on"),
    [
        ("both", 5, 1, "bfloat16", "meta"),
        ("sequence", 5, 7, "float32", "meta"),
        ("decides", 5, 1, "float32", "cpu"),
        ("numpy_weights", 5, 1, "float32", "cpu"),
    ],
)
def test_a_workload_follows_from_the_inputs(
    factories: str, name: str, batch: int, query: int, dtype: str, on: str
) -> None:
    graph = trace_module(f"{factories}:{name}")
    work = graph.workload
    assert (work.batch, work.query_tokens, work.context_tokens, work.dtype) == (batch, query, 0, dtype)
    assert graph.traced_on == on
    width = 4 if name == "decides" else 3
    assert matrix_flops(graph) == 2 * batch * query * 4 * width


@each(
    ("spec", "says"),
    [
        ("no_such_package:factory", "cannot import no_such_package"),
        ("torch.nn", "write it as package.module:factory"),
        (":factory", "write it as package.module:factory"),
        ("{0}:missing", "has no factory missing; it has both"),
        ("{0}:raises", "the factory failed .*no weights"),
        ("{0}:alone", "must return .module, inputs., not Linear"),
        ("{0}:listed", "not list"),
        ("{0}:scalars", "no tensor with a batch dimension"),
        ("{0}:wrong", r"fails on 0: float32 \(5, 6\)"),
    ],
)
def test_what_cannot_be_traced_is_one_line(factories: str, spec: str, says: str) -> None:
    with pytest.raises(RequestError, match=says) as error:
        trace_module(spec.format(factories))
    assert "\n" not in str(error.value)


def test_a_module_is_traced_once() -> None:
    assert trace_module(ENCODER) is trace_module(ENCODER)
