import errno
import json
import os
import resource
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.record.files import Journal, Lock, read_record, replacing, require_separate, write_text
from profiler.record.run import RUN_SCHEMA, Cell, CellResult, InvalidMeasurement, OpTimes, RequestError, Run
from roofline.workload import Workload

decode = CellResult.model_validate_json

CELL = Cell(
    model="m",
    workload=Workload(batch=1, query_tokens=1, context_tokens=1, dtype="float32"),
    attn="sdpa",
    experts="default",
    cache="dynamic",
)
SECONDS = st.floats(min_value=0, max_value=1e6, allow_nan=False)
SAMPLES = st.lists(SECONDS, max_size=4).map(tuple)
RESULTS = st.builds(
    CellResult,
    cell=st.just(CELL),
    status=st.sampled_from(["done", "failed", "invalid"]),
    reason=st.none() | st.text(),
    wall_s=SAMPLES,
    ops=st.lists(st.builds(OpTimes, op=st.integers(0, 9), device_s=SAMPLES, gap_s=SAMPLES), max_size=3).map(tuple),
)


def append(journal: Journal, result: CellResult) -> None:
    journal.append(result.model_dump(mode="json"), result.cell.key)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(KeyError), replacing(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_whoever_is_reading_the_old_file_reads_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old and long")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old and long"
    assert path.read_text() == "new"


def test_an_unwritable_place_is_a_wrong_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match="cannot write"):
        write_text(tmp_path / "file" / "below", "text")


def test_a_newer_schema_is_named_before_its_unknown_fields(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**json.loads(run.model_dump_json()), "schema_version": RUN_SCHEMA + 1, "new": 1}))
    newer = f"newer roofcal \\(schema {RUN_SCHEMA + 1}, this one reads {RUN_SCHEMA}\\): update roofcal"
    with pytest.raises(RequestError, match=newer):
        read_record(path, Run, RUN_SCHEMA)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "half-written or damaged"),
        ('{"schema_version": 1, "name": "x', "half-written or damaged"),
        ("[]", "no schema_version"),
        ("{}", "no schema_version"),
        ('{"schema_version": 1}', "not a valid Run: name: Field required"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=message) as refusal:
        read_record(path, Run, RUN_SCHEMA)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file"):
        read_record(tmp_path / "run.json", Run, RUN_SCHEMA)
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="damaged"):
        read_record(tmp_path / "run.json", Run, RUN_SCHEMA)


@given(results=st.lists(RESULTS, max_size=4))
@settings(max_examples=50, deadline=None)
def test_what_is_appended_is_read_back_exactly(
    results: list[CellResult], tmp_path_factory: pytest.TempPathFactory
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    for result in results:
        append(journal, result)
    assert journal.read(decode) == results


def test_no_journal_is_no_results(tmp_path: Path) -> None:
    assert Journal(tmp_path / "journal.jsonl").read(decode) == []


def test_killed_at_any_byte_of_a_line_the_lines_before_it_stay(tmp_path: Path, result: CellResult) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    append(journal, result)
    line = journal.path.read_bytes()
    for cut in range(0, len(line), 7):
        journal.path.write_bytes(line + line[:cut])
        assert journal.read(decode) == [result]
        journal.drop_torn_line()
        append(journal, result)
        assert journal.read(decode) == [result, result]


@pytest.mark.parametrize("garbage", [b"{}\n", b"not json\n", b"\x00\x00\n", b"\n"])
def test_garbage_in_a_whole_line_is_refused_with_its_number(tmp_path: Path, result: CellResult, garbage: bytes) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    append(journal, result)
    line = journal.path.read_bytes()
    journal.path.write_bytes(line + garbage + line)
    with pytest.raises(RequestError, match=r"journal\.jsonl line 2 is damaged"):
        journal.read(decode)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_time_that_is_not_finite_is_not_kept(tmp_path: Path, result: CellResult, value: float) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(InvalidMeasurement, match=r"example-prefill.*not a finite"):
        append(journal, result.model_copy(update={"wall_s": (1.0, value)}))
    assert not journal.path.exists()


def test_a_write_that_the_disk_cuts_short_is_taken_back(tmp_path: Path, result: CellResult) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    append(journal, result)
    line = journal.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(line) + 10, limits[1]))
    try:
        with pytest.raises(RequestError, match="File too large; what came before it is kept"):
            append(journal, result)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.path.read_bytes() == line
    append(journal, result)
    assert journal.read(decode) == [result, result]


def test_rewrite_replaces_everything(tmp_path: Path, result: CellResult) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.path.write_text("garbage")
    journal.rewrite([(result.model_dump(mode="json"), "cell")])
    assert json.loads(journal.path.read_text())["status"] == "done"
    assert [file.name for file in tmp_path.iterdir()] == ["journal.jsonl"]


def test_a_file_system_without_locks_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("profiler.record.files.fcntl.flock", flock)
    with pytest.raises(RequestError, match=r"cannot lock .*No locks available; choose another file system"):
        Lock(tmp_path / ".lock")


def test_links_are_followed_modes_kept_and_special_files_written_through(tmp_path: Path) -> None:
    real, link, dangling = tmp_path / "real", tmp_path / "link", tmp_path / "dangling"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to("real")
    dangling.symlink_to("new")
    write_text(link, "1")
    write_text(dangling, "2")
    assert link.is_symlink() and real.read_text() == "1" and stat.S_IMODE(real.stat().st_mode) == 0o600
    assert dangling.is_symlink() and (tmp_path / "new").read_text() == "2"
    write_text(Path(os.devnull), "3")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_text(fifo, "4")
    assert os.read(reader, 9) == b"4" and stat.S_ISFIFO(fifo.stat().st_mode)
    os.close(reader)
    null = tmp_path / "null"
    null.symlink_to(os.devnull)
    write_text(null, "5")
    assert null.is_symlink() and sorted(p.name for p in tmp_path.iterdir() if "partial" in p.name) == []
    log = tmp_path / "log"
    with log.open("wb", buffering=0) as out:
        out.write(b"before ")
        write_text(Path(f"/proc/self/fd/{out.fileno()}"), "after")
    assert log.read_text() == "before after"


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    cases = {
        "": "names no file",
        str(tmp_path): "is a folder",
        str(tmp_path / "a" / ".."): "names no file",
        str(tmp_path / "a\x1b[31m"): "control character",
        str(loop): "symbolic links",
        str(tmp_path / ("n" * 5000)): "name too long",
        "/dev/full": "No space left",
    }
    for name, why in cases.items():
        with pytest.raises(RequestError, match=f"(?i){why}") as refused:
            write_text(Path(name), "text")
        assert "\x1b" not in str(refused.value), name


def test_an_output_that_is_an_input_or_another_output_is_refused(tmp_path: Path) -> None:
    table, link, hard = tmp_path / "kernels.parquet", tmp_path / "link", tmp_path / "hard"
    table.write_text("kept")
    link.symlink_to(table)
    hard.hardlink_to(table)
    for name in (table, link, hard, tmp_path / "." / "kernels.parquet"):
        with pytest.raises(RequestError, match=r"--out .* would overwrite .*which is read; name another file"):
            require_separate({"--out": name}, [table])
    new = tmp_path / "new"
    with pytest.raises(RequestError, match=r"--html .* would overwrite what --csv writes"):
        require_separate({"--csv": new, "--html": tmp_path / "x" / ".." / "new"})
    require_separate({"--csv": Path(os.devnull), "--html": Path(os.devnull)})
    require_separate({"--csv": new, "--html": None}, [table])
