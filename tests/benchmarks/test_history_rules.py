"""Histories of 60 nights of 200 kernels: steps of 2 % that are found, and false alarms with and without a gate.

    python -m pytest -s tests/benchmarks/test_history_rules.py

Every night, what is proposed is measured by the gate's second draw between the versions of both sides, in which nothing
differs where nothing changed. The last columns are thousands of stored runs, read and judged.
"""

import time
from pathlib import Path

import numpy as np
from regression_noise import NIGHTLY, Machine, nightly

from calibrate.regression.compare import Row, Side, compare
from calibrate.regression.gate import Plan, confirmed
from calibrate.regression.history import PERSISTS, changes, common, proposals
from calibrate.regression.statistics import paired
from calibrate.regression.store import STORE, add, read
from profiler.record.folder import RunFolder, list_runs
from profiler.record.run import Run

KERNELS, NIGHTS, FIRST = 200, 60, 20
"""Kernels, nights, and the first night that is judged."""
REPEATS = 25
"""Gates of each night: 40 nights alone would see no rate below nine false alarms a year."""


def proposed(series: np.ndarray) -> bool:
    return any(at >= len(series) - PERSISTS for at in proposals(series, 0.01))


def test_rates() -> None:
    random = np.random.default_rng(60)
    plan = Plan()
    print(f"\n{'noise':28}{'2 % found':>11}{'proposed a night':>18}{'lasting, of series':>20}{'confirmed a year':>18}")
    for kind in NIGHTLY:
        stepped = nightly(kind, KERNELS, NIGHTS, random)
        stepped[:, 40:] += np.log1p(0.02)
        found = np.mean([any(proposed(row[: 41 + later]) for later in range(PERSISTS)) for row in stepped])
        alarms = count = 0
        quiet = nightly(kind, KERNELS, NIGHTS, random)
        machine = Machine(KERNELS, random)
        for night in range(FIRST, NIGHTS):
            chosen = [i for i, row in enumerate(quiet) if proposed(row[: night + 1])]
            count += len(chosen)
            for _ in range(REPEATS * bool(chosen)):
                screened, again = paired(machine.pairs(plan.pairs)), paired(machine.pairs(plan.confirming)[chosen])
                alarms += int(confirmed(screened, again, plan.least).sum())
        a_year = 365 / (NIGHTS - FIRST) / REPEATS
        lasting = [
            change
            for row in quiet
            for change in changes(_nights(NIGHTS), {(("kernel", "k"),): row}, np.zeros(NIGHTS), 0.01)
            if change.lasts
        ]
        print(f"{kind:28}{100 * found:>9.1f} %{count / (NIGHTS - FIRST):>18.1f}"
              f"{100 * len(lasting) / KERNELS:>18.1f} %{alarms * a_year:>18.2f}")  # fmt: skip
        assert found >= 0.95 and alarms * a_year <= 1


def _nights(count: int) -> list:  # type: ignore[type-arg]
    from calibrate.regression.history import Night

    return [Night(f"n{i}", f"2026-01-01T00:{i // 60:02}:{i % 60:02}+00:00") for i in range(count)]


def test_thousands_of_runs(tmp_path: Path, run: Run) -> None:
    random = np.random.default_rng(5)
    keys = [(("kernel", f"kernel_{i}"), ("shape", "m=4096 n=4096 k=4096"), ("dtype", "bfloat16")) for i in range(500)]
    sides = []
    for i in range(5000):
        rows = tuple(Row(key, (float(t),)) for key, t in zip(keys, 1e-4 * random.lognormal(0, 0.005, 500), strict=True))
        sides.append((f"d/{i}", Side(str(i), rows, {"device": "NVIDIA H200"}, {}, "box", f"2026-01-01T{i:09}")))
    base = tmp_path / STORE
    base.mkdir()
    for part in range(0, 5000, 500):
        add(base, sides[part : part + 500])
    start = time.perf_counter()
    stored = read(tmp_path)
    wanted = {keys[7]: stored.series[keys[7]]}
    changes(stored.nights, wanted, common(np.array(list(stored.series.values()))), 0.01)
    print(f"\nhistory of one kernel, 5,000 runs of 500 kernels: {time.perf_counter() - start:.2f} s")
    for i in range(5000):
        RunFolder.create(tmp_path, run.model_copy(update={"name": f"r{i}"})).close()
    start = time.perf_counter()
    assert len(list_runs(tmp_path)) == 5000
    print(f"list of 5,000 runs: {time.perf_counter() - start:.2f} s")
    two = [Side(n, tuple(Row((("k", str(i)),), tuple(random.lognormal(0, 0.005, 5))) for i in range(2000)), {})
           for n in "ab"]  # fmt: skip
    start = time.perf_counter()
    compare(*two)
    print(f"compare of two runs of 2,000 kernels: {time.perf_counter() - start:.2f} s")
