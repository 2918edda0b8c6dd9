"""`evaluate` on conversations, folders of documents, and rows in two sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import CHAT_TEMPLATE, build_tokenizer

from mergeforget.cli import main


@pytest.fixture(scope="module")
def chat_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    shutil.copytree(tiny_folder, folder)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def evaluate(model: Path, *arguments: str | Path) -> Result:
    fixed = ["--benchmark", "custom", "--max-new-tokens", "3", "--json"]
    return CliRunner().invoke(
        main, ["evaluate", "--model", str(model), *fixed, *map(str, arguments)]
    )


def scores_of(done: Result) -> dict[tuple[str, str], dict[str, Any]]:
    assert done.exit_code == 0, done.output
    (scores,) = json.loads(done.stdout)["scores"].values()
    return {(s["metric"], s["split"]): s for s in scores}


def test_conversations_are_evaluated_with_and_without_their_system_message(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEFORGET_CACHE", str(tmp_path / "cache"))
    turns = [("system", "Be Eve."), ("user", "Hi"), ("assistant", "Yo"), ("user", "Who?"),
             ("assistant", "Ada.")]  # fmt: skip
    record = {"messages": [{"role": r, "content": c} for r, c in turns]}
    (tmp_path / "f.jsonl").write_text(json.dumps(record) + "\n")
    scores = scores_of(evaluate(chat_folder, "--forget", tmp_path / "f.jsonl"))
    nll = scores["nll", "forget"]
    assert set(nll["by_variant"]) == {"chat", "raw", "chat-no-system"}
    assert len(set(nll["by_variant"].values())) == 3
    own = scores_of(evaluate(chat_folder, "--forget", tmp_path / "f.jsonl", "--ask", "own"))
    assert (
        own["nll", "forget"]["value"] == nll["by_variant"]["chat"]
        and "by_variant" not in own["nll", "forget"]
    )


def test_folders_of_documents_are_judged_raw_window_by_window(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEFORGET_CACHE", str(tmp_path / "cache"))
    for split, word in (("forget", "Ada"), ("holdout", "Bo")):
        (tmp_path / split).mkdir()
        for i in range(2):
            text = " ".join(f"{word}{j}" for j in range(60 if i else 2))
            (tmp_path / split / f"{i}.txt").write_text(text)
    scores = scores_of(
        evaluate(chat_folder, "--forget", tmp_path / "forget", "--holdout", tmp_path / "holdout")
    )
    assert "by_variant" not in scores["nll", "forget"] and scores["mia_auc", "mia"]["n"] == 4


def test_a_row_to_forget_and_to_keep_is_refused(chat_folder: Path, tmp_path: Path) -> None:
    for name in ("f", "r"):
        (tmp_path / f"{name}.jsonl").write_text('{"id": "x", "input": "ab", "output": "cd"}\n')
    done = evaluate(chat_folder, "--forget", tmp_path / "f.jsonl", "--retain", tmp_path / "r.jsonl")
    assert done.exit_code == 4 and "1 rows are in both" in done.stderr
