"""Studies: what a file must hold, and that every command of those that come along is one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks.study.__main__ import main
from benchmarks.study.definition import STUDIES, load_study
from mergeforget.cli import main as mergeforget
from mergeforget.errors import RecipeError, UsageError
from mergeforget.recipe import load_recipe
from mergeforget.train.objective import check_recipe

NAMES = sorted(p.stem for p in STUDIES.glob("*.yaml"))
COMMANDS = [
    pytest.param(command, id=f"{name}-{step.name}-{i}")
    for name in NAMES
    for study in [load_study(name)[0]]
    for _, step in study.steps()
    for i, command in enumerate(study.commands(step))
]
SMALL = """
name: small
title: Small
values: {{rate: "1", more: "--seed {{rate}}"}}
parts:
  - name: one
    title: One
    steps:
      - name: first
        commands: ["search {{here}} {{more}}"]
      - name: second
        at: first
        commands: ["{second}"]
"""


def written(tmp_path: Path, second: str = "report {here}", **changes: str) -> str:
    text = SMALL.format(second=second)
    for old, new in changes.items():
        text = text.replace(f"{old}:", new)
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("text", COMMANDS)
def test_every_command_is_one_that_the_tool_understands(text: str) -> None:
    words = shlex.split(text)
    command = mergeforget.get_command(click.Context(mergeforget), words[0])
    assert command is not None, words[0]
    given = [w.replace("{data}", "/").replace("{main}", "/") for w in words[1:]]
    existing = ["/" if w.startswith(("/", "{")) else w for w in given]
    command.make_context(words[0], existing, resilient_parsing=True)
    known = {o for p in command.params for o in p.opts}
    assert {w for w in words if w.startswith("--")} <= known
    if "--recipe" in words:
        assignments = [words[i + 1] for i, w in enumerate(words) if w == "--set"]
        check_recipe(load_recipe(words[words.index("--recipe") + 1], assignments))


def test_values_are_inserted_and_folders_kept(tmp_path: Path) -> None:
    study, _ = load_study(written(tmp_path))
    assert study.commands(study.step("first")) == ["search {here} --seed 1"]
    assert study.used_by(study.step("second")) == ["first"]


def test_a_changed_value_defines_another_study(tmp_path: Path) -> None:
    path = written(tmp_path)
    one, two = (load_study(path, values)[0] for values in ({}, {"rate": "2"}))
    for name in ("first", "second"):  # the second step reads the output of the first
        assert one.fingerprint(one.step(name)) != two.fingerprint(two.step(name))


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("report {frist}", "no earlier step 'frist'. Did you mean 'first'?"),
        ("report {second}", "no earlier step 'second'"),
    ],
)
def test_a_step_depends_on_earlier_steps_only(tmp_path: Path, second: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told.replace("?", r"\?")):
        load_study(written(tmp_path, second))


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="unknown key 'comands'. Did you mean 'commands'"):
        load_study(written(tmp_path, commands="comands:"))


def test_an_unknown_study_and_an_unknown_value_name_the_known(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'cpu'"):
        load_study("cp")
    with pytest.raises(UsageError, match="Did you mean 'rate'"):
        load_study(written(tmp_path), {"rat": "2"})


def test_a_derived_study_has_the_same_parts_with_other_values(tmp_path: Path) -> None:
    other = written(tmp_path)
    path = tmp_path / "more.yaml"
    path.write_text(
        f"name: more\ntitle: More\nlike: {other}\npace: 0.5\nvalues: {{rate: '3'}}\n"
        "parts: [{name: two, title: Two, steps: [{name: third, commands: ['report {first}']}]}]\n"
    )
    study, _ = load_study(str(path))
    assert [step.name for _, step in study.steps()] == ["first", "second", "third"]
    assert study.commands(study.step("first")) == ["search {here} --seed 3"]
    assert [step.minutes for _, step in study.steps()] == [0.5, 0.5, 1.0]


def test_the_second_edition_differs_by_rows_steps_and_recipes_only() -> None:
    first, second = (load_study(name)[0] for name in ("cpu", "cpu64"))
    assert [s.name for _, s in first.steps()] == [s.name for _, s in second.steps()]
    seed = second.commands(second.step("seed-2"))[0]
    assert "--limit 64" in seed and "--set pair.over.gradient_accumulation=8" in seed
    assert "--set evaluation.ask=own" in seed
    for command in second.commands(second.step("kl")):
        assert "--template none" in command
    assert "max_grad_norm" not in second.commands(second.step("as-run"))[0]
    assert "--recipe ishumei-as-run " in second.commands(second.step("eul-rd-da"))[0]


def test_cyclic_values_are_refused(tmp_path: Path) -> None:
    path = Path(written(tmp_path))
    path.write_text(path.read_text().replace('rate: "1"', 'rate: "{more}"'))
    with pytest.raises(RecipeError, match="in a ring"):
        load_study(str(path))


def test_a_part_may_consist_of_steps_of_other_parts() -> None:
    done = CliRunner().invoke(main, ["plan", "cpu"])
    title = "beside: The merge compared with every single adapter"
    assert f"{title} (tables of the steps above)" in done.output


def test_the_earlier_name_of_the_command_still_runs_in_a_checkout() -> None:
    done = CliRunner().invoke(mergeforget, ["study", "plan", "cpu"])
    assert done.exit_code == 0 and "main" in done.stdout
    assert "is now `python -m benchmarks.study`" in done.stderr
    assert "study" not in mergeforget.list_commands(click.Context(mergeforget))


def test_error_in_an_installed_package_names_the_location_of_the_studies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.study.__main__", None)
    done = CliRunner().invoke(mergeforget, ["study", "plan", "cpu"])
    assert done.exit_code == 2 and "`python -m benchmarks.study`" in done.stderr
