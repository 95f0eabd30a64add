"""Every reader, on 5,000 damaged copies of valid files: nothing but a refusal of one line comes out, and soon.

A copy has a value of its JSON replaced, left out or written twice, bytes changed, cut or repeated, or a column of its
table in another type. The copies are the same in every run.
"""

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import exchange_samples
import numpy as np
import pandas as pd
import parametric_graphs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrate.exchange.formats import import_tables
from calibrate.exchange.tables import ImportOptions
from calibrate.passes.reports import load
from profiler.cli import options
from profiler.models.resolve import resolve
from profiler.record.folder import RunFolder, list_runs
from profiler.record.hardware_table import read_measurements
from profiler.record.kernel_table import count_kernels, read_kernels
from profiler.record.run import InvalidMeasurement, RequestError
from roofline.hardware.load import DEVICES, load_device
from roofline.reading import Unreadable
from roofline.sweep.family import StoredGraphs, StoredRegime, read_graphs, source
from roofline.sweep.polynomial import fit
from roofline.sweep.regimes import monomials, regime_of, samples
from roofline.workload import Workload

STORED = Path(__file__).parent / "data" / "runs"
REFUSALS = (RequestError, Unreadable, InvalidMeasurement)
LIMIT_S = 5.0
"""CPU seconds of one reading; a reader that waits for something is ended after as many seconds by the clock."""

TOKENS = (
    "null", "true", "false", "0", "-1", "-3", "0.5", "1e999", "-1e999", "NaN", "Infinity", "1e300", "9" * 18, "9" * 20,
    "-" + "9" * 20, "9" * 5000, "1" + "0" * 400 + ".0", '""', '"x"', '"7"', '"NaN"', '"\\ud800"', f'"{"n" * 5000}"',
    '"\\u0000\\u001b[31m"', "[]", "{}", "[null]", "[true]", "[-1]", "[1e308, 1e308]", '{"": {}}', "1000000000",
    "[" * 300 + "]" * 300, "[" * 100_000 + "]" * 100_000, '{"a":' * 200 + "1" + "}" * 200, '{"a": 1, "a": 2}', "", "{",
    ",", "\x00",
)  # fmt: skip
"""What stands in place of a value of a JSON text."""
KIN: dict[type, tuple[str, ...]] = {
    int: ("0", "1", "2", "7", str(10**9), str(10**17)),
    float: ("0.0", "1e-300", "1e300", "0.5", "1e-9", "7"),
    str: ('""', '"a"', '"float32"', '"matmul"', '"\\u001b[31m"', '"../../a"'),
    list: ("[]", "[0]", "[0, 0]", "[1, 2, 3]"),
    dict: ("{}",),
    type(None): ("0", "1", '"a"', "[0, 1]"),
    bool: ("true", "false"),
}
"""What stands in place of a value, and is of its type."""
COLUMNS: tuple[Callable[[int], Any], ...] = (
    lambda n: pa.array([{"a": 1}] * n),
    lambda n: pa.array([[1.0]] * n),
    lambda n: pa.array([[("k", 1)]] * n, pa.map_(pa.string(), pa.int64())),
    lambda n: pa.array([b"\xff\x00"] * n),
    lambda n: pa.array([True] * n),
    lambda n: pa.array([None] * n),
    lambda n: pa.array([float("nan")] * n),
    lambda n: pa.array([float("inf")] * n),
    lambda n: pa.array([-1.0] * n),
    lambda n: pa.array([10**18] * n),
    lambda n: pa.array(["x" * 5000] * n),
    lambda n: pa.array(["\x1b[2J"] * n),
    lambda n: pa.array([0] * n, pa.timestamp("ns")),
    lambda n: pa.array([0] * n, pa.duration("ns")),
    lambda n: pa.array([None] * n, pa.decimal128(38, 2)),
    lambda n: pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array(["y"])),
    lambda n: pa.array([[None, float("nan")]] * n),
    lambda n: pa.array([["x"]] * n),
)
"""What stands in place of a column of a table, by its rows."""


@dataclass(frozen=True)
class Reader:
    """A kind of file, and how it is read."""

    seeds: tuple[Path, ...]
    """Valid files; the reader finds the other files of their folder beside the damaged one."""
    read: Callable[[Path], object]
    """Takes the path of the damaged copy."""


def results(path: Path) -> None:
    folder = RunFolder.open(path.parent)
    load(folder)
    _ = folder.content, list_runs(path.parent.parent.parent)


