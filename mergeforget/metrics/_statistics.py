"""Intervals of means, of areas under the curve and of what they are combined to: the bootstrap."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from mergeforget.score import Better, Score

Floats = Sequence[float] | np.ndarray
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
    kind: str = "",
    chance: float | None = None,
    definition: str = "",
    by_row: bool = False,
) -> Score | None:
    """The mean of a value of each row with its interval; None without rows.

    Args:
        kind: of the rows. Scores of another split, task or kind draw independently.
        by_row: draw the rows themselves: scores ``by_row`` of the same rows, in the same order,
            draw them alike, and may be combined.
    """
    if not values:
        return None
    draws = mean_draws(values, seed_of(split, task, kind), by_row=by_row)
    return Score(
        metric,
        split,
        float(np.mean(values)),
        better,
        len(values),
        task=task,
        interval=interval_of(draws),
        chance=chance,
        definition=definition,
        draws=draws,
    )


def interval_of(draws: np.ndarray | None) -> tuple[float, float] | None:
    """95 % percentile interval of what was drawn; None where nothing was."""
    if draws is None:
        return None
    low, high = np.percentile(draws, LEVELS)
    return float(low), float(high)


def combined_draws(
    parts: Sequence[np.ndarray | None], combine: Callable[[list[float]], float]
) -> np.ndarray | None:
    """A combination computed once for each draw of all its parts, (RESAMPLES,).

    None where a part has no draws: an interval that takes it for certain would be too narrow.
    """
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return np.array([combine(row) for row in np.stack(known, axis=1).tolist()])


def seed_of(*names: str) -> int:
    """A seed for each set of rows, the same everywhere."""
    return zlib.crc32("/".join(names).encode())


def mean_draws(values: Sequence[float], seed: int = 0, *, by_row: bool = False) -> np.ndarray:
    """The mean of rows drawn with replacement, independently of each other, (RESAMPLES,).

    Args:
        by_row: the same seed draws the same rows, whatever their values. Else a few different
            values are drawn by how often each comes: faster, and unrelated to any other draw.
    """
    every, draw = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    different, counts = np.unique(every, return_counts=True)
    if not by_row and len(different) < len(every) / 4:  # such as shares of right answers
        drawn = draw.multinomial(len(every), counts / len(every), size=RESAMPLES)
        return np.asarray(drawn @ different / len(every))
    means = [
        every[draw.integers(0, len(every), (n, len(every)))].mean(axis=1)
        for n in _portions(len(every))
    ]
    return np.concatenate(means)


def share_above_draws(
    members: Sequence[float], nonmembers: Sequence[float], allowed: int, seed: int = 0
) -> np.ndarray:
    """The share of members above all but ``allowed`` non-members, over drawn documents.

    Both kinds are drawn with replacement, apart from each other, and the threshold is that of the
    draw, (RESAMPLES,). Of n places drawn from n the highest but ``allowed`` is ``floor(n * u)``,
    with u the same order statistic of n uniform numbers, which has a beta distribution: no draw
    takes time in proportion to the documents.
    """
    draw, n = np.random.default_rng(seed), len(nonmembers)
    places = (n * draw.beta(n - allowed, allowed + 1, RESAMPLES)).astype(int)
    thresholds = np.sort(nonmembers)[places]
    above = 1 - np.searchsorted(np.sort(members), thresholds, "right") / len(members)
    return np.asarray(draw.binomial(len(members), above) / len(members))


def loss_gap(members: Floats, nonmembers: Floats) -> float:
    """Mean loss of members minus that of non-members; negative where members are known better."""
    return float(np.mean(members) - np.mean(nonmembers))


def auc(members: Floats, nonmembers: Floats) -> float:
    """Share of pairs in which the member scores higher; ties count one half.

    Equals the area under the ROC curve with member = 1.
    """
    positive, negative = np.asarray(members), np.sort(np.asarray(nonmembers))
    below = np.searchsorted(negative, positive, "left")
    upto = np.searchsorted(negative, positive, "right")
    return float((below + upto).sum() / (2 * len(positive) * len(negative)))


def auc_draws(members: Sequence[float], nonmembers: Sequence[float], seed: int = 0) -> np.ndarray:
    """The AUC of documents drawn with replacement, members and non-members apart, (RESAMPLES,).

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
    return np.concatenate(areas).clip(max=1.0)


def _counts(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(values, group), minlength=len(values))


def _portions(width: int) -> list[int]:
    """How many of the draws are made at once, so that memory stays bounded."""
    size = max(1, min(RESAMPLES, AT_ONCE // max(1, width)))
    full, rest = divmod(RESAMPLES, size)
    return [size] * full + ([rest] if rest else [])
