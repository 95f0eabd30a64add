"""The recorded decode step, and which of its host events are its operations.

Example: ``window, names, spans = executed(read_timeline(recorded()))``
"""

import json
from pathlib import Path
from typing import Any

from profiler.attribution.kernels import OpSpan
from profiler.attribution.timeline import Timeline

CUDA = Path(__file__).parent / "data" / "timelines" / "llama_decode_cuda.json"
TRACED = {
    "aten::addmm", "aten::mm", "aten::mul", "aten::add", "aten::pow", "aten::mean", "aten::rsqrt", "aten::_to_copy",
    "aten::cat", "aten::copy_", "aten::scaled_dot_product_attention", "aten::silu",
}  # fmt: skip


def recorded() -> dict[str, Any]:
    return json.loads(CUDA.read_text())  # type: ignore[no-any-return]


def executed(timeline: Timeline) -> tuple[tuple[float, float], list[str], list[OpSpan]]:
    """The pass, and its outermost traced operators on the main thread."""
    (whole,) = [e for e in timeline.host if e.name == "roofcal-pass"]
    names, spans, end = [], [], 0.0
    for e in timeline.host:
        if e.name in TRACED and e.tid == whole.tid and e.start_s >= end:
            names.append(e.name)
            spans.append(OpSpan(len(spans), e.start_s, e.end_s, e.tid))
            end = e.end_s
    return (whole.start_s, whole.end_s), names, spans
