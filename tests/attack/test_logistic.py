"""Probes: the regression against scikit-learn, high on separable data, at chance on noise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mergeforget.attack.logistic import (
    coordinates,
    cross_validated_auc,
    document_folds,
    fit,
    shuffled_labels,
)
from mergeforget.attack.methods.probe import MANY, _enough, probe_layers
from mergeforget.errors import InputError

DOCUMENTS = [f"d{i // 3}" for i in range(60)]  # 20 documents of 3 rows
LABELS = np.arange(60) < 30
SETTINGS = {"strength": 1.0, "folds": 5, "seed": 0, "shuffles": 19}


def draw(width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((60, width))


@pytest.mark.parametrize(("width", "strength"), [(4, 1.0), (90, 0.3), (90, 5.0)])
def test_weights_equal_those_of_scikit_learn(width: int, strength: float) -> None:
    features = draw(width) + 0.5 * LABELS[:, None]
    weights, intercept = fit(features, LABELS, strength)
    theirs = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10_000)
    theirs.fit(features, LABELS)
    np.testing.assert_allclose(weights, theirs.coef_[0], atol=2e-4)
    assert intercept == pytest.approx(theirs.intercept_[0], abs=2e-4)


def test_coordinates_keep_the_distances_of_standardised_rows() -> None:
    features = draw(200) * 7 + 3
    features[:, 5] = 1.0  # a constant feature has no information
    moving = np.delete(features, 5, axis=1)
    standard = (moving - moving.mean(0)) / moving.std(0) / np.sqrt(199)
    found = coordinates(features)
    assert found.shape == (60, 60)
    np.testing.assert_allclose(found @ found.T, standard @ standard.T, atol=1e-12)


def test_separable_rows_are_classified_correctly() -> None:
    features = draw(50)
    features[:, :5] += 4 * LABELS[:, None]
    assert cross_validated_auc(coordinates(features), LABELS, DOCUMENTS) > 0.95


def test_random_labels_are_at_chance() -> None:
    areas = [cross_validated_auc(coordinates(draw(50, s)), LABELS, DOCUMENTS) for s in range(40)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.04)


def test_features_of_a_document_do_not_leak_across_folds() -> None:
    """Rows of one document are alike; were they in both parts, the probe would know the label."""
    by_document, by_row = [], []
    for seed in range(20):
        own = np.random.default_rng(seed).standard_normal((20, 40))
        features = coordinates(np.repeat(own, 3, axis=0) + 0.01 * draw(40))
        by_document.append(cross_validated_auc(features, LABELS, DOCUMENTS))
        by_row.append(cross_validated_auc(features, LABELS, [str(i) for i in range(60)]))
    assert np.mean(by_document) == pytest.approx(0.5, abs=0.12) and np.mean(by_row) > 0.9


def test_folds_share_no_document_and_contain_both_labels() -> None:
    folds = list(document_folds(LABELS, DOCUMENTS, 5, seed=3))
    assert np.sum(folds, axis=0).tolist() == [1] * 60
    for held in folds:
        inside = {d for d, h in zip(DOCUMENTS, held, strict=True) if h}
        outside = {d for d, h in zip(DOCUMENTS, held, strict=True) if not h}
        assert not inside & outside and set(LABELS[held]) == {True, False}


def test_a_single_document_cannot_be_probed() -> None:
    with pytest.raises(InputError, match="at least two documents"):
        list(document_folds(LABELS, ["a"] * 30 + DOCUMENTS[30:], 5, seed=0))


def test_labels_are_permuted_by_document() -> None:
    new = shuffled_labels(LABELS, DOCUMENTS, seed=1)
    assert new.sum() == 30 and (new != LABELS).any()
    assert all(len({bool(new[i]) for i in range(3 * d, 3 * d + 3)}) == 1 for d in range(20))


def test_the_permutation_test_covers_all_layers() -> None:
    states = np.stack([draw(20, s) for s in range(4)]).astype(np.float32)
    noise = probe_layers(states, LABELS, DOCUMENTS, SETTINGS, label="noise")
    states[2, :, 3] += 6 * LABELS
    known = probe_layers(states, LABELS, DOCUMENTS, SETTINGS, label="known")
    assert known["p"] == 0.05 and int(np.argmax(known["auc"])) == 2
    assert noise["p"] > 0.05 and known["labelings"] == 184756


def test_a_thousand_documents_are_enough_for_a_probe() -> None:
    labels, documents = np.arange(1100) < 550, [str(i) for i in range(1100)]
    states = np.random.default_rng(0).normal(size=(1, 1100, 2)).astype(np.float32)
    facts = probe_layers(states, labels, documents, SETTINGS | {"shuffles": 1}, label="many")
    assert facts["labelings"] == MANY and _enough(facts)  # comb(1100, 550) has 330 digits
    # comb(6, 3) = 20 labelings allow p = 0.05, comb(5, 2) = 10 do not
    assert _enough({"labelings": 20}) and not _enough({"labelings": 10})
