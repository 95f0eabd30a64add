"""Campaigns of tests: a pretended machine that commands run on, and plans of commands that take no time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profiler.campaign.execute import Outcome
from profiler.campaign.plan import CampaignPlan
from profiler.campaign.shard import ShardRun

RUN = {
    "started": "2026-11-26T10:00:00+00:00",
    "finished": "2026-11-26T10:01:00+00:00",
    "environment": {
        "device": "NVIDIA H200", "device_uuid": "GPU-1", "cores": 16, "threads": 16, "os": "Linux", "python": "3.12.3",
        "hostname": "node1", "versions": {"torch": "2.11.0", "driver": "580.1"}, "notes": ["power cap of 600 W"],
    },
}  # fmt: skip


def passed(name: str, **fields: Any) -> dict[str, Any]:
    """A pass as `run --json` has it."""
    return {
        "model": name, "mode": "cuda-graph", "phase": "decode", "batch": 1, "query_tokens": 1, "context_tokens": 1024,
        "dtype": "bfloat16", "wall_s": 0.004, "noise": 0.01, "busy_s": 0.0038, "predicted_busy_s": 0.0036,
        "predicted_wall_s": 0.0036, "prediction": "executed", "attributed": 0.995, "status": "done", **fields,
    }  # fmt: skip


def suite(name: str, estimate_s: float = 10.0, command: str = "", **fields: Any) -> dict[str, Any]:
    return {"suite": name, "command": command or f"run {name}", "estimate_s": estimate_s, "each": False, **fields}


def plan(*parts: dict[str, Any] | str, **fields: Any) -> CampaignPlan:
    return CampaignPlan.model_validate({"device": "cpu", "minutes": 10, "parts": list(parts), **fields})


@dataclass
class Machine:
    """Commands take the time that a test says, write a run folder as `run` does, and end with a code."""

    out: Path
    takes_s: dict[str, float] = field(default_factory=dict)
    codes: dict[str, list[int]] = field(default_factory=dict)
    says: dict[str, str] = field(default_factory=dict)
    """Last line of a command's stderr, where it is another than "last line of NAME"."""
    at_s: float = 1000.0
    asked: list[list[str]] = field(default_factory=list)
    variables: list[Mapping[str, str]] = field(default_factory=list)
    interrupt_in: str | None = None
    said: list[str] = field(default_factory=list)

    def now(self) -> float:
        return self.at_s

    def execute(
        self, command: Sequence[str], log: Path, limit_s: float, variables: Mapping[str, str], keep: Sequence[int]
    ) -> Outcome:
        arguments = list(command[3:])
        self.asked.append(arguments)
        self.variables.append(variables)
        if "--resume" in arguments:
            name = Path(arguments[arguments.index("--resume") + 1]).name.split("Z-", 1)[1]
        else:
            name = arguments[arguments.index("--name") + 1] if "--name" in arguments else arguments[0]
            if "--name" in arguments:
                folder = self.out / "runs" / "gpu" / f"20261126T{len(self.asked):06}Z-{name}"
                folder.mkdir(parents=True)
                (folder / "run.json").write_text(json.dumps(RUN))
                (folder / "report.md").write_text(f"# {name}")
        if name == self.interrupt_in:
            raise KeyboardInterrupt
        log.write_text(f"measuring {name}\n{self.says.get(name, f'last line of {name}')}\n")
        needs_s = self.takes_s.get(name, 5.0)
        self.at_s += min(needs_s, limit_s)
        if needs_s > limit_s:
            return Outcome(None, "")
        code = self.codes[name].pop(0) if self.codes.get(name) else 0
        return Outcome(code, json.dumps({"passes": [passed(name)]}) if arguments[0] in ("run", "show") else "{}")

    def shard(self, asked: CampaignPlan, shard: int = 1, shards: int = 1, **fields: Any) -> ShardRun:
        how = {"execute": self.execute, "now": self.now, "say": self.said.append}
        return ShardRun.open(self.out, "trial", asked, shard, shards, **fields, **how)

    def run(self, asked: CampaignPlan, minutes: float = 10, shard: int = 1, shards: int = 1, **fields: Any) -> Any:
        """The parts that a shard has ended, each with its status."""
        done = self.shard(asked, shard, shards, minutes=minutes, **fields).run()
        return [(line.part, line.status) for line in done.ended.values()]
