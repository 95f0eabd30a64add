"""The paper's table as JSON and on the terminal: one layer's operations in LLM-Viewer's own names and figures.

In JSON each row also has the keys of the default accounting, as totals over `count`, so that both can be compared.

Example: ``json.dumps(document(result, "llama-2-7b", "nvidia-rtx-a6000"))``
"""

from typing import Any

from rich.console import Console

from calibrate.report.grid import Column, grid, rule, say
from calibrate.report.units import aligned
from roofline.paper.table import PaperCosts, PaperPhase, PaperResult

MATRIX = ("_proj", "_matmul", "lm_head", "fused_attention")
"""Names of rows that are products; LLM-Viewer itself does not tell them from the others."""


def document(result: PaperResult, model: str, hardware: str) -> dict[str, Any]:
    """The whole result."""
    phases = {"prefill": result.prefill, "decode": result.decode}
    largest = max(phases.values(), key=lambda found: found.total.memory_consumption).total
    return {
        "model": model,
        "hardware": hardware,
        "accounting": "paper",
        "batch": result.batch,
        "seqlen": result.seqlen,
        "bits": {"weights": result.w_bit, "activations": result.a_bit, "kv_cache": result.kv_bit},
        "flash": result.use_flash,
        "workloads": [_phase(name, found, result) for name, found in phases.items()],
        "memory": {
            "weights": largest.memory_consumption_weight,
            "kv_cache": largest.memory_consumption_kv_cache,
            "activations": largest.memory_consumption_tmp_act,
        },
    }


def render(result: PaperResult, model: str, hardware: str, console: Console) -> None:
    """Both phases: one execution of each operation, and the totals."""
    rule(console, f"{model} on {hardware}")
    say(console, "the accounting of arXiv 2402.16363")
    say(
        console,
        f"batch {result.batch}, {result.seqlen} tokens, bits of weights {result.w_bit}, activations {result.a_bit}, "
        f"KV cache {result.kv_bit}; a row is one execution",
    )
    for name, found in (("prefill", result.prefill), ("decode", result.decode)):
        total = found.total
        console.print()
        done = [_printed(total.OPs, "OPs"), _printed(total.memory_access, "B"), _printed(total.inference_time, "s")]
        parts = {"": "", "weights": "_weight", "KV cache": "_kv_cache", "activations": "_tmp_act"}
        held = {part: _printed(getattr(total, f"memory_consumption{end}"), "B") for part, end in parts.items()}
        memory = ", ".join(f"{part} {figure}" for part, figure in held.items() if part)
        say(console, f"{name}: {', '.join(done)}; memory {held['']}: {memory}", "bold")
        rows = found.rows
        columns: list[Column] = [
            ("layer", [row.name for row in rows], "cyan", True),
            ("×", [str(row.count) for row in rows], "", False),
            ("OPs", aligned([_printed(row.OPs) for row in rows]), "", False),
            ("bytes", aligned([_printed(row.memory_access) for row in rows]), "", False),
            ("OPs/byte", [f"{row.arithmetic_intensity:#.5g}" for row in rows], "", False),
            ("OPs/s", aligned([_printed(row.performance) for row in rows]), "", False),
            ("bound", [row.bound for row in rows], "dim", True),
            ("time", aligned([_printed(row.inference_time, "s") for row in rows]), "bold", False),
        ]
        grid(console, columns, shrink=0)


def _printed(value: float, unit: str = "") -> str:
    """Five digits, as many as the paper's own table has, with an SI prefix."""
    power = next((p for p in (12, 9, 6, 3, 0, -3, -6) if abs(value) >= 10.0**p), -9)
    prefix = {12: "T", 9: "G", 6: "M", 3: "k", 0: "", -3: "m", -6: "µ", -9: "n"}[power]
    return f"{value / 10.0**power:#.5g} {prefix}{unit}".rstrip()


def _phase(name: str, found: PaperPhase, result: PaperResult) -> dict[str, Any]:
    decodes = name == "decode"
    return {
        "phase": name,
        "batch": result.batch,
        "query_tokens": 1 if decodes else result.seqlen,
        "context_tokens": result.seqlen if decodes else 0,
        "total": found.total.model_dump() | {"time_s": found.total.inference_time, "bytes": _bytes(found.total, 1)},
        "ops": [
            {
                "path": result.shape.paths.get(row.name, row.name),
                "kind": "matmul" if _is_product(row.name) else "pointwise",
                "matrix_flops": row.OPs * row.count if _is_product(row.name) else 0.0,
                "vector_flops": 0.0 if _is_product(row.name) else row.OPs * row.count,
                "bytes": _bytes(row, row.count),
                "time_s": row.inference_time * row.count,
                **row.model_dump(),
            }
            for row in found.rows
        ],
    }


def _bytes(costs: PaperCosts, count: int) -> dict[str, float]:
    return {
        "weight_read": costs.load_weight * count,
        "activation_read": costs.load_act * count,
        "activation_write": costs.store_act * count,
        "kv_read": costs.load_kv_cache * count,
        "kv_write": costs.store_kv_cache * count,
    }


def _is_product(name: str) -> bool:
    return name.endswith(MATRIX)
