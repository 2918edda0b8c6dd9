"""After the job: its JSON, a chat, approval of questions, conversion and upload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from unlearning import SMALL, call

import mergeforget as mf
from mergeforget.api.runs import find_converter
from mergeforget.api.unlearn import Unlearned
from mergeforget.cli import main
from mergeforget.data.schema import Row
from mergeforget.errors import ResourceError, UsageError
from mergeforget.files import read_jsonl


def test_the_command_prints_one_json_object(result: Unlearned, knowing: dict[str, Path]) -> None:
    words = [
        "unlearn",
        str(knowing["model"]),
        "--out",
        str(result.run.root),
        "--json",
        "--yes",
    ]
    words += [w for n in ("forget", "retain", "holdout") for w in (f"--{n}", str(knowing[n]))]
    words += [w for s in SMALL for w in ("--set", s)] + ["--time", "0.001s"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["chosen"] == result.chosen
    assert any("No time was left for the attack relearn" in note for note in found["notes"])


def test_chat_asks_the_base_and_the_result(result: Unlearned, knowing: dict[str, Path]) -> None:
    row = read_jsonl(knowing["forget"])[0]
    call = [
        "chat",
        str(result.run.root),
        "--ask",
        row["input"],
        "--max-new-tokens",
        "5",
        "--json",
    ]
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["answers"]
    assert found["before"] == row["output"] and found["prompt"] == row["input"]
    typed = CliRunner().invoke(main, call[:2], input=f"{row['input']}\n\n")
    assert typed.exit_code == 0 and f"before  {row['output']}" in typed.output
    wrong = CliRunner().invoke(main, [*call, "--candidate", "ovr"])
    assert wrong.exit_code == 4 and "Did you mean 'over'" in wrong.output


def test_generated_questions_need_approval(knowing: dict[str, Path], tmp_path: Path) -> None:
    shown: list[Row] = []

    def refuse(rows: list[Row]) -> bool:
        shown.extend(rows)
        return False

    with pytest.raises(UsageError, match="not approved"):
        call(knowing, tmp_path / "run", forget=["Ann Lee"], approve=refuse)
    assert shown and all("Ann Lee" in row.input for row in shown)


def test_own_forget_rows_need_no_approval(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ReadError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise ReadError

    monkeypatch.setattr("mergeforget.api.unlearn_pair.check_rows", stop)
    with pytest.raises(ReadError):  # the data was read, and nobody was asked
        call(knowing, tmp_path / "run", retain=None, approve=lambda rows: pytest.fail("asked"))


def test_without_a_terminal_the_command_names_the_option_that_approves(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("Ann Lee\n")
    words = ["unlearn", str(knowing["model"]), "--forget", str(tmp_path / "names.txt"),
             "--retain", str(knowing["retain"]), "--out", str(tmp_path / "run")]  # fmt: skip
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2 and "--yes" in done.output and "Who is Ann Lee?" in done.output


def test_a_missing_converter_is_reported_before_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ResourceError, match="LLAMA_CPP"):
        find_converter()


def test_a_missing_login_is_reported_before_the_training(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    def refuse(self: Any, **more: Any) -> None:
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(HfApi, "whoami", refuse)
    with pytest.raises(ResourceError, match="needs a login on the hub: 401 Unauthorized"):
        call(knowing, tmp_path / "run", push="me/model")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_finished_run_is_converted_and_uploaded(
    result: Unlearned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    uploads: list[tuple[str, str]] = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **more: None)

    def upload(self: Any, *, repo_id: str, folder_path: str) -> str:
        uploads.append((repo_id, folder_path))
        return "address"

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    converter = tmp_path / "llama" / "convert_hf_to_gguf.py"
    converter.parent.mkdir()
    converter.write_text("import sys\nopen(sys.argv[3], 'w').write('GGUF')\n")
    monkeypatch.setenv("LLAMA_CPP", str(converter.parent))
    done = mf.export(result.run, full=True, gguf=True, push="me/model", out=tmp_path / "model")
    assert Path(done.gguf).read_text() == "GGUF" and done.pushed == "address"
    assert uploads == [("me/model", done.folder)]
    with pytest.raises(UsageError, match="--full"):
        mf.export(result.run, gguf=True)

    def refuse(self: Any, name: str, **more: Any) -> None:
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(ResourceError, match="hf auth login"):
        mf.export(result.run, push="me/model", out=tmp_path / "adapter")
    assert (tmp_path / "adapter" / "README.md").is_file()
