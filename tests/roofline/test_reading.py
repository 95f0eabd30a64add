"""What the gate lets pass: regular files of a sensible size, JSON of a sensible form, figures of just their type."""

import json
import os
import threading
from pathlib import Path

import pytest

from roofline import reading
from roofline.reading import Unreadable, entry, parse_json, read_bytes, read_record, record_of
from roofline.record import Record


class Sample(Record):
    schema_version: int = 1
    name: str = ""
    count: int = 0
    time_s: float = 0.0
    sizes: tuple[float, ...] = ()
    size: int | float = 0


def test_only_what_is_a_file_and_can_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, pipe, loop, link, large = (tmp_path / name for name in ("file", "pipe", "loop", "link", "large"))
    file.write_bytes(b"content")
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    link.symlink_to(file)
    with large.open("wb") as sparse:
        sparse.truncate(1 << 40)
    assert read_bytes(file) == read_bytes(link) == b"content"
    refused = {
        pipe: "it is a pipe or a device, which may never end; name a file",
        Path("/dev/zero"): "it is a pipe or a device, which may never end; name a file",
        tmp_path: "Is a directory; name a file in it",
        loop: "Too many levels of symbolic links; restore the file",
        large: "has 1,099,511,627,776 bytes, and no such file has above 67,108,864; restore the file",
        tmp_path / "none": "No such file or directory; restore the file",
        tmp_path / ("n" * 5000): "File name too long; restore the file",
        tmp_path / "a\0b": "no file has such a name; restore the file",
        tmp_path / "\ud800": "no file has such a name; restore the file",
    }
    for path, why in refused.items():
        with pytest.raises(Unreadable) as refusal:
            read_bytes(path)
        assert str(refusal.value).endswith(why), path
    kinds = {file: "file", link: "file", tmp_path: "folder", pipe: "special", Path("/dev/zero"): "special"}
    assert {path: entry(path) for path in (*kinds, loop, *list(refused)[-4:])} == {
        **kinds, loop: None, **dict.fromkeys(list(refused)[-4:])
    }  # fmt: skip
    with pytest.raises(Unreadable, match="no such file has above 3"):
        read_bytes(file, most=3)


def test_a_pipe_with_a_writer_is_refused_too(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: os.close(os.open(pipe, os.O_RDWR)))
    writer.start()
    with pytest.raises(Unreadable, match="a pipe or a device"):
        read_bytes(pipe)
    writer.join()


def test_json_that_no_figure_or_record_is_written_in_is_refused() -> None:
    deep = reading.MOST_DEPTH
    for text, why in {
        "9" * 19: "the whole number 9999999999999999999 is beyond 64 bits",
        f"-{2**63}": "beyond 64 bits",
        "9" * 5000: "has 5000 digits",
        "1e999": "beyond any float",
        f"[{'9' * 400}.5]": "beyond any float",
        "NaN": "NaN is no finite number",
        "[-Infinity]": "-Infinity is no finite number",
        "[" * (deep + 2) + "]" * (deep + 2): f"nested more than {deep} levels deep",
        "[" * 200_000 + "]" * 200_000: f"nested more than {deep} levels deep",
        '{"a":' * 200_000: "nested more than|Expecting",
        '{"a": 1, "b": {"c": 1, "c": 2}}': "the key 'c' appears twice in one object",
        '["\\ud800"]': "half of a surrogate pair",
        '{"\\uDFFF": 1}': "half of a surrogate pair",
        "\ufeff{}": "BOM",
        "": "Expecting value",
        "{} {}": "Extra data",
    }.items():
        with pytest.raises(ValueError, match=why) as refusal:
            parse_json(text)
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 200
    with pytest.raises(UnicodeDecodeError):
        parse_json(b"\xff")
    whole = {"a": [2**63 - 1, -(2**63) + 1, 1e308, 0.1, "9" * 30, "😀", "1e999", None, True]}
    assert parse_json(json.dumps(whole)) == whole and parse_json("[" * deep + "]" * deep) is not None
    assert parse_json('{"a": 1, "a": 1' + "0" * 30 + "}", foreign=True) == {"a": 10**30}
    assert parse_json("[Infinity]", finite=False) == [float("inf")]
    with pytest.raises(ValueError, match="has 41 digits"):
        parse_json("1" * 41, foreign=True)


def test_a_figure_has_just_its_type(tmp_path: Path) -> None:
    path = tmp_path / "sample.json"
    good = '{"schema_version": 1, "name": "x", "count": 3, "time_s": 2, "sizes": [1, 2.5], "size": 4}'
    path.write_text(good)
    assert read_record(path, Sample, 1) == Sample(name="x", count=3, time_s=2.0, sizes=(1.0, 2.5), size=4)
    for field, value, why in (
        ("count", "true", "count: Input should be a valid integer"),
        ("count", "3.0", "count: Input should be a valid integer"),
        ("count", '"3"', "count: Input should be a valid integer"),
        ("time_s", "false", "time_s: Input should be a valid number"),
        ("time_s", "NaN", "time_s: Input should be a finite number"),
        ("time_s", "-Infinity", "time_s: Input should be a finite number"),
        ("sizes", "[1, true]", "sizes.1: Input should be a valid number"),
        ("sizes", "[1, 1e999]", "half-written or damaged"),
        ("size", "true", "size"),
        ("name", "7", "name: Input should be a valid string"),
        ("schema_version", "true", "schema_version is True, not a whole number from 1"),
        ("schema_version", "1.0", "schema_version is 1.0, not a whole number from 1"),
        ("schema_version", "0", "schema_version is 0, not a whole number from 1"),
        ("schema_version", "-1", "schema_version is -1, not a whole number from 1"),
        ("schema_version", '"1"', "schema_version is '1', not a whole number from 1"),
        ("schema_version", "[]", r"schema_version is \[\], not a whole number from 1"),
        ("schema_version", "null", "it has no schema_version"),
        ("schema_version", "2", "newer roofcal"),
    ):
        changed = {name: value if name == field else json.dumps(old) for name, old in json.loads(good).items()}
        path.write_text("{" + ", ".join(f'"{name}": {text}' for name, text in changed.items()) + "}")
        with pytest.raises(Unreadable, match=why) as refusal:
            read_record(path, Sample, 1)
        assert str(path) in str(refusal.value) and "\n" not in str(refusal.value), (field, value)
    with pytest.raises(ValueError, match="valid integer"):
        record_of(Sample, '{"count": true}')
