import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from profiler.cli import doctor, output
from profiler.cli.app import VERBS, main
from profiler.record.run import InvalidMeasurement, RequestError


def _verb_that_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def verb() -> None:
        raise error

    monkeypatch.setattr(doctor, "doctor", verb)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"python -m profiler {verb}" in shown.split("Example", 1)[1]
    assert "--json" in shown


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_verb(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["roofcal"])
    assert main(arguments or None) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["shwo"], "error: no command 'shwo'; did you mean show?"),
        (["xyzzy"], f"error: no command 'xyzzy'; known: {', '.join(VERBS)}"),
        (["show"], "error: Missing argument 'RUN'; see --help"),
        (["list", "--frob"], "error: No such option: --frob; see --help"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == output.REQUEST
    out, err = capsys.readouterr()
    assert out == ""
    assert err == line + "\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RequestError("no such\n thing; do that"), 2, "error: no such thing; do that"),
        (InvalidMeasurement("it throttled"), 4, "invalid measurement: it throttled"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            output.Interrupted(Path("results/a/b"), "run"),
            130,
            "interrupted; what was measured is in results/a/b; "
            "continue with: python -m profiler run --resume results/a/b",
        ),
    ],
)
def test_each_end_has_its_code_and_its_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _verb_that_raises(monkeypatch, error)
    assert main(["doctor"]) == code
    assert capsys.readouterr() == ("", line + "\n")


def test_an_error_of_ours_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    _verb_that_raises(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


@pytest.mark.parametrize("unbuffered", ["", "1"])  # the pipe breaks at the end, or at the first line
@pytest.mark.starts_product
def test_nobody_reading_the_output_is_quiet(tmp_path: Path, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "profiler", "list", "--results", str(tmp_path), "--json"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment) as child:
        os.close(writer)
        _, err = child.communicate()
    assert (child.returncode, err) == (output.BROKEN_PIPE, "")


@pytest.mark.starts_product
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_a_run_is_written_says_how_to_go_on(number: int, code: int) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from profiler.cli import app, doctor\n"
        "from profiler.cli.output import resumable\n"
        "def verb():\n"
        "    with resumable(Path('results/a/b')):\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(600)\n"
        "doctor.doctor = verb\n"
        "sys.exit(app.main(['doctor']))\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        _, err = child.communicate()
    assert child.returncode == code
    assert "continue with: python -m profiler run --resume results/a/b" in err
    assert "Traceback" not in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    name, version = capsys.readouterr().out.split()
    assert name == "roofcal" and version[0].isdigit()


@pytest.mark.parametrize(
    ("program", "shown"),
    [("/usr/bin/roofcal", "roofcal"), ("/site-packages/profiler/__main__.py", "python -m profiler")],
)
def test_usage_shows_the_program_as_called(
    program: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    assert main(["list", "--help"]) == 0
    assert f"Usage: {shown} list" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "--json"]])
@pytest.mark.starts_product
def test_a_full_disk_under_the_output_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "profiler", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == output.REQUEST
    assert done.stderr.startswith("error: cannot write the output") and done.stderr.count("\n") == 1


def test_an_error_of_the_system_that_is_not_about_output_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    _verb_that_raises(monkeypatch, PermissionError(13, "denied"))
    with pytest.raises(PermissionError):
        main(["doctor"])


@pytest.mark.starts_product
def test_the_module_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "profiler", "list", "--json", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"results": str(tmp_path), "runs": []}


@pytest.mark.starts_product
def test_a_verb_imports_no_other_verb() -> None:
    program = (
        "import sys\n"
        "from profiler.cli.app import main\n"
        "main(['run', '--help'])\n"
        "assert not {'profiler.cli.predict', 'roofline.whatif.registry', 'roofline.predict.question'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_options_are_checked_before_torch_is_loaded(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from profiler.cli.app import main\n"
        "for more in (['--phase', 'foo'], ['--prompt', 'x'], ['--dtype', 'int3'], ['--weights', 'none'],\n"
        "             ['--cache', 'x'], ['--batch', '0'], ['--hardware', '/nowhere.json']):\n"
        f"    assert main(['run', 'gpt2', '--out', {str(tmp_path)!r}, *more]) == 2, more\n"
        "    assert 'torch' not in sys.modules, more\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stderr.count("\n") == 7 and list(tmp_path.iterdir()) == []


def test_help_has_a_short_name_and_the_terminals_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["-h"], ["list", "-h"], ["run", "-h"]):
        widths = {}
        for columns in (60, 130):
            monkeypatch.setenv("COLUMNS", str(columns))
            assert main(arguments) == 0, arguments
            widths[columns] = max(len(line) for line in capsys.readouterr().out.splitlines() if "profiler" not in line)
        assert widths[60] <= 60 and widths[130] > 80, (arguments, widths)
