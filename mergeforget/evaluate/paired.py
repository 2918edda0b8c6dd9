"""Differences between two models that were measured on the same rows, with their intervals.

The intervals of two models overlap easily, because both contain the variation between rows. The
difference on the same rows does not contain it, so it distinguishes models that their own intervals
do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mergeforget.data.fields import further_fields
from mergeforget.data.overlap import plain_text
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Answer, DocumentLoss, Row
from mergeforget.evaluate.texts import read_losses, unit_of
from mergeforget.files import read_jsonl, reading
from mergeforget.metrics._patterns import Patterns
from mergeforget.metrics._rouge import closest_recall
from mergeforget.metrics._statistics import paired_auc_difference, paired_difference
from mergeforget.metrics.leak_rate import is_leaked, patterns_of
from mergeforget.run import Run

Key = tuple[str, str, str]  # split, id and prompt of a row


@dataclass(frozen=True)
class PairedDifference:
    """A score of one model minus that of another, on the rows that both were evaluated on.

    Attributes:
        value: The difference of the scores.
        interval: Its 95 % interval, over people or documents.
        n: Number of rows or documents.
    """

    metric: str
    split: str
    value: float
    interval: tuple[float, float]
    n: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval[0] > 0 or self.interval[1] < 0

    def __str__(self) -> str:
        low, high = self.interval
        name = f"{self.metric.replace('_', ' ')} ({self.split})"
        return f"{name} {self.value:+.3f}, 95 % CI {low:+.3f} to {high:+.3f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"distinguishable": self.distinguishable}


def paired_differences(one: Path, other: Path) -> list[PairedDifference]:
    """Compare two models by the answers and losses that an evaluation or a search wrote.

    Args:
        one, other: ``answers/MODEL.jsonl`` of each model; the losses are in
            ``answers/MODEL.losses.jsonl`` next to it.

    Returns:
        Differences of the share of revealed answers (``leak_rate``) and of ROUGE-L recall on the
        forget and the retain rows, and of the MIA AUC; only those that both models have.
    """
    mine, theirs = read_answers(one), read_answers(other)
    measures: dict[str, Callable[[Answer], float]] = {
        "leak_rate": lambda answer: float(is_leaked(answer)),
        "rouge_l": lambda answer: closest_recall(answer, answer.completion),
    }
    found = []
    for split in ("forget", "retain"):
        shared = [k for k in mine if k in theirs and k[0] == split and mine[k].row.output.strip()]
        subjects = [mine[key].row.subject for key in shared]
        for metric, value in measures.items() if len(set(subjects)) > 1 else ():
            own, others = ([value(every[key]) for key in shared] for every in (mine, theirs))
            difference, interval = paired_difference(own, others, subjects)
            found.append(PairedDifference(metric, split, difference, interval, len(shared)))
    paths = [path.with_name(f"{path.stem}.losses.jsonl") for path in (one, other)]
    if all(path.is_file() for path in paths) and len({unit_of(path) for path in paths}) == 1:
        losses = [read_losses(path) for path in paths]
        if (area := auc_difference(losses[0], losses[1])) is not None:
            found.append(area)
    return found


def read_answers(path: Path) -> dict[Key, Answer]:
    """Read the answers of a model, by split, id and prompt; empty without a file."""
    found = {}
    for values in read_jsonl(path):
        with reading(path):
            name, prompt, output = (str(values[key]) for key in ("id", "input", "output"))
            task = str(values.get("task") or "")
            row = Row(name, prompt, output, task, str(values["split"]), **further_fields(values))
            found[row.split, name, prompt] = Answer(
                row,
                str(values["completion"]),
                tuple(map(str, values.get("others") or ())),
                str(values.get("decoded") or ""),
            )
    return found


def read_forget_answers(path: Path) -> list[Answer]:
    """Read the answers of a model to forget rows; empty without a file."""
    return [answer for answer in read_answers(path).values() if answer.row.split == "forget"]


def read_patterns(run: Run, model: str) -> Patterns:
    """Read the patterns of the retain rows of a run; see ``leak_rate``."""
    return read_with_patterns(run, model)[1]


def read_with_patterns(run: Run, model: str) -> tuple[list[Answer], Patterns, bool]:
    """Read the answers of a model to forget rows, and the patterns of the retain rows.

    Returns:
        The answers; the patterns of all retain rows of the run and of those that were answered; and
        whether some were not answered, so that the stored leak rate lacks their patterns.
    """
    answers = read_answers(run.answers / f"{model}.jsonl").values()
    answered = [answer.row for answer in answers if answer.row.split == "retain"]
    texts, path = set(map(plain_text, answered)), run.data / "retain.jsonl"
    rows = read_rows(path, split="retain") if path.is_file() and path.stat().st_size else []
    others = [row for row in rows if plain_text(row) not in texts]
    forget = [answer for answer in answers if answer.row.split == "forget"]
    return forget, patterns_of([*answered, *others]), bool(others)


def in_variant(losses: Sequence[DocumentLoss], variant: str) -> list[DocumentLoss] | None:
    """Return losses with the NLL in a prompt variant; None if they were measured in others only.

    Losses from an earlier version have no variant and are returned unchanged.

    Args:
        variant: Name of the variant; empty for that of the losses, if there is only one.
    """
    found = []
    for loss in losses:
        nll = loss.by_variant.get(variant, loss.nll)
        same = variant in (loss.variant, *loss.by_variant) or not (loss.variant and variant)
        if not same or (not variant and len(set(loss.by_variant.values())) > 1):
            return None
        found.append(replace(loss, nll=nll, variant=variant or loss.variant, by_variant={}))
    return found


def auc_difference(
    one: Sequence[DocumentLoss], other: Sequence[DocumentLoss], variant: str = ""
) -> PairedDifference | None:
    """Return the MIA AUC of a model minus that of another on their common documents.

    Both are asked with the same prompts: an AUC may differ between prompt variants although neither
    model knows the documents.

    Args:
        variant: Prompt variant; that of the first model's losses by default.

    Returns:
        None if there are fewer than two common members or non-members, or if one of the models was
        not measured in the variant, as far as is known.
    """
    variant = variant or next((d.variant for d in one), "")
    mine, against_them = in_variant(one, variant), in_variant(other, variant)
    several = any(d.by_variant for d in (*one, *other))
    unknown = several and not all(d.variant for d in (*one, *other))
    if mine is None or against_them is None or unknown:
        return None
    theirs: Mapping[tuple[str, bool], float] = {(d.id, d.member): d.nll for d in against_them}
    shared = [d for d in mine if (d.id, d.member) in theirs]
    sides = [[d for d in shared if d.member is member] for member in (True, False)]
    if min(map(len, sides)) < 2:
        return None
    own = [[-d.nll for d in side] for side in sides]
    against = [[-theirs[d.id, d.member] for d in side] for side in sides]
    subjects = [[d.subject or d.id for d in side] for side in sides]
    value, interval = paired_auc_difference(
        (own[0], own[1]), (against[0], against[1]), (subjects[0], subjects[1])
    )
    return PairedDifference("mia_auc", "mia", value, interval, len(shared))
