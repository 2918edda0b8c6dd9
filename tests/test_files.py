"""Files appear whole or not at all, and cut-off lines are lost alone."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mergeforget.errors import InputError, ResourceError
from mergeforget.files import append_jsonl, read_json, read_jsonl, sha256, whole, write_text


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(RuntimeError), whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with whole(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_says_so_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(ResourceError, match="disk is full.*--out"), whole(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_line_cut_off_by_a_kill_is_lost_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_jsonl(path, [{"step": 1}])
    with open(path, "a") as file:
        file.write('{"step": 2, "lo')
    append_jsonl(path, [{"step": 3}])
    assert read_jsonl(path) == [{"step": 1}, {"step": 3}]


def test_hash_of_a_folder_sees_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    first = sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert sha256(tmp_path) != first


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_row_with_any_line_separator_comes_back(tmp_path: Path) -> None:
    row = {"text": "a\u2028b\x85c\u2029\x0cd\r\n"}
    append_jsonl(tmp_path / "rows.jsonl", [row, row])
    assert read_jsonl(tmp_path / "rows.jsonl") == [row, row]
