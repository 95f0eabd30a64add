"""Records of a real engine's timeline, as `trace` reports it: kernels, steps, modules, streams and the closure.

Times are seconds of device time, sums of kernels' durations unless a field says otherwise. Nothing is copied from a
file but times and the names of kernels, modules and steps.
"""

from collections.abc import Mapping

from roofline.record import Record

TRACE_SCHEMA = 1
"""Version of the record; fields are only ever added."""


class KernelRow(Record):
    """All calls of one kernel on a device."""

    name: str
    kind: str | None
    """None where no rule knows the name, nor that of the operator that launched it."""
    family: str
    calls: int
    total_s: float
    median_s: float
    outside: int
    """Of `calls`, those that were launched outside the window."""
    outside_s: float


class StreamRow(Record):
    """One stream of a device."""

    stream: int
    events: int
    busy_s: float
    """Time in which it had work, overlaps counted once."""


class StepRow(Record):
    """One step of the engine."""

    name: str
    source: str
    """Form of the annotation; "modules" or "period" where there is none."""
    sizes: Mapping[str, float]
    """Sizes that the annotation states; sums over the sequences of the step."""
    host_s: float | None
    """Length of the annotation on the host."""
    kernels: int
    kernel_s: float
    start_s: float
    span_s: float
    """From the first of its kernels to the end of the last."""
    busy_s: float
    kinds: Mapping[str, float] = {}
    """Seconds of its kernels by their kind; those without a known kind are left out."""
    calls: Mapping[str, int] = {}
    """Number of its kernels by their kind."""


class ModuleRow(Record):
    """All calls of one module."""

    path: str
    """Modules from the outermost, as "Model_0/Layer_3/Linear_21"."""
    kernels: int
    own_s: float
    total_s: float
    """With the modules that it called."""


class LayerRow(Record):
    """One kind of layer: its kernels against the prediction of the operators that launched them."""

    path: str
    """Classes of the modules from the outermost, as "Model/Layer.*/Attention/Linear.2"."""
    kernels: int
    calls: int
    """Operators that were priced."""
    measured_s: float
    unpriced_s: float
    """Of `measured_s`, that of kernels whose operator has no price: no recorded shapes, or one that is not known."""
    predicted_s: float | None
    """None where nothing of it has a price, or a peak is not known."""
    low_s: float | None = None
    high_s: float | None = None
    """Ends of the 90 % interval by the laws; None without a law."""
    ideal_s: float | None
    """At the peaks of the datasheet, each operand read and written once from main memory."""
    by_law_s: float
    """Of `predicted_s`, that by laws; the rest is at the peaks."""
    bound: str
    source: str
    """Origin of most of its price; empty where it has none."""

    @property
    def error(self) -> float | None:
        """Predicted ÷ measured − 1, of the kernels that have a price."""
        priced_s = self.measured_s - self.unpriced_s
        return self.predicted_s / priced_s - 1 if self.predicted_s is not None and priced_s > 0 else None


class PartRow(Record):
    """One part of all steps whose annotation states their sizes, against the prediction of a serving graph."""

    part: str
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float | None:
        """Predicted ÷ measured − 1."""
        return self.predicted_s / self.measured_s - 1 if self.measured_s > 0 else None


class Closure(Record):
    """Where the kernel time of a device went; the window is what the host's side of the file covers."""

    kernels: int
    kernel_s: float
    outside: int
    """Kernels whose launch lies outside the window: work of steps before it."""
    outside_s: float
    classified_s: float
    """Time of kernels, in the window or not, whose name a rule knows."""
    by_operator_s: float
    """Time of those that only their operator classifies."""
    module_s: float
    """Time, of what lies in the window, that belongs to a module."""
    operator_s: float
    """The same with an operator or an annotation of the host, but no module."""
    graph_s: float
    """The same that hangs on the launch of a CUDA or HIP graph."""
    unexplained_s: float
    """Time in the window that is not classified, or belongs to nothing of the three."""

    @property
    def window_s(self) -> float:
        return self.kernel_s - self.outside_s

    @property
    def classified(self) -> float:
        """Share of all kernel time."""
        return (self.classified_s + self.by_operator_s) / self.kernel_s if self.kernel_s else 0.0

    @property
    def attributed(self) -> float:
        """Share of the window's kernel time that belongs to a module or operator."""
        return (self.module_s + self.operator_s) / self.window_s if self.window_s else 0.0

    @property
    def unexplained(self) -> float:
        """Share of the window's kernel time."""
        return self.unexplained_s / self.window_s if self.window_s else 0.0


class TraceRank(Record):
    """One device of one file."""

    file: str
    """Its name, without folders."""
    device: int
    span_s: float
    """From the first work of the window to the end of the last."""
    busy_s: float
    compute_s: float
    """Time in which a kernel other than a collective ran."""
    exposed_collective_s: float
    """Time in which a collective ran, and none of those."""
    exposed_memory_s: float
    """Time in which a copy or memset ran alone."""
    closure: Closure
    kernels: tuple[KernelRow, ...]
    """The longest first."""
    streams: tuple[StreamRow, ...]
    steps: tuple[StepRow, ...]
    between_steps_s: float
    """Kernel time of the window that belongs to no step."""
    modules: tuple[ModuleRow, ...]
    layers: tuple[LayerRow, ...] = ()
    """Measured against predicted, where a device was named; the longest first."""
    parts: tuple[PartRow, ...] = ()
    """Measured against predicted by the parts of a step, where a model was named."""
    left_out: tuple[str, ...] = ()
    """Contents of the file that cannot be true, one line a kind."""

    @property
    def idle(self) -> float:
        """Share of the span in which the device had no work."""
        return 1 - self.busy_s / self.span_s if self.span_s else 0.0


class EngineTrace(Record):
    """All that `trace` reads at once."""

    schema_version: int = TRACE_SCHEMA
    hardware: str | None = None
    """Name of the spec that priced the layers."""
    model: str | None = None
    """The model whose serving graph the steps are compared with."""
    ranks: tuple[TraceRank, ...]
