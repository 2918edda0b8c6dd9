"""Attacks that are weaker than usual convict a model, but neither clear it nor erase evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stored_run import MODEL, people, searched

from mergeforget.attack.driver import rows_hash
from mergeforget.attack.headline import findings_of, keep_verdict, run_verdict
from mergeforget.attack.methods import ATTACKS, QUICK, weaker_arguments
from mergeforget.attack.result import Finding, Result, read_results, write_result
from mergeforget.evaluate.verdict import NEEDED
from mergeforget.registry import Entry


@pytest.mark.parametrize(("finding", "attacked", "state"), [
    ("none found", [12, 12], "FORGOTTEN"), ("none found", [4, 12], "NOT ENOUGH DATA"),
    ("traces", [4, 12], "NOT FORGOTTEN")])  # fmt: skip
def test_attacks_on_a_part_of_the_forget_rows_convict_but_do_not_clear(
    tmp_path: Path, finding: Finding, attacked: list[int], state: str
) -> None:
    run, _ = searched(tmp_path, 0)
    result = Result("prompts", MODEL, finding, "Nothing.", [], settings={"forget_rows": attacked})
    write_result(run.attacks, result)
    verdict = run_verdict(run, MODEL)
    assert verdict.state == state
    if state == "NOT ENOUGH DATA":
        assert "with weaker settings than usual: prompts" in verdict.sentence


@pytest.mark.parametrize(
    ("attack", "given", "weaker"),
    [
        ("relearn", {}, []),
        ("relearn", {"steps": 1}, ["steps"]),
        ("relearn", {"steps": 39}, ["steps"]),
        ("relearn", {"steps": 200, "rank": 32, "on": "both"}, []),
        ("relearn", {"rank": 4}, ["rank"]),
        ("relearn", {"on": "unrelated", "learning_rate": 1e-9}, ["on", "learning_rate"]),
        ("prompts", {"kinds": ["plain"]}, ["kinds"]),
        ("prompts", {"kinds": ["prefix", "plain", "jailbreak"]}, []),
        ("prompts", {"kinds": []}, ["kinds"]),
        ("prompts", {"words": [3]}, ["words"]),
        ("prompts", {"templates": "mine.txt"}, []),
        ("quantise", {"bits": [8]}, ["bits"]),
        ("quantise", {"bits": (8, 4), "group": 64}, []),
        ("quantise", {"group": 8}, ["group"]),
        ("sampling", {"samples": 4, "temperature": 0.1}, ["samples", "temperature"]),
        ("own", {"effort": 3}, ["effort"]),  # no strength is declared
    ],
)
def test_weaker_arguments_convict_but_do_not_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str, given: dict[str, Any],
    weaker: list[str],
) -> None:  # fmt: skip
    own = Entry("own", lambda target, *, effort=10: None, "")
    monkeypatch.setitem(ATTACKS._entries, "own", own)
    assert weaker_arguments(attack, given) == weaker
    findings: dict[Finding, str] = {"traces": "traces", "none found": "none found"}
    findings["none found"] = "in part" if weaker else "none found"
    for finding, expected in findings.items():
        result = Result(attack, MODEL, finding, "", [], settings={"given": given})
        assert findings_of([result]) == {attack: expected}
    if attack in NEEDED and weaker:
        run, _ = searched(tmp_path, 0)
        write_result(run.attacks, replace(result, finding="none found"))
        verdict = run_verdict(run, MODEL)
        assert verdict.state == "NOT ENOUGH DATA" and f"usual: {attack}" in verdict.sentence


def test_the_quick_set_clears_and_short_answers_do_not() -> None:
    assert not any(weaker_arguments(name, given) for name, given in QUICK.items())
    for tokens, expected in ((63, "in part"), (64, "none found")):
        settings = {"max_new_tokens": tokens, "usual_tokens": 64}
        result = Result("prompts", MODEL, "none found", "", [], settings=settings)
        assert findings_of([result]) == {"prompts": expected}


def test_the_hash_of_rows_ignores_their_order() -> None:
    rows = people()
    assert rows_hash(rows) == rows_hash(rows[::-1]) != rows_hash(rows[1:])


STATED = {"weights": "w", "base": "b", "data": "d", "forget_rows": [12, 12], "given": {}}


@pytest.mark.parametrize(
    ("earlier", "later", "changed", "kept"),
    [
        ("traces", "none found", {"given": {"steps": 1}}, "traces"),
        ("traces", "none found", {"forget_rows": [4, 12]}, "traces"),
        ("traces", "none found", {}, "traces"),
        ("traces", "no control", {}, "traces"),
        ("traces", "none found", {"weights": "other"}, "none found"),
        ("traces", "none found", {"base": "other"}, "none found"),
        ("traces", "none found", {"data": "other"}, "none found"),
        ("none found", "traces", {"given": {"steps": 1}}, "traces"),
        ("undecided", "none found", {}, "none found"),
        ("undecided", "none found", {"given": {"steps": 200}}, "none found"),
        ("undecided", "none found", {"given": {"steps": 40}}, "undecided"),
        ("undecided", "none found", {"forget_rows": [4, 12]}, "undecided"),
        ("undecided", "no control", {}, "undecided"),
        ("undecided", "traces", {"given": {"steps": 1}}, "traces"),
        ("none found", "undecided", {}, "undecided"),
        ("no power", "none found", {}, "none found"),
    ],
)
def test_a_repeat_on_the_same_weights_erases_no_evidence(
    tmp_path: Path, earlier: Finding, later: Finding, changed: dict[str, Any], kept: Finding
) -> None:
    other = Result("relearn", "other", "none found", "", [])
    one = Result("relearn", MODEL, earlier, "first", [], settings=STATED)
    two = Result("relearn", MODEL, later, "second", [], settings=STATED | changed)
    for result in (other, one, two):
        saved = write_result(tmp_path, result)
    assert [r.finding for r in saved] == ["none found", kept]
    assert read_results(tmp_path, "relearn") == saved


def test_a_single_step_of_relearning_does_not_erase_a_conviction(tmp_path: Path) -> None:
    settings = {"forget_rows": [12, 12]}
    steps = {name: settings | {"given": {"steps": n}} for name, n in (("full", 100), ("one", 1))}
    write_result(tmp_path, Result("prompts", "m", "none found", "", [], settings=settings))
    write_result(tmp_path, Result("relearn", "m", "traces", "", [], settings=steps["full"]))
    assert keep_verdict(tmp_path, "m").state == "NOT FORGOTTEN"
    write_result(tmp_path, Result("relearn", "m", "none found", "", [], settings=steps["one"]))
    assert keep_verdict(tmp_path, "m").state == "NOT FORGOTTEN"
