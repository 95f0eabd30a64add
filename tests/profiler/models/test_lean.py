"""What `transformers` is after a lean import, in a process of its own, against an import of it alone."""

import json
import subprocess
import sys
from typing import Any

ASK = """
import json, sys
{first}
import transformers.modeling_utils
from transformers.utils.import_utils import define_import_structure as define
from transformers.loss import loss_rt_detr
later = "scipy.optimize" not in sys.modules
row, column = loss_rt_detr.linear_sum_assignment([[1.0, 0.0], [0.0, 1.0]])
from transformers import AutoModelForCausalLM, LlamaConfig, GPT2LMHeadModel
import scipy.optimize
print(json.dumps({{
    "later": later,
    "assigned": [row.tolist(), column.tolist()],
    "names": sorted(transformers.models._class_to_module),
    "places": sorted(transformers.models._class_to_module.values()),
    "known": define.cache_info().hits,
    "fits": hasattr(scipy.optimize, "minimize"),
}}))
"""


def said(first: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", ASK.format(first=first)], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_it_exports_and_does_what_it_does_by_itself() -> None:
    lean, plain = said("import profiler.models.lean"), said("")
    assert lean == {**plain, "later": True, "known": lean["known"]}
    assert lean["assigned"] == [[0, 1], [1, 0]]
    assert lean["known"] > plain["known"], "the exports are read from disk again"
