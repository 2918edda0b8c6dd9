"""Ridge logistic regression, cross-validated over whole documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mergeforget.errors import InputError
from mergeforget.metrics._statistics import auc

Array = NDArray[np.float64]
FOLDS = 5
STEPS = 50  # maximum number of Newton steps; about eight are needed
TOLERANCE = 1e-9  # relative change of the loss at which the fit has converged


def coordinates(features: Array) -> Array:
    """Standardise features, and rotate them to at most as many columns as rows; (rows, <= rows).

    Labels are not used. Distances between rows are preserved, so a ridge regression on the result
    is equivalent to one on the features. Dividing by the square root of the width makes the ridge
    strength comparable between widths.
    """
    deviation = features.std(0)
    moving = deviation > 1e-6 * (1 + np.abs(features.mean(0)))
    if not moving.any():
        return np.zeros((len(features), 1))
    standard = (features[:, moving] - features[:, moving].mean(0)) / deviation[moving]
    standard /= np.sqrt(moving.sum())
    if standard.shape[1] <= len(standard):
        return np.asarray(standard)
    left, sizes, _ = np.linalg.svd(standard, full_matrices=False)
    return np.asarray(left * sizes)


def fit(features: Array, labels: NDArray[np.bool_], strength: float) -> tuple[Array, float]:
    """Return weights and intercept that minimise ``sum of log losses + strength / 2 |weights|^2``.

    The intercept is not penalised. Uses Newton's method with step halving.

    Args:
        features: (rows, width).
        labels: (rows,)
    """
    inside = np.column_stack([features, np.ones(len(features))])
    ridge = np.append(np.full(features.shape[1], strength), 0.0)
    signs = np.where(labels, 1.0, -1.0)
    theta = np.zeros(inside.shape[1])
    loss = _loss(inside, signs, ridge, theta)
    for _ in range(STEPS):
        probability = _sigmoid(inside @ theta)
        gradient = inside.T @ (probability - labels) + ridge * theta
        hessian = (inside.T * (probability * (1 - probability))) @ inside
        hessian[np.diag_indices_from(hessian)] += ridge + 1e-12
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (new := _loss(inside, signs, ridge, theta - size * step)) > loss and size > 1e-6:
            size /= 2
        if loss - new <= TOLERANCE * max(1.0, loss):
            break
        theta, loss = theta - size * step, new
    return theta[:-1], float(theta[-1])


def cross_validated_auc(
    features: Array,
    labels: NDArray[np.bool_],
    documents: Sequence[str],
    *,
    strength: float = 0.1,
    folds: int = FOLDS,
    seed: int = 0,
) -> float:
    """Return the mean over folds of the AUC on held-out documents; ties count one half.

    No document is in two folds, and each fold has both labels. The AUC is computed separately in
    each fold, because scores of different fits are not comparable.
    """
    areas = []
    for held in document_folds(labels, documents, folds, seed):
        weights, _ = fit(features[~held], labels[~held], strength)
        scores = features[held] @ weights
        own = labels[held]
        areas.append(auc(scores[own].tolist(), scores[~own].tolist()))
    return float(np.mean(areas))


def held_out_probabilities(
    features: Array,
    labels: NDArray[np.bool_],
    documents: Sequence[str],
    *,
    strength: float = 0.1,
    folds: int = FOLDS,
    seed: int = 0,
) -> Array:
    """Return the probability of each row's label under a fit without its document, (rows,)."""
    probabilities = np.zeros(len(labels))
    for held in document_folds(labels, documents, folds, seed):
        weights, intercept = fit(features[~held], labels[~held], strength)
        member = _sigmoid(features[held] @ weights + intercept)
        probabilities[held] = np.where(labels[held], member, 1 - member)
    return probabilities


def document_folds(
    labels: NDArray[np.bool_], documents: Sequence[str], folds: int, seed: int
) -> Iterator[NDArray[np.bool_]]:
    """Yield masks of the held-out rows; the documents of each label are distributed evenly.

    Raises:
        InputError: A label has a single document.
    """
    draw = np.random.default_rng(seed)
    place: dict[tuple[bool, str], int] = {}
    count = folds
    for label in (True, False):
        mine = sorted({d for d, one in zip(documents, labels, strict=True) if one == label})
        count = min(count, len(mine))
        place |= {(label, mine[i]): n for n, i in enumerate(draw.permutation(len(mine)))}
    if count < 2:
        raise InputError(
            "A probe needs at least two documents of the forget set and two of the holdout, for "
            "training and testing."
        )
    where = np.array([place[bool(y), d] % count for d, y in zip(documents, labels, strict=True)])
    for fold in range(count):
        yield where == fold


def shuffled_labels(
    labels: NDArray[np.bool_], documents: Sequence[str], seed: int
) -> NDArray[np.bool_]:
    """Return a permutation of the labels over documents, for a permutation test."""
    keys = [(bool(y), d) for y, d in zip(labels, documents, strict=True)]
    different = list(dict.fromkeys(keys))
    drawn = np.random.default_rng(seed).permutation(len(different))
    new = {key: different[i][0] for key, i in zip(different, drawn, strict=True)}
    return np.array([new[key] for key in keys])


def _loss(inside: Array, signs: Array, ridge: Array, theta: Array) -> float:
    return float(np.logaddexp(0, -signs * (inside @ theta)).sum() + (ridge * theta**2).sum() / 2)


def _sigmoid(values: Array) -> Array:
    return np.exp(-np.logaddexp(0, -values))
