"""The MIA AUC of a model is compared with the control's in the same prompt variant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stored_run import MODEL, cleared, with_data

from mergeforget.attack.headline import CONTROL, measure_control, run_verdict
from mergeforget.attack.target import TargetModel
from mergeforget.benchmarks import score
from mergeforget.data.schema import Answer, DocumentLoss, Measured, Row
from mergeforget.errors import InputError
from mergeforget.evaluate.paired import auc_difference
from mergeforget.evaluate.run_models import write_model_scores
from mergeforget.evaluate.texts import read_losses
from mergeforget.evaluate.verdict_figures import variant_of
from mergeforget.evaluate.worst_case import worst_case, worst_scores
from mergeforget.files import read_json, read_jsonl, write_json, write_jsonl
from mergeforget.metrics.leak_rate import leak_rate
from mergeforget.metrics.mia_auc import mia_auc
from mergeforget.run import Run
from mergeforget.score import find, read_scores, write_scores

PEOPLE = 60
DRAWN = np.random.default_rng(0)
# Forget rows are easier than the holdout raw, and harder in chat, for any model: raw AUC 0.88
RAW = np.r_[DRAWN.normal(-1.6, 1, PEOPLE), DRAWN.normal(0, 1, PEOPLE)]
CHAT = np.r_[DRAWN.normal(1.6, 1, PEOPLE), DRAWN.normal(0, 1, PEOPLE)]
MEMBERS = np.r_[np.ones(PEOPLE), np.zeros(PEOPLE)]


def measured_of(nlls: np.ndarray) -> Measured:
    rows = [Row(f"d{i}", f"Where is {i}?", f"Town number {i * i + 1000}", split="forget")
            for i in range(PEOPLE)]  # fmt: skip
    losses = [DocumentLoss(f"d{i}", i < PEOPLE, float(v)) for i, v in enumerate(nlls)]
    return Measured([Answer(row, "I do not know.") for row in rows], losses)


def with_control(folder: Path, model: dict[str, np.ndarray], control: dict[str, np.ndarray]) -> Run:
    """A run whose model and control were measured in several prompt variants."""
    of_model, of_control = (
        {name: measured_of(nlls) for name, nlls in one.items()} for one in (model, control)
    )
    worst, theirs = worst_case(of_model), worst_case(of_control)
    run = with_data(Run(folder), [answer.row for answer in worst.answers])
    by_variant = {name: score("custom", one) for name, one in of_model.items()}
    scores = worst_scores(score("custom", worst), by_variant)
    write_model_scores(run.scores, run.answers, MODEL, worst, scores)
    known = [leak_rate(theirs, "forget"), mia_auc(theirs)]
    write_json(run.attacks / CONTROL, {
        "scores": [one.to_dict() for one in known if one], "leaked_rows": [],
        "losses": [loss.to_dict() for loss in theirs.losses], "membership": "documents",
    })  # fmt: skip
    cleared(run)
    return run


def older(path: Path) -> None:
    """Remove the prompt variants from a file of losses or of the control, as in older versions."""
    names = ("variant", "by_variant")
    if path.suffix == ".jsonl":
        rows = [{k: v for k, v in row.items() if k not in names} for row in read_jsonl(path)]
        write_jsonl(path, rows)
        return
    control = read_json(path)
    losses = [{k: v for k, v in d.items() if k not in names} for d in control["losses"]]
    write_json(path, control | {"losses": losses})


INNOCENT = {"raw": RAW - 0.05 * MEMBERS, "chat": CHAT}  # farthest from 0.5 raw
NEVER = {"raw": RAW, "chat": CHAT + 0.15 * MEMBERS}  # farthest from 0.5 in chat


@pytest.mark.parametrize("old_losses", [False, True])
def test_the_auc_of_the_control_is_that_of_the_same_prompt_variant(
    tmp_path: Path, old_losses: bool
) -> None:
    """The control's own farthest variant is chat with 0.11, and the model's is raw with 0.88."""
    run = with_control(tmp_path, INNOCENT, NEVER)
    if old_losses:  # the variant follows from the AUC by variant in scores.jsonl
        older(run.answers / f"{MODEL}.losses.jsonl")
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "FORGOTTEN" and verdict.told_apart
    assert "easier than the holdout for both (MIA AUC 0.88" in verdict.uncertain[0]
    assert "control 0.88, difference +0.01, -0.03 to +0.04" in verdict.uncertain[0]


def test_a_model_with_a_larger_auc_than_the_control_in_its_variant_is_convicted(
    tmp_path: Path,
) -> None:
    guilty = {"raw": RAW - 1.5 * MEMBERS, "chat": CHAT}
    verdict = run_verdict(with_control(tmp_path, guilty, NEVER), MODEL)
    assert verdict.state == "NOT FORGOTTEN" and "control 0.88" in verdict.sentence


def test_the_variant_of_the_report_split_is_compared(tmp_path: Path) -> None:
    """A search judges the AUC of the report split, which may be of another variant than ``all``."""
    run = with_control(tmp_path, INNOCENT, NEVER)
    scores = read_scores(run.scores)
    area = find(scores[MODEL], "mia_auc", "mia")
    assert area is not None and variant_of(area) == "raw"
    chat = replace(area, part="report", value=0.1, interval=(0.05, 0.2),
                   by_variant={"raw": 0.8, "chat": 0.1})  # fmt: skip
    scores[MODEL].append(chat)
    write_scores(run.scores, scores)
    verdict = run_verdict(run, MODEL)
    assert verdict.auc == 0.1 and "control 0.11, difference +0.02" in verdict.uncertain[0]


def test_a_control_of_an_unknown_variant_neither_convicts_nor_clears(tmp_path: Path) -> None:
    guilty = {"raw": RAW - 1.5 * MEMBERS, "chat": CHAT}
    for name, model in (("a", INNOCENT), ("b", guilty)):
        run = with_control(tmp_path / name, model, NEVER)
        older(run.attacks / CONTROL)
        verdict = run_verdict(run, MODEL)
        assert verdict.state == "NOT ENOUGH DATA", verdict.sentence
        assert "not measured with them" in verdict.sentence and "raw prompts" in verdict.sentence


def test_a_control_without_the_variant_of_the_model_neither_convicts_nor_clears(
    tmp_path: Path,
) -> None:
    run = with_control(tmp_path, INNOCENT, {"chat": NEVER["chat"]})
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "NOT ENOUGH DATA" and "with raw prompts" in verdict.sentence


@pytest.mark.parametrize("old", [(), ("control",), ("losses",), ("control", "losses")])
def test_files_of_an_earlier_version_are_compared_if_there_is_one_variant(
    tmp_path: Path, old: tuple[str, ...]
) -> None:
    run = with_control(tmp_path, {"raw": INNOCENT["raw"]}, {"raw": NEVER["raw"]})
    files = {"control": run.attacks / CONTROL, "losses": run.answers / f"{MODEL}.losses.jsonl"}
    for name in old:
        older(files[name])
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "FORGOTTEN" and "difference +0.01" in verdict.uncertain[0]
    # the control was asked in more variants than the model
    run = with_control(tmp_path / "other", {"raw": INNOCENT["raw"]}, NEVER)
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "FORGOTTEN" and "difference +0.01" in verdict.uncertain[0]
    older(run.answers / f"{MODEL}.losses.jsonl")
    assert "is not recorded" in run_verdict(run, MODEL).sentence


def test_documents_that_are_equal_in_every_variant_are_compared(tmp_path: Path) -> None:
    run = with_control(tmp_path, {"raw": INNOCENT["raw"]}, {"chat": RAW, "raw": RAW})
    older(run.answers / f"{MODEL}.losses.jsonl")
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "FORGOTTEN" and "difference +0.01" in verdict.uncertain[0]


def test_aucs_of_different_units_of_membership_are_not_compared(tmp_path: Path) -> None:
    run = with_control(tmp_path, {"raw": RAW - 1.5 * MEMBERS}, {"raw": RAW})
    assert run_verdict(run, MODEL).state == "NOT FORGOTTEN"
    control = read_json(run.attacks / CONTROL)
    write_json(run.attacks / CONTROL, control | {"membership": "answers"})
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "NOT ENOUGH DATA" and "by answers for the control" in verdict.sentence


def test_two_models_are_compared_in_the_same_prompt_variant() -> None:
    variants = [{name: measured_of(nlls) for name, nlls in one.items()}
                for one in (INNOCENT, NEVER)]  # fmt: skip
    one, other = (worst_case(each).losses for each in variants)
    in_raw, in_chat = (
        mia_auc(variants[0][name]).value - mia_auc(variants[1][name]).value  # type: ignore[union-attr]
        for name in ("raw", "chat")
    )
    assert auc_difference(one, other).value == pytest.approx(in_raw)  # type: ignore[union-attr]
    assert auc_difference(other, one).value == pytest.approx(-in_chat)  # type: ignore[union-attr]
    assert auc_difference(one, other, "chat").value == pytest.approx(in_chat)  # type: ignore[union-attr]
    assert auc_difference(one, other, "chat-system") is None
    assert auc_difference(one, variants[1]["chat"].losses) is None  # of an unknown variant
    assert auc_difference(variants[0]["raw"].losses, variants[1]["raw"].losses) is not None


def test_the_control_is_stored_with_its_losses_in_every_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = {name: measured_of(nlls) for name, nlls in NEVER.items()}
    forget = [answer.row for answer in control["raw"].answers]
    holdout = [Row(f"d{i}", f"Where is {i}?", f"Town {i}") for i in range(PEOPLE, 2 * PEOPLE)]

    def measured(_: Any, __: Any, *, template: Any, **___: Any) -> Measured:
        return control[template.name]

    def variants(*_: Any) -> list[Any]:
        return [SimpleNamespace(name=name) for name in NEVER]

    monkeypatch.setattr("mergeforget.attack.headline.measure", measured)
    monkeypatch.setattr("mergeforget.attack.headline.prompt_variants", variants)
    target = SimpleNamespace(
        control=TargetModel("control", "org/model", name="org/model"), forget=forget, retain=[],
        holdout=holdout, membership="documents", seed=0, max_new_tokens=4, batch_tokens=None,
        systems=(), folder=tmp_path / "attacks", template=lambda _: None,
        all_rows={"forget": forget, "retain": [], "holdout": holdout}.__getitem__,
        measured=lambda *arguments: arguments[-1](None, None),
    )  # fmt: skip
    measure_control(target)  # type: ignore[arg-type]
    stored = read_json(tmp_path / "attacks" / CONTROL)
    nlls = [loss["by_variant"] for loss in stored["losses"]]
    assert {loss["variant"] for loss in stored["losses"]} == {"chat"}
    assert [n["raw"] for n in nlls] == pytest.approx(list(NEVER["raw"]))
    assert [n["chat"] for n in nlls] == pytest.approx(list(NEVER["chat"]))
    run = with_control(tmp_path, INNOCENT, NEVER)
    write_json(run.attacks / CONTROL, stored)
    verdict = run_verdict(run, MODEL)
    assert verdict.state == "FORGOTTEN" and "control 0.88" in verdict.uncertain[0]


def test_losses_keep_their_variants_in_a_file(tmp_path: Path) -> None:
    losses = worst_case({name: measured_of(nlls) for name, nlls in NEVER.items()}).losses
    path = tmp_path / "losses.jsonl"
    write_jsonl(path, [loss.to_dict() for loss in losses])
    again = read_losses(path)
    assert again == losses
    assert [(d.variant, d.by_variant) for d in again] == [(d.variant, d.by_variant) for d in losses]
    write_jsonl(path, [losses[0].to_dict() | {"by_variant": {"raw": "x"}}])
    with pytest.raises(InputError, match="line 1 is damaged"):
        read_losses(path)
