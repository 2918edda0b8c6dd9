"""Membership attacks on documents with given signals."""

from __future__ import annotations

from dataclasses import replace

from mergeforget.data.schema import DocumentLoss, Measured
from mergeforget.metrics.mia_auc import mia_auc
from mergeforget.metrics.mia_signal_auc import SIGNALS, attack_scores
from mergeforget.metrics.mia_tpr import mia_tpr
from mergeforget.metrics.privleak import privleak
from mergeforget.score import Score


def documents(member: bool, losses: list[float]) -> list[DocumentLoss]:
    return [
        DocumentLoss(f"{member}{i}", member, nll, signals={s: nll for s in SIGNALS})
        for i, nll in enumerate(losses)
    ]


def test_every_signal_has_an_auc() -> None:
    measured = Measured([], documents(True, [1, 3]) + documents(False, [2, 4]))
    scores = {s.metric: s.value for s in attack_scores(measured)}
    # the signal is the loss itself here, so larger means a worse prediction: 3 > 2 only
    assert scores["mia_auc_zlib"] == scores["mia_auc_min_k_plus_40"] == 0.25
    assert len(scores) == len(SIGNALS) + 1


def test_the_true_positive_rate_allows_one_percent_false_positives() -> None:
    nonmembers = [float(i) for i in range(1, 201)]  # 200: two false positives are allowed
    measured = Measured([], documents(True, [0.5, 2.5, 3.0, 50.0]) + documents(False, nonmembers))
    score = mia_tpr(measured)
    assert score is not None and score.value == 0.5  # below 3: 0.5 and 2.5
    assert score.chance == 3 / 201  # to be among the highest 3 of 200 non-members and itself
    few = Measured([], documents(True, [0.5, 1.5]) + documents(False, [1.0, 2.0]))
    score = mia_tpr(few)
    assert score is not None and score.value == 0.5
    assert score.chance == 1 / 3  # not 0.01: the highest of three documents


def test_the_interval_of_the_true_positive_rate_includes_the_threshold() -> None:
    """No member is above the highest non-member, which is missing in a share 1/e of the draws."""
    measured = Measured([], documents(True, [2.0] * 50) + documents(False, [1.0] + [3.0] * 49))
    score = mia_tpr(measured)
    assert score is not None and score.value == 0.0 and score.interval == (0.0, 1.0)


def test_definitions_name_the_unit_of_membership() -> None:
    measured = Measured([], documents(True, [1, 3]) + documents(False, [2, 4]))
    whole = {s.metric: s.definition for s in every_score(measured)}
    assert whole["mia_auc"] == "mia-loss-auc@1"
    assert whole["mia_tpr"] == "mia-loss-tpr-at-fpr@1"
    assert whole["mia_auc_zlib"] == "mia-zlib-auc@1" and whole["privleak"] == "privleak-min-k-40@1"
    for unit in ("rows", "answers"):
        found = every_score(replace(measured, membership=unit))
        expected = {name: old.replace("@1", f"-{unit}@1") for name, old in whole.items()}
        assert {s.metric: s.definition for s in found} == expected


def every_score(measured: Measured) -> list[Score]:
    beside = privleak(replace(measured, retrained=measured))
    found = [mia_auc(measured), beside, *attack_scores(measured)]
    return [score for score in found if score is not None]


def test_documents_without_signals_have_the_loss_attack_only() -> None:
    measured = Measured([], [DocumentLoss("a", True, 1.0), DocumentLoss("b", False, 2.0)])
    assert [s.metric for s in attack_scores(measured)] == ["mia_tpr"]
    assert attack_scores(Measured([], [])) == []
