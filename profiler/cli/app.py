"""The command line: its verbs, and how it ends on an error.

`main` turns an error into one line on stderr and an exit code (`profiler.cli.output`); verbs only raise. Verbs load
torch and everything else that is slow inside their functions, so that help and `list` answer at once.

Example: ``main(["list", "--json"])`` returns 0
"""

import atexit
import errno
import gc
import itertools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

import typer

from profiler.attribution.timeline import QUIET
from profiler.cli import output
from profiler.cli.help import Grouped, asked_to_complete
from profiler.record.files import PARENT
from profiler.record.run import InvalidMeasurement, RequestError, roofcal_version
from roofline.reading import Unreadable, one_line

os.environ.update(QUIET)  # read when torch is first imported, which verbs do later

VERBS = {
    "run": ("run", "run", "EXAMPLE"),
    "hardware": ("hardware", "hardware", "EXAMPLE"),
    "kernels": ("kernels", "kernels", "EXAMPLE"),
    "predict": ("predict", "predict", "EXAMPLE"),
    "calibrate": ("calibrate", "calibrate", "EXAMPLE"),
    "compare": ("compare", "compare", "EXAMPLE"),
    "gate": ("gate", "gate", "EXAMPLE"),
    "history": ("history", "history", "EXAMPLE"),
    "trace": ("trace", "trace", "EXAMPLE"),
    "campaign": ("campaign", "campaign", "EXAMPLE"),
    "import": ("import_", "import_", "EXAMPLE"),
    "export": ("export", "export", "EXAMPLE"),
    "report": ("report", "report", "EXAMPLE"),
    "view": ("view", "view", "EXAMPLE"),
    "list": ("look", "list_", "LIST_EXAMPLE"),
    "show": ("look", "show", "SHOW_EXAMPLE"),
    "models": ("look", "models", "MODELS_EXAMPLE"),
    "devices": ("look", "devices", "DEVICES_EXAMPLE"),
    "doctor": ("doctor", "doctor", "EXAMPLE"),
}
"""Verb -> module of `profiler.cli`, its function, and the example that ends its help. The module is imported when the
verb is named, since some take half a second."""

GARBAGE_THRESHOLDS = (100_000, 50, 100)
"""Torch, transformers and a traced graph are a million objects that stay. With Python's own thresholds the collector
visits them again and again, which takes a fifth of the time of `predict`."""

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 160}
"""Help is as wide as the terminal, up to a line that can still be read."""

CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
"""ClickException: some versions of typer carry a click of their own."""

PROGRAM = "roofcal"
PATHS = (
    "--out",
    "--csv",
    "--html",
    "--save-graph",
    "--graph",
    "--file",
    "--results",
    "--resume",
    "--name",
    "--keep",
    "--workloads",
)
"""Options that an empty text, as of an unset variable of a shell, must not turn into the current folder."""
COMPLETION = ("--install-completion", "--show-completion")

