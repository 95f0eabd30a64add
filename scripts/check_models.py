"""Checks the tracer on every causal language model that `transformers` knows, against independent oracles.

Each model type is built from its default config on `meta` and traced in prefill, decode and a chunk:

- flops_exact: outside attention, the matrix FLOPs equal those of torch's `FlopCounterMode` on the same pass. Its table
  has no grouped products, so experts run there as batched ones.
- least: a decode step of the ideal graph multiplies by each weight that a token passes once, of experts by the chosen
  ones, reads and writes each recurrent state once, and leaves in the cache what the config says of a token
  (`scripts/least_work.py`, where exceptions are explained type by type).
- parameters_accounted: no parameter that the trace calls inactive gets a gradient (autograd on `meta`) or goes to any
  torch function in that pass; all others are read by an operation of the trace.
- The traced model has modules of the same classes as that of the default config, where that one can be built. A
  default config that is no valid model has fields filled in (`FILLED`), and layers are left out where fewer have the
  same classes and kinds of layers; nothing else is changed.

Each type runs in a process of its own, with limits of time and memory, so that a failure affects no other type.

Example::

    python -m scripts.check_models --types llama,mixtral
    python -m scripts.check_models --json --out docs/coverage.md > models.json
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from profiler.devices.backend import CUDA
from profiler.models.build import build, build_meta, implementations
from profiler.models.catalogue import first_line, silence
from profiler.models.inputs import attributes, prepare
from profiler.models.mended import mended
from profiler.models.module import Example
from profiler.models.resolve import layer_count
from profiler.models.trace import trace
from profiler.record.run import RequestError
from roofline.fusion.fuse import fused
from roofline.graph.op import Kind, layer_of
from roofline.workload import Workload
from scripts.least_work import EXPLAINED, faults, least_work, short_windows
from scripts.model_configs import FILLED, INNER, classes_of, filled_config, shrunk
from scripts.model_oracles import WholeText, counted_flops, draft_inputs, used_parameters

WORKERS = 2
"""Types that are checked at the same time by default."""
TIME_LIMIT_S, MEMORY_LIMIT = 480, 12 * 2**30
"""Seconds and bytes of address space for one type; most take a second or two on an idle core."""

PRELOADED = ["scripts.least_work", "scripts.model_oracles", "profiler.models.build", "profiler.models.trace"]
"""What each process needs, loaded once: a main module that `python -m` runs is not."""

BATCH = 2
PHASES = {"prefill": (12, 0), "decode": (1, 12), "chunk": (4, 12)}
"""(query, context) tokens."""

ON_CPU = {
    "blt": {  # a model's entropies give the lengths of its patches
        "encoder_hash_byte_group_vocab": 1000,
        "patcher_config.num_hidden_layers": 2,
        "global_config.num_hidden_layers": 2,
        "decoder_config.num_hidden_layers": 2,
    }
}
"""Types whose work depends on values that `meta` does not have: these fields shrink them, and only their prefill is
traced, with random weights on the CPU."""

WHOLE_TEXT = frozenset({"cpmant"})
"""Types that take the ids of the whole text beside a filled cache."""

DRAFTS = frozenset({"gemma4_assistant", "gemma4_unified_assistant"})
"""Draft models, which take the states and keys of the model that they draft for."""

Row = dict[str, Any]


def cover(model_type: str) -> Row:
    """The row of one type; it has the error of a model that fails."""
    row = _blank(model_type)
    try:
        _cover(model_type, row)
    except Exception as error:  # noqa: BLE001 - a model may raise anything
        row["reason"] = row["reason"] or _line(error)
    return row


def _blank(model_type: str, reason: str | None = None) -> Row:
    return {
        "type": model_type,
        "parameters": None,
        "traced": False,
        "flops_exact": False,
        "parameters_accounted": False,
        "least": None,
        "reason": reason,
        "class": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type],
        "attention": None,
        "dtype": None,
        "config": {},
        "traced_on": None,
        "phases": {},
    }


def _cover(model_type: str, row: Row) -> None:
    filled = FILLED.get(model_type, {})
    whole = filled_config(model_type, filled)
    model = build_meta(whole, "bfloat16")
    row["parameters"] = sum(parameter.numel() for parameter in model.parameters())  # tied ones once
    needed = classes_of(model)
    with suppress(Exception):  # the default config may be no valid model
        needed |= classes_of(build_meta(AutoConfig.for_model(model_type), "bfloat16")) if filled else set()
    if model_type in ON_CPU:
        _check_on_cpu(row, {**filled, **ON_CPU[model_type]}, needed)
    for config in (shrunk(whole, needed), whole) if model_type not in ON_CPU else ():
        row["config"] = {**filled, **({} if config is whole else {"num_hidden_layers": layer_count(config)})}
        missing = needed - classes_of(build_meta(config, "bfloat16"))
        if missing:
            row["reason"] = f"the filled config lost modules: {', '.join(sorted(missing))}"
            return
        try:
            _check_phases(config, row)
            break
        except Exception:  # layers may share what the shrunk model has lost: try all of them
            if config is whole:
                raise
    checks = [phase for phase in row["phases"].values() if "none" not in phase]
    row["traced"] = True
    row["traced_on"] = "cpu" if model_type in ON_CPU else "meta"
    row["flops_exact"] = all(phase["matrix_flops"] == phase["counted_flops"] for phase in checks)
    row["parameters_accounted"] = all(not phase["used_though_inactive"] for phase in checks)
    row["reason"] = _shortfall(row["phases"])
    if "none" not in row["phases"]["decode"] and model_type not in DRAFTS:
        row["least"] = _least(config, row)
        row["reason"] = row["reason"] or "; ".join(faults(model_type, row["least"])) or None


def _least(config: PretrainedConfig, row: Row) -> dict[str, float | None]:
    """Return what a decode step of the ideal graph does ÷ the least; see `scripts.least_work`."""
    short_windows(config)
    model = build_meta(config, row["dtype"])
    batch = INNER.get(row["type"], ("", 1))[1]
    workload = Workload(batch=batch, query_tokens=1, context_tokens=PHASES["decode"][1], dtype=row["dtype"])
    inputs: Any = prepare(model, workload)
    if row["type"] in WHOLE_TEXT:
        inputs = WholeText(model, inputs, workload)
    before = attributes(model)
    with mended(model):
        graph = trace(model, inputs, workload, name=row["type"], target=CUDA.type, options={})
    inputs.restore()
    after = attributes(model)
    kept = [
        (place.layer if (place := layer_of(path)) else 0, name, old)
        for (path, name), old in before.items()
        if after[path, name] is not old
    ]
    return least_work(model, fused(graph), [*inputs.cache_tensors(), *kept])


def _check_phases(config: PretrainedConfig, row: Row) -> None:
    row["phases"] = {}
    for dtype in ("bfloat16", "float32"):  # some mix float32 tensors into bfloat16 products
        row["dtype"], model = dtype, build_meta(config, dtype)
        try:
            row["phases"]["prefill"] = check(model, row["type"], "prefill", dtype)
            break
        except RuntimeError as error:
            if dtype == "float32" or "type" not in str(error):
                raise
    row["attention"] = implementations(model)["attn"]
    for phase in ("decode", "chunk"):
        try:
            row["phases"][phase] = check(model, row["type"], phase, row["dtype"])
        except RequestError as error:  # nothing is kept from pass to pass
            row["phases"][phase] = {"none": str(error)}
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
            if phase != "chunk":  # several tokens on a filled cache are beyond some models
                raise
            row["phases"][phase] = {"none": _line(error)}


def _check_on_cpu(row: Row, fields: Mapping[str, Any], needed: set[str]) -> None:
    config = filled_config(row["type"], fields)
    row["config"], row["dtype"] = dict(fields), "float32"
    missing = needed - classes_of(build_meta(config, "float32"))
    if missing:
        raise ValueError(f"the shrunk config lost modules: {', '.join(sorted(missing))}")
    model = build(config, "cpu", "float32")
    row["attention"] = implementations(model)["attn"]
    query, context = PHASES["prefill"]
    ids = torch.randint(config.vocab_size, (BATCH, query), generator=torch.Generator().manual_seed(0))
    inputs = Example((), {"input_ids": ids, "use_cache": False})
    workload = Workload(batch=BATCH, query_tokens=query, context_tokens=context, dtype="float32")
    row["phases"] = {"prefill": examined(model, inputs, workload, row["type"], "cpu")}
    row["phases"]["decode"] = {"none": "its cache is filled by a prefill on meta, which this type has not"}


def check(model: PreTrainedModel, name: str, phase: str, dtype: str) -> Row:
    """A pass of a phase on `meta`, with its oracles."""
    query, context = PHASES[phase]
    batch = BATCH * INNER.get(name, ("", 1))[1]
    workload = Workload(batch=batch, query_tokens=query, context_tokens=context, dtype=dtype)
    inputs: Any = draft_inputs(model, workload) if name in DRAFTS else prepare(model, workload)
    if name in WHOLE_TEXT and context:
        inputs = WholeText(model, inputs, workload)
    return examined(model, inputs, workload, name, CUDA.type)


def examined(model: PreTrainedModel, inputs: Any, workload: Workload, name: str, target: str) -> Row:
    """Return the figures of a pass's trace, and those of its oracles."""
    graph = trace(model, inputs, workload, name=name, target=target, options={})
    inputs.restore()
    counted = counted_flops(model, inputs)
    inputs.restore()
    used = used_parameters(model, inputs)
    return {
        "operations": len(graph.ops),
        "matrix_flops": sum(op.matrix_flops for op in graph.ops if op.kind != Kind.ATTENTION),
        "counted_flops": counted,
        "inactive": len(graph.inactive),
        "used_though_inactive": sorted(used & set(graph.inactive)),
        "uncounted": list(graph.uncounted),
    }


