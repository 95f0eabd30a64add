"""What `meta` tensors know: remembered shapes against torch's own, values that do not depend on weights."""

from typing import Any

import pytest
import torch
from each import each
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.models import meta as module
from profiler.models.meta import known, known_values, run_or_shape

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (aten.mm.default, (meta(3, 4), meta(4, 5)), {}),
    (aten.mm.default, (meta(4, 3).t(), meta(4, 5)), {}),
    (aten.add.Tensor, (meta(3, 4), meta(4)), {}),
    (aten.add.Tensor, (meta(3, 4).t(), meta(4, 3)), {}),
    (aten.add.Tensor, (meta(3, dtype=torch.int64), 1), {}),
    (aten.add.Tensor, (meta(3, dtype=torch.int64), 1.0), {}),
    (aten.add.Tensor, (meta(3, dtype=torch.bool), True), {}),
    (aten.mul.Tensor, (meta(2, 3, dtype=torch.bfloat16), meta(dtype=torch.float32)), {}),
    (aten.mul.Tensor, (meta(2, 3, dtype=torch.bfloat16), meta(1, dtype=torch.float32)), {}),
    (aten.cat.default, ([meta(2, 3), meta(2, 5)], 1), {}),
    (aten.cat.default, ([meta(2, 3), meta(4, 3)],), {}),
    (aten.sum.dim_IntList, (meta(2, 3), [1]), {}),
    (aten.sum.dim_IntList, (meta(2, 3), [1], True), {}),
    (aten.sum.dim_IntList, (meta(2, 3), [1]), {"dtype": torch.float64}),
    (aten._to_copy.default, (meta(2, 3).t(),), {"dtype": torch.bfloat16}),
    (aten.clone.default, (meta(2, 3).t(),), {}),
    (aten.clone.default, (meta(2, 3).t(),), {"memory_format": torch.contiguous_format}),
    (aten.clone.default, (meta(1, 3).expand(2, 3),), {}),
    (aten.index.Tensor, (meta(5, 3), [None, meta(2, dtype=torch.int64)]), {}),
    (aten.embedding.default, (meta(9, 3), meta(2, 4, dtype=torch.int64)), {}),
    (aten.topk.default, (meta(2, 8), 3), {}),
    (aten.arange.default, (4,), {"device": torch.device("meta")}),
]


def layout(out: Any) -> Any:
    if not isinstance(out, Tensor):
        return [layout(one) for one in out]
    return out.shape, out.stride(), out.dtype, out.device, out.storage_offset(), out.untyped_storage().nbytes()


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_results", {})


def test_every_call_returns_what_torch_returns_the_first_time_and_later() -> None:
    for _ in range(3):
        for func, args, kwargs in CALLS:
            assert layout(run_or_shape(func, args, kwargs)) == layout(func(*args, **kwargs)), func


def test_results_are_new_memory() -> None:
    a = meta(2, 3)
    outs = [run_or_shape(aten.add.Tensor, (a, 1), {}) for _ in range(3)]
    assert len({one.untyped_storage()._cdata for one in (a, *outs)}) == 4


def test_views_and_written_operands_are_not_remembered() -> None:
    a = meta(2, 3)
    for _ in range(2):
        assert run_or_shape(aten.view.default, (a, [6]), {}).untyped_storage()._cdata == a.untyped_storage()._cdata
        assert run_or_shape(aten.add_.Tensor, (a, 1), {}) is a
    assert not module._results


def test_what_has_values_is_run() -> None:
    one = torch.ones(3)
    for factor in (2.0, 3.0):
        assert run_or_shape(aten.mul.Tensor, (one, torch.tensor(factor)), {}).tolist() == [factor] * 3
    assert not module._results


def test_a_mode_below_sees_each_call() -> None:
    class Seen(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return func(*args, **(kwargs or {}))

    a = meta(2, 3)
    run_or_shape(aten.add.Tensor, (a, 1), {})
    with Seen() as seen:
        run_or_shape(aten.add.Tensor, (a, 1), {})
        run_or_shape(aten.add.Tensor, (a, 1), {})
    assert seen.count == 2


def test_a_model_runs_remembered() -> None:
    with torch.device("meta"):
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    given = meta(2, 3, 8)
    with torch.no_grad():
        plain = layer(given)
        with module.Remembered():
            assert layout(layer(given)) == layout(plain)
            before = len(module._results)
            assert layout(layer(given)) == layout(plain)
    assert len(module._results) == before > 0


def test_all_is_forgotten_where_it_would_be_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CALLS", 3)
    for size in range(1, 9):
        assert run_or_shape(aten.add.Tensor, (meta(size), 1), {}).shape == (size,)
        assert len(module._results) <= 3


@each("dtype", [torch.float32, torch.bfloat16])
def test_a_grouped_product_of_any_type_has_a_shape(dtype: torch.dtype) -> None:
    args = meta(6, 4, dtype=dtype), meta(3, 4, 5, dtype=dtype), meta(3, dtype=torch.int32)
    assert run_or_shape(aten._grouped_mm.default, args, {}).shape == (6, 5)


def test_values_that_do_not_depend_on_weights_are_known() -> None:
    with known_values():
        mask = torch.ones(2, 5, device="meta", dtype=torch.bool)
        assert mask.all()
        mask[:, 3:] = False
        assert mask.sum(-1).tolist() == [3, 3]
        assert mask.nonzero().shape == (6, 2)
        weights = torch.empty(2, 5, device="meta")
        assert weights[mask].shape == (6,)
        assert known(torch.arange(5, device="meta")[[1, -1]]).tolist() == [1, 4]
        with pytest.raises(RuntimeError, match="meta"):
            bool((weights > 0).any())


def test_a_tensor_overwritten_with_unknown_values_is_unknown() -> None:
    with known_values():
        ones = torch.ones(4, device="meta")
        part = ones[:2]
        part.copy_(torch.empty(2, device="meta"))
        assert known(ones) is None and known(part) is None


def test_experts_chosen_on_meta_are_balanced() -> None:
    with known_values():
        chosen = torch.empty(12, 8, device="meta").topk(2).indices
        assert torch.bincount(known(chosen).flatten(), minlength=8).tolist() == [3] * 8
