"""The command line: every command explains itself, and faults are told without a traceback."""

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