def graphs(path: Path) -> None:
    read = read_graphs(path)
    asked = Workload(batch=1, query_tokens=40, context_tokens=0, dtype="bfloat16")
    if isinstance(read, StoredGraphs):
        with options.one_line():
            source(read, (), "executed").whole(asked)


def imported(format_name: str, **given: Any) -> Callable[[Path], object]:
    return lambda path: import_tables(format_name, [path], ImportOptions(device="nvidia-h100-sxm", **given))


def kernels(path: Path) -> None:
    count_kernels(path.parent)
    read_kernels(path.parent)


def saved_graphs() -> StoredGraphs:
    """What `predict --save-graph` writes of a made-up decoder."""
    asked = Workload(batch=1, query_tokens=40, context_tokens=0, dtype="bfloat16")
    regime = regime_of(asked, ())
    assert regime is not None
    points = samples(regime, (), "bfloat16")
    assert points is not None
    fitted = fit([parametric_graphs.decoder(point, layers=2) for point in points], monomials(regime, False))
    stored = StoredRegime(form="executed", regime=regime, graph=fitted)
    return StoredGraphs(model="decoder", parameters=1000, windows=(), regimes=(stored,))


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    made = tmp_path_factory.mktemp("valid")
    for name, frame in (
        ("gemm", exchange_samples.gemm()),
        ("moe", exchange_samples.moe()),
        ("nccl", exchange_samples.nccl()),
        ("attention", exchange_samples.attention("context_attention")),
        ("mlp", exchange_samples.vidur_linear()),
        ("all_reduce", exchange_samples.vidur_all_reduce()),
        ("layers", exchange_samples.layers()),
    ):
        frame.to_csv(made / f"{name}.csv", index=False)
        frame.to_parquet(made / f"{name}.parquet")
    (made / "saved.json").write_text(saved_graphs().model_dump_json())
    fields = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    for kind in ("llama", "mamba2", "qwen3_moe"):
        (made / kind).mkdir()
        config = {"model_type": kind, **fields, "intermediate_size": 128, "rope_theta": 1e4}
        (made / kind / "config.json").write_text(json.dumps(config))

    def tables(*names: str) -> tuple[Path, ...]:
        return tuple(made / f"{name}.{ending}" for name in names for ending in ("csv", "parquet"))

    sizes = dict.fromkeys(("hidden", "inner", "heads", "kv_heads", "head_dim", "vocab"), 64.0)
    return {
        "run.json": Reader(tuple(STORED.glob("schema*/*/run.json")), results),
        "journal": Reader(tuple(STORED.glob("schema*/unfinished/journal.jsonl")), results),
        "measurements": Reader(tuple(STORED.glob("schema*/finished/measurements.parquet")), results),
        "graph of a run": Reader(tuple(STORED.glob("schema*/finished/graphs/*.json")), graphs),
        "saved graphs": Reader((made / "saved.json",), graphs),
        "hardware journal": Reader(
            (STORED / "hardware-schema1/unfinished/hardware.jsonl",), lambda path: read_measurements(path.parent)
        ),
        "hardware table": Reader(
            (STORED / "hardware-schema1/finished/hardware.parquet",), lambda path: read_measurements(path.parent)
        ),
        "kernels": Reader((STORED / "kernels-schema1/kernels.parquet",), kernels),
        "spec": Reader((*STORED.glob("schema*/finished/spec.json"), DEVICES / "nvidia-h100-sxm.json"), load_device),
        "aiconfigurator": Reader(tables("gemm", "moe", "nccl", "attention"), imported("aiconfigurator")),
        "vidur": Reader(tables("mlp", "all_reduce"), imported("vidur")),
        "llmservingsim": Reader(tables("layers"), imported("llmservingsim", sizes=sizes)),
        "config": Reader(
            tuple(made / kind / "config.json" for kind in ("llama", "mamba2", "qwen3_moe")),
            lambda path: resolve(str(path.parent)),
        ),
    }


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield content, key
        yield from places(value)


def damaged_json(text: str, chance: random.Random) -> str:
    content = json.loads(text)
    where = list(places(content))
    marks: dict[str, str] = {}
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        container, key = chance.choice(where)
        how = chance.randrange(8)
        if how == 0 and isinstance(container, dict):
            container.pop(key, None)
        elif how == 1 and isinstance(container, list):
            container *= 2
        elif how == 2 and isinstance(container, dict):
            container[chance.choice(("x", "\x1b[31m", ""))] = 1
        elif key in container if isinstance(container, dict) else key < len(container):
            mark = f"@{len(marks)}@"
            marks[mark] = chance.choice(KIN.get(type(container[key]), TOKENS) if how > 5 else TOKENS)
            container[key] = mark
    text = json.dumps(content)
    for mark, token in marks.items():
        text = text.replace(f'"{mark}"', token)
    return text


