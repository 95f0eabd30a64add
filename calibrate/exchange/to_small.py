"""Tools that describe a device by a few figures: LLM-Viewer, GenZ, llm-analysis, BLIS, TraceLens, each as one `Small`.

- LLM-Viewer (roofline_model.py): OPs ÷ min(intensity × bandwidth, peak), all SI, without factors. It looks up
  `onchip_buffer` for every model and uses it only as a bound on the block of its fused attention; `INT8` only where
  weights, activations and KV cache have 8 bits or fewer.
- GenZ (unit.py, LLM_inference/utils.py) multiplies `Flops` by 1e12, `Memory_BW` and `ICN` by 2^30, `Memory_size` by
  2^30 (×1024 MB of 2^20), `ICN_LL` by 1e-6; its own efficiencies are 1 unless the caller sets them. Absent keys become
  150 GB/s and 1 µs, so that a link that is not known is written as 0: a collective then fails, nothing is invented.
- llm-analysis (config.py, analysis.py): `GPUConfig(**json)` refuses unknown keys, and every file in gpu_configs is read
  as a GPU, so provenance is a file beside it. Bandwidths are × 10^9, memory × 2^30, TFLOPS × 10^12, latency in seconds.
  An absent inter-node bandwidth would become 200, so that it is null instead; absent 8- and 4-bit peaks become 2× and
  4× the 16-bit one, which the provenance says.
- BLIS (sim/latency/roofline.go): `TFlopsPeak`, `TFlopsFP8` × 1e12, `BwPeakTBs` × 1e12, links × 1e9, `MemoryGiB` × 2^30.
  Unknown keys are refused, `_comment` is accepted (hw_config_strict_test.go). Its MFUs multiply the peak; these peaks
  are what is reached already, so that both are 1. A `TFlopsFP8` of 0 means that there is none.
- TraceLens (PerfModel, "GPU Architecture Specifications"): `mem_bw_gbps` × 1e9 bytes/s and, by unit and precision as
  "matrix_bf16", `max_achievable_tflops` × 1e12. A precision that is absent has no efficiency in its report.

Example: ``GENZ.write(source).files[0].content``
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from calibrate.exchange.figures import FP8, Export, File, Ledger, Source, commented, json_text, sidecar

GIB = 2**30
ABSENT = object()
"""Marks a key that is left out where its figure is not known."""


@dataclass(frozen=True, slots=True)
class Field:
    """One key of another tool's description of a device."""

    name: str
    take: Callable[[Ledger], Any]
    """The figure in SI units; None where it is not known."""
    unit: float = 1.0
    """The tool's unit, in SI units."""
    unknown: str = ""
    """The remark where the figure is not known, which says what the tool does then."""
    instead: Any = ABSENT
    """The value that is written where the figure is not known."""


Layout = Callable[[Source, dict[str, Any], dict[str, Any]], tuple[File, ...]]
"""Makes the files of an entry and its provenance."""


network = methodcaller("link", "network")
eight_bit, fp8 = methodcaller("matrix_or_none", "int8", *FP8), methodcaller("matrix_or_none", *FP8)
four_bit = methodcaller("matrix_or_none", "int4", "float4_e2m1fn_x2")
"""Rates and a bandwidth that several tools take from a ledger (`Field.take`)."""


@dataclass(frozen=True, slots=True)
class Small:
    """The description of a device by one tool."""

    tool: str
    fields: tuple[Field, ...]
    """Keys in the order in which their figures are taken."""
    layout: Layout
    folded: str
    """The tool's factors that are divided out, and efficiencies to use with it; may name {origin} and {sixteen}."""
    order: tuple[str, ...] = ()
    """Order of the keys in the file, where it is another than that of `fields`."""

    def write(self, source: Source) -> Export:
        """Make the files. Raises ValueError, one line, for a missing figure that the tool cannot do without."""
        ledger = Ledger(source, self.tool)
        entry: dict[str, Any] = {}
        for field in self.fields:
            figure = field.take(ledger)
            if figure is not None:
                entry[field.name] = figure if field.unit == 1 else figure / field.unit
                continue
            ledger.leave_out(field.name, field.unknown)
            if field.instead is not ABSENT:
                entry[field.name] = field.instead
        provenance = ledger.provenance(folded=self.folded.format(origin=source.origin, sixteen=ledger.sixteen))
        entry = {name: entry[name] for name in self.order or entry}
        return Export(self.layout(source, entry, provenance), ledger.left_out)


def python(variable: str, suffix: str) -> Layout:
    """A Python file that defines a dict with the entry; the tool's dict of that name is updated with it."""

    def layout(source: Source, entry: dict[str, Any], provenance: dict[str, Any]) -> tuple[File, ...]:
        body = "".join(f"        {name!r}: {value!r},\n" for name, value in entry.items())
        text = f"{commented(provenance)}\n{variable} = {{\n    {source.name!r}: {{\n{body}    }},\n}}\n"
        return (File.text(f"{source.name}.{suffix}.py", text),)

    return layout


def json_beside(source: Source, entry: dict[str, Any], provenance: dict[str, Any]) -> tuple[File, ...]:
    """A JSON file of the entry alone, and its provenance beside it."""
    path = f"{source.name}.json"
    return File.text(path, json_text({"name": source.name, **entry})), sidecar(path, provenance)


def json_comment(source: Source, entry: dict[str, Any], provenance: dict[str, Any]) -> tuple[File, ...]:
    """A hardware_config.json with this device alone, provenance in a comment: copy the entry, or the file."""
    commented_entry = {"_comment": json.dumps(provenance, ensure_ascii=False), **entry}
    return (File.text(f"{source.name}.hardware_config.json", json_text({source.name: commented_entry})),)


