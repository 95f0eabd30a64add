import json
from pathlib import Path

import pytest

from profiler.record.errors import RequestError
from profiler.record.files import read_record, replacing, write_text
from profiler.record.run import RUN_SCHEMA, Run


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
