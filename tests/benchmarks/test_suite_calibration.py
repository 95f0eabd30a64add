"""Whether laws fitted to a suite's run predict the model better than peaks alone, on passes that the suite has not.

Measures the kernels of SmolLM2-135M's steps, fits laws to them, measures two passes with other batches and lengths, and
prints their errors by the peaks of the suite's run and by its laws. Minutes; run it on a quiet machine.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MODEL = ("smollm2-135m", "--dtype", "bfloat16")
FAMILIES = "linear,rms_norm,rms_norm_residual,swiglu,rope,kv_append,decode_attention,prefill_attention,embedding"
SUITE = ("--batch", "1,4", "--prompt", "64,256", "--context", "128,1024")
PASSES = ("--batch", "2", "--prompt", "128", "--context", "512")
"""No batch and no length of the suite."""
MOST_BUSY = 3
"""The exit code of a result that other work disturbed."""


def verb(*words: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "profiler", *words, "--json"], stdout=subprocess.PIPE, check=False)
    assert done.returncode in (0, MOST_BUSY), words
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_suite_calibrates_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, phases = ("--out", str(tmp_path)), ("--phase", "prefill,decode")
    model, *dtype = MODEL
    few = ("--family", FAMILIES, "--provider", "torch", "--draws", "1")
    suite = verb("kernels", "--model", model, *dtype, *phases, *SUITE, *few, *out)["run"]
    measured = verb("run", *MODEL, *phases, *PASSES, "--no-calibrate", "--quick", *out)["passes"]
    laws = tmp_path / "laws.json"
    kinds = verb("calibrate", suite, "--out", str(laws))["kinds"]
    lines = [f"{k['kind']}: {k['points']} kernels, error of laws {k['mape']:.0%}" for k in kinds if k["mape"]]
    for ran in measured:
        sizes = ("--prompt", str(ran["query_tokens"]), "--context", str(ran["context_tokens"] or 512))
        asked = (*MODEL, "--phase", ran["phase"], "--batch", str(ran["batch"]), *sizes)
        errors = [
            verb("predict", *asked, "--hardware", hardware)["workloads"][0]["total"]["time_s"] / ran["busy_s"] - 1
            for hardware in (suite, str(laws))
        ]
        shown = f"by peaks {errors[0]:+.0%}, by the suite's laws {errors[1]:+.0%}"
        lines.append(f"{ran['phase']}: {1e3 * ran['busy_s']:.1f} ms busy ({ran['status']}); {shown}")
    with capsys.disabled():
        print("", *lines, sep="\n")
