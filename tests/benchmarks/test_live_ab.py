"""The ratio that `gate` gives of two real kernels, beside a long measurement of the same two.

    LIVE_PAIRS=100 python -m pytest -s tests/benchmarks/test_live_ab.py

onnxruntime's product with weights in 4 bits computes in float32 at accuracy level 1 and in int8 at level 4
(docs/ContribOperators.md, com.microsoft.MatMulNBits). It prints both ratios; the machine decides how near they are.
"""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import trim_mean

from profiler.cli.app import main
from profiler.gate.arms import Turns, sides

PAIRS = int(os.environ.get("LIVE_PAIRS", "12"))
KERNELS = """
import numpy as np, onnxruntime as ort
from onnx import TensorProto, helper
K, N, BLOCK, ROWS = 2048, 2048, 32, 8
rng = np.random.default_rng(0)
packed = rng.integers(0, 256, (N, K // BLOCK, BLOCK // 2), dtype=np.uint8)
scales = rng.uniform(0.01, 0.02, N * K // BLOCK).astype(np.float32)
node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=K, N=N, bits=4,
                        block_size=BLOCK, accuracy_level={level})
graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, K])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, N])],
    [helper.make_tensor("w", TensorProto.UINT8, packed.shape, packed.tobytes(), raw=True),
     helper.make_tensor("s", TensorProto.FLOAT, scales.shape, scales)])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
                          ir_version=10)
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
x = {{"x": rng.normal(size=(ROWS, K)).astype(np.float32)}}
def kernel_matmul(): session.run(None, x)
"""


def test_two_accuracy_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    paths = [tmp_path / f"level-{level}.py" for level in (4, 1)]
    for path, level in zip(paths, (4, 1), strict=True):
        path.write_text(KERNELS.format(level=level))
    base, new = map(str, paths)
    with sides(base, new, None) as (old, now):
        pairs, failed = Turns(old, now, random.Random(0)).draw(["matmul"], PAIRS)
    assert not failed
    logs = np.log([after / before for before, after in pairs["matmul"]])
    reference, error = np.exp(trim_mean(logs, 0.2)), logs.std(ddof=1) / np.sqrt(len(logs))
    code = main(["gate", base, new, "--json", "--tolerance", "0.5"])
    document = json.loads(capsys.readouterr().out)
    (row,) = document["rows"]
    told = "no ratio" if row["ratio"] is None else f"{row['ratio']:.3f} ({row['ratio'] / reference - 1:+.1%})"
    with capsys.disabled():
        print(f"\n{PAIRS} pairs: {reference:.3f} ± {error:.1%}; gate: {told}, {row['verdict']}, exit code {code}, "
              f"processes differ by {document['self_test']['spread']:.1%}")  # fmt: skip
    assert code in (1, 3), "level 1 takes much longer than level 4"
