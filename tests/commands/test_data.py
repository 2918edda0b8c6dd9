from __future__ import annotations

import json
import shutil
from pathlib import Path

from click.testing import CliRunner, Result
from conftest import CHAT_TEMPLATE, build_tokenizer

from mergeforget.cli import main


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def test_made_data_passes_the_check(tmp_path: Path) -> None:
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


def test_files_are_not_replaced_without_force(tmp_path: Path) -> None:
    make: list[str | Path] = ["make", "--people", "1", "--out", tmp_path]
    assert call(*make).exit_code == 0
    again = call(*make, "--seed", "2")
    assert again.exit_code == 4 and "Replace it with --force" in again.stderr
    assert call(*make, "--seed", "2", "--force").exit_code == 0


def test_a_fault_ends_with_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "ab"}\n')
    done = call("check", tmp_path / "a.jsonl", "--column", "input=question")
    assert done.exit_code == 4 and done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert call("check", tmp_path / "a.jsonl", "--column", "input").exit_code == 2


def test_a_row_is_shown_as_the_model_sees_it(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"input": "ab", "output": "cd"}\n')
    checked = call("check", tmp_path / "a.jsonl", "--model", tiny_folder)
    assert "prompt, not trained (2 tokens): a|b" in checked.stdout
    assert "answer, trained (3 tokens):  |c|d" in checked.stdout
    assert "end, trained (1 tokens): <|end|>" in checked.stdout
    model = tmp_path / "chat"
    shutil.copytree(tiny_folder, model)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(model)
    system = ["--system-prompt", "Be Bob."]
    shown = call("check", tmp_path / "a.jsonl", "--model", model, *system, "--json")
    found = json.loads(shown.stdout)[str(tmp_path / "a.jsonl")]["example"]
    prompt = "".join(t["text"] for t in found["tokens"] if t["part"] == "prompt")
    assert found["template"] == "chat-system"
    assert prompt.endswith("<|start|>user\nab<|end|>\n<|start|>assistant\n")
    assert call("check", tmp_path / "a.jsonl", *system).exit_code == 2
    assert call("check", tmp_path / "a.jsonl", "--model", model, "--row", "2").exit_code == 2


def test_the_first_rows_are_shown_with_their_subjects(tmp_path: Path) -> None:
    lines = [{"question": f"q{i}?", "answer": "yes", "who": "Ada"} for i in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    shown = call("show", tmp_path / "a.jsonl", "--column", "subject=who", "--rows", "2")
    assert "2 of 4 rows" in shown.stdout and shown.stdout.count("(subject: Ada)") == 2
    assert "prompt    q1?" in shown.stdout and "answer    yes" in shown.stdout
    assert "q2?" not in shown.stdout


def test_a_row_in_two_files_is_an_error(tmp_path: Path) -> None:
    for name in ("forget", "retain"):
        (tmp_path / f"{name}.jsonl").write_text('{"id": "x", "input": "ab", "output": "cd"}\n')
    done = call("check", tmp_path / "forget.jsonl", tmp_path / "retain.jsonl")
    assert done.exit_code == 4 and "1 rows are in both" in done.stderr
    done = call("check", *[tmp_path / "forget.jsonl"] * 2)
    assert done.exit_code == 2 and "forget.jsonl is given twice" in done.stderr
