"""Runs the shards of a campaign on an engine that exists: SLURM or this host (submitit), Ray, Kubernetes.

An engine only starts `run_shard` for each shard and, where it can, starts it again when it is lost; all that a shard
has measured is in the campaign's folder, so that nothing else need be known of a job. submitit and ray are optional
extras. Example: ``ENGINES["local"](Jobs("cpu", Path("out"), 3), {}, print)``
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

from profiler.campaign.plan import CampaignPlan, read_plan
from profiler.campaign.shard import ShardRun, chosen_gpu
from profiler.record.files import make_folder
from profiler.record.folder import slug
from profiler.record.run import RequestError
from roofline.hardware.spec import GPU

ROOT = Path(__file__).parents[2]
JOBS = "jobs"
"""Folder of the engine's own files in that of the campaign."""
SPARE_MIN = 10.0
"""Minutes of a job besides those of the plan: start, and the last part's end."""
TRIES = 3
"""Times that Ray starts a shard again whose node was lost."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class ShardJob:
    """One shard as an engine starts it; called, it runs. It holds only texts and numbers, so that it can be pickled."""

    plan: str
    out: str
    shard: int
    shards: int
    minutes: float | None = None
    gpu: str | None = None
    """UUID or number of its GPU; None for one of those that it sees, in turn."""

    def __call__(self) -> str:
        """Run the shard; return its state."""
        return run_shard(self)

    def checkpoint(self) -> Any:
        """Return what SLURM is to run where the job was preempted: the same, which goes on where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_shard(job: ShardJob, **how: Any) -> str:
    """Run one shard here, on its GPU; return its state. Raises RequestError, one line, where it cannot run."""
    from datetime import UTC, datetime

    name, plan = read_plan(job.plan)
    uuid = None
    if plan.device == GPU:
        uuid = chosen_gpu(job.gpu, job.shard, host_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    elif job.gpu is not None:
        raise RequestError(f"the plan {name} measures a CPU; leave --gpu out")
    run = ShardRun.open(
        Path(job.out), name, plan, job.shard, job.shards, uuid=uuid, minutes=job.minutes, **how
    )  # fmt: skip
    return run.run().state(datetime.now(UTC))


def host_gpus() -> list[str]:
    """UUIDs of the GPUs of this host. Raises RequestError where the driver cannot be asked."""
    from profiler.devices.nvml import NvmlMissing, gpu_uuids

    try:
        return gpu_uuids()
    except NvmlMissing as error:
        raise RequestError(f"the plan measures a GPU, and {error}; choose a plan with device: cpu") from error


@dataclass(frozen=True)
class Jobs:
    """All shards of a campaign."""

    plan: str
    out: Path
    shards: int
    minutes: float | None = None

    def read(self) -> CampaignPlan:
        """The plan. Raises RequestError, one line."""
        return read_plan(self.plan)[1]

    def all(self) -> list[ShardJob]:
        """A job for each shard; jobs have the whole path of the plan, since an engine may start them elsewhere."""
        path = Path(self.plan)
        plan = str(path.resolve()) if path.is_file() else self.plan
        out = str(self.out.resolve())
        return [ShardJob(plan, out, i, self.shards, self.minutes) for i in range(1, self.shards + 1)]

    def timeout_min(self) -> int:
        """Minutes that a job may take."""
        return int((self.minutes or self.read().minutes) + SPARE_MIN)


def on_this_host(jobs: Jobs, options: Mapping[str, str], say: Say) -> list[str]:
    """Run all shards on this host at once through submitit's local executor, each on a GPU of its own by its UUID.

    submitit itself gives every job the first GPUs. Returns a line for each shard that failed. Raises RequestError.
    """
    submitit = _extra("submitit", "slurm")
    todo = jobs.all()
    if jobs.read().device == GPU:
        uuids, visible = host_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
        todo = [replace(job, gpu=chosen_gpu(None, job.shard, uuids, visible)) for job in todo]
    executor = submitit.LocalExecutor(folder=_folder(jobs))
    executor.update_parameters(timeout_min=jobs.timeout_min(), **_values(options))
    with _importable():
        submitted = [executor.submit(job) for job in todo]
    say(f"{len(submitted)} shards run here; their logs are in {_folder(jobs)}")
    failed = []
    try:
        for job, one in zip(todo, submitted, strict=True):
            if (error := one.exception()) is not None:
                failed.append(f"shard {job.shard}/{job.shards} failed: {_last_line(error)}")
    except BaseException:
        for one in submitted:
            one.cancel(check=False)
        raise
    return failed


def on_slurm(jobs: Jobs, options: Mapping[str, str], say: Say) -> list[str]:
    """Submit all shards to SLURM as one array, a GPU each, and return at once; `options` are submitit's, as
    slurm_partition."""
    submitit = _extra("submitit", "slurm")
    try:
        executor = submitit.AutoExecutor(folder=_folder(jobs), cluster="slurm")
    except RuntimeError as error:
        raise RequestError(f"SLURM cannot be used here ({error}); --engine local runs on this host") from error
    usual = {"name": f"roofcal-{slug(Path(jobs.plan).stem)}", "timeout_min": jobs.timeout_min(), "nodes": 1,
             "gpus_per_node": int(jobs.read().device == GPU), "slurm_array_parallelism": jobs.shards}  # fmt: skip
    executor.update_parameters(**{**usual, **_values(options)})
    with _importable():
        submitted = executor.map_array(ShardJob.__call__, jobs.all())
    say(f"submitted {', '.join(job.job_id for job in submitted)}; see: python -m profiler campaign status {jobs.out}")
    return []


def on_ray(jobs: Jobs, options: Mapping[str, str], say: Say) -> list[str]:
    """Run all shards as Ray tasks, a GPU each, spread over the nodes; a task whose node is lost starts again.

    Within `ray job submit` it uses that cluster, else it starts Ray on this host. Returns a line for each that failed.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own default, 15, lets all other work go first
    ray = _extra("ray", "ray")
    with _importable():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR, **_values(options))
    try:
        needs = {"num_gpus": 1} if jobs.read().device == GPU else {"num_cpus": 1}
        remote = ray.remote(max_retries=TRIES, scheduling_strategy="SPREAD", **needs)(run_shard)
        tasks = {remote.remote(job): job for job in jobs.all()}
        say(f"{len(tasks)} shards run on Ray")
        failed = []
        for task, job in tasks.items():
            try:
                ray.get(task)
            except ray.exceptions.RayError as error:
                failed.append(f"shard {job.shard}/{job.shards} failed: {_last_line(error)}")
        return failed
    finally:
        ray.shutdown()


NEEDED = {"image": "a container image with roofcal", "claim": "a persistent volume claim that all pods share"}
"""Values of the Kubernetes template without a default."""


def kubernetes_manifest(jobs: Jobs, options: Mapping[str, str]) -> str:
    """Return the manifest of a Job for `kubectl apply -f -`. Raises RequestError where a value lacks or is unknown."""
    template = Template((Path(__file__).parent / "templates" / "kubernetes.yaml").read_text(encoding="utf-8"))
    is_gpu = jobs.read().device == GPU
    values = {
        "name": f"roofcal-{slug(Path(jobs.plan).stem)}".replace(".", "-"), "shards": str(jobs.shards),
        "parallel": str(jobs.shards), "plan": jobs.plan, "mount": "/results", "out": f"/results/{jobs.out.name}",
        "resource": "nvidia.com/gpu" if is_gpu else "cpu",
    }  # fmt: skip
    known = {*values, *NEEDED}
    if unknown := sorted(options.keys() - known):
        raise RequestError(f"--set {unknown[0]} is no value of the template; it has {', '.join(sorted(known))}")
    values |= options
    for name, value in values.items():
        if not re.fullmatch(r"[\w./:@+-]+", value):
            raise RequestError(f"--set {name}={value!r:.60}: use letters, digits and ./:@+-_ alone")
    if lacking := [name for name in NEEDED if name not in values]:
        raise RequestError(f"--set {lacking[0]}=… is needed: {NEEDED[lacking[0]]}")
    return template.substitute(values)


ENGINES: Mapping[str, Callable[[Jobs, Mapping[str, str], Say], list[str]]] = {
    "local": on_this_host,
    "slurm": on_slurm,
    "ray": on_ray,
}
"""Engines that start shards; `kubernetes_manifest` writes a file for one more."""


def _extra(module: str, extra: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise RequestError(f"this engine needs {module}: python -m pip install 'roofcal[{extra}]'") from error


def _folder(jobs: Jobs) -> Path:
    folder = jobs.out / JOBS
    make_folder(folder)
    return folder


class _importable:
    """Within it, processes that are started import the same packages as this one, from wherever they are started."""

    def __enter__(self) -> None:
        self._before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), self._before]))

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = self._before


def _values(options: Mapping[str, str]) -> dict[str, str | int]:
    return {name: int(value) if value.isdigit() else value for name, value in options.items()}


def _last_line(error: BaseException) -> str:
    """The last line of an error that carries a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    return lines[-1][:300] if lines else type(error).__name__
