"""Verdicts on models of known history: those that know are convicted, the others never."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from court import FORGET, GUILTY, HOLDOUT, INNOCENT, RETAIN, build_court

from mergeforget.attack.driver import carry_out
from mergeforget.attack.methods import ATTACKS
from mergeforget.attack.result import Result
from mergeforget.attack.target import Models, Target, TargetModel
from mergeforget.evaluate.verdict import judge as headline
from mergeforget.recipe import ModelSpec

ARGUMENTS: dict[str, Any] = {
    "steps": 60, "learning_rate": 3e-3, "full": True, "samples": 16, "shuffles": 19, "words": (1,),
}  # fmt: skip
FAST = ["prompts", "exposure", "logit_lens", "quantise", "relearn"]
Judge = Callable[..., dict[str, Result]]


@pytest.fixture(scope="session")
def judge_model(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> Judge:
    """Carries out attacks on a model of the court: ``judge_model("hider", ["prompts"])``."""
    root = tmp_path_factory.mktemp("court")
    folder_of = build_court(root, make_model, tiny_tokenizer)

    def judge(name: str, attacks: list[str], **more: Any) -> dict[str, Result]:
        before = TargetModel("before", str(folder_of("before")))
        settings: dict[str, Any] = {
            "before": before, "control": TargetModel("control", str(folder_of("control"))),
            "forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT, "folder": root / "attacks",
        }  # fmt: skip
        target = Target(
            Models(ModelSpec(name=str(folder_of(name)))),
            TargetModel(f"the {name}", str(folder_of(name))),
            **(settings | more), membership="answers", max_new_tokens=8,
        )  # fmt: skip
        results = [result for result, _ in carry_out([target], attacks, ARGUMENTS)]
        return {result.attack: result for result in results}

    return judge


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    ["before", "hider2", pytest.param("hider", marks=SLOW), pytest.param("overga", marks=SLOW)],
)
def test_a_model_that_knows_is_convicted(judge_model: Judge, name: str) -> None:
    found = judge_model(name, FAST)
    findings = {k: r.finding for k, r in found.items()}
    assert headline(None, findings=findings).state == "NOT FORGOTTEN", findings


@pytest.mark.parametrize("name", ["clean", "cleanga"])
def test_a_model_that_never_saw_the_data_is_cleared(judge_model: Judge, name: str) -> None:
    found = judge_model(name, FAST)
    findings = {k: r.finding for k, r in found.items()}
    assert "traces" not in findings.values(), findings
    assert headline(None, findings=findings).state == "FORGOTTEN", findings


@pytest.mark.slow
@pytest.mark.parametrize("name", [*GUILTY, *INNOCENT])
def test_no_attack_convicts_an_innocent_model(judge_model: Judge, name: str) -> None:
    found = {k: r.finding for k, r in judge_model(name, ATTACKS.names()).items()}
    state = headline(None, findings=found).state
    assert (state == "NOT FORGOTTEN") is (name in GUILTY), found


def test_no_model_is_convicted_without_a_control(judge_model: Judge) -> None:
    for name in ("before", "clean"):
        found = judge_model(name, ["prompts", "quantise", "exposure"], control=None)
        assert {r.finding for r in found.values()} == {"no control"}
    assert "Without a control" in found["quantise"].verdict


def test_an_attack_without_power_does_not_clear(judge_model: Judge) -> None:
    """Here the model before unlearning is one that never knew, so no attack can show anything."""
    found = judge_model("clean", ["prompts", "quantise", "exposure", "logit_lens"], before=None)
    assert {r.finding for r in found.values()} == {"no power"}


def test_every_leak_and_every_completion_is_written(judge_model: Judge, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    result = judge_model("before", ["prompts"], folder=tmp_path)["prompts"]
    assert {e["row"] for e in result.examples} == set(result.figures["leaked_rows"])
    assert len(result.examples) > 5  # no answer is truncated
    written = pq.read_table((tmp_path / result.figures["answers"]).with_suffix(".parquet"))
    rows = written.to_pylist()
    assert {r["model"] for r in rows} == {"the before", "before", "control"}
    assert len(rows) == 3 * result.figures["prompts"]
    mine = [r for r in rows if r["model"] == "the before" and r["leaked"]]
    assert len(mine) == len(result.examples) and mine[0]["person"] == result.examples[0]["person"]
    text = (tmp_path / result.figures["answers"]).read_text()
    assert text.startswith("model,person,row,kind,sample,prompt,completion,secret,leaked,partial")
