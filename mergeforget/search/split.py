"""The selection split, which chooses the candidate, and the report split, which scores it.

A figure that chose is flattered by the choice; the published system that chose on all of its
members had a MIA score of .997 there and .048 on others.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from collections.abc import Set as Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from mergeforget.data.readers import read_rows
from mergeforget.data.schema import DocumentLoss, Measured, Row
from mergeforget.data.transforms import limit_rows
from mergeforget.errors import InputError
from mergeforget.evaluate.measure import membership_documents
from mergeforget.evaluate.membership import matched, unseen
from mergeforget.files import jsonl_text, read_json
from mergeforget.recipe import EvaluationSpec
from mergeforget.run import Run

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


@dataclass(frozen=True)
class SearchData:
    """Rows that every candidate answers, and documents that tell members from non-members.

    Attributes:
        holdout: the text of a new ``data/holdout.jsonl``, of which the non-members are; empty
            where they are of the run's own.
        levels: NLL of the twins of forget rows and non-members under the base, by row id; of
            those that a training with `until` measured.
    """

    forget: list[Row]
    retain: list[Row]
    members: list[Row]
    nonmembers: list[Row]
    holdout: str = ""
    levels: dict[str, float] = field(default_factory=dict)

    def choosing(self, share: float, seed: int, figures: Collection[str]) -> SearchData:
        """The half that chooses, and of it only what an objective's figures read.

        The documents are those of ``halves.halve``, so that a figure is the same but for rounding.
        """
        rows = [*self.forget, *self.retain, *self.members, *self.nonmembers]
        tasks: dict[Group, str] = {}
        for row in rows:
            tasks.setdefault(group(row), row.task)
        chosen = choosing_subjects(tasks, share, seed)
        figures = {"mia" if name == "mia_level" else name for name in figures}
        aggregated = not figures <= {"mia", "retain", "forget"}

        def part(of: list[Row], figure: str) -> list[Row]:
            read = aggregated or figure in figures
            return [row for row in of if read and group(row) in chosen]

        return SearchData(
            part(self.forget, "forget"),
            part(self.retain, "retain"),
            part(self.members, "mia"),
            part(self.nonmembers, "mia"),
            levels=self.levels,
        )


def load_data(run: Run, spec: EvaluationSpec, holdout: Path | None, seed: int) -> SearchData:
    """The rows of a run, with as many non-members as members.

    Args:
        holdout: a file of rows that no training saw, in the place of the run's own.
        seed: of the draw where there are more than are needed.

    Raises:
        InputError: there are no non-members, or too few.
    """
    own = run.data / "holdout.jsonl"
    if holdout is None and not (own.exists() and own.stat().st_size):
        raise InputError(
            f"{run.root} has no non-members: membership inference compares the forget set with "
            "rows of the same kind that no training saw. Give them with --holdout FILE. "
            "`mergeforget train-pair --limit N` keeps the rows it leaves out for this by itself."
        )
    forget = read_rows(run.data / "forget.jsonl", split="forget")
    retain = read_rows(run.data / "retain.jsonl", split="retain")
    outside = read_rows(holdout or own, split="holdout")
    outside = unseen(outside, [*forget, *retain], holdout or own)
    members, nonmembers = matched(
        membership_documents(forget, spec.membership),
        membership_documents(outside, spec.membership),
        seed,
    )
    check_enough(members, nonmembers)
    return SearchData(
        limit_rows(forget, spec.limit, seed)[0],
        limit_rows(retain, spec.limit, seed)[0],
        members,
        nonmembers,
        "" if holdout is None else jsonl_text(row.to_dict() for row in outside),
        _levels(run.root / "until" / "over.json"),
    )


def _levels(path: Path) -> dict[str, float]:
    """The levels that a training with ``until`` measured; empty without such a training."""
    facts = read_json(path) if path.exists() else {}
    found = facts.get("levels") if isinstance(facts, dict) else None
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(v, int | float) for v in found.values()):
        raise InputError(f"{path}: `levels` is not a mapping from row ids to numbers.")
    return {str(key): float(value) for key, value in found.items()}
