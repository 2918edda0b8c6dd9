"""A third party adds members by a plugin file or an entry point, and selects metrics by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mergeforget.benchmarks import score
from mergeforget.cli import main
from mergeforget.errors import InputError, UnknownNameError, UsageError
from mergeforget.losses import UNLEARNING_LOSSES, unlearning_loss
from mergeforget.merge.methods import MERGE_METHODS
from mergeforget.metrics import METRICS, metric
from mergeforget.registry import load_plugin
from mergeforget.testing import measured_for_checks

PLUGIN = '''
from mergeforget.attack.methods import attack
from mergeforget.benchmarks import benchmark
from mergeforget.losses import unlearning_loss
from mergeforget.merge.methods import merge_method
from mergeforget.metrics import metric


@unlearning_loss("level_of_a_plugin", source="this test")
def flat(policy, reference=None, *, strength: float = 2.0):
    """Push every answer token to one level."""
    return policy.token_mean(strength * policy.token_logps**2)


@merge_method("middle", source="this test")
def middle(stack, weights, *, shift: float = 0.0):
    """Average with a shift."""
    return stack.mean(0) + shift


@metric("letters", source="this test")
def letters(measured, split, task=""):
    """Count letters."""


@attack("shouting", source="this test")
def shouting(target, *, volume: int = 3):
    """Ask in capitals."""


@benchmark("tiny", source="this test")
def tiny(measured, *, known=()):
    """Score nothing."""
    return list(known)
'''
FAMILIES = {"losses": "level_of_a_plugin", "methods": "middle", "metrics": "letters",
            "attacks": "shouting", "benchmarks": "tiny"}  # fmt: skip


def command(*words: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "mergeforget", *words]
    return subprocess.run(call, check=False, capture_output=True, text=True)


def test_a_plugin_file_is_loaded_before_and_after_the_command(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    code = (
        "import json, sys; from click.testing import CliRunner; from mergeforget.cli import main\n"
        "found = {}\n"
        f"for family, name in {FAMILIES}.items():\n"
        f"    words = ['--plugin', {str(plugin)!r}, 'list', family, '--json']\n"
        "    done = CliRunner().invoke(main, words if family != 'metrics' else words[2:4] + "
        "words[:2] + ['--json'])\n"
        "    assert done.exit_code == 0, done.output\n"
        "    found[family] = json.loads(done.stdout)[name]['arguments']\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["losses"] == {"strength": 2.0} and found["attacks"] == {"volume": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [("import nothing_of_that_name", "cannot be imported"), (None, "There is no plugin")],
)
def test_a_plugin_that_cannot_be_loaded_is_an_input_error(
    tmp_path: Path, text: str | None, message: str
) -> None:
    plugin = tmp_path / "faulty.py"
    if text is not None:
        plugin.write_text(text)
    with pytest.raises(InputError, match=message):
        load_plugin(plugin)
    done = CliRunner().invoke(main, ["list", "losses", "--plugin", str(plugin)])
    assert done.exit_code == 4 and message in done.output and "Traceback" not in done.output


def package(folder: Path, body: str, entry: str) -> None:
    """An installed distribution, as pip leaves it, that announces one loss."""
    (folder / "unlearn_extra.py").write_text(body)
    facts = folder / "unlearn_extra-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: unlearn-extra\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[mergeforget.losses]\n{entry} = unlearn_extra\n")


def test_an_installed_package_announces_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = PLUGIN.replace('"level_of_a_plugin"', '"level_of_a_package"')
    body = body[: body.index("@merge_method")].replace("import merge_method", "import traits")
    package(tmp_path, body, "level-of-a-package")
    monkeypatch.syspath_prepend(tmp_path)
    assert "level_of_a_package" in UNLEARNING_LOSSES.names()
    try:
        assert UNLEARNING_LOSSES.get("level-of-a-package").parameters["strength"].default == 2.0
    finally:
        UNLEARNING_LOSSES._entries.pop("level_of_a_package", None)


def test_a_package_without_registration_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "", "missing_loss")
    monkeypatch.delitem(sys.modules, "unlearn_extra", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="does not register a loss of this name"):
        UNLEARNING_LOSSES.get("missing_loss")


def test_names_that_are_taken_or_malformed_are_refused() -> None:
    def loss(policy: Any, reference: Any = None) -> Any:
        """Do nothing."""

    with pytest.raises(UsageError, match="named 'npo' already"):
        unlearning_loss("npo", source="here")(loss)
    with pytest.raises(UsageError, match="lower-case"):
        unlearning_loss("My-Loss", source="here")(loss)
    assert MERGE_METHODS.names() == sorted(MERGE_METHODS.names())


def test_metrics_are_added_to_those_of_a_benchmark() -> None:
    measured = measured_for_checks()
    plain = score("custom", measured)
    more = score("custom", measured, metrics=["knowledge", "nll/forget", "greedy-match/retain"])
    added = {(s.metric, s.split) for s in more} - {(s.metric, s.split) for s in plain}
    assert {("knowledge", "forget"), ("knowledge", "retain")} <= added
    assert ("greedy_match", "retain") in added and ("greedy_match", "forget") not in added
    assert len([s for s in more if (s.metric, s.split) == ("nll", "forget")]) == 1
    with pytest.raises(UnknownNameError, match="Did you mean 'knowledge'"):
        score("custom", measured, metrics=["knowlege"])

    @metric("constant_of_a_test", source="here")
    def constant(measured: Any, split: str, task: str = "") -> Any:
        """Return nothing."""

    try:
        assert len(score("custom", measured, metrics=["constant_of_a_test"])) == len(plain)
    finally:
        METRICS._entries.pop("constant_of_a_test")
