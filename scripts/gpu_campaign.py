"""Measures everything that needs a GPU, in one command and within a given time.

    python scripts/gpu_campaign.py --minutes 20 --out results/campaign
    python scripts/gpu_campaign.py --minutes 3 --out /tmp/try --plan cpu

It runs the plan `gpu` (profiler/campaign/plans/gpu.yaml), as `python -m profiler campaign gpu` does, and then collects
what is small enough to commit in OUT/keep (docs/campaign.md). The same command continues a campaign. It needs no
network; an error of one line says which packages this machine lacks, and how to carry them here.
"""

import argparse
import sys
import tomllib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULE = {"nvidia-ml-py": "pynvml", "pyyaml": "yaml"}
"""Package -> its module, where that has another name."""


def missing() -> str | None:
    """One line with the packages that this machine lacks and how to carry them here; None where it has all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = [line.split(">")[0] for line in project["dependencies"]]
    lacking = [name for name in packages if name != "duckdb" and find_spec(MODULE.get(name, name)) is None]
    if not lacking:
        return None
    version, names = f"{sys.version_info[0]}.{sys.version_info[1]}", " ".join(lacking)
    return (
        f"this machine lacks {', '.join(lacking)}; with a network: pip download --only-binary :all: --python-version "
        f"{version} -d wheels {names}; then here: pip install --no-index --find-links wheels {names}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; the exit code is 0 if everything ran, 2 for a wrong request, 3 if parts were left out."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, help="Time for the campaign; the plan's without it.")
    options.add_argument("--out", type=Path, required=True, help="Folder of the campaign, new or to continue.")
    options.add_argument("--plan", default="gpu", help="Another plan: a YAML file, or cpu (small models).")
    given = options.parse_args(arguments)
    if (error := missing()) is not None:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    from profiler.cli.app import main as profiler

    minutes = [] if given.minutes is None else ["--minutes", str(given.minutes)]
    code = profiler(["campaign", given.plan, "--out", str(given.out), *minutes])
    if (given.out / "shards").is_dir():  # also where it was interrupted
        profiler(["campaign", "collect", str(given.out), "--keep", str(given.out / "keep")])
    return code


if __name__ == "__main__":
    raise SystemExit(main())
