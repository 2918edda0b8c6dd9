"""Intervals of means and of areas under the curve, by the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergeforget.score import Better, Score

RESAMPLES = 1000
LEVELS = (2.5, 97.5)
AT_ONCE = 2**22  # numbers drawn in one go


def mean_score(
    metric: str,
    split: str,
    values: Sequence[float],
    better: Better,
    *,
    task: str = "",
    chance: float | None = None,
    definition: str = "",
) -> Score | None:
    """The mean of a value of each row with its interval; None without rows."""
    if not values:
        return None
    mean = float(np.mean(values))
    return Score(
        metric,
        split,
        mean,
        better,
        len(values),
        task=task,
        interval=mean_interval(values),
        chance=chance,
        definition=definition,
    )


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of a mean; rows are drawn independently of each other."""
    every = np.asarray(values, dtype=np.float64)
    low, high = np.percentile(_resampled_means(every, np.random.default_rng(seed)), LEVELS)
    return float(low), float(high)


def auc(members: Sequence[float], nonmembers: Sequence[float]) -> float:
    """Share of pairs in which the member scores higher; ties count one half.

    Equals the area under the ROC curve with member = 1.
    """
    positive, negative = np.asarray(members), np.sort(np.asarray(nonmembers))
    below = np.searchsorted(negative, positive, "left")
    upto = np.searchsorted(negative, positive, "right")
    return float((below + upto).sum() / (2 * len(positive) * len(negative)))


def auc_interval(
    members: Sequence[float], nonmembers: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap of an AUC; members and non-members are drawn apart.

    Each draw is a count of every different value; the area is summed along the sorted values, so
    a draw costs time in proportion to the documents, not to their pairs.
    """
    positive, negative = np.asarray(members), np.asarray(nonmembers)
    values = np.unique(np.concatenate([positive, negative]))
    share = [_counts(values, group) / len(group) for group in (positive, negative)]
    draw = np.random.default_rng(seed)
    areas = []
    for n in _portions(len(values)):
        drawn_p = draw.multinomial(len(positive), share[0], size=n) / len(positive)  # (n, values)
        drawn_n = draw.multinomial(len(negative), share[1], size=n) / len(negative)
        below = np.cumsum(drawn_n, axis=1) - drawn_n / 2
        areas.append((drawn_p * below).sum(axis=1))
    low, high = np.percentile(np.concatenate(areas), LEVELS)
    return float(low), float(min(1.0, high))


def _resampled_means(values: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    different, counts = np.unique(values, return_counts=True)
    if len(different) < len(values) / 4:  # shares of right answers: draw how often each value comes
        drawn = draw.multinomial(len(values), counts / len(values), size=RESAMPLES)
        return np.asarray(drawn @ different / len(values))
    means = [
        values[draw.integers(0, len(values), (n, len(values)))].mean(axis=1)
        for n in _portions(len(values))
    ]
    return np.concatenate(means)


def _counts(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(values, group), minlength=len(values))


def _portions(width: int) -> list[int]:
    """How many of the draws are made at once, so that memory stays bounded."""
    size = max(1, min(RESAMPLES, AT_ONCE // max(1, width)))
    full, rest = divmod(RESAMPLES, size)
    return [size] * full + ([rest] if rest else [])
