"""What of a campaign is kept: a few small files with its conditions, and predicted against measured.

    keep/README.md      conditions, parts, figures of every pass
    keep/summary.json   each part's last journal line, and each pass with its layers, as `run --json` prints them
    keep/<part>/        spec.json, report.md and run.json of each part

Only the standard library. Example: ``keep(Path("out"), parts, campaign.ended())``
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.campaign import Part

LARGEST_BYTES = 16 << 20
"""Of a file that is kept."""
FILES = ("spec.json", "report.md", "run.json")


def keep(out: Path, parts: Sequence[Part], ended: Mapping[str, dict[str, Any]]) -> None:
    """Write `keep/` anew from what the parts have left."""
    kept = out / "keep"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    passes: list[dict[str, Any]] = []
    too_large: list[str] = []
    for part in parts:
        line = ended.get(part.name, {})
        run = out / line["run"] if line.get("run") else None
        for name in FILES if run is not None else ():
            source = run / name if run is not None else out
            if not source.exists():
                continue
            if source.stat().st_size > LARGEST_BYTES:
                too_large.append(f"{part.name}/{name}")
                continue
            (kept / part.name).mkdir(exist_ok=True)
            shutil.copyfile(source, kept / part.name / name)
        document = _json(out / "logs" / f"{part.name}.json")
        passes += [{"part": part.name, **one} for one in document.get("passes", ())]
    lines = [ended[part.name] for part in parts if part.name in ended]
    summary = json.dumps({"parts": lines, "passes": passes}, indent=None, separators=(",", ":"))
    (kept / "summary.json").write_text(summary + "\n", encoding="utf-8")
    (kept / "README.md").write_text(_readme(out, parts, ended, passes, too_large), encoding="utf-8")


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
    notes = dict.fromkeys(note for machine in machines for note in machine["environment"]["notes"])
    return [*(f"- {name}: {value}" for name, value in rows), *(f"- warning: {note}" for note in notes)]


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
