"""Files appear whole or not at all, and only an incomplete last line is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from mergeforget import replace
from mergeforget.errors import InputError, NumericError, ResourceError
from mergeforget.files import (
    append_jsonl,
    read_json,
    read_jsonl,
    replacing,
    sha256,
    write_json,
    write_text,
)


def test_a_failed_write_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def write_folder(path: Path, *names: str) -> None:
    with replacing(path) as temporary:
        temporary.mkdir()
        for name in names:
            (temporary / name).write_text("{}")


def test_a_folder_replaces_an_older_one(tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        write_folder(tmp_path / "folder", name)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["two.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("exchange", [True, False])
def test_files_of_the_user_survive_a_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:  # a file system without renameat2
        monkeypatch.setattr(replace, "_exchange", lambda *_: False)
    folder = tmp_path / "folder"
    write_folder(folder, "adapter_config.json", "candidate.json")
    (folder / "candidate.json").write_text('{"method": "ties"}')
    (folder / "notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    (folder / "plots" / "curve.png").write_text("mine")
    write_folder(folder, "adapter_config.json")
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert found == ["adapter_config.json", "notes.txt", "plots/curve.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_the_marker_file_lists_the_files_that_were_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for names in (["candidate.json", "old.bin"], ["candidate.json", "new.bin"]):
        with replacing(folder) as temporary:
            temporary.mkdir()
            for name in names:
                (temporary / name).write_text("{}")
        assert read_json(folder / "candidate.json")["files"] == sorted(names)
        (folder / "mine.json").write_text("{}")
    assert sorted(p.name for p in folder.iterdir()) == ["candidate.json", "mine.json", "new.bin"]


def test_a_link_to_a_folder_is_kept(tmp_path: Path) -> None:
    write_folder(tmp_path / "real", "one.json")
    (tmp_path / "link").symlink_to("real")
    write_folder(tmp_path / "link", "two.json")
    assert (tmp_path / "link").is_symlink()
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["two.json"]


def test_a_file_never_replaces_a_folder_nor_a_folder_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").touch()
    with pytest.raises(InputError, match="a folder exists there"):
        write_text(tmp_path / "folder", "text")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file exists there"):
        write_folder(tmp_path / "file", "a.json")
    with pytest.raises(InputError, match="Cannot write"):
        write_text(tmp_path / "file" / "below" / "a.txt", "text")
    assert (tmp_path / "folder" / "mine.txt").exists()


def leftover(folder: Path, name: str, pid: int, suffix: str) -> Path:
    path = folder / f".{name}.{replace._host()}-{pid}-0123abcd.{suffix}"
    path.mkdir()
    (path / "a.json").write_text("{}")
    return path


def test_leftovers_of_a_killed_writer_are_removed_and_a_moved_result_is_put_back(
    tmp_path: Path,
) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    dead = int(gone.stdout)
    leftover(tmp_path, "model", dead, "old")
    leftover(tmp_path, "model", dead, "tmp")
    leftover(tmp_path, "other", dead, "tmp")
    alive = leftover(tmp_path, "other", os.getppid(), "tmp")
    replace.remove_leftovers(tmp_path, "model")
    assert (tmp_path / "model" / "a.json").exists()
    assert sum(p.name.startswith(".model") for p in tmp_path.iterdir()) == 0
    replace.tidy(tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [alive.name]


def test_leftovers_inside_a_folder_are_not_shipped(tmp_path: Path) -> None:
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "config.json").write_text("{}")
        leftover(temporary, "config.json", os.getpid(), "tmp")
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["config.json"]


def test_a_full_disk_is_reported_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(ResourceError, match="disk is full.*--out"), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_only_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_jsonl(path, [{"step": 1}])
    with open(path, "a") as file:
        file.write('{"step": 2, "lo')
    assert read_jsonl(path) == [{"step": 1}]
    append_jsonl(path, [{"step": 3}])
    assert read_jsonl(path) == [{"step": 1}, {"step": 3}]


def test_a_complete_line_without_a_line_feed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}')
    append_jsonl(path, [{"step": 2}])
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("damage", [b"\x00", b"\xff", b"}", b"null", b"[1]", b"NaN"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_bytes(b'{"a": 1}\n' + damage + b'\n{"a": 3}\n')
    with pytest.raises(InputError, match=r"scores\.jsonl, line 2"):
        read_jsonl(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path, value: float) -> None:
    for write in (write_json, lambda p, v: append_jsonl(p, [{"a": v}])):
        with pytest.raises(NumericError, match="NaN or infinite"):
            write(tmp_path / "a.json", value)
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("code", sorted(replace.NO_LOCKS))
def test_a_file_system_without_locks_still_has_one_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    monkeypatch.setattr("filelock.SoftFileLock.acquire", filelock.BaseFileLock.acquire)
    with replace.locked(tmp_path / ".lock", "in use"):
        with (
            pytest.raises(ResourceError, match="in use"),
            replace.locked(tmp_path / ".lock", "in use"),
        ):
            pass
    with replace.locked(tmp_path / ".lock", "in use"):
        pass


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_place_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(InputError, match="Cannot write"), replace.locked(tmp_path / "a", "in use"):
        pass


def test_hash_of_a_folder_sees_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    first = sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert sha256(tmp_path) != first


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_row_with_any_line_separator_is_read_back(tmp_path: Path) -> None:
    row = {"text": "a\u2028b\x85c\u2029\x0cd\r\n"}
    append_jsonl(tmp_path / "rows.jsonl", [row, row])
    assert read_jsonl(tmp_path / "rows.jsonl") == [row, row]
