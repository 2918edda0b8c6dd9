"""An evaluation with a retrained model and with a reference model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import roc_auc_score

from mergeforget.data.schema import DocumentLoss, Measured, Row
from mergeforget.errors import InputError
from mergeforget.evaluate.evaluation import Evaluation
from mergeforget.evaluate.reference_models import ReferenceModels, measure_reference_models
from mergeforget.evaluate.rows import EvaluationRows
from mergeforget.evaluate.run_models import evaluate_any, write_model_scores
from mergeforget.files import read_jsonl, write_jsonl
from mergeforget.metrics._rows import signals_of
from mergeforget.metrics.mia_signal_auc import SIGNALS, mia_signal_auc
from mergeforget.recipe import EvaluationSpec, ModelSpec
from mergeforget.score import find


def people(split: str, n: int) -> list[Row]:
    rows = []
    for i in range(n):
        wrong = (f"{split} {i + 1}", f"nobody {i}")
        rows.append(
            Row(f"{split}{i}qa0", f"Who {i}?", f"{split} {i}", "", split, 1.0, f"it {i}", wrong)
        )
    return rows


ROWS = EvaluationRows(
    forget=people("forget", 6), members=people("forget", 6), nonmembers=people("holdout", 6)
)


@pytest.fixture
def evaluation(tmp_path: Path, tiny_folder: Path) -> Callable[..., Evaluation]:
    def make(**settings: Any) -> Evaluation:
        own = {"membership": "documents"} | settings
        spec = EvaluationSpec(benchmark="tofu", max_new_tokens=2, **own)
        name = str(tiny_folder)
        return Evaluation(name, ModelSpec(name=name), spec, ROWS, tmp_path / "kept")

    return make


def test_the_reference_signal_is_the_difference_of_losses(
    evaluation: Callable[..., Evaluation], tmp_path: Path, make_model: Any, tiny_tokenizer: Any
) -> None:
    other = tmp_path / "other"
    make_model(seed=5).save_pretrained(other)
    tiny_tokenizer.save_pretrained(other)
    measured, scores = evaluate_any(evaluation(reference=str(other)), None, "m")
    reference, _ = evaluate_any(
        Evaluation(str(other), ModelSpec(name=str(other)), EvaluationSpec(max_new_tokens=2), ROWS,
                   tmp_path / "apart"), None, "o",
    )  # fmt: skip
    for own, theirs in zip(measured.losses, reference.losses, strict=True):
        assert own.signals["reference"] == pytest.approx(theirs.nll - own.nll)
    assert find(scores, "mia_auc_reference", "mia") is not None


def test_a_retrained_model_and_its_stored_likelihoods_give_the_same_scores(
    evaluation: Callable[..., Evaluation], tmp_path: Path, save_adapter: Callable[..., Path]
) -> None:
    adapter = save_adapter(tmp_path / "retrained", seed=7)
    _, live = evaluate_any(evaluation(retrained=str(adapter)), None, "m")
    measured, scores = evaluate_any(evaluation(), adapter, "r")
    write_model_scores(tmp_path / "s.jsonl", tmp_path / "answers", "r", measured, scores)
    stored = tmp_path / "answers" / "r.likelihoods.jsonl"
    _, read = evaluate_any(evaluation(retrained=str(stored)), None, "m")
    assert read == live
    for name, split in (("forget_quality", "forget"), ("privleak", "mia")):
        assert find(read, name, split) is not None and find(scores, name, split) is None


def test_stored_losses_of_another_unit_are_refused(
    evaluation: Callable[..., Evaluation], tmp_path: Path
) -> None:
    measured, scores = evaluate_any(evaluation(membership="answers"), None, "r")
    write_model_scores(tmp_path / "s.jsonl", tmp_path, "r", measured, scores)
    stored, losses = tmp_path / "r.likelihoods.jsonl", tmp_path / "r.losses.jsonl"
    with pytest.raises(InputError, match="by answers, and here it is judged by documents"):
        measure_reference_models(evaluation(retrained=str(stored)))
    same = measure_reference_models(
        evaluation(retrained=str(stored), membership="answers")
    ).retrained["worst"]
    assert same.losses == measured.losses
    older = [{k: v for k, v in row.items() if k != "membership"} for row in read_jsonl(losses)]
    write_jsonl(losses, older)  # files of older versions do not name the unit
    assert measure_reference_models(evaluation(retrained=str(stored))).retrained
    write_jsonl(losses, [older[0], older[1] | {"membership": "rows"}])
    with pytest.raises(InputError, match="mixes losses of '' and 'rows'"):
        measure_reference_models(evaluation(retrained=str(stored)))


def test_files_with_other_content_are_refused(
    evaluation: Callable[..., Evaluation], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="neither a model nor"):
        measure_reference_models(evaluation(retrained=str(tmp_path / "answers.jsonl")))
    wrong = tmp_path / "x.likelihoods.jsonl"
    wrong.write_text('{"id": "a", "nll": 1.0}\n')
    with pytest.raises(InputError, match="does not contain the likelihoods"):
        measure_reference_models(evaluation(retrained=str(wrong)))


def test_the_auc_of_every_signal_equals_scikit_learns() -> None:
    losses = [
        DocumentLoss(f"{i}", i % 3 == 0, 1.0, signals={s: (i * (7 + j)) % 5 - 2.0 for j, s in
                                                       enumerate(SIGNALS)})
        for i in range(20)
    ]  # fmt: skip
    measured = ReferenceModels().add_to(Measured([], losses), "raw")
    for signal in SIGNALS:
        members, nonmembers, _ = signals_of(measured, signal)
        labels = [1] * len(members) + [0] * len(nonmembers)
        score = mia_signal_auc(measured, signal=signal)
        assert score is not None
        assert score.value == pytest.approx(roc_auc_score(labels, members + nonmembers), abs=1e-12)
