"""What of a campaign is kept: a few small files with its conditions, and predicted against measured.

    keep/README.md        conditions, parts, figures of every pass
    keep/summary.json     each part's last journal line, its run.json, and each pass as `run --json` prints it
    keep/<part>.md        report of each part
    keep/<part>.spec.json the device's figures and laws that a characterisation found
    keep/exports/         the same for other tools

Only the standard library. Example: ``keep(Path("out"), parts, campaign.ended())``
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.campaign import Part

LARGEST_BYTES = 16 << 20
"""Of a file that is kept."""
CHARACTERISES = "hardware"
"""Verb whose spec.json is kept; that of a run holds the short look that each run takes."""


HELD_OUT = "held-out"
"""Part that judges the laws."""


def keep(out: Path, parts: Sequence[Part], ended: Mapping[str, dict[str, Any]]) -> None:
    """Write `keep/` anew from what the parts have left."""
    kept = out / "keep"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    passes: list[dict[str, Any]] = []
    runs: dict[str, dict[str, Any]] = {}
    too_large: list[str] = []
    for part in parts:
        line = ended.get(part.name, {})
        if line.get("run"):
            run = out / line["run"]
            runs[part.name] = _json(run / "run.json")
            files = {"report.md": f"{part.name}.md"}
            if part.arguments[0] == CHARACTERISES:
                files["spec.json"] = f"{part.name}.spec.json"
            too_large += [name for source, name in files.items() if not _copied(run / source, kept / name)]
        document = _json(out / "logs" / f"{part.name}.json")
        passes += [{"part": part.name, **one} for one in document.get("passes", ())]
    for file in sorted((out / "exports").rglob("*")):
        if file.is_file():
            target = kept / file.relative_to(out)
            target.parent.mkdir(parents=True, exist_ok=True)
            too_large += [] if _copied(file, target) else [str(file.relative_to(out))]
    lines = [ended[part.name] for part in parts if part.name in ended]
    summary = json.dumps({"parts": lines, "runs": runs, "passes": passes}, separators=(",", ":"))
    (kept / "summary.json").write_text(summary + "\n", encoding="utf-8")
    (kept / "README.md").write_text(_readme(out, parts, ended, passes, too_large), encoding="utf-8")


def _copied(source: Path, target: Path) -> bool:
    """Whether a file is small enough to be kept; one that is not there is no loss."""
    if not source.exists():
        return True
    if source.stat().st_size > LARGEST_BYTES:
        return False
    shutil.copyfile(source, target)
    return True


def _readme(
    out: Path,
    parts: Sequence[Part],
    ended: Mapping[str, dict[str, Any]],
    passes: Sequence[dict[str, Any]],
    too_large: Sequence[str],
) -> str:
    runs = [out / line["run"] for line in ended.values() if line.get("run")]
    machines = [found for run in runs if (found := _json(run / "run.json"))]
    text = ["# Campaign", "", "## Conditions", ""]
    text += _conditions(machines) if machines else ["No part has come far enough to tell the machine."]
    text += ["", "## Parts", "", "| part | status | s | estimate | why |", "|---|---|---:|---:|---|"]
    for part in parts:
        line = ended.get(part.name)
        row = (line["status"], f"{line['seconds']:.0f}", line.get("why", "")) if line else ("not begun", "", "")
        text.append(f"| {part.name} | {row[0]} | {row[1]} | {part.estimate_s:.0f} | {_cell(row[2])} |")
    if kinds := _json(out / "logs" / f"{HELD_OUT}.json").get("kinds"):
        text += ["", "## Kernels that a fit of the other half had not seen", "", *_kinds(kinds)]
    text += ["", "## Predicted against measured", ""]
    text += _passes(passes) if passes else ["No pass has been measured."]
    if too_large:
        text += ["", f"Left out, above {LARGEST_BYTES >> 20} MiB: {', '.join(too_large)}."]
    return "\n".join(text) + "\n"


def _conditions(machines: Sequence[dict[str, Any]]) -> list[str]:
    first = machines[0]["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    rows = [
        ("device", first["device"]),
        ("unit", first.get("device_uuid") or "–"),
        ("host", f"{first['cores']} cores, {first['threads']} threads, {first['os']}, Python {first['python']}"),
        ("versions", versions),
        ("from", min(machine["started"] for machine in machines)),
        ("to", max(machine.get("finished") or machine["started"] for machine in machines)),
    ]
    others = {machine["environment"]["device_uuid"] or machine["environment"]["device"] for machine in machines}
    if len(others) > 1:
        rows.append(("attention", f"the parts ran on {len(others)} devices: {', '.join(sorted(others))}"))
    notes: dict[str, list[str]] = {}
    for note in (note for machine in machines for note in machine["environment"]["notes"]):
        notes.setdefault(re.split(r"\d", note)[0], []).append(note)  # alike but for their figures
    warnings = [f"{same[0]}" + (f" (in {len(same)} parts)" if len(same) > 1 else "") for same in notes.values()]
    return [*(f"- {name}: {value}" for name, value in rows), *(f"- warning: {warning}" for warning in warnings)]


def _kinds(kinds: Sequence[dict[str, Any]]) -> list[str]:
    """As `calibrate --json` prints them, in per cent."""
    names = ("mape", "median", "p90", "time_weighted", "bias", "coverage", "datasheet_mape", "noise")
    lines = [f"| kind | dtype | points | scored | {' | '.join(names)} |", f"|---|---|{'---:|' * (2 + len(names))}"]
    for one in kinds:
        shares = ("–" if one.get(name) is None else f"{100 * one[name]:.1f}" for name in names)
        lines.append(f"| {one['kind']} | {one['dtype']} | {one['points']} | {one['scored']} | {' | '.join(shares)} |")
    return lines


def _passes(passes: Sequence[dict[str, Any]]) -> list[str]:
    """Times in ms; errors are predicted ÷ measured − 1. No model was measured to predict another."""
    lines = [
        "Predictions come from the device's figures alone; no model was fitted to. Times in ms.",
        "",
        "| model | mode | phase | batch | new | cached | wall | ± | busy | predicted busy | error | predicted wall | "
        "error | by | attributed | status |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---|",
    ]
    for one in passes:
        busy, wall = one["predicted_busy_s"], one["predicted_wall_s"]
        cells = (
            one["model"], one.get("mode", "eager"), one["phase"], one["batch"], one["query_tokens"],
            one["context_tokens"], _ms(one["wall_s"]), f"{100 * one['noise']:.1f} %", _ms(one["busy_s"]), _ms(busy),
            _error(busy, one["busy_s"]), _ms(wall), _error(wall, one["wall_s"]), one["prediction"] or "–",
            f"{100 * one['attributed']:.1f} %", one["status"],
        )  # fmt: skip
        lines.append(f"| {' | '.join(_cell(str(cell)) for cell in cells)} |")
    return lines


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.4g}"


def _error(predicted: float | None, measured: float) -> str:
    return "–" if predicted is None or measured <= 0 else f"{100 * (predicted / measured - 1):+.1f} %"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
