"""Shards read back and merged: nothing twice, what differs is left out and named, and a lost shard is seen."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from campaigns import Machine, passed, plan, suite

from profiler.record.campaign import GRACE_S, cell_key, keep_files, merged, read_shards, run_files
from profiler.record.run import RequestError

ASKED = plan("doctor", suite("a"), suite("b"), suite("c"), suite("d"))
LATER = datetime.now(UTC) + timedelta(days=1)


def measured(out: Path, *shards: int, of: int = 3) -> Machine:
    machine = Machine(out)
    for shard in shards:
        machine.run(ASKED, shard=shard, shards=of, uuid=f"GPU-{shard}")
    return machine


def cells(*folders: Path) -> set[str]:
    return {key.replace("-1of1", "") for key in merged(*read_shards(list(folders))).cells}


def test_three_shards_are_as_the_whole(tmp_path: Path) -> None:
    measured(tmp_path / "one", 1, of=1)
    measured(tmp_path / "three", 1, 2, 3)
    whole = merged(*read_shards([tmp_path / "three"]))
    assert whole.is_whole and not whole.repeated and not whole.absent
    alone = merged(*read_shards([tmp_path / "one"]))
    assert {key.split()[0] for key in alone.cells} == {key.split("-")[0] for key in whole.cells} == set("abcd")
    assert [found.unit for found in whole.parts if found.part.name == "doctor"] == ["GPU-1", "GPU-2", "GPU-3"]
    assert len(whole.cells) == 4 and {row["unit"] for row in whole.cells.values()} <= {"GPU-1", "GPU-2", "GPU-3"}


def test_shards_merge_by_naming_their_folders_wherever_they_lie(tmp_path: Path) -> None:
    for shard in (1, 2, 3):
        measured(tmp_path / f"host{shard}", shard)
    folders = [tmp_path / "host1", tmp_path / "host2" / "shards" / "2-of-3", tmp_path / "host3"]
    measured(tmp_path / "three", 1, 2, 3)
    assert merged(*read_shards(folders)).is_whole and cells(*folders) == cells(tmp_path / "three")


def test_a_shard_that_has_not_begun_or_was_lost_is_seen(tmp_path: Path) -> None:
    machine = measured(tmp_path, 1)
    whole = merged(*read_shards([tmp_path]))
    assert whole.absent == ["2/3", "3/3"] and not whole.is_whole
    missing = [found.part.shard for found in whole.parts if found.line is None]
    assert missing and set(missing) <= {2, 3}
    machine.interrupt_in = f"{next(p.name for p in whole.shards[0].record.parts if p.shard == 2)}-2of3"
    with pytest.raises(KeyboardInterrupt):
        machine.run(ASKED, shard=2, shards=3, uuid="GPU-2")
    lost = next(s for s in read_shards([tmp_path])[0] if s.record.shard == 2)
    limit_s = next(line.limit_s for line in lost.ended.values() if line.is_open)
    now = datetime.now(UTC)
    assert limit_s is not None and lost.state(now) == "running"
    assert lost.state(now + timedelta(seconds=limit_s + GRACE_S + 5)) == "lost"
    machine.interrupt_in = None
    machine.run(ASKED, shard=2, shards=3, uuid="GPU-2")
    assert next(s for s in read_shards([tmp_path])[0] if s.record.shard == 2).state(LATER) == "finished"


def test_a_part_that_was_begun_on_another_device_counts_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    asked = plan(suite("a"))
    machine.run(asked)
    machine.run(asked, shard=1, shards=1)
    (shard,), refused = read_shards([tmp_path])
    twin = tmp_path / "twin"
    Machine(twin).run(asked)
    whole = merged([shard, *read_shards([twin])[0]], refused)
    assert len(whole.cells) == 1 and len(whole.parts) == 1


def test_a_shard_of_another_plan_or_version_is_left_out_and_named(tmp_path: Path) -> None:
    measured(tmp_path, 1, 2, 3)
    path = tmp_path / "shards" / "2-of-3" / "shard.json"
    content = json.loads(path.read_text())
    for change, words in (
        ({"plan_sha256": "0" * 64}, "is of another version of trial; it is left out"),
        ({"plan_sha256": "0" * 64, "plan": "other"}, "is of another plan (other); it is left out"),
        ({"roofcal": "9.9"}, "is of roofcal 9.9, not"),
        ({"method_version": 99}, "is of method version 99, not"),
    ):
        path.write_text(json.dumps(content | change))
        whole = merged(*read_shards([tmp_path]))
        assert whole.absent == ["2/3"] and len(whole.left_out) == 1 and words in whole.left_out[0]
        assert len(whole.shards) == 2 and 0 < len(whole.cells) < 4, "the others are kept"
    path.write_text("{")
    whole = merged(*read_shards([tmp_path]))
    assert whole.absent == ["2/3"] and "shard.json" in whole.left_out[0]


def test_what_is_no_campaign_is_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(RequestError, match="name the folder that `campaign PLAN --out` wrote"):
            read_shards([folder])


def test_what_is_kept_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(tmp_path, 1, of=1)
    shard = tmp_path / "shards" / "1-of-1"
    (shard / "exports" / "blis").mkdir(parents=True)
    (shard / "exports" / "blis" / "a.json").write_text("{}")
    whole, out = merged(*read_shards([tmp_path])), tmp_path / "keep"
    assert keep_files(whole, out) == []
    assert (out / "a.md").read_text() == "# a" and (out / "exports" / "blis" / "a.json").read_text() == "{}"
    assert run_files(whole)["a"]["environment"]["device"] == "NVIDIA H200"
    monkeypatch.setattr("profiler.record.campaign.LARGEST_BYTES", 2)
    assert "a.md" in keep_files(whole, tmp_path / "small") and not (tmp_path / "small" / "a.md").exists()


def test_cells_are_told_apart_by_all_that_is_asked_of_them() -> None:
    row = passed("m")
    others = [{"dtype": "float32"}, {"mode": "eager"}, {"batch": 2}, {"query_tokens": 4}, {"context_tokens": 2},
              {"phase": "chunk"}, {"ran": {"cache": "StaticCache of x"}}, {"model": "n"}]  # fmt: skip
    assert len({cell_key({**row, **other}) for other in ({}, *others)}) == len(others) + 1
    assert cell_key({**row, "wall_s": 7.0}) == cell_key(row)
