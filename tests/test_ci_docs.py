"""The workflows of docs/ci.md: files that parse, and commands that the product accepts."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from profiler.cli.app import VERBS, build, main

TEXT = (Path(__file__).parent.parent / "docs" / "ci.md").read_text(encoding="utf-8")
FLOWS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]


def scripts(node: Any) -> list[str]:
    """All texts in a workflow."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in scripts(value)]
    if isinstance(node, list):
        return [text for value in node for text in scripts(value)]
    return [node] if isinstance(node, str) else []


def commands() -> list[list[str]]:
    """The arguments of every `python -m profiler` in the workflows and in cron's line."""
    (cron,) = re.findall(r"```\n(\S+ \S+ \* .*?)```", TEXT, re.DOTALL)
    lines = [line for flow in FLOWS for text in scripts(flow) for line in text.splitlines()] + [cron]
    found = []
    for line in lines:
        plain = re.sub(r"\$\{\{.*?\}\}|\$\w+", "main", line)
        for part in re.split(r"&&|\|\||>>?|2>&1", plain):
            words = shlex.split(part)
            if words[:3] == ["python", "-m", "profiler"]:
                found.append(words[3:])
    return found


def test_the_workflows_are_those_of_their_systems() -> None:
    github, gitlab = FLOWS
    (job,) = github["jobs"].values()
    assert github[True] == "pull_request" and "self-hosted" in job["runs-on"]  # YAML 1.1 reads "on" as true
    assert all(("run" in step) != ("uses" in step) for step in job["steps"])
    assert isinstance(gitlab["gate"]["script"], list) and gitlab["gate"]["allow_failure"]["exit_codes"] == [3]


def test_their_commands_are_understood() -> None:
    found = commands()
    assert [arguments[0] for arguments in found] == ["gate", "gate", "hardware", "history"]
    for verb, *arguments in found:
        assert verb in VERBS
        group: Any = typer.main.get_command(build([verb]))
        group.commands[verb].make_context(verb, list(arguments))  # raises for what it does not know


def test_the_file_of_kernels_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    space: dict[str, Any] = {}
    exec(code, space)
    assert space["kernel_rms_norm"]().shape == space["kernel_softmax"]().shape == (8, 4096)
    (tmp_path / "bench.py").write_text("x = 1\n")
    assert main(["gate", str(tmp_path / "bench.py"), str(tmp_path / "bench.py")]) == 2
    assert "define kernel() or kernel_NAME()" in capsys.readouterr().err
