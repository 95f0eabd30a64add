"""Predicted times of serving engines beside measured ones, for models whose rows were not fitted to.

    python scripts/serving_accuracy.py SILICON.csv TABLES… [--fit-rows 30] [--json]

SILICON.csv has a row for each measured run (`calibrate.serving.silicon`). TABLES are kernel tables of its devices in
AIConfigurator's layout, files or folders that are searched for `*_perf.parquet`. For each device, laws are fitted to
the tables; each model is traced and taken as its engine runs it; the constants of an engine are fitted to at most
--fit-rows rows of other models on that engine, and the model's own rows are predicted. Beside them stand the datasheet
roofline, the four-constant roofline and interpolation in the tables, on the same graph, replay and rows.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.exchange.formats import import_tables
from calibrate.exchange.tables import ImportOptions
from calibrate.kernels.fit import Observations, observations
from calibrate.serving.baselines import DatasheetPricer, FourConstantPricer, InterpolatingPricer
from calibrate.serving.device_laws import Key, Source, Tables
from calibrate.serving.engine_time import MODEL_SPREAD, EngineTime, chosen_rows, fit_engine, interval
from calibrate.serving.servers import started
from calibrate.serving.silicon import Case, case_of, read_rows, scheme_of
from profiler.models.served import native_dtypes, served_model, served_name
from profiler.record.run import RequestError
from roofline.hardware.load import device_names, load_device
from roofline.hardware.spec import HardwareSpec
from roofline.laws.kinds import LATENT_DECODE, LATENT_PREFILL, OWN_ALL_REDUCE
from roofline.laws.law import Floats
from roofline.reading import one_line
from roofline.serving.engine import Engine
from roofline.serving.find import BARE_SPREAD
from roofline.serving.replay import Drafts, Replayed, replay
from roofline.serving.shape import Served
from roofline.serving.step import Pricer
from roofline.serving.surface import SECONDS, TERMS, Asked, Surface, surfaces

ENOUGH = 9
"""Rows of other models on the same version of an engine from which no other version is needed."""
OURS, DATASHEET = "ours", "datasheet"
FORM_FACTOR = {"sxm", "nvidia", "pcie"}
"""Words of a system's name that do not tell its chip."""
QUEUEING = 0.7
"""Standard deviation of the logarithm of a time to the first token: under load it is mostly queueing behind prompts
that arrive together, which the columns do not tell."""


def say(text: str) -> None:
    """A remark for the user, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def read_tables(paths: Sequence[Path]) -> dict[str, Tables]:
    """Tables by the name of their device file."""
    files: list[Path] = []
    for path in paths:
        files += sorted(path.rglob("*_perf.parquet")) + sorted(path.rglob("*_perf.txt")) if path.is_dir() else [path]
    if not files:
        raise RequestError("no *_perf.parquet under the tables; name AIConfigurator's files or their folder")
    found: dict[str, Tables] = {}
    left = defaultdict[str, list[Path]](list)
    for file in files:
        try:
            read = import_tables("aiconfigurator", [file], ImportOptions())
        except RequestError as error:
            left[str(error).removeprefix(f"{file}: ").partition("; there are")[0]].append(file)
            continue
        spec = read.device.spec or next((known for part in file.parts[::-1] if (known := device_named(part))), None)
        if spec is None:
            left[f"no device file describes {read.device.name}"].append(file)
            continue
        tables = found.setdefault(spec.name, Tables(spec))
        versions = [f"{name} {version}" for source in read.kernels.sources for name, version in source.versions.items()]
        framework, _, version = (versions or ["unknown "])[0].partition(" ")
        numbers = tuple(int(part) for part in re.findall(r"\d+", version.split(",")[-1])[:4])
        tables.of.setdefault((framework.lower(), numbers), {}).update(observations(read.kernels))
    for why, those in left.items():
        say(f"left out, {len(those)} tables ({', '.join(sorted({file.name for file in those}))}): {why}")
    if not found:
        raise RequestError("no table could be read; see above")
    return found


def device_named(system: str) -> HardwareSpec | None:
    """The device that AIConfigurator calls "h100_sxm", "gb200" or "a100_sxm"; of several, the one of most memory."""
    asked = set(re.findall(r"[a-z0-9]+", system.lower()))
    named = [spec for name in device_names() if asked & set(name.split("-")) and (spec := load_device(name))]
    fitting = [spec for spec in named if asked - FORM_FACTOR <= set(spec.name.split("-"))]
    exact = [spec for spec in fitting if asked <= set(spec.name.split("-"))]
    return max(exact or fitting, key=memory_bytes, default=None) if asked - FORM_FACTOR else None


def memory_bytes(spec: HardwareSpec) -> float:
    """Bytes of a device's main memory; infinite where they are not known."""
    return (spec.datasheet.levels[-1].capacity_bytes if spec.datasheet else None) or np.inf


