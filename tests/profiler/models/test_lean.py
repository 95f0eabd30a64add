"""What `transformers` is after a lean import, in a process of its own."""

import json
import subprocess
import sys

ASK = """
import json, sys
import profiler.models.lean
import transformers
from transformers.loss import loss_rt_detr
from transformers.utils import import_utils
later = "scipy.optimize" not in sys.modules
row, column = loss_rt_detr.linear_sum_assignment([[1.0, 0.0], [0.0, 1.0]])
import scipy.optimize
from transformers import AutoModelForCausalLM, LlamaConfig, GPT2LMHeadModel
define, models = import_utils.define_import_structure, transformers.models
read_before = define.cache_info().misses
lean = vars(models)["_class_to_module"]
plain = import_utils._LazyModule("again", models.__file__, define(models.__file__), module_spec=models.__spec__)
print(json.dumps({
    "scipy is loaded later": later and hasattr(scipy.optimize, "minimize"),
    "assigned": [row.tolist(), column.tolist()],
    "exports are those read from disk": lean == vars(plain)["_class_to_module"] and len(lean) > 1000,
    "they had not been read": define.cache_info().misses - read_before,
}))
"""


def test_it_exports_and_does_what_it_does_by_itself() -> None:
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {
        "scipy is loaded later": True,
        "assigned": [[0, 1], [1, 0]],
        "exports are those read from disk": True,
        "they had not been read": 1,
    }