def _shortfall(phases: Mapping[str, Row]) -> str | None:
    for name, phase in phases.items():
        if "none" in phase:
            continue
        if phase["matrix_flops"] != phase["counted_flops"]:
            return f"{name}: {phase['matrix_flops']:.0f} matrix FLOPs are traced, {phase['counted_flops']} counted"
        if phase["used_though_inactive"]:
            return f"{name}: used though inactive: {', '.join(phase['used_though_inactive'][:3])}"
    return None


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:300]


def main(argv: list[str] | None = None) -> int:
    """Check the named types, or all, and print the table or the JSON list; the exit code is 2 for an unknown type."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on stdout")
    parser.add_argument("--types", help="model types, separated by commas; all by default")
    parser.add_argument("--out", type=Path, help="file for the table, in Markdown")
    parser.add_argument("--workers", type=int, default=WORKERS, help="types that are checked at the same time")
    options = parser.parse_args(argv)
    types = options.types.split(",") if options.types else list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    unknown = [name for name in types if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if unknown:
        print(f"unknown model type {unknown[0]}; use types of MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", file=sys.stderr)
        return 2
    rows = cover_all(types, max(1, options.workers))
    if options.json:
        print(json.dumps(rows, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(table(rows))
    elif not options.json:
        print(table(rows))
    print(summary(rows), file=sys.stderr)
    return 0


def cover_all(types: list[str], workers: int) -> list[Row]:
    """Rows in the order of `types`, each from a process of its own, which is forked from one that has loaded torch."""
    done = count(1)

    def covered(model_type: str) -> Row:
        started = time.monotonic()
        row = _cover_apart(model_type)
        result = "good" if is_good(row) else row["reason"]
        print(f"{next(done)}/{len(types)} {model_type} {time.monotonic() - started:.0f} s: {result}", file=sys.stderr)
        return row

    with ThreadPoolExecutor(min(workers, len(types))) as pool:
        return list(pool.map(covered, types))


def _cover_apart(model_type: str) -> Row:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, model_type), daemon=True)
    process.start()
    theirs.close()
    try:
        if ours.poll(TIME_LIMIT_S):
            row: Row = ours.recv()
            return row
        return _blank(model_type, f"over {TIME_LIMIT_S} s")
    except EOFError:
        return _blank(model_type, "its process died; it may lack memory")
    finally:
        process.kill()
        process.join()


def _send(pipe: Connection, model_type: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    silence()
    pipe.send(cover(model_type))


def is_good(row: Row) -> bool:
    """Whether all checks hold; a type without a decode step has no least."""
    exact = row["traced"] and row["flops_exact"] and row["parameters_accounted"]
    return bool(exact and row["reason"] is None and not (row["least"] and faults(row["type"], row["least"])))


def summary(rows: list[Row]) -> str:
    """The number of good rows, of all."""
    return f"{sum(map(is_good, rows))} of {len(rows)}"


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "# Model types",
        "",
        f"Causal language models of transformers {transformers.__version__} from the default config of each type, "
        f"traced on `meta` (blt: on the CPU). {summary(rows)} pass all checks of `scripts/check_models.py`,",
        "which writes this table. Parameters are those of the whole model. The last column has the fields that a",
        "default config lacks to be a valid model, and `num_hidden_layers` where fewer layers than all were traced.",
        "",
        'The column "÷ least" has what a decode step of the ideal graph does ÷ the least, by figures that use no',
        "trace: matrix FLOPs ÷ 2 × the parameters that one token passes; recurrent state read and written ÷ its size,",
        'where there is one; the cache after the step ÷ what the config says. "–": nothing is decoded, or cached.',
        "",
        "    python -m scripts.check_models --out docs/coverage.md",
        "",
        "| type | parameters | attention | phases | traced | FLOPs exact | parameters accounted | ÷ least | "
        "filled, or reason |",
        "|---|---:|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        marks = ["yes" if row[key] else "no" for key in ("traced", "flops_exact", "parameters_accounted")]
        phases = ", ".join(name for name, phase in row["phases"].items() if "none" not in phase)
        notes = [f"`{name}={value!r}`" for name, value in row["config"].items()]
        notes += [row["reason"]] if row["reason"] else []
        count = f"{row['parameters']:,}" if row["parameters"] else "?"
        notes += [f"{key}: {why}" for key, why in EXPLAINED.get(row["type"], {}).items()]
        cells = [row["type"], count, row["attention"] or "?", phases, *marks, _ratios(row["least"]), ", ".join(notes)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _ratios(least: Mapping[str, float | None] | None) -> str:
    return "–" if least is None else " / ".join("–" if ratio is None else f"{ratio:.3f}" for ratio in least.values())


if __name__ == "__main__":
    sys.exit(main())