PRECISIONS = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8"} | {
    **dict.fromkeys(FP8, "fp8"),
    "float4_e2m1fn_x2": "fp4",
}
"""Dtypes by TraceLens' names of them (TraceLens/PerfModel/utils.py)."""


def tflops(ledger: Ledger) -> dict[str, float]:
    """Every rate that TraceLens has a name for, in TFLOP/s. Raises ValueError where there is none."""
    rates: dict[str, float] = {}
    for dtype, precision in PRECISIONS.items():
        for unit, take in (("matrix", ledger.matrix_or_none), ("vector", ledger.vector_or_none)):
            name = f"{unit}_{precision}"
            if name not in rates and (rate := take(dtype)) is not None:
                rates[name] = rate / 1e12
    if not rates:
        raise ValueError(ledger.refusal("rate of matrix or vector work"))
    return rates


def arch_json(source: Source, entry: dict[str, Any], provenance: dict[str, Any]) -> tuple[File, ...]:
    """TraceLens' arch file, which may say where its values are from; the whole provenance beside it."""
    path = f"{source.name}.tracelens.json"
    reference = f"{provenance['by']}: {source.origin} figures of {source.spec.name}; see {path}.provenance.json"
    return File.text(path, json_text({"name": source.name, **entry, "_reference": reference})), sidecar(
        path, provenance
    )


LLM_VIEWER = Small(
    "LLM-Viewer",
    (
        Field("bandwidth", Ledger.bandwidth),
        Field("FP16", Ledger.sixteen_bit),
        Field("INT8", eight_bit, unknown="no 8-bit matrix peak; LLM-Viewer stops where everything is 8-bit"),
        Field("onchip_buffer", Ledger.on_chip),
    ),
    python("hardware_params", "llm_viewer"),
    folded="efficiency: the {origin} rates are the values; FP16 is that of {sixteen}",
)

NO_LINK = "no link known; written as 0, a collective divides by zero instead of taking 150 GB/s"
NO_LATENCY = "no latency known; written as 0, the time of a message follows from its bytes alone"

GENZ = Small(
    "GenZ",
    (
        Field("ICN", Ledger.between, GIB, NO_LINK, instead=0.0),
        Field("ICN_LL", Ledger.between_latency, 1e-6, NO_LATENCY, instead=0.0),
        Field("Flops", Ledger.sixteen_bit, 1e12),
        Field("Memory_size", Ledger.capacity, GIB),
        Field("Memory_BW", Ledger.bandwidth, GIB),
        Field("real_values", lambda ledger: True),
    ),
    python("system_configs", "genz"),
    folded="GenZ's factor 2^30 for GB, divided out; efficiency: use compute and memory efficiency 1 (ceff, meff); "
    "other dtypes are GenZ's multiples of the 16-bit rate",
    order=("Flops", "Memory_size", "Memory_BW", "ICN", "ICN_LL", "real_values"),
)

STOPS = "not known; null, so that llm-analysis stops where it needs it"
ASSUMES = "not known; llm-analysis then assumes {} × peak_fp16_TFLOPS by itself"

LLM_ANALYSIS = Small(
    "llm-analysis",
    (
        Field("mem_per_GPU_in_GB", Ledger.capacity, GIB),
        Field("hbm_bandwidth_in_GB_per_sec", Ledger.bandwidth, 1e9),
        Field("intra_node_bandwidth_in_GB_per_sec", Ledger.between, 1e9, STOPS, instead=None),
        Field("intra_node_min_message_latency", Ledger.between_latency, unknown=STOPS, instead=None),
        Field("peak_fp16_TFLOPS", Ledger.sixteen_bit, 1e12),
        Field("inter_node_bandwidth_in_GB_per_sec", network, 1e9, STOPS, instead=None),
        Field("peak_i8_TFLOPS", eight_bit, 1e12, ASSUMES.format(2)),
        Field("peak_i4_TFLOPS", four_bit, 1e12, ASSUMES.format(4)),
    ),
    json_beside,
    folded="efficiency: use flops_efficiency and hbm_memory_efficiency 1; "
    "memory in GiB, as llm-analysis counts it, bandwidths in 1e9 bytes/s",
)

WITHIN = "not known; BLIS prices traffic between nodes as within one"

BLIS = Small(
    "BLIS",
    (
        Field("TFlopsPeak", Ledger.sixteen_bit, 1e12),
        Field("BwPeakTBs", Ledger.bandwidth, 1e12),
        Field("mfuPrefill", lambda ledger: 1.0),
        Field("mfuDecode", lambda ledger: 1.0),
        Field("MemoryGiB", Ledger.capacity, GIB),
        Field("TFlopsFP8", fp8, 1e12, "not known; BLIS then assumes that there is no FP8 unit"),
        Field("IntraNodeBwGBps", Ledger.between, 1e9, WITHIN),
        Field("InterNodeBwGBps", network, 1e9, WITHIN),
    ),
    json_comment,
    folded="efficiency: mfuPrefill and mfuDecode are 1, the rates are the values",
)

TRACELENS = Small(
    "TraceLens",
    (
        Field("mem_bw_gbps", Ledger.bandwidth, 1e9),
        Field("memory_gb", Ledger.capacity, 1e9),
        Field("max_achievable_tflops", tflops),
    ),
    arch_json,
    folded="efficiency: the {origin} rates are the maximum that TraceLens compares with; no rate stands for another",
)
