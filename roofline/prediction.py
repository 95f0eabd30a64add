"""What an analytical prediction says: each pass with its operations, its time and its memory; whole requests.

Records only; `roofline.price_many` and `roofline.generation` make them, reports show them.

Example: ``sum(op.time_s for op in prediction.passes[0].ops) == prediction.passes[0].time_s``
"""

from pydantic import Field

from roofline.footprint import Footprint
from roofline.op import Kind, Role, Traffic
from roofline.record import Record
from roofline.workload import Workload


class OpPrediction(Record):
    """One operation, or one fused kernel; every amount is the total of its `count` executions."""

    path: str
    name: str
    kind: Kind
    count: float
    dtype: str
    matrix_flops: float
    vector_flops: float
    bytes: Traffic
    link_bytes: float = 0
    time_s: float | None
    """None where a peak that it needs is not known."""
    bound: str
    """ "matrix", "vector", a memory level, a link; "" where the time is not known."""
    dims: dict[str, int] = {}
    also: tuple[str, ...] = ()
    """What else a fused kernel does."""
    reads: tuple[int, ...] = ()
    """Tensors, by number: operations that write and read the same one are connected."""
    writes: tuple[int, ...] = ()

    @property
    def flops(self) -> float:
        return self.matrix_flops + self.vector_flops

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte of memory traffic; None without traffic."""
        return self.flops / self.bytes.total if self.bytes.total else None


class PassPrediction(Record):
    """One forward pass, or one step of a mixed batch."""

    workloads: tuple[Workload, ...] = Field(min_length=1)
    """More than one where a step mixes sequences of several kinds."""
    ops: tuple[OpPrediction, ...] = ()
    """In the order they run; empty in a sweep."""
    tensor_roles: tuple[Role, ...] = ()
    """Of each tensor that the operations number; empty where not known: views then guess what is a weight."""
    count: float
    """Operations."""
    matrix_flops: float
    vector_flops: float
    bytes: Traffic
    link_bytes: float = 0
    time_s: float | None
    """Sum over the operations; None where a peak that one needs is not known."""
    missing: tuple[str, ...] = ()
    """Peaks that would be needed."""
    wall_s: float | None = None
    """With the host, where its cost for an operation is known."""
    memory: Footprint
    fits: bool | None
    """Whether the peak of memory is within the device's capacity; None where that is not known."""

    @property
    def tokens_per_s(self) -> float | None:
        """New tokens of all sequences, a second."""
        tokens = sum(w.batch * w.query_tokens for w in self.workloads)
        return tokens / self.time_s if self.time_s else None


class RequestPrediction(Record):
    """A batch of requests from prompt to last token."""

    batch: int
    prompt_tokens: int
    output_tokens: int
    ttft_s: float | None
    """Time to the first token: the prefill, and what it waits for (a transfer of its cache)."""
    tpot_s: float | None
    """Mean time of each further token; None for a single one."""
    end_to_end_s: float | None
    tokens_per_s: float | None
    """Output tokens of the batch ÷ end to end."""
    peak_bytes: float
    """Most memory of any pass, a draft model's included; of the device that decodes, where that is another."""
    fits: bool | None


class Prediction(Record):
    """Everything that was asked of one model on one device."""

    model: str
    hardware: str
    peaks: str
    """Origin of the peaks: "datasheet" or "measured"."""
    form: str
    """ "fused": the ideal graph; "executed": as `transformers` runs it."""
    parameters: int
    options: dict[str, str] = {}
    """Implementations and what-ifs."""
    passes: tuple[PassPrediction, ...]
    requests: tuple[RequestPrediction, ...] = ()
    capacity_bytes: float
    """Of the device's memory."""
    largest_batch: int | None = None
    """That fits at the first workload's lengths; 0 if not even one does."""
    largest_context: int | None = None
    """Cached tokens that fit at the batch of the first workload that has any; 0 if not even one does."""
    notes: tuple[str, ...] = ()
