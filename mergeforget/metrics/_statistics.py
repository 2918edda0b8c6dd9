"""Means, areas under the ROC curve, and 95 % confidence intervals that hold for few subjects.

A subject (a person or a document) is what is sampled, so its rows count as one cluster. The
intervals are small-sample intervals, chosen by simulation (``docs/evidence.md``):

- AUC: Newcombe's score interval with the Hanley-McNeil variance, for the effective number of
  members and non-members, and a t quantile;
- shares: Wilson's score interval for the effective number of rows, and a t quantile;
- other means: the t interval over subjects.

Each interval is the 2.5 and 97.5 percentile of ``RESAMPLES`` draws from its confidence
distribution, so that figures combined from several scores get an interval from combined draws.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from mergeforget.score import Score

if TYPE_CHECKING:
    from mergeforget.score import Better

Floats = Sequence[float] | np.ndarray
RESAMPLES = 1000
LEVELS = (2.5, 97.5)
AT_ONCE = 2**22  # numbers drawn in one go
GRID = np.linspace(0, 1, 2003)[1:-1]  # AUCs at which the score interval is inverted


def mean_score(
    metric: str,
    split: str,
    values: Sequence[float],
    better: Better,
    *,
    subjects: Sequence[str] | None = None,
    bounded: bool = True,
    task: str = "",
    kind: str = "",
    chance: float | None = None,
    definition: str = "",
    by_row: bool = False,
) -> Score | None:
    """Return the mean of one value per row with its interval, or None without rows.

    Args:
        subjects: The subject of each row; rows with the same subject are one cluster.
        bounded: Whether values are in [0, 1]. If not, one row has no interval: it shows no spread.
        kind: Kind of the rows. Scores of another split, task or kind have independent draws.
        by_row: Correlate the draws with those of other ``by_row`` scores of the same rows, in the
            same order, so that the scores may be combined.
    """
    if not values:
        return None
    seed = seed_of(split, task, kind)
    draws = None
    if bounded or len(values) > 1:
        draws = mean_draws(values, seed, subjects=subjects, bounded=bounded, by_row=by_row)
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
        subjects=len(set(subjects)) if subjects is not None else 0,
        draws=draws,
    )


def interval_of(draws: np.ndarray | None, value: float | None = None) -> tuple[float, float] | None:
    """Return the 95 % interval of draws; None where there are none.

    Args:
        value: The estimate, which the interval is widened to include: a score such as the MIA
            score, whose maximum is at an AUC of 0.5, may lie above nearly all of its draws.
    """
    if draws is None:
        return None
    low, high = np.percentile(draws, LEVELS).tolist()
    return (low, high) if value is None else (min(low, value), max(high, value))


def combined_draws(
    parts: Sequence[np.ndarray | None], combine: Callable[[list[float]], float]
) -> np.ndarray | None:
    """Combine the draws of all parts, (RESAMPLES,).

    None where a part has no draws: an interval that treats it as exact would be too narrow.
    """
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return np.array([combine(row) for row in np.stack(known, axis=1).tolist()])


def seed_of(*names: str) -> int:
    """Return a seed for a set of rows, the same on every machine."""
    return zlib.crc32("/".join(names).encode())


def mean_draws(
    values: Floats,
    seed: int = 0,
    *,
    subjects: Sequence[str] | None = None,
    bounded: bool = True,
    by_row: bool = False,
) -> np.ndarray:
    """Draws from the confidence distribution of a mean, (RESAMPLES,).

    The draws are the quantiles of the small-sample interval, in random order; ``by_row`` orders
    them as a bootstrap of the subjects does, so that scores of the same rows rise and fall
    together.

    Args:
        values: One value per row.
        subjects: The subject of each row; None makes each row its own subject.
        bounded: Whether values are in [0, 1]; Wilson's interval is used, else the t interval.
    """
    every = np.asarray(values, dtype=np.float64)
    groups = _groups(subjects, len(every))
    count = int(groups.max()) + 1
    z = _normal_like(count - 1)
    if bounded and every.min() >= 0 and every.max() <= 1:
        found = wilson(float(every.mean()), bounded_size(every, groups), z)
    else:
        more = count / (count - 1) if count > 1 else 1.0  # as many rows as subjects: ddof = 1
        spread = every.std() * np.sqrt(more)
        found = every.mean() + z * spread / np.sqrt(effective_size(every, groups))
    draw = np.random.default_rng(seed)
    if not by_row:
        return np.asarray(draw.permutation(found))
    totals, rows = np.bincount(groups, every), np.bincount(groups)
    resampled = _resampled_means(totals, rows, draw)
    ordered = np.empty(RESAMPLES)
    ordered[np.lexsort((draw.random(RESAMPLES), resampled))] = found
    return ordered


def wilson(p: float, n: float, z: np.ndarray) -> np.ndarray:
    """Wilson's score bounds of a share at each normal deviate ``z``, (len(z),).

    >>> low, high = wilson(1.0, 10, np.array([-1.96, 1.96]))
    >>> round(float(low), 3), float(high)
    (0.722, 1.0)
    """
    square = z * z
    root = np.abs(z) * np.sqrt(p * (1 - p) / n + square / (4 * n * n))
    return np.asarray(
        np.clip((p + square / (2 * n) + np.sign(z) * root) / (1 + square / n), 0.0, 1.0)
    )


def bounded_size(values: np.ndarray, groups: np.ndarray) -> float:
    """Return the number of independent binary rows whose mean has the same uncertainty.

    For values strictly between 0 and 1 it may exceed the number of rows. One pseudo-subject of
    yes or no keeps it finite where all subjects agree.
    """
    p, count = float(values.mean()), int(groups.max()) + 1
    most = p * (1 - p)
    if most < 1e-12:
        return float(count)
    rows = np.bincount(groups)
    deviations = (np.bincount(groups, values) - p * rows) / rows.mean()
    size = count * (count + 1) / (float(deviations @ deviations) / most + 1)
    return size if ((values > 0) & (values < 1)).any() else min(size, float(len(values)))


def effective_size(values: np.ndarray, groups: np.ndarray) -> float:
    """Return the effective number of rows, between the numbers of subjects and of rows.

    Source: design effect, the cluster-robust variance of the mean over that of independent rows
        (Kish 1965).
    """
    n, count = len(values), int(groups.max()) + 1
    if count in (1, n):
        return float(count)
    deviations = values - values.mean()
    independent = (deviations @ deviations) / n / (n - 1)
    if independent < 1e-15:
        return float(count)
    clustered = count / (count - 1) * (np.bincount(groups, deviations) ** 2).sum() / n**2
    return float(np.clip(n * independent / max(clustered, 1e-15), count, n))


def share_above_draws(
    members: Floats,
    nonmembers: Floats,
    allowed: int,
    seed: int = 0,
    *,
    subjects: tuple[Sequence[str], Sequence[str]] | None = None,
) -> np.ndarray:
    """Draws of the share of members above all but ``allowed`` non-members, (RESAMPLES,).

    The threshold is drawn too. Of n values drawn from n the highest but ``allowed`` is at place
    ``floor(n * u)``, with u the same order statistic of n uniform numbers, which has a beta
    distribution. The share above it has Wilson's interval.

    Args:
        subjects: The subjects of the members and of the non-members; the rows of a subject count
            as one in the distribution of the threshold.
    """
    draw, n = np.random.default_rng(seed), len(nonmembers)
    own, others = subjects or (None, None)
    count = int(_groups(others, n).max()) + 1
    above_it = allowed * count / n
    places = (n * draw.beta(count - above_it, above_it + 1, RESAMPLES)).astype(int)
    thresholds = np.sort(nonmembers)[places]
    above = 1 - np.searchsorted(np.sort(members), thresholds, "right") / len(members)
    groups = _groups(own, len(members))
    chosen = np.asarray(members) > np.sort(nonmembers)[::-1][allowed]
    size = effective_size(chosen.astype(float), groups)
    z = draw.permutation(_normal_like(int(groups.max())))
    draws = np.empty(RESAMPLES)
    for share in np.unique(above):
        draws[above == share] = wilson(float(share), size, z[above == share])
    return draws


def loss_gap(members: Floats, nonmembers: Floats) -> float:
    """Mean loss of members minus that of non-members; negative where members are known better."""
    return float(np.mean(members) - np.mean(nonmembers))


def auc(members: Floats, nonmembers: Floats) -> float:
    """Share of pairs in which the member scores higher; ties count one half.

    Equals the area under the ROC curve with member = 1.
    """
    return float(np.mean(placements(members, nonmembers)))


def placements(values: Floats, others: Floats) -> np.ndarray:
    """Share of ``others`` below each value, ties counting one half, (len(values),).

    Source: DeLong, DeLong and Clarke-Pearson 1988, structural components.
    """
    every, ordered = np.asarray(values), np.sort(np.asarray(others))
    below = np.searchsorted(ordered, every, "left")
    upto = np.searchsorted(ordered, every, "right")
    return np.asarray((below + upto) / (2 * len(ordered)))


def auc_draws(
    members: Floats,
    nonmembers: Floats,
    seed: int = 0,
    *,
    subjects: tuple[Sequence[str], Sequence[str]] | None = None,
) -> np.ndarray:
    """Draws from the confidence distribution of an AUC, (RESAMPLES,).

    Args:
        subjects: The subjects of the members and of the non-members; None makes each document
            its own subject.

    Source: Newcombe 2006, "Confidence intervals for an effect size measure based on the
        Mann-Whitney statistic, part 2", method 5. Ours: effective numbers of members and
        non-members from the clustered variance of DeLong's components (Obuchowski 1997), and a t
        quantile with (subjects - 2) degrees of freedom.
    """
    above, below = placements(members, nonmembers), 1 - placements(nonmembers, members)
    own, others = subjects or (None, None)
    groups = _groups(own, len(above)), _groups(others, len(below))
    m, n = effective_size(above, groups[0]), effective_size(below, groups[1])
    freedom = int(groups[0].max() + groups[1].max())
    z = _normal_like(freedom)
    scaled = (GRID - above.mean()) / auc_deviation(GRID, m, n)
    found = np.interp(z, scaled, GRID, left=0.0, right=1.0)
    return np.asarray(np.random.default_rng(seed).permutation(found))


def auc_deviation(area: np.ndarray | float, m: float, n: float) -> np.ndarray:
    """Standard deviation of an estimated AUC whose true value is ``area``.

    Args:
        m: Number of members.
        n: Number of non-members.

    Source: Hanley and McNeil 1982, with (m + n) / 2 - 1 in the place of m - 1 and n - 1, as in
        Newcombe 2006.
    """
    theta = np.asarray(area)
    half = max(0.0, (m + n) / 2 - 1)
    more = 1 + half * ((1 - theta) / (2 - theta) + theta / (1 + theta))
    return np.asarray(np.sqrt(theta * (1 - theta) * more / (m * n)))


def paired_difference(
    one: Floats, other: Floats, subjects: Sequence[str] | None = None
) -> tuple[float, tuple[float, float]]:
    """Return the mean difference of two models on the same rows, and its 95 % interval.

    The t interval over subjects, with one pseudo-subject on each side that differs by the whole
    range of the differences, so that two models that never differ in few rows are not "surely
    equal" (Agresti and Min 2005 add such observations to paired shares).

    >>> value, (low, high) = paired_difference([1, 1, 0, 1], [1, 0, 0, 1])
    >>> value, low < 0.25 < high
    (0.25, True)
    """
    differences = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    groups = _groups(subjects, len(differences))
    count = int(groups.max()) + 1
    totals, rows = np.bincount(groups, differences), np.bincount(groups)
    mean = float(differences.mean())
    spread = max(1e-12, float(np.abs(differences).max())) if differences.any() else 1.0
    residuals = totals - mean * rows
    pseudo = 0.25 * (spread * len(differences) / count) ** 2
    variance = (residuals @ residuals + pseudo) / len(differences) ** 2 * count / max(1, count - 1)
    reach = _quantile(count - 1) * float(np.sqrt(variance))
    return mean, (mean - reach, mean + reach)


def paired_auc_difference(
    one: tuple[Floats, Floats],
    other: tuple[Floats, Floats],
    subjects: tuple[Sequence[str], Sequence[str]] | None = None,
) -> tuple[float, tuple[float, float]]:
    """Return the difference of two models' AUC on the same documents, and its 95 % interval.

    Args:
        one: Signals of members and of non-members, larger means more likely a member.
        other: The same documents in the same order, from the other model.

    Source: DeLong 1988; variance over subjects as in Obuchowski 1997.
    """
    own, others = subjects or (None, None)
    groups = _groups(own, len(one[0])), _groups(others, len(one[1]))
    members = placements(*one) - placements(*other)
    nonmembers = placements(other[1], other[0]) - placements(one[1], one[0])
    variance, freedom = 0.0, 0
    for differences, group in ((members, groups[0]), (nonmembers, groups[1])):
        count = int(group.max()) + 1
        totals = np.bincount(group, differences - differences.mean())
        pseudo = 0.5 / max(2, len(members), len(nonmembers)) ** 2  # one pair changes its order
        variance += (
            count / max(1, count - 1) * float(totals @ totals) / len(differences) ** 2 + pseudo
        )
        freedom += count - 1
    reach = _quantile(freedom) * float(np.sqrt(variance))
    value = float(members.mean())
    return value, (max(-1.0, value - reach), min(1.0, value + reach))


def _groups(subjects: Sequence[str] | None, n: int) -> np.ndarray:
    """Numbers of the subjects, from 0, (n,)."""
    if subjects is None:
        return np.arange(n)
    return np.unique(np.asarray(subjects, dtype=object).astype(str), return_inverse=True)[1]


@cache
def _normal_like(freedom: int) -> np.ndarray:
    """Evenly spaced quantiles of Student's t in rising order, (RESAMPLES,)."""
    from scipy.stats import t

    return np.asarray(t.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES, max(1, freedom)))


@cache
def _quantile(freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(LEVELS[1] / 100, max(1, freedom)))


def _resampled_means(totals: np.ndarray, rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Means of rows of subjects drawn with replacement, (RESAMPLES,)."""
    count = len(totals)
    size = max(1, min(RESAMPLES, AT_ONCE // count))
    means = []
    for start in range(0, RESAMPLES, size):
        drawn = draw.integers(0, count, (min(size, RESAMPLES - start), count))
        means.append(totals[drawn].sum(axis=1) / rows[drawn].sum(axis=1))
    return np.concatenate(means)