def damaged_bytes(content: bytes, chance: random.Random) -> bytes:
    at, length = chance.randrange(len(content) + 1), chance.choice((1, 1, 2, 8, 64, 1000))
    noise = bytes(chance.choices((0, 1, 10, 34, 44, 45, 57, 92, 127, 128, 255), k=length))
    changed = (
        content[:at],
        content[at:],
        content[:at] + content[at + length :],
        content[:at] + noise + content[at:],
        content[:at] + noise + content[at + length :],
        content[:at] + content[max(0, at - length) :],
    )
    return chance.choice(changed)


def damaged_table(path: Path, chance: random.Random) -> pa.Table:
    table = pq.read_table(path)
    place, how = chance.randrange(table.num_columns), chance.randrange(8)
    if how == 0:
        return table.remove_column(place)
    if how == 1:
        return table.slice(0, chance.randrange(len(table)))
    if how == 2:
        return pa.concat_tables([table, table])
    if how == 3 and b"roofcal" in (table.schema.metadata or {}):
        header = damaged_json(table.schema.metadata[b"roofcal"].decode(), chance)
        return table.replace_schema_metadata({b"roofcal": header.encode()})
    if how == 4 and "record" in table.column_names:
        records = [damaged_json(record, chance) for record in table["record"].to_pylist()]
        return table.set_column(table.column_names.index("record"), "record", pa.array(records))
    return table.set_column(place, table.column_names[place], chance.choice(COLUMNS)(len(table)))


def damage(path: Path, chance: random.Random) -> None:
    """Change a valid file in place."""
    bytewise = chance.random() < 0.25
    if path.suffix == ".parquet" and not bytewise:
        pq.write_table(damaged_table(path, chance), path)
    elif path.suffix == ".csv" and not bytewise:
        frame = pd.read_csv(path)
        cells = [str(value) for value in (*TOKENS[:20], "inf", "-0.0", "1e400", "x,y", '"', "\x1b[2J")]
        column, row = chance.randrange(frame.shape[1]), chance.randrange(len(frame))
        frame = frame.astype(object)
        frame.iloc[row if chance.random() < 0.5 else slice(None), column] = chance.choice(cells)
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl" and not bytewise:
        lines = path.read_text().splitlines()
        place = chance.randrange(len(lines))
        lines[place] = damaged_json(lines[place], chance)
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".json" and not bytewise:
        path.write_text(damaged_json(path.read_text(), chance))
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), chance))


@contextmanager
def limited() -> Iterator[None]:
    """Within it, TimeoutError after `LIMIT_S`."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {LIMIT_S:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


INPUTS = {
    "run.json": 450, "journal": 500, "measurements": 450, "graph of a run": 500, "saved graphs": 500,
    "hardware journal": 500, "hardware table": 450, "kernels": 400, "spec": 450, "aiconfigurator": 120, "vidur": 100,
    "llmservingsim": 130, "config": 450,
}  # fmt: skip
"""Damaged copies for each reader, 5,000 in all; fewer where a valid table takes long to clean."""


@pytest.mark.parametrize("name", INPUTS)
def test_a_damaged_file_is_read_or_refused_in_one_line(name: str, readers: dict[str, Reader], tmp_path: Path) -> None:
    reader = readers[name]
    outcomes = {"read": 0, "refused": 0}
    folder = tmp_path / "results" / "device" / "run"

    for number in range(INPUTS[name]):
        chance = random.Random(number)
        seed = chance.choice(reader.seeds)
        shutil.rmtree(folder, ignore_errors=True)
        own_folder = (seed.parent / "run.json").exists() or name in ("kernels", "hardware table", "hardware journal")
        if own_folder:
            shutil.copytree(seed.parent, folder)
        else:
            folder.mkdir(parents=True)
            shutil.copy(seed, folder)
        path = folder / seed.name
        damage(path, chance)
        with limited(), np.errstate(all="ignore"):
            try:
                reader.read(path)
                outcomes["read"] += 1
            except REFUSALS as refusal:
                outcomes["refused"] += 1
                assert "\n" not in str(refusal) and len(str(refusal)) < 20_000, str(refusal)[:300]
    assert outcomes["refused"] > 20, outcomes  # the damage is seen


def test_readers_are_all_named(readers: dict[str, Reader]) -> None:
    assert (
        readers.keys() == INPUTS.keys()
        and sum(INPUTS.values()) == 5000
        and all(reader.seeds for reader in readers.values())
    )
