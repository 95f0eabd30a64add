"""CPU time of the viewer's server for a change that needs no new trace, llama-3.1-8b on an H100's datasheet."""

import statistics
import time
from pathlib import Path

from dash._utils import to_json

from profiler.cli.viewer import page
from profiler.cli.viewer.answers import Answers
from profiler.cli.viewer.seen import document
from profiler.cli.viewer.state import read

CHANGES = {
    "the batch": "batch={i}",
    "the context": "context={i}",
    "the batch of the second of two": "b.batch={i}",
    "the context of the second of two": "b.context={i}",
}


def test_a_change_without_a_trace(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    for name, query in CHANGES.items():
        took_ms = []
        for i in range(20, 31):
            began_s = time.process_time()
            view = read("batch=16&" * ("b." in query or "context" in query) + query.format(i=i))
            to_json(page.components(document([answers.answer(setting) for setting in view])))
            took_ms.append(1000 * (time.process_time() - began_s))
        print(
            f"{name}: {statistics.median(took_ms[1:]):.0f} ms of CPU time; the first, with traces: {took_ms[0]:.0f} ms"
        )
