"""What goes to stdout: with ``--json`` one JSON document and nothing else, whatever a library prints meanwhile.

Example::

    with stdout_to_stderr_if(as_json):
        document = work()
    print_json(document)
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any


def print_json(document: Any) -> None:
    """One document, indented, to stdout. Raises ValueError where a number is not finite: JSON has no such number."""
    print(json.dumps(document, indent=1, allow_nan=False))


@contextmanager
def stdout_to_stderr_if(as_json: bool) -> Iterator[None]:
    """Keep stdout clean for the document that follows."""
    if as_json:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield
