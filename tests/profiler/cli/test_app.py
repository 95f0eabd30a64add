import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import typer

from profiler.cli import doctor, output
from profiler.cli.app import VERBS, build, main
from profiler.cli.help import GROUPS, OTHER
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


@pytest.mark.parametrize("error", [ZeroDivisionError("a\x1b[31m bug"), PermissionError(13, "denied"), MemoryError()])
def test_any_other_error_is_one_line_and_its_traceback_is_kept(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _verb_that_raises(monkeypatch, error)
    assert main(["doctor"]) == output.FAULT == 70
    out, err = capsys.readouterr()
    (kept,) = tmp_path.iterdir()
    assert out == "" and err.count("\n") == 1 and "\x1b" not in err
    assert err.startswith(f"error: roofcal itself failed ({type(error).__name__}: ") and str(kept) in err
    assert "Traceback (most recent call last)" in kept.read_text() and type(error).__name__ in kept.read_text()
    for arguments in (["--debug", "doctor"], ["doctor", "--debug"]):
        assert main(arguments) == output.FAULT
        assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [kept]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert main(["doctor"]) == output.FAULT
    assert "could not be kept (No such file or directory); --debug prints it" in capsys.readouterr().err


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
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        f"signal.signal({number}, {'signal.default_int_handler' if number == signal.SIGINT else 'signal.SIG_DFL'})\n"
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


@pytest.mark.parametrize("width", ["0", "-1", "x", "9" * 30, "1"])
def test_any_width_of_the_terminal_is_borne(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    console = output.console()
    console.print("x" * 2000)
    assert 20 <= console.width <= 1000
    assert main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 1000


@pytest.mark.starts_product
def test_closed_streams_are_refused_or_opened_again(tmp_path: Path) -> None:
    command = f"{sys.executable} -m profiler list --results {tmp_path}"
    for redirection, code, out, err in (
        (">&-", output.REQUEST, "", "error: stdout is closed; send it to a file, or to /dev/null\n"),
        ("2>&- <&-", 0, f"no runs under {tmp_path}; make one with: python -m profiler run\n", ""),
    ):
        done = subprocess.run(f"{command} {redirection}", shell=True, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (code, out, err), redirection


def test_no_control_character_of_a_name_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bad = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e\r\x00x"
    for arguments in (
        ["show", bad],
        [bad],
        ["list", f"--{bad}"],
        ["predict", bad, "--hardware", bad],
        ["import", bad, bad],
    ):
        assert main(arguments) == output.REQUEST
        shown = "".join(capsys.readouterr())
        assert shown.endswith("\n") and all(c.isprintable() for c in shown[:-1]), arguments


def test_a_name_that_no_file_can_have_is_one_short_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long, loop, pipe = "x" * 5000, tmp_path / "loop", tmp_path / "pipe"
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    on = ["--hardware", "nvidia-h100-sxm"]
    for name in (long, str(loop), str(pipe), "~no-such-user-here/x"):
        for arguments in (
            ["show", name], ["export", name, "--to", "genz"], ["calibrate", name], ["import", "vidur", name],
            ["predict", "--graph", name, *on], ["predict", "--graph", name, "--hardware", name],
            ["show", "last", "--results", name], ["export", "last", "--to", "genz", "--results", name],
        ):  # fmt: skip
            assert main(arguments) == output.REQUEST, arguments
            shown = capsys.readouterr().err
            assert shown.count("\n") == 1 and len(shown) < 2000, arguments
        assert main(["list", "--results", name]) == 0
        assert capsys.readouterr().out.startswith("no runs under ")


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


def test_verbs_can_be_built_once_more() -> None:
    assert build() is not build()
    assert [len(build(verbs).registered_commands) for verbs in (VERBS, ["list"])] == [len(VERBS), 1]


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


def test_help_has_each_option_once_in_a_group_and_examples_that_can_be_copied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for verb in ("run", "hardware", "predict", "calibrate", "show"):
        assert main([verb, "-h"]) == 0
        text = capsys.readouterr().out
        options, examples = text.split("Example", 1)
        parameters = typer.main.get_command(build([verb, "list"])).commands[verb].params  # type: ignore[attr-defined]
        titles = [line[:-1] for line in options.splitlines() if line.endswith(":") and not line.startswith(" ")]
        assert [title for title in titles if title != "Arguments"] == [
            title for title in (*GROUPS, OTHER) if title in titles
        ], titles
        for name in (name for p in parameters for name in p.opts if name.startswith("--")):
            assert len(re.findall(rf"^  (-h, )?{name}\b(?!-)", options, re.MULTILINE)) == 1, name
        commands = re.sub(r" \\\n +", " ", examples).splitlines()[1:]
        assert commands and all(line.startswith("  python -m profiler ") for line in commands), commands
        assert not [line for line in examples.splitlines() if len(line) > 80]


def test_a_shell_completes_verbs_options_models_and_devices_of_a_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_ROOFCAL_COMPLETE", "complete_bash")
    for words, offered, not_offered in (
        ("roofcal pre", "predict", "run"),
        ("roofcal predict --memory-u", "--memory-utilisation", "--json"),
        ("roofcal predict llama-3.1-7", "llama-3.1-70b", "llama-3.1-8b"),
        ("roofcal predict --hardware nvidia-l4,nvidia-h2", "nvidia-l4,nvidia-h20", "nvidia-l4"),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        with pytest.raises(SystemExit) as end:
            main([])
        assert end.value.code == 0
        lines = capsys.readouterr().out.split("\n")
        assert offered in lines and not_offered not in lines, (words, lines)


def test_an_empty_text_names_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["run", "gpt2", "--out", ""], ["hardware", "--out="], ["list", "--results", " "],
                      ["show", "last", "--csv="], ["import", "vidur", "x.csv", "--out", ""]):  # fmt: skip
        assert main(arguments) == 2
        assert "is empty and names no file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
