"""Every family: its work against two oracles, its providers against its reference, and what its checks would catch."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from profiler.kernels.serving import collective, families
from profiler.kernels.serving.contract import (
    SENTINEL,
    Draw,
    Family,
    NotInstalled,
    Provider,
    Tensors,
    Tolerance,
    Unsupported,
    amount,
    poisoned,
)
from profiler.kernels.serving.families import FAMILIES, family_named
from roofline.laws.kinds import work_of

CPU = torch.device("cpu")
ALONE = [family for family in FAMILIES if family.ranks == 1]
NOT_READ = frozenset({"parts"})
"""Operands that only a reference reads."""


def operands_of(family: Family, dims: dict[str, int], dtype: str, seed: int = 0, offset: int = 0) -> Tensors:
    return family.operands(dims, dtype, Draw(CPU, seed, offset))


def result_of(family: Family, provider: Provider, dims: dict[str, int], dtype: str, t: Tensors) -> Tensors:
    """What a provider returns or writes. Raises Unsupported or NotInstalled."""
    provider.check("cpu", dtype)
    made = provider.bind(dims, dtype, t)(t)
    returned = () if made is None else made if isinstance(made, tuple) else (made,)
    names = [name for name in family.outputs if name not in family.mutates]
    return dict(zip(names, returned, strict=True)) | {name: t[name] for name in family.mutates}


def faults(family: Family, dims: dict[str, int], dtype: str, got: Tensors, expected: Tensors) -> Iterator[str]:
    for name in family.outputs:
        tolerance, what = family.tolerance(dims, dtype)[name], f"{family.name} {dtype} {dims} {name}"
        if got[name].dtype != family.returned(dtype)[name]:
            yield f"{what}: {got[name].dtype}"
        if got[name].shape != expected[name].shape:
            yield f"{what}: {tuple(got[name].shape)}"
        elif not tolerance.accepts(got[name], expected[name]):
            yield f"{what}: {float(tolerance.excess(got[name], expected[name]).max()):.3g} times the limit"


def numbers(tensor: Tensor) -> int:
    """Elements that are no poison."""
    if tensor.dtype.is_floating_point:
        return int((~tensor.float().isnan()).sum())
    if tensor.element_size() == 1:
        return tensor.numel()  # any byte may be a number; none of the families has poison among them
    return int((tensor != max(SENTINEL, torch.iinfo(tensor.dtype).min)).sum())


def moved_bytes(family: Family, dims: dict[str, int], dtype: str) -> float:
    """Compulsory bytes by what is not poison: of operands, and of outputs as far as they are new."""
    t = operands_of(family, dims, dtype)
    before = {name: operand.clone() for name, operand in t.items()}
    after = family.reference(dims, t)
    read = sum(
        numbers(operand) * operand.element_size()
        for name, operand in before.items()
        if name not in NOT_READ and not (name == "table" and family.name.startswith("decode"))
    )
    if family.name.startswith("decode") and "table" in before:
        pages = (before["table"] >= 0).sum(-1)
        if window := dims.get("window"):
            firsts = (before["lengths"] - dims["query"] - window + 1).clamp_min(0)
            pages = pages - firsts // 16
        read += 4 * int(pages.sum())
    written = 0
    for name in family.outputs:
        fresh = numbers(after[name]) - (numbers(before[name]) if numbers_stay(family, name) else 0)
        written += fresh * family.returned(dtype)[name].itemsize
    return read + written


def numbers_stay(family: Family, name: str) -> bool:
    """Whether what was there is only added to: a cache, not a state."""
    return name in ("keys", "values") and name in family.mutates


def test_flops_are_those_that_torch_counts_and_bytes_those_that_are_touched() -> None:
    for family in FAMILIES:
        for dtype in family.dtypes:
            for dims in family.checks:
                work, t = family.work(dims, dtype), operands_of(family, dims, dtype)
                with FlopCounterMode(display=False) as counted:
                    family.reference(dims, t)
                what = f"{family.name} {dtype} {dims}"
                assert float(work.flops) == counted.get_total_flops(), what
                assert float(work.bytes) == moved_bytes(family, dims, dtype), what


def test_the_kind_of_a_family_has_its_work() -> None:
    """Laws see the FLOPs of the family. Their bytes leave out scales, tables and lengths."""
    priced = 0
    for family in FAMILIES:
        dims, dtype = family.checks[-1], family.dtypes[0]
        if (kind := family.kind(dims, dtype)) is None or dims.get("spread"):
            continue
        named, sizes = kind
        expected = work_of(named, {name: torch.tensor(value).numpy() for name, value in sizes.items()}, dtype)
        assert float(expected.flops) == pytest.approx(float(family.work(dims, dtype).flops), rel=1e-6), family.name
        priced += 1
    assert priced > 20


def test_a_family_with_another_formula_is_refused() -> None:
    """What the first test asserts fails for a family that counts full lengths (flashinfer #1638)."""
    family = family_named("decode_attention")
    dims = family.checks[1]
    assert dims["spread"] and float(family.work(dims, "float32").flops) != float(
        family.work({**dims, "spread": 0}, "float32").flops
    )
    assert float(family.work({**dims, "spread": 0}, "float32").bytes) != moved_bytes(family, dims, "float32")


@pytest.mark.parametrize("family", ALONE, ids=lambda family: family.name)
def test_every_provider_is_right_at_all_checks(family: Family) -> None:
    """Inductor is checked apart: it takes seconds to compile each."""
    ran = 0
    for provider in (provider for provider in family.providers if provider.name != "inductor"):
        for dtype in family.dtypes:
            for dims in family.checks:
                for seed, offset in ((0, 0), (1, 1), (2, 3)):
                    t = operands_of(family, dims, dtype, seed, offset)
                    expected, before = family.reference(dims, t), {name: x.clone() for name, x in t.items()}
                    try:
                        got = result_of(family, provider, dims, dtype, t)
                    except (Unsupported, NotInstalled) as reason:
                        assert str(reason) and "\n" not in str(reason)
                        continue
                    assert list(faults(family, dims, dtype, got, expected)) == [], provider.name
                    for name in t.keys() - {*family.mutates}:
                        assert torch.equal(before[name].view(torch.uint8), t[name].view(torch.uint8)), name
                    ran += 1
    assert ran >= 3 * len(family.checks) * len(family.dtypes), "no provider runs on a CPU"


COMPILED = ("linear_int8", "rope_kv_append", "sample_top_p")
"""Families of which each has something else that a compiler must keep: numbers of 8 bits, writes in place, sorts."""


@pytest.mark.parametrize("name", COMPILED)
def test_inductor_is_right_too(name: str) -> None:
    """And quiet: what it uses of torch's deprecated parts is no warning of ours."""
    family = family_named(name)
    dims, dtype = family.checks[1], family.dtypes[min(1, len(family.dtypes) - 1)]
    t = operands_of(family, dims, dtype)
    expected = family.reference(dims, t)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = result_of(family, family.provider("inductor"), dims, dtype, t)
    assert list(faults(family, dims, dtype, got, expected)) == []


def test_onnxruntime_is_right_where_it_is_installed() -> None:
    pytest.importorskip("onnxruntime")
    for family in ALONE:
        for provider in (provider for provider in family.providers if provider.package == "onnxruntime"):
            dims, dtype = family.checks[-1], family.dtypes[0]
            if family.name == "linear_int8_weights":
                dims = family.checks[0]
            t = operands_of(family, dims, dtype)
            expected = family.reference(dims, t)
            assert list(faults(family, dims, dtype, result_of(family, provider, dims, dtype, t), expected)) == []


def test_what_cannot_run_here_says_why_in_one_line() -> None:
    ran = set()
    for family in FAMILIES:
        for provider in (provider for provider in family.providers if provider.name != "inductor"):
            for dtype in family.dtypes:
                for dims in family.checks:
                    try:
                        provider.check("cpu", dtype)
                        provider.bind(dims, dtype, operands_of(family, dims, dtype))
                        ran.add((family.name, provider.name))
                    except (Unsupported, NotInstalled) as reason:
                        assert str(reason) and "\n" not in str(reason)
    assert len(ran) >= 50
    assert {name for name, _ in ran} == {family.name for family in ALONE}, "a family needs a provider or a reason"
    assert sum(any(p.name == "inductor" for p in family.providers) for family in FAMILIES) >= 30
    assert all(family.note for family in FAMILIES if family.ranks > 1)


def _rank(rank: int, folder: str, failed: "mp.Queue[str]") -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    for family in collective.FAMILIES:
        for dtype in family.dtypes:
            for dims in family.checks:
                t = operands_of(family, dims, dtype)
                got = result_of(family, family.providers[0], dims, dtype, t)
                for fault in faults(family, dims, dtype, got, family.reference(dims, t)):
                    failed.put(fault)
    failed.put(f"end of {rank}")
    torch.distributed.destroy_process_group()


def test_collectives_are_right_on_two_ranks(tmp_path: Path) -> None:
    """Each rank draws the parts of all, so each knows the sum."""
    context = mp.get_context("spawn")
    failed = context.Queue()
    mp.start_processes(_rank, (str(tmp_path), failed), nprocs=2, start_method="spawn")
    assert sorted(failed.get(timeout=60) for _ in range(2)) == ["end of 0", "end of 1"]


def test_tolerances_refuse_what_is_wrong() -> None:
    near = Tolerance(0.1, 0.0, "test", share=0.75)
    expected = torch.zeros(4)
    assert near.accepts(torch.tensor([0.0, 0.05, 0.09, 9.0]), expected)
    assert not near.accepts(torch.tensor([0.0, 0.05, 9.0, 9.0]), expected)
    assert not near.accepts(torch.tensor([0.0, 0.0, math.nan, math.nan]), expected)
    assert near.accepts(torch.tensor([math.inf, 0.0]), torch.tensor([math.inf, 0.0]))
    assert not Tolerance(0.1, 0.0, "t").accepts(torch.tensor([math.inf]), torch.tensor([-math.inf]))
    step = Tolerance(1.0, 0.0, "test", exact=0.75)
    assert step.accepts(torch.tensor([1, 2, 3, 5]), torch.tensor([1.0, 2.2, 3.0, 4.0]))
    assert not step.accepts(torch.tensor([1, 2, 4, 5]), torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_draws_are_the_same_at_every_offset_and_poison_is_seen() -> None:
    made = [Draw(CPU, 7, offset).normal(3, 5, dtype=torch.bfloat16) for offset in (0, 1)]
    assert torch.equal(*made) and made[1].storage_offset() == 1
    assert poisoned((2,), torch.float8_e4m3fn).float().isnan().all()
    assert poisoned((2,), torch.int8).tolist() == [-128, -128]


def test_a_family_and_a_provider_are_added_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of a list, whose fields say all that the suite needs."""
    double = Family(
        name="double",
        sizes=("rows",),
        dtypes=("float32",),
        operands=lambda d, dtype, draw: {"x": draw.normal(d["rows"], dtype=torch.float32)},
        outputs=("y",),
        reference=lambda d, t: {"y": 2 * t["x"].double()},
        returned=lambda dtype: {"y": torch.float32},
        tolerance=lambda d, dtype: {"y": Tolerance(0.0, 0.0, "exact")},
        work=lambda d, dtype: amount(0, 8 * d["rows"]),
        shapes=lambda step: ({"rows": step.tokens},),
        checks=({"rows": 3},),
        providers=(Provider("mine", "torch", lambda d, dtype, t: lambda t: t["x"] + t["x"]),),
    )
    monkeypatch.setattr(families, "FAMILIES", [*FAMILIES, double])
    found = families.family_named("double")
    t = operands_of(found, {"rows": 3}, "float32")
    got = result_of(found, found.provider("mine"), {"rows": 3}, "float32", t)
    assert not list(faults(found, {"rows": 3}, "float32", got, found.reference({"rows": 3}, t)))
    assert float(found.work({"rows": 3}, "float32").bytes) == moved_bytes(found, {"rows": 3}, "float32")


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no kernel family 'rmsnorm'; nearest: rms_norm"):
        family_named("rmsnorm")
    with pytest.raises(ValueError, match=r"no provider 'inducter'; nearest: inductor"):
        families.check_provider("inducter")
    families.check_provider("flashinfer")
    assert families.versions()["torch"] == torch.__version__
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) >= 40


def test_libraries_that_are_not_there_are_named() -> None:
    missing = Provider("x", "no-such-package", lambda d, dtype, t: lambda t: None)
    with pytest.raises(NotInstalled, match="no-such-package is not installed"):
        missing.check("cpu", "float32")
    with pytest.raises(NotInstalled, match=r"torch has no module torch\.nothing"):
        Provider("x", "torch", missing.bind, ("torch.nothing",)).check("cpu", "float32")
    with pytest.raises(Unsupported, match="does not run on cpu, only on cuda"):
        family_named("rms_norm").provider("flashinfer").check("cpu", "bfloat16")
