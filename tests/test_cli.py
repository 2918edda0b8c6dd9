"""The command line: every command explains itself, and errors are shown without a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mergeforget.cli import main

COMMANDS = main.list_commands(click.Context(main))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_a_help_text(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None and command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} says nothing"


def test_unknown_command_names_the_nearest() -> None:
    result = CliRunner().invoke(main, ["serch"])
    assert result.exit_code == 2 and "Did you mean 'search'" in result.output


def test_our_errors_have_no_traceback(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 4 and "is not a run folder" in result.output
    assert "Traceback" not in result.output


def test_doctor_prints_one_json_object() -> None:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    facts = json.loads(result.stdout)
    assert {"python", "torch", "device", "cores", "embedded model"} <= facts.keys()


def test_doctor_names_a_remedy_for_each_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    from mergeforget.api import doctor

    monkeypatch.setattr(doctor, "HUB_SECONDS", 0.2)
    monkeypatch.setattr(doctor, "SMALL_DISK", 1e18)
    monkeypatch.setattr(doctor, "SMALL_MEMORY", 1e18)
    monkeypatch.setattr(doctor, "_writable", lambda _: False)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert doctor.hub_answers(("127.0.0.1", 9)) is False
    monkeypatch.setattr(doctor, "hub_answers", lambda: False)
    _, problems = doctor.doctor()
    folders = ("XDG_CACHE_HOME", "HF_HOME", "change to one", "TMPDIR")
    for remedy in ("smaller model", "Delete old", "torch", "HF_HUB_OFFLINE", *folders):
        assert any(remedy in problem for problem in problems), remedy
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    facts, problems = doctor.doctor()
    assert "not asked" in facts["hub"]
    assert not any("Hub" in problem for problem in problems)


@pytest.mark.parametrize(
    "command",
    ["train-pair", "train", "unlearn", "search", "evaluate", "attack", "chat", "export"],
)
def test_every_command_that_renders_prompts_takes_the_template(command: str) -> None:
    shown = CliRunner().invoke(main, [command, "--help"]).output
    assert "--template" in shown and "--system-prompt" in shown
    reads = command in ("train-pair", "train", "unlearn", "evaluate")
    assert ("--turns" in shown) == reads


def test_a_folder_of_several_requests_names_its_runs(tmp_path: Path) -> None:
    for name in ("1-january", "2-february"):
        (tmp_path / "year" / name).mkdir(parents=True)
        (tmp_path / "year" / name / "recipe.yaml").write_text("name: level\n")
    result = CliRunner().invoke(main, ["chat", str(tmp_path / "year")])
    assert result.exit_code == 4
    text = " ".join(result.output.split())
    assert "It contains the runs" in text and "2-february" in text
