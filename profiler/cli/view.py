"""`view`: predictions and measured runs in a browser, on this machine alone.

Wiring only: `profiler.cli.viewer` has the page, and what it answers.
"""

import json
import logging
import os
import socket
from importlib import util
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from profiler.cli import options as option
from profiler.cli.output import remark
from profiler.record.files import RUN_FILE
from profiler.record.folder import RunFolder
from profiler.record.run import RequestError
from roofline.reading import entry

EXAMPLE = """
Examples:\n
python -m profiler view\n
python -m profiler view results/nvidia-h200-sxm/20261130T120000Z-run --port 8051
"""
LOOPBACK = "127.0.0.1"
"""The only address that is served: the page has no password."""


def view(
    invocation: typer.Context,
    folder: Annotated[
        Path,
        Argument(help="Folder that holds runs, or one run, whose devices and measured passes the page offers."),
    ] = Path("results"),
    port: Annotated[int, Option(help="Port of the page; 0 takes one that is free.", min=0, max=65535)] = 8050,
    as_json: option.AsJson = False,
) -> None:
    """See predictions change in a browser with model and workload.

    The page is served to this machine alone and fetches nothing from elsewhere. Ctrl-C stops it.
    """
    if util.find_spec("dash") is None:
        raise RequestError("view needs Dash; install it: python -m pip install -e '.[view]'")
    source = invocation.get_parameter_source("folder")
    is_named = source is not None and source.name == "COMMANDLINE"
    if entry(folder) != "folder" and (is_named or entry(folder) is not None):
        raise RequestError(f"no folder at {folder}; name one that holds runs, as results, or one run")
    run = RunFolder.open(folder) if entry(folder / RUN_FILE) is not None else None
    if run is not None and run.read_spec() is None:
        raise RequestError(f"{run.path} has no spec yet; finish it: python -m profiler run --resume {run.path}")
    try:
        listening = socket.create_server((LOOPBACK, port))
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise RequestError(f"port {port} cannot be used ({why}); choose another with --port") from error
    with listening:
        _serve(listening, folder, run, as_json)


def _serve(listening: socket.socket, folder: Path, run: RunFolder | None, as_json: bool) -> None:
    """Serve until a signal comes; with `as_json` the address is the one document on stdout."""
    from werkzeug.serving import make_server

    from profiler.cli.viewer.answers import Answers
    from profiler.cli.viewer.app import application
    from profiler.cli.viewer.state import query

    answers = Answers(folder if run is None else folder.absolute().parent.parent)
    first = "" if run is None else query([answers.first(folder.absolute().relative_to(answers.results).as_posix())])
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print a line for each request
    port = listening.getsockname()[1]
    server = make_server(LOOPBACK, port, application(answers).server, threaded=True, fd=listening.fileno())
    address = f"http://{LOOPBACK}:{port}/{first}"
    if as_json:
        print(json.dumps({"url": address}), flush=True)
    else:
        print(f"the page is at {address}; Ctrl-C stops it", flush=True)
    server.serve_forever()  # until Ctrl-C, or another signal that ends a verb
    remark("stopped")
