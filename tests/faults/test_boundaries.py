"""Files of others run no code, names stay in their folder, and errors end in one sentence."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from mergeforget.candidate import Candidate
from mergeforget.cli import Commands, main
from mergeforget.console import say
from mergeforget.errors import InputError, MergeforgetError, RecipeError, ResourceError
from mergeforget.model_files import content_of
from mergeforget.parsing import parse_json, parse_yaml, plain_name, printable
from mergeforget.recipe import TRUSTED, load_recipe, recipe_path
from mergeforget.replace import replacing, write_lock
from mergeforget.run import Run
from mergeforget.score import read_scores

SCORE = {"metric": "m", "value": 0.5, "split": "forget", "better": "lower", "n": 3}
BAD_NAMES = ["../../victim", "a/b", "a\\b", "..", ".hidden", "", "a\0b", "x" * 300, "C:x", None, 3]


def recipe_with(folder: Path, **sections: dict[str, Any]) -> Path:
    text = recipe_path("zjuklab").read_text(encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(text + "".join(f"{k}: {json.dumps(v)}\n" for k, v in sections.items()))
    return path


def test_a_file_cannot_allow_code_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe_with(
        tmp_path,
        model={"name": "m", "trust_remote_code": True},
        evaluation={"lm_eval_folder": "tasks"},
    )
    recipe = load_recipe(path)
    assert recipe.model.trust_remote_code is False and recipe.evaluation.lm_eval_folder is None
    said = capsys.readouterr().err
    assert "--trust-remote-code" in said and "lm_eval_folder" in said
    named = load_recipe(path, ["model.trust_remote_code=true"])
    assert named.model.trust_remote_code is True
    assert load_recipe(path).model.trust_remote_code is False, "trust outlived its call"
    token = TRUSTED.set(True)
    try:
        trusted = load_recipe(path)
        assert trusted.model.trust_remote_code and trusted.evaluation.lm_eval_folder == "tasks"
    finally:
        TRUSTED.reset(token)


def test_trust_remote_code_applies_to_one_command_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    @click.command()
    def look() -> None:
        seen.append(TRUSTED.get())

    with_command(monkeypatch, look)
    CliRunner().invoke(main, ["--trust-remote-code", "doctor"])
    CliRunner().invoke(main, ["doctor"])
    assert seen == [True, False]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_leaves_its_folder_is_refused(name: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        plain_name(name, "scores.jsonl")
    run = Run(tmp_path)
    run.search.mkdir()
    (run.search / "chosen.json").write_text(json.dumps({"name": name, "candidate": {}}))
    with pytest.raises(InputError, match=r"chosen\.json"):
        run.chosen_name()
    run.scores.write_text(json.dumps({"model": name, **SCORE}) + "\n")
    with pytest.raises(InputError, match=r"scores\.jsonl, line 1"):
        read_scores(run.scores)


def test_search_again_deletes_nothing_outside_the_run(tmp_path: Path) -> None:
    from mergeforget.search.store import Store

    run = Run(tmp_path / "a" / "run")
    run.root.mkdir(parents=True)
    victim = tmp_path / "victim.jsonl"
    victim.touch()
    row = {"model": "../../../victim", **SCORE, "part": "choose"}
    run.scores.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="plain file name"):
        Store(run).begin({}, again=True)
    assert victim.exists()


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 5000, "NaN", "[Infinity]", "1e999", "9" * 400, '"\\ud800"', "{", ""],
    ids=["brackets", "objects", "NaN", "Infinity", "1e999", "digits", "surrogate", "cut", "empty"],
)
def test_hostile_json_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="a.json"):
        parse_json(text, "a.json")


@pytest.mark.parametrize(
    "text",
    ["a: [", "&a [*a]", "{1: 2}", "a: .inf", "a: " + "9" * 400, "a: !!binary x", "a: !!set {b}",
     "[" * 3000, "a: \x00", "x: " + "y" * 600_000, "a: !!python/object:os.system"],
)  # fmt: skip
def test_hostile_yaml_is_a_recipe_error(text: str) -> None:
    with pytest.raises(RecipeError, match="a.yaml"):
        parse_yaml(text, "a.yaml", RecipeError)


def test_yaml_dates_and_words_are_read_as_text() -> None:
    found = parse_yaml("{a: 2024-13-45, b: on, c: 1e-4, d: true}", "a.yaml")
    assert found == {"a": "2024-13-45", "b": "on", "c": 1e-4, "d": True}


def test_recipes_in_latin_1_or_in_a_cycle_are_input_errors(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes("name: Zoë\n".encode("latin-1"))
    with pytest.raises(RecipeError, match="line 1: not UTF-8"):
        load_recipe(path)
    path.write_text(f"name: a\npair: {{over: {path}, under: {path}}}\n")
    with pytest.raises(MergeforgetError, match="cycle"):
        load_recipe(path)


@pytest.mark.parametrize("assignment", ["a=[", "train.epochs=" + "9" * 5000, "=1", "x", "a.0.b=1"])
def test_a_bad_assignment_is_a_recipe_error(assignment: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe("zjuklab", [assignment])


@pytest.mark.parametrize("text", ["null", "[]", "3", '{"over": null}', '{"stages": null}'])
def test_null_in_a_run_is_named_with_its_file(text: str, tmp_path: Path) -> None:
    run = Run(tmp_path)
    for path in (run.status, run.manifest):
        path.write_text(text)
    for read, name in ((lambda: run.state("over"), "status"), (run.read_manifest, "manifest")):
        try:
            read()
        except InputError as error:
            assert name in str(error)
    values: list[Any] = [None, [], {"method": None}, {"method": "ties", "weights": [None]}]
    for value in values:
        with pytest.raises(InputError):
            Candidate.from_dict(value)


def with_command(monkeypatch: pytest.MonkeyPatch, command: click.Command) -> None:
    monkeypatch.setattr(Commands, "get_command", lambda *_: command)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("boom"), 1),
        (AttributeError("'NoneType' object has no attribute 'x'"), 1),
        (KeyError("name"), 1),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 6),
        (OSError(errno.ENOSPC, "No space left on device"), 6),
        (OSError(errno.EFBIG, "File too large"), 6),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 4),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 4),
        (OSError(errno.EROFS, "Read-only file system", "x"), 4),
        (InputError("damaged"), 4),
    ],
)
def test_every_error_ends_with_a_message_and_an_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def fail() -> None:
        raise error

    with_command(monkeypatch, fail)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == code
    assert result.stderr.startswith("Error: ") and "Traceback" not in result.stderr
    if code == 1:
        details = Path(result.stderr.split("details are in ")[1].split(". ")[0])
        assert "Traceback" in details.read_text()
        details.unlink()


ESCAPES = "a\x1b[31m\x07b\x9bc\u202ed\rf"


def test_terminal_escapes_never_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def plain(text: str) -> bool:
        return not any(c in text for c in "\x1b\x07\x9b\u202e\r")

    assert plain(printable(ESCAPES)) and printable("é\n\tя") == "é\n\tя"
    say(ESCAPES)
    assert plain(capsys.readouterr().err)

    @click.command()
    def fail() -> None:
        raise InputError(ESCAPES)

    with monkeypatch.context() as patched:
        with_command(patched, fail)
        assert plain(CliRunner().invoke(main, ["doctor"]).output)
    assert plain(CliRunner().invoke(main, [ESCAPES]).output)
    assert plain(CliRunner().invoke(main, ["recipes", "show", ESCAPES]).output)
    assert plain(CliRunner().invoke(main, ["doctor", f"--{ESCAPES}"]).output)


def test_without_a_home_and_a_writable_cache_help_and_recipes_work(tmp_path: Path) -> None:
    runner: Callable[..., Any] = CliRunner(
        env={"HOME": None, "XDG_CACHE_HOME": "/proc/none"}
    ).invoke
    assert runner(main, ["recipes", "list"]).exit_code == 0
    assert os.environ.get("HOME") is not None


WRITE_LORA = """
import sys, torch
from pathlib import Path
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from mergeforget.train.callbacks import save_adapter
tiny = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                   num_attention_heads=1, num_key_value_heads=1)
torch.manual_seed(0)
names = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
model = get_peft_model(LlamaForCausalLM(tiny), LoraConfig(target_modules=names, r=2))
save_adapter(model, Path(sys.argv[1]))
"""


def test_equal_adapters_have_equal_files_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT writes its sets of names in the order of the process's string hashes."""
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "here")])
    exec(WRITE_LORA, {})
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    subprocess.run(
        [sys.executable, "-c", WRITE_LORA, str(tmp_path / "there")],
        env=os.environ | {"PYTHONHASHSEED": seed},
        check=True,
    )
    one, two = ((tmp_path / name / "adapter_config.json").read_text() for name in ("here", "there"))
    assert one == two and len(json.loads(one)["target_modules"]) == 7


def test_the_date_of_an_export_does_not_change_the_content(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = content_of(tmp_path)
    (tmp_path / "export.json").write_text('{"time": "2026-01-01"}')
    assert content_of(tmp_path) == before
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert content_of(tmp_path) != before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_second_writer_is_refused_or_waits(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "out"
    if kind == "folder":
        place.mkdir()
    with write_lock(place):
        with pytest.raises(ResourceError, match="being written by another"), write_lock(place):
            pass
        with pytest.raises(ResourceError), write_lock(place, seconds=0.2):
            pass
    with write_lock(place, seconds=5):
        pass


def test_a_name_too_long_for_a_temporary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than 215 bytes"), replacing(tmp_path / ("x" * 250)):
        pass
    name = "\u00e9" * 105  # 210 bytes
    with replacing(tmp_path / name) as temporary:
        temporary.write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == [name]