DEBUG, LOUDNESS = "--debug", {"--quiet": output.QUIET, "--verbose": output.VERBOSE}
"""They may stand anywhere on the command line."""

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""A full disk, a spent quota, a failing disk or a closed terminal: no fault of roofcal."""


def build(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """The application with these verbs."""
    app = typer.Typer(
        name="roofcal",
        help="How fast each layer of a model could run here, how fast it does, and where the difference goes.",
        context_settings=HELP,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
        ] = False,
        debug: Annotated[
            bool,
            typer.Option(
                DEBUG,
                help="Print the traceback of a fault of roofcal, and what libraries log; also after the command.",
            ),
        ] = False,
        quiet: Annotated[
            bool,
            typer.Option("--quiet", help="Print no progress and no remarks, only warnings; also after the command."),
        ] = False,
        verbose: Annotated[
            bool, typer.Option("--verbose", help="Print a line for each step of the work; also after the command.")
        ] = False,
    ) -> None: ...

    for name in verbs:
        module, function, example = VERBS[name]
        verb = import_module(f"profiler.cli.{module}")
        settings = {"cls": Grouped, "epilog": getattr(verb, example), "context_settings": HELP}
        app.command(name, **settings)(getattr(verb, function))
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code. `arguments` are those after the program's name."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if PARENT in os.environ:
        from profiler.campaign.execute import end_with_parent

        end_with_parent()
    if (words := asked_to_complete()) is not None:
        named = [word for word in words[:-1] if word in VERBS][:1]
        return int(typer.main.get_command(build(named or VERBS))(prog_name=PROGRAM, standalone_mode=False) or 0)
    debug = DEBUG in arguments
    logging.getLogger("roofcal").setLevel(logging.DEBUG if debug else logging.NOTSET)
    loudness = {LOUDNESS[argument] for argument in arguments if argument in LOUDNESS}
    output.set_volume(sum(loudness))
    arguments = [argument for argument in arguments if argument != DEBUG and argument not in LOUDNESS] or ["--help"]
    if not output.open_streams():
        return _fail("error: stdout is closed; send it to a file, or to /dev/null", output.REQUEST)
    output.replace_unencodable()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    atexit.register(_leave_garbage)
    try:
        if len(loudness) > 1:
            raise RequestError("--quiet and --verbose contradict each other; leave one out")
        with _ended_by_signals():
            code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except (RequestError, Unreadable) as error:
        return _fail(f"error: {error}", output.REQUEST)
    except InvalidMeasurement as error:
        return _fail(f"invalid measurement: {error}", output.INVALID)
    except CLICK_ERROR as error:
        return _fail(f"error: {error.format_message().rstrip('.')}; see --help", output.REQUEST)  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort) as stop:
        return _fail(output.interruption(stop), output.interruption_code(stop))
    except BrokenPipeError:  # nobody reads the output any more
        output.discard_stdout()
        return output.BROKEN_PIPE
    except Exception as error:  # noqa: BLE001  the last resort: whatever it is, it is one line
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            output.discard_stdout()
            return _fail(
                f"error: cannot write {error.filename or 'the output'}: {error.strerror}; "
                "free space or write elsewhere",
                output.REQUEST,
            )
        return _fault(error, debug)


def _leave_garbage() -> None:
    """Spare the interpreter its last collection, 0.8 s of `predict`; DuckDB would print what it then calls leaks."""
    if "duckdb" not in sys.modules:
        gc.freeze()


def _fault(error: Exception, debug: bool) -> int:
    """Print the line of an error that nobody expected, and where its traceback is kept, or the traceback."""
    if debug:
        traceback.print_exception(error)
        return output.FAULT
    what = f"{type(error).__name__}: {one_line(error)}"
    try:
        with NamedTemporaryFile(
            "w", prefix="roofcal-", suffix=".traceback", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(f"{' '.join(sys.argv)}\n")
            traceback.print_exception(error, file=file)
        kept = f"the traceback is in {file.name}"
    except OSError as unkept:
        kept = f"the traceback could not be kept ({unkept.strerror}); {DEBUG} prints it"
    return _fail(f"error: roofcal itself failed ({what}); {kept}; please report it", output.FAULT)


def _invoke(arguments: list[str]) -> int:
    verb = arguments[0]
    if verb not in VERBS and not verb.startswith("-"):
        near = get_close_matches(verb, VERBS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(VERBS)}"
        raise RequestError(f"no command {verb!r:.60}; {hint}")
    for name, value in itertools.pairwise([*arguments, "."]):
        option, is_written, inner = name.partition("=")
        if option in PATHS and not (inner if is_written else value).strip():
            raise RequestError(f"{option} is empty and names no file; give a name, or leave it out")
    is_called_so = bool(sys.argv) and Path(sys.argv[0]).stem == PROGRAM
    completes = any(argument in COMPLETION for argument in arguments)  # there is no completion of "python -m profiler"
    program = PROGRAM if is_called_so or completes else "python -m profiler"
    command = typer.main.get_command(build(arguments[:1] if verb in VERBS else VERBS))
    try:
        with command.make_context(program, arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return output.GOOD


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Within it, SIGTERM (Slurm, Kubernetes, timeout) and SIGHUP (a closed terminal) end a verb as Ctrl-C does.

    A signal that the caller handles or ignores, as nohup does, is left to it; threads cannot set handlers.
    """
    before: dict[signal.Signals, object] = {}
    try:
        for number in output.ENDING_SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, output.end_by_signal)
    except ValueError:  # not the main thread
        before.clear()
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, signal.SIG_DFL)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"roofcal {roofcal_version()}")
        raise typer.Exit


def _fail(line: str, code: int) -> int:
    output.say(line, sys.stderr)
    return code
