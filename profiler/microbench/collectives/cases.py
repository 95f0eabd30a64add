"""The collectives that are timed: how each is called, and which result every rank must hold afterwards.

Rank r's data are (1 + r) times a block of random normal numbers that all ranks share, so that each rank knows the
expected result without another message. The block's period is a prime, so that data at a wrong place differ.
All-reduce works in place: its values grow by the number of ranks with every call. They start so small that
`repeats_limit` calls stay within float32, and `reset` restores the start between samples. It is a sum, because
NVSwitch reduces in the network (NVLS), above all sums: a maximum or an average could use another algorithm. Example::

    operands = CASES["all_reduce"](1 << 20, Ranks(rank, ranks, device, group))
    operands.reset(); operands.run(); operands.check(calls=1)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

PERIOD = 1_048_573
"""Elements of the block, the largest prime below 2^20: 4 MiB, more than any chunk that a library moves at once."""
START = 2.0**-100
"""Scale of data that are summed in place: 26 bits above the smallest normal float32, 2^-126."""
GROWTH_BITS = 200
"""Growth from the start to 2^100, which is 27 bits below the largest float32."""
TOLERANCE = 1e-5
"""Largest error ÷ largest expected value: a rounding of float32 (6e-8) for each rank and each call."""
SEED = 20
ITEM = 4
"""Bytes of float32, nccl-tests' own default."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The number of ranks that take part, and the number of this one."""

    rank: int
    count: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    def data(self, elements: int, rank: int | None = None) -> Tensor:
        """The data of a rank; None stands for this one."""
        return block(elements, self.device) * float(1 + (self.rank if rank is None else rank))

    def summed(self, elements: int) -> Tensor:
        """The sum of the data of all ranks."""
        return block(elements, self.device) * (self.count * (self.count + 1) / 2)


@dataclass(frozen=True, slots=True)
class Operands:
    """A collective on given tensors."""

    run: Callable[[], object]
    source: Tensor
    """Data of this rank; a reset copies them to `work` where the call is in place."""
    work: Tensor
    """The tensor that receives the result."""
    expected: Callable[[int], Tensor]
    """Gives the contents of `work` after so many calls since the reset."""
    exact: bool = True
    """Whether data are moved without arithmetic."""
    in_place: bool = False

    def reset(self) -> None:
        """Restore the state before the first call, in which outputs hold NaN."""
        if self.in_place:
            self.work.copy_(self.source)
        else:
            self.work.fill_(math.nan)

    def check(self, calls: int) -> None:
        """Raise ArithmeticError where this rank's result is wrong."""
        want = self.expected(calls)
        if self.exact:
            if not torch.equal(self.work, want):
                raise ArithmeticError(f"{int((self.work != want).sum())} of {want.numel()} elements are wrong")
            return
        worst, scale = float((self.work - want).abs().max()), float(want.abs().max())
        if not worst <= TOLERANCE * scale:
            raise ArithmeticError(f"the sum is off by {worst:g} of {scale:g}")


