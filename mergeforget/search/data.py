"""What a search measures with: forget and retain rows, members and non-members."""

from __future__ import annotations

from collections.abc import Set as Collection
from dataclasses import dataclass
from pathlib import Path

from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.data.transforms import limit_rows
from mergeforget.errors import InputError
from mergeforget.evaluate.measure import membership_documents
from mergeforget.evaluate.membership import matched, unseen
from mergeforget.files import jsonl_text
from mergeforget.recipe import EvaluationSpec
from mergeforget.run import Run
from mergeforget.search.split import Group, check_enough, choosing_subjects, group


@dataclass(frozen=True)
class SearchData:
    """Rows that every candidate answers, and documents that tell members from non-members.

    Attributes:
        holdout: the text of a new ``data/holdout.jsonl``, of which the non-members are; empty
            where they are of the run's own.
    """

    forget: list[Row]
    retain: list[Row]
    members: list[Row]
    nonmembers: list[Row]
    holdout: str = ""

    def choosing(self, share: float, seed: int, figures: Collection[str]) -> SearchData:
        """The half that chooses, and of it only what an objective's figures read.

        The documents are those of ``halves.halve``, so that a figure is the same but for rounding.
        """
        rows = [*self.forget, *self.retain, *self.members, *self.nonmembers]
        tasks: dict[Group, str] = {}
        for row in rows:
            tasks.setdefault(group(row), row.task)
        chosen = choosing_subjects(tasks, share, seed)
        aggregated = not figures <= {"mia", "retain", "forget"}

        def part(of: list[Row], figure: str) -> list[Row]:
            read = aggregated or figure in figures
            return [row for row in of if read and group(row) in chosen]

        return SearchData(
            part(self.forget, "forget"),
            part(self.retain, "retain"),
            part(self.members, "mia"),
            part(self.nonmembers, "mia"),
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
    )
