from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from mergeforget.cli import main


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def test_make_then_check(tmp_path: Path) -> None:
    made = call("make", "--people", "2", "--holdout", "1", "--tasks", "Task2", "--out", tmp_path)
    assert made.exit_code == 0 and "forget.jsonl: 12 rows of 2 documents" in made.stdout
    checked = call("check", tmp_path / "holdout.jsonl", "--json")
    facts = json.loads(checked.stdout)[str(tmp_path / "holdout.jsonl")]
    assert facts == {"rows": 6, "documents": 1, "tasks": {"Task2": 6}, "kinds": {"qa": 5, "sc": 1}}


def test_tokens_are_counted_with_a_models_tokenizer(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"input": "ab", "output": "cd"}\n')
    checked = call("check", tmp_path / "a.jsonl", "--model", tiny_folder, "--json")
    facts = json.loads(checked.stdout)[str(tmp_path / "a.jsonl")]
    assert facts["tokens"] == {"total": 5, "median": 5, "longest": 5}


def test_files_are_not_replaced_unless_asked(tmp_path: Path) -> None:
    make: list[str | Path] = ["make", "--people", "1", "--out", tmp_path]
    assert call(*make).exit_code == 0
    again = call(*make, "--seed", "2")
    assert again.exit_code == 4 and "Replace it with --force" in again.stderr
    assert call(*make, "--seed", "2", "--force").exit_code == 0


def test_fault_ends_with_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "ab"}\n')
    done = call("check", tmp_path / "a.jsonl", "--column", "input=question")
    assert done.exit_code == 4 and done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert call("check", tmp_path / "a.jsonl", "--column", "input").exit_code == 2