def all_reduce(size: int, ranks: Ranks) -> Operands:
    """All-reduce; `size` is the buffer of a rank in bytes."""
    source = ranks.data(size // ITEM) * START
    work = source.clone()

    def expected(calls: int) -> Tensor:
        return ranks.summed(size // ITEM) * START * float(ranks.count) ** (calls - 1)

    def run() -> object:
        return dist.all_reduce(work, group=ranks.group)

    return Operands(run, source, work, expected, exact=False, in_place=True)


def all_gather(size: int, ranks: Ranks) -> Operands:
    """All-gather; `size` is the result of each rank in bytes."""
    part = size // ITEM // ranks.count
    source, work = ranks.data(part), torch.empty(part * ranks.count, device=ranks.device)
    call = _function("all_gather_single", "all_gather_into_tensor")

    def expected(calls: int) -> Tensor:
        return torch.cat([ranks.data(part, rank) for rank in range(ranks.count)])

    return Operands(lambda: call(work, source, group=ranks.group), source, work, expected)


def reduce_scatter(size: int, ranks: Ranks) -> Operands:
    """Reduce-scatter; `size` is the input of each rank in bytes."""
    part = size // ITEM // ranks.count
    source, work = ranks.data(part * ranks.count), torch.empty(part, device=ranks.device)
    call = _function("reduce_scatter_single", "reduce_scatter_tensor")

    def expected(calls: int) -> Tensor:
        return ranks.summed(part * ranks.count)[ranks.rank * part : (ranks.rank + 1) * part]

    return Operands(lambda: call(work, source, group=ranks.group), source, work, expected, exact=False)


def all_to_all(size: int, ranks: Ranks) -> Operands:
    """All-to-all; `size` is the buffer of a rank in bytes, with the share that it keeps."""
    part = size // ITEM // ranks.count
    source = ranks.data(part * ranks.count)
    work = torch.empty_like(source)

    def expected(calls: int) -> Tensor:
        own = slice(ranks.rank * part, (ranks.rank + 1) * part)
        return torch.cat([ranks.data(part * ranks.count, rank)[own] for rank in range(ranks.count)])

    return Operands(lambda: dist.all_to_all_single(work, source, group=ranks.group), source, work, expected)


def broadcast(size: int, ranks: Ranks) -> Operands:
    """Broadcast of a buffer of `size` bytes from rank 0, whose own buffer stays unchanged."""
    source, root = ranks.data(size // ITEM, 0), ranks.rank == 0
    work = source.clone() if root else torch.empty_like(source)

    def run() -> object:
        return dist.broadcast(work, 0, group=ranks.group)

    return Operands(run, source, work, lambda calls: ranks.data(size // ITEM, 0), in_place=root)


def send_recv(size: int, ranks: Ranks) -> Operands:
    """Every rank sends `size` bytes to the next one and receives from the one before, as in nccl-tests."""
    source = ranks.data(size // ITEM)
    work = torch.empty_like(source)
    after, before = (ranks.rank + 1) % ranks.count, (ranks.rank - 1) % ranks.count

    def run() -> None:
        send = dist.P2POp(dist.isend, source, after, group=ranks.group)
        receive = dist.P2POp(dist.irecv, work, before, group=ranks.group)
        for request in dist.batch_isend_irecv([send, receive]):
            request.wait()

    return Operands(run, source, work, lambda calls: ranks.data(size // ITEM, before))


CASES: dict[str, Callable[[int, Ranks], Operands]] = {
    "all_reduce": all_reduce,
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
    "all_to_all": all_to_all,
    "broadcast": broadcast,
    "send_recv": send_recv,
}
"""Makes the operands of each collective, by its name in `roofline.laws.work.RINGS`."""


def whole(size: int, ranks: int) -> int:
    """The largest size up to the given one that divides among the ranks. Raises ValueError where there is none."""
    step = ITEM * ranks
    if size < step:
        raise ValueError(f"{size} bytes do not divide among {ranks} ranks; use {step} or more")
    return size // step * step


def repeats_limit(operation: str, ranks: int) -> int | None:
    """Most calls between two resets; None without a limit."""
    return max(1, int(GROWTH_BITS / math.log2(ranks))) if operation == "all_reduce" else None


def block(elements: int, device: torch.device) -> Tensor:
    """Random normal numbers that are the same on every rank, repeated as often as needed."""
    once = _period(device)
    return once.repeat(-(-elements // PERIOD))[:elements] if elements > PERIOD else once[:elements]


@cache
def _period(device: torch.device) -> Tensor:
    return torch.randn(PERIOD, generator=torch.Generator().manual_seed(SEED)).to(device)


def _function(name: str, before: str) -> Callable[..., object]:
    """A collective of torch by its new name, or by the one from before torch 2.13, which warns in later versions."""
    function: Callable[..., object] = getattr(dist, name, None) or getattr(dist, before)
    return function
