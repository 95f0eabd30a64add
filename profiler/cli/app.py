"""The front door: the verbs, and what every one of them does with an error.

`main` maps errors to one line on stderr and an exit code (`profiler.cli.output`); verbs only raise. Verbs load torch
and everything else that is slow inside their functions, so that help and `list` answer at once.

Example: ``main(["list", "--json"])`` returns 0
"""

import atexit
import errno
import gc
import os
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from profiler.attribution.timeline import QUIET
from profiler.cli import output
from profiler.record.run import InvalidMeasurement, RequestError, roofcal_version

os.environ.update(QUIET)  # read when torch is first imported, which verbs do later

VERBS = {
    "run": ("run", "run", "EXAMPLE"),
    "hardware": ("hardware", "hardware", "EXAMPLE"),
    "predict": ("predict", "predict", "EXAMPLE"),
    "calibrate": ("calibrate", "calibrate", "EXAMPLE"),
    "import": ("import_", "import_", "EXAMPLE"),
    "export": ("export", "export", "EXAMPLE"),
    "list": ("look", "list_", "LIST_EXAMPLE"),
    "show": ("look", "show", "SHOW_EXAMPLE"),
    "doctor": ("doctor", "doctor", "EXAMPLE"),
}
"""Verb -> module of `profiler.cli`, its function, and the example that ends its help. The module is imported when the
verb is named, since some take half a second."""

GARBAGE_THRESHOLDS = (100_000, 50, 100)
"""Torch, transformers and a traced graph are a million objects that stay; Python's own thresholds go through them all
again and again, which takes a fifth of the time of `predict`."""

CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
"""ClickException: typer carries a click of its own in some versions and not in others."""

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""Errors of the place that output goes to, not of ours: full disk, spent quota, failing disk or closed terminal."""


def build(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """The application with these verbs."""
    app = typer.Typer(
        name="roofcal",
        help="How fast each layer of a model could run on this device, how fast it does, where the difference goes.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
        ] = False,
    ) -> None: ...

    for name in verbs:
        module, function, example = VERBS[name]
        verb = import_module(f"profiler.cli.{module}")
        app.command(name, epilog=getattr(verb, example))(getattr(verb, function))
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. `arguments` are those after the program's name."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    output.replace_unencodable()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    atexit.register(gc.freeze)  # else the interpreter looks for garbage among them once more: 0.8 s of `predict`
    try:
        code = _invoke(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except RequestError as error:
        return _fail(f"error: {error}", output.REQUEST)
    except InvalidMeasurement as error:
        return _fail(f"invalid measurement: {error}", output.INVALID)
    except CLICK_ERROR as error:
        return _fail(f"error: {error.format_message().rstrip('.')}; see --help", output.REQUEST)  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort) as stop:
        return _fail(
            output.interruption(stop) if isinstance(stop, KeyboardInterrupt) else "interrupted", output.INTERRUPTED
        )
    except BrokenPipeError:  # whoever read our output has gone
        output.discard_stdout()
        return output.BROKEN_PIPE
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        output.discard_stdout()
        return _fail(
            f"error: cannot write {error.filename or 'the output'}: {error.strerror}; free space or write elsewhere",
            output.REQUEST,
        )


def _invoke(arguments: list[str]) -> int:
    _require_verb(arguments[0])
    command = typer.main.get_command(build(arguments[:1] if arguments[0] in VERBS else VERBS))
    try:
        with command.make_context(_program(), arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return output.GOOD


def _program() -> str:
    """How this program was called, for the usage line."""
    return "roofcal" if sys.argv and Path(sys.argv[0]).stem == "roofcal" else "python -m profiler"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"roofcal {roofcal_version()}")
        raise typer.Exit


def _require_verb(word: str) -> None:
    if word in VERBS or word.startswith("-"):
        return
    near = get_close_matches(word, VERBS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(VERBS)}"
    raise RequestError(f"no verb {word!r}; {hint}")


def _fail(line: str, code: int) -> int:
    print(" ".join(line.split()), file=sys.stderr)
    return code
