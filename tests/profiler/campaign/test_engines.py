"""Shards on real engines: submitit's local executor and a local Ray, one of three killed in the middle and resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from each import each
from waiting import LAST_RESORT_S, until

from profiler.campaign import engines
from profiler.campaign.engines import ENGINES, Jobs, ShardJob, kubernetes_manifest
from profiler.record.campaign import merged, read_shards
from profiler.record.run import RequestError

ROOT = Path(__file__).parents[3]


def written(folder: Path) -> str:
    """A plan whose parts each take a line in a file; those of shard 2 wait until a file is there."""
    (folder / "runs").mkdir()
    parts = [{"suite": f"s{i}", "command": f"list --results {folder}/runs", "estimate_s": 100 + i, "each": False,
              "keeps_run": False} for i in range(3)]  # fmt: skip
    each_device = {"suite": "device", "command": f"list --results {folder}/runs", "estimate_s": 100, "keeps_run": False}
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"device": "cpu", "minutes": 60, "parts": [each_device, *parts]}))
    return str(path)


def begun(out: Path) -> list[str]:
    """The part of every beginning, over all shards."""
    lines = [line for path in out.glob("shards/*/journal.jsonl") for line in path.read_text().splitlines()]
    return sorted(row["part"] for row in map(json.loads, lines) if "limit_s" in row)


def kill_in_the_middle(plan: str, out: Path) -> None:
    """Run shard 2 of 3 until a part is at work, and kill it as `kill -9` does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "profiler", "campaign", plan, "--shard", "2/3", "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: begun(out), process)
    process.kill()
    process.wait(LAST_RESORT_S)
    assert process.stderr is not None
    process.stderr.close()


def start(name: str, plan: str, out: Path) -> None:
    said: list[str] = []
    assert ENGINES[name](Jobs(plan, out, 3), {}, said.append) == [] and len(said) == 1


@pytest.mark.parametrize("name", [pytest.param("local", marks=pytest.mark.starts_product), "ray"])
def test_three_shards_of_which_one_was_killed_are_as_the_whole(tmp_path: Path, name: str) -> None:
    pytest.importorskip({"local": "submitit", "ray": "ray"}[name])
    plan, out = written(tmp_path), tmp_path / "out"
    kill_in_the_middle(plan, out)
    assert begun(out) == ["device"], "killed in its first part"
    start(name, plan, out)
    whole = merged(*read_shards([out]))
    assert whole.is_whole and {found.part.name for found in whole.parts} == {"device", "s0", "s1", "s2"}
    assert begun(out) == ["device", "device", "s0", "s1", "s2"], "only what was killed began again"
    before = begun(out)
    for shard in (1, 2, 3):
        assert engines.run_shard(ShardJob(plan, str(out), shard, 3), say=lambda line: None) == "finished"
    assert begun(out) == before, "nothing is measured twice"


def test_each_local_shard_has_a_gpu_of_its_own_by_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    submitted: list[ShardJob] = []

    class Executor:
        def __init__(self, folder: Path) -> None: ...
        def update_parameters(self, **fields: object) -> None: ...
        def submit(self, job: ShardJob) -> object:
            submitted.append(job)
            return type("Job", (), {"exception": staticmethod(lambda: None)})

    monkeypatch.setattr(submitit, "LocalExecutor", Executor)
    monkeypatch.setattr(engines, "host_gpus", lambda: ["GPU-a", "GPU-b"])
    assert ENGINES["local"](Jobs("gpu", tmp_path, 3), {}, lambda line: None) == []
    assert [job.gpu for job in submitted] == ["GPU-a", "GPU-b", "GPU-a"]


SBATCH = """#!/bin/sh
for last; do :; done
cp "$last" {folder}/submitted.sh
echo "Submitted batch job 4711"
"""


def test_slurm_gets_one_array_of_shards_with_a_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH.format(folder=tmp_path)), ("srun", "#!/bin/sh\n")):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    said: list[str] = []
    options = {"slurm_partition": "h200", "cpus_per_task": "8"}
    assert ENGINES["slurm"](Jobs("gpu", tmp_path / "out", 4, 30), options, said.append) == []
    script = (tmp_path / "submitted.sh").read_text()
    for line in (
        "--array=0-3%4",
        "--gpus-per-node=1",
        "--time=40",
        "--partition=h200",
        "--cpus-per-task=8",
        "--nodes=1",
    ):
        assert f"#SBATCH {line}\n" in script, line
    assert "4711_0" in said[0] and "campaign status" in said[0]


def test_a_preempted_job_runs_the_same_shard_again() -> None:
    submission = pytest.importorskip("submitit.helpers").DelayedSubmission
    job = ShardJob("gpu", "out", 2, 3)
    again = job.checkpoint()
    assert isinstance(again, submission) and again.function == job


def test_the_kubernetes_job_runs_every_shard_once_on_one_gpu(tmp_path: Path) -> None:
    jobs = Jobs("gpu", Path("results/campaign"), 8)
    job = yaml.safe_load(kubernetes_manifest(jobs, {"image": "registry.example/roofcal:1", "claim": "shared"}))
    assert job["kind"] == "Job" and job["apiVersion"] == "batch/v1"
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 8
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (shell,) = container["args"]
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\nexit $CODE\n')
    (tmp_path / "python").chmod(0o755)
    for index, code, ends in ((0, 0, 0), (7, 3, 0), (7, 4, 0), (2, 2, 2), (2, 143, 143)):
        variables = {"PATH": f"{tmp_path}:/bin:/usr/bin", "JOB_COMPLETION_INDEX": str(index), "CODE": str(code)}
        done = subprocess.run([*container["command"], shell], env=variables, capture_output=True, text=True)
        assert done.stdout.split() == f"-m profiler campaign gpu --shard {index + 1}/8 --out /results/campaign".split()
        assert done.returncode == ends


@each(
    ("options", "problem"),
    [
        ({}, "--set image=… is needed"),
        ({"image": "x"}, "--set claim=… is needed: a persistent volume claim"),
        ({"image": "x", "claim": "y", "colour": "red"}, "--set colour is no value of the template"),
        ({"image": "x; rm -rf /", "claim": "y"}, "use letters, digits"),
    ],
)
def test_values_of_the_template_are_checked(options: dict[str, str], problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        kubernetes_manifest(Jobs("gpu", Path("out"), 2), options)


def test_an_engine_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("submitit", "ray"):
        monkeypatch.setitem(sys.modules, module, None)
    for name, extra in (("local", "slurm"), ("slurm", "slurm"), ("ray", "ray")):
        with pytest.raises(RequestError, match=rf"python -m pip install 'roofcal\[{extra}\]'"):
            ENGINES[name](Jobs("cpu", Path("nowhere"), 2), {}, print)
