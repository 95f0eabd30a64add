"""Traces a user's module in a process of its own.

Code that roofcal does not know may end the program, fork it, print, crash, or never return. What it does there stays
there: its graph comes back as a file, and the process ends with all that it has started, at the latest when its time
is up. Torch is loaded there alone.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from profiler.record.files import read_record
from profiler.record.run import RequestError
from roofline.graph.op import GRAPH_SCHEMA, OpGraph
from roofline.reading import MOST_GRAPH_BYTES, entry, read_bytes

MODULE_S = 60.0
"""Seconds of the process by default: torch takes some 5 of them, and a trace on `meta` of the largest models 30."""
GRAPH, REFUSAL = "graph.json", "refusal"
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from profiler.models.module import write_trace; write_trace(*sys.argv[2:])"
)


@cache
def trace_apart(spec: str, seconds: float = MODULE_S) -> OpGraph:
    """`profiler.models.module.trace_module` of a factory, "package.module:factory", traced once.

    Raises RequestError, one line, as that does, and where the process ends without a graph or takes too long.
    """
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise RequestError(f"--module {spec}: write it as package.module:factory")
    with TemporaryDirectory(prefix="roofcal-") as folder:
        command = [sys.executable, "-c", PROGRAM, json.dumps(sys.path), spec, folder]
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        except (OSError, ValueError) as error:
            raise RequestError(f"--module {spec}: cannot start a process for it ({error})") from error
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise RequestError(
                f"--module {spec}: it did not return within {seconds:g} s; give it longer with --module-seconds"
            ) from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        refusal, graph = Path(folder, REFUSAL), Path(folder, GRAPH)
        if entry(refusal) is not None:
            raise RequestError(read_bytes(refusal).decode())
        if entry(graph) is None:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise RequestError(f"--module {spec}: it ended its process ({how}) before it returned a module")
        return read_record(graph, OpGraph, GRAPH_SCHEMA, "trace it again", MOST_GRAPH_BYTES)