def device_for(system: str, tables: Mapping[str, Tables]) -> Tables:
    """The tables of a row's device. Raises ValueError: none."""
    words = set(re.findall(r"[a-z0-9]+", system.lower())) - FORM_FACTOR
    own = [table for name, table in tables.items() if words and words <= set(name.split("-"))]
    if len(own) > 1 and (spec := device_named(system)) and spec.name in tables:
        return tables[spec.name]
    if own:
        return own[0]
    raise ValueError(f"no tables of {system!r:.40}; there are tables of {', '.join(sorted(tables))}")


def asked_for(case: Case, tables: Tables) -> tuple[Asked, Drafts | None]:
    """Return what a row asks to be priced. Raises ValueError, one line."""
    found = known_model(case.model, case.ranks)
    if isinstance(found, str):
        raise ValueError(found)
    model, native = found
    how = started(case, model.model, sum(attention.count for attention in model.attentions))
    scheme = scheme_of(case, how.engine, native)
    scheme = replace(scheme, experts=tables.same_bits("experts", scheme.experts))
    parallel, ranks = how.parallel, model.ranks * how.parallel.attention_dp
    if model.experts and parallel.moe_tp * parallel.moe_ep < ranks:  # left empty in the file
        parallel = replace(parallel, moe_tp=max(1, ranks // parallel.moe_ep))
    return (model, how.engine, scheme, parallel), how.drafts


@cache
def known_model(model: str, ranks: int) -> tuple[Served, tuple[str, str] | None] | str:
    """One rank of a model and its checkpoint's dtypes, or why there is none: asked once, since a hub may be asked."""
    try:
        name = served_name(model)
        return served_model(name, ranks), native_dtypes(name)
    except (RequestError, ValueError, KeyError, RuntimeError, ImportError, OSError) as error:
        return f"{model} on {ranks} ranks: {one_line(error)}"


def wanted_kinds(asked: Sequence[Asked]) -> list[tuple[str, str]]:
    """Kinds and dtypes of kernels that these need."""
    kinds: dict[tuple[str, str], None] = {}
    for model, _, scheme, _ in asked:
        for kind in ("matmul", "prefill_attention", "decode_attention"):
            kinds[kind, "bfloat16"] = None
        kinds["matmul", scheme.layer] = None
        if model.experts:
            kinds["experts", scheme.experts] = None
        if model.ranks > 1:
            kinds["collective", "float16"] = kinds[OWN_ALL_REDUCE, "float16"] = None
        if any(attention.latent for attention in model.attentions):
            for kind in ("batched_matmul", LATENT_PREFILL, LATENT_DECODE):
                kinds[kind, "bfloat16"] = None
    return list(kinds)


def by_laws(
    tables: Tables,
    found: Mapping[Key, Observations],
    sources: Sequence[Source],
    foreign: Collection[str],
    engine: Engine,
) -> Pricer:
    """The fitted laws of the chosen tables."""
    laws, notes = tables.laws(sources)
    for note in notes:
        say(f"no law: {note}")
    return Pricer(laws, tables.facts(), foreign, engine.by_main_library)


PRICERS: dict[str, Callable[[Tables, Mapping[Key, Observations], Sequence[Source], Collection[str], Engine], Any]] = {
    OURS: by_laws,
    DATASHEET: lambda tables, found, *_: DatasheetPricer(tables.facts()),
    "four-constant": lambda tables, found, *_: FourConstantPricer(found, tables.facts()),
    "interpolation": lambda tables, found, *_: InterpolatingPricer(found, tables.facts()),
}


@dataclass
class Method:
    """One way of pricing kernels, with what it predicts for all cases."""

    name: str
    cases: Mapping[int, Case]
    asked: Mapping[int, Asked]
    tables: Mapping[int, Tables]
    drafts: Mapping[int, Drafts | None]
    surface: dict[int, Surface] = field(default_factory=dict)
    foreign: dict[int, bool] = field(default_factory=dict)
    without: dict[int, float] = field(default_factory=dict)
    """Share of the kernels' time of kinds that no table holds."""
    reasons: dict[int, str] = field(default_factory=dict)
    fits: list[str] = field(default_factory=list)
    _replayed: dict[tuple[object, ...], Replayed] = field(default_factory=dict)

    def predictions(self, fit_rows: int) -> dict[int, dict[str, float]]:
        """Seconds of every case that could be priced, with the ends of their intervals."""
        self._price()
        groups: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
        for i in self.surface:
            case = self.cases[i]
            groups[case.engine, case.version, self._model(i), case.system].append(i)
        return {i: found for places in groups.values() for i, found in self._group(places, fit_rows).items()}

    def _price(self) -> None:
        """Surfaces of all cases; those of one device and engine are priced together."""
        together: dict[tuple[int, str], list[int]] = defaultdict(list)
        for i, case in self.cases.items():
            together[id(self.tables[i]), case.engine].append(i)
        for places in together.values():
            own = self.tables[places[0]]
            found, foreign, sources = own.chosen(
                self.cases[places[0]].engine, wanted_kinds([self.asked[i] for i in places])
            )
            distinct: dict[Any, list[int]] = defaultdict(list)
            for i in places:
                model, engine, scheme, parallel = self.asked[i]
                distinct[model.model, model.ranks, engine.since, scheme, parallel].append(i)
                self.foreign[i] = bool(foreign)
            pricer = PRICERS[self.name](own, found, sources, foreign, self.asked[places[0]][1])
            self._surfaces(list(distinct.values()), pricer, own.spec)

    def _surfaces(self, groups: Sequence[Sequence[int]], pricer: Any, spec: HardwareSpec) -> None:
        """Surfaces of groups of rows that share one; where some cannot be priced, the others are priced apart."""
        try:
            made = surfaces([self.asked[rows[0]] for rows in groups], pricer, memory_bytes(spec))
        except (ValueError, KeyError) as error:
            if len(groups) == 1:
                self.reasons.update(dict.fromkeys(groups[0], f"{spec.name}: {error}"))
                return
            for rows in groups:
                self._surfaces([rows], pricer, spec)
            return
        for rows, surface in zip(groups, made, strict=True):
            lacking = [share for name, share in surface.bare.items() if not pricer.prices(name.partition(" ")[0])]
            self.surface.update(dict.fromkeys(rows, surface))
            self.without.update(dict.fromkeys(rows, sum(lacking)))

    def _group(self, places: Sequence[int], fit_rows: int) -> dict[int, dict[str, float]]:
        """The rows of one model on one engine, version and device."""
        here = places[0]
        law = EngineTime(self.asked[here][1], foreign=self.foreign[here])
        facts = self.tables[here].facts()
        if self.name == DATASHEET:
            constants, deviation = np.where(np.isin(TERMS, SECONDS), 1.0, 0.0), MODEL_SPREAD
        else:
            picked = self._picked(here, fit_rows)
            start = law.priors(facts)
            terms = [self._replay(i, start).token * law.as_here(self.asked[i][1]) for i in picked]
            measured = np.array([self.cases[i].tpot_s for i in picked], dtype=float)
            models = [self._model(i) for i in picked]
            fitted = fit_engine(law, np.array(terms).reshape(-1, len(TERMS)), measured, models, facts)
            constants, deviation = fitted.constants, fitted.deviation
            self.fits.append(self._described(here, models, constants, deviation))
        found = {}
        for i in places:
            done = self._replay(i, constants)
            seconds = {"ttft": float(np.mean(done.first_s)), "tpot": float(np.median(done.token_s))}
            spread = float(np.hypot(deviation, BARE_SPREAD * self.without[i]))
            for name, width in (("ttft", max(QUEUEING, spread)), ("tpot", spread)):
                low, high = interval(np.array(seconds[name]), width)
                seconds |= {f"{name}_low": float(low), f"{name}_high": float(high)}
            found[i] = seconds
        return found

    def _picked(self, here: int, fit_rows: int) -> list[int]:
        """Rows of other models on the same engine to fit to: those that laws price as a whole where there are enough,
        and among them those of the same version."""
        others = [
            i
            for i in self.surface
            if self.cases[i].engine == self.cases[here].engine
            and self._model(i) != self._model(here)
            and self.cases[i].tpot_s
        ]
        for better in (
            [i for i in others if self.surface[i].is_whole],
            [i for i in others if self.surface[i].is_whole and self.cases[i].version == self.cases[here].version],
        ):
            others = better if len(better) >= ENOUGH else others
        if not others or not fit_rows:
            return []
        loads = [self.cases[i].load for i in others]
        terms = [
            self.surface[i].terms(load.concurrency, load.prompt_tokens + load.output_tokens / 2)
            for i, load in zip(others, loads, strict=True)
        ]
        return [others[row] for row in chosen_rows(np.array(terms), [self._model(i) for i in others], fit_rows)]

    def _replay(self, i: int, constants: Floats) -> Replayed:
        load, engine, drafts = self.cases[i].load, self.asked[i][1], self.drafts[i]
        key = (id(self.surface[i]), load, engine.chunk_tokens, drafts, constants.tobytes())
        if key not in self._replayed:
            self._replayed[key] = replay(self.surface[i], load, constants, engine, drafts)
        return self._replayed[key]

    def _model(self, i: int) -> str:
        return self.asked[i][0].model

    def _described(self, here: int, models: Sequence[str], constants: Floats, deviation: float) -> str:
        case, those = self.cases[here], ", ".join(sorted(set(models))) or "no other model"
        values = ", ".join(f"{name} {value:.3g}" for name, value in zip(TERMS, constants, strict=True))
        kernels = "other engines' kernels, " if self.foreign[here] else ""
        return (
            f"{case.engine} {case.version} for {self._model(here)} on {case.system}: {kernels}{len(models)} rows of "
            f"{those}: {values}; ± {100 * deviation:.0f} %"
        )


def errors(predicted: Mapping[int, Mapping[str, float]], cases: Mapping[int, Case], what: str) -> Floats:
    """Relative errors of the rows that have a measured and a predicted time."""
    measured = {i: getattr(case, f"{what}_s") for i, case in cases.items()}
    return np.array([predicted[i][what] / measured[i] - 1 for i in cases if measured[i] and i in predicted])


def summary(name: str, off: Floats, covered: float | None = None) -> str:
    """A line of the printed table."""
    if not len(off):
        return f"{name:36} {0:5}"
    within = "" if covered is None else f" {100 * covered:9.1f}"
    size = np.abs(off)
    return (
        f"{name:36} {len(off):5} {100 * size.mean():8.1f} {100 * np.median(size):8.1f} {100 * off.mean():+8.1f}{within}"
    )


def document(rows: Sequence[Mapping[str, str]], ours: Mapping[int, Mapping[str, float]],
             reasons: Mapping[int, str]) -> list[dict[str, Any]]:  # fmt: skip
    """Each row with its predictions in milliseconds, or the reason why there are none."""
    found: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        if i not in ours:
            found.append({**row, "reason": reasons.get(i, "not priced")})
            continue
        times = {}
        for name, seconds in ours[i].items():
            what, _, end = name.partition("_")
            times[f"predicted_{what}_ms" + (f"_{end}" if end else "")] = 1e3 * seconds
        found.append({**row, **times})
    return found


def main() -> int:
    """Print the table, or JSON; the exit code is 2 where the files cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("silicon", type=Path, help="CSV file of measured serving times")
    parser.add_argument("tables", type=Path, nargs="+", help="kernel tables, files or folders")
    parser.add_argument("--fit-rows", type=int, default=30, help="most rows of other models for an engine's constants")
    parser.add_argument("--json", action="store_true", dest="as_json", help="JSON on stdout")
    parser.add_argument("--only-ours", action="store_true", help="leave out the simpler ways")
    options = parser.parse_args()
    if options.fit_rows < 0:
        say(f"--fit-rows is {options.fit_rows}; use 0 or more")
        return 2
    try:
        rows, known = read_rows(options.silicon), read_tables(options.tables)
    except RequestError as error:
        say(str(error))
        return 2
    cases, asked, tables, reasons = dict[int, Case](), dict[int, Asked](), dict[int, Tables](), dict[int, str]()
    drafts = dict[int, Drafts | None]()
    for i, row in enumerate(rows):
        try:
            case = case_of(i, row)
            own = device_for(case.system, known)
            asked[i], drafts[i] = asked_for(case, own)
            tables[i], cases[i] = own, case
        except ValueError as error:
            reasons[i] = str(error)
    methods = [
        Method(name, cases, asked, tables, drafts)
        for name in PRICERS
        if name == OURS or not (options.only_ours or options.as_json)
    ]
    results = {method.name: method.predictions(options.fit_rows) for method in methods}
    ours = results[OURS]
    reasons |= methods[0].reasons
    for reason in sorted(set(reasons.values())):
        say(f"without a prediction: {reason}")
    if options.as_json:
        found = {"rows": document(rows, ours, reasons), "constants": methods[0].fits}
        print(json.dumps(found, indent=1))
        return 0
    print_table(cases, asked, results, methods[0].fits)
    print(f"{len(rows) - len(ours)} of {len(rows)} rows without a prediction")
    return 0


def print_table(cases: Mapping[int, Case], asked: Mapping[int, Asked],
                results: Mapping[str, Mapping[int, Mapping[str, float]]], fits: Sequence[str]) -> None:  # fmt: skip
    """Errors of all ways of pricing, and ours by engine, model and ranks."""
    for line in fits:
        print(line)
    print(f"\n{'% of measured, not fitted on':36} {'rows':>5} {'mean':>8} {'median':>8} {'bias':>8} {'in 90 %':>9}")
    ours = results[OURS]
    for what in ("tpot", "ttft"):
        measured = {i: time_s for i, case in cases.items() if (time_s := getattr(case, f"{what}_s")) and i in ours}
        inside = [ours[i][f"{what}_low"] <= time_s <= ours[i][f"{what}_high"] for i, time_s in measured.items()]
        for method, predicted in results.items():
            covered = float(np.mean(inside)) if method == OURS and inside else None
            print(summary(f"{what} {method}", errors(predicted, cases, what), covered))
    parts: dict[tuple[str, ...], dict[int, Case]] = defaultdict(dict)
    for i, case in cases.items():
        parts[case.system, case.engine, asked[i][0].model, f"tp{case.ranks}"][i] = case
    for name, those in sorted(parts.items()):
        print(summary("  tpot " + " ".join(name), errors(ours, those, "tpot")))


if __name__ == "__main__":
    sys.exit(main())
