"""Two disjoint parts of what was measured: one chooses the candidate, the other reports it.

A figure that chose is flattered by the choice; the published system that chose on all of its
members had a MIA score of .997 there and .048 on others.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace

from mergeforget.data.schema import DocumentLoss, Measured, Row
from mergeforget.errors import InputError

PARTS = ("choose", "report")
Group = tuple[str, str]  # (split, subject): a document
FEWEST = 2  # members, and non-members: one for each part


def halve(measured: Measured, share: float, seed: int) -> dict[str, Measured]:
    """Split by document, so that rows of one document stay together.

    Args:
        measured: of any model; the same rows are split the same way whatever the model said.
        share: of the documents that choose, in (0, 1).
        seed: of the draw. Forget, retain and non-members are drawn apart, each task in its share.

    Returns:
        ``choose`` and ``report``. MMLU is in both, since its questions are no part of the data.
    """
    choosing = choosing_subjects(tasks_of(measured), share, seed)
    return {
        part: replace(
            measured,
            answers=[a for a in measured.answers if (group(a.row) in choosing) == chooses],
            losses=[x for x in measured.losses if (loss_group(x) in choosing) == chooses],
            likelihoods=[x for x in measured.likelihoods if (group(x.row) in choosing) == chooses],
        )
        for part, chooses in zip(PARTS, (True, False), strict=True)
    }


def check_enough(members: Iterable[Row], nonmembers: Iterable[Row]) -> None:
    """Raise InputError where there are too few documents for two parts."""
    inside, outside = (len({group(row) for row in rows}) for rows in (members, nonmembers))
    if min(inside, outside) < FEWEST:
        raise InputError(
            f"The members are of {inside} and the non-members of {outside} documents, too few to "
            f"choose with one half and report with the other: at least {FEWEST} of each, since the "
            "rows of one document stay together. Give more of them, more non-members with "
            "--holdout FILE, or, where documents are left out because they are not whole, count "
            "rows: --set evaluation.membership=rows in train-pair."
        )


def tasks_of(measured: Measured) -> dict[Group, str]:
    """The task of every document that was measured."""
    tasks: dict[Group, str] = {}
    for row in [*(a.row for a in measured.answers), *(x.row for x in measured.likelihoods)]:
        tasks.setdefault(group(row), row.task)
    for loss in measured.losses:
        tasks.setdefault(loss_group(loss), loss.task)
    return tasks


def choosing_subjects(tasks: Mapping[Group, str], share: float, seed: int) -> set[Group]:
    """The documents that choose, of those that ``tasks`` names."""
    strata: dict[tuple[str, str], list[Group]] = {}
    for key in sorted(tasks):
        strata.setdefault((key[0], tasks[key]), []).append(key)
    chosen: set[Group] = set()
    for split in sorted({split for split, _ in strata}):
        within = {task: keys for (s, task), keys in sorted(strata.items()) if s == split}
        chosen |= _draw(within, share, f"{seed}-{split}")
    return chosen


def group(row: Row) -> Group:
    """(split, subject): what stays together."""
    return row.split, row.subject


def loss_group(loss: DocumentLoss) -> Group:
    """The same for a document; a member is a document of the forget split."""
    return "forget" if loss.member else "holdout", loss.subject


def _draw(
    strata: dict[str, list[tuple[str, str]]], share: float, seed: str
) -> set[tuple[str, str]]:
    """``share`` of each stratum, rounded so that the whole comes out right too."""
    wanted, chosen = 0.0, set[tuple[str, str]]()
    total = sum(map(len, strata.values()))
    for task, keys in strata.items():
        wanted += share * len(keys)
        take = min(len(keys), max(0, round(wanted) - len(chosen)))
        random.Random(f"{seed}-{task}").shuffle(keys)
        chosen |= set(keys[:take])
    if total >= FEWEST and len(chosen) in (0, total):  # neither part may be empty
        every = [key for keys in strata.values() for key in keys]
        chosen ^= {every[-1] if chosen else every[0]}
    return chosen


def count(losses: Iterable[DocumentLoss]) -> tuple[int, int]:
    """Members and non-members."""
    kinds = [loss.member for loss in losses]
    return sum(kinds), len(kinds) - sum(kinds)
