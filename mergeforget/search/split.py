"""Divide the data into a selection split, which selects the candidate, and a report split.

Retain rows and non-members are samples of larger populations, so a score on the rows that selected
the candidate is biased, and the report uses other rows. The forget rows are in both splits: they
are everything that is to be forgotten, and the verdict is about these rows only. If they were
divided, the candidate would be chosen on one part of the request and judged on the other: with 12
rows, the AUC of every candidate of a search differed by 0.11 to 0.24 between the parts.

With few non-members, the halves of a random split differ, too: one half is easier to any model, so
that a candidate with an AUC of 0.5 on one half has another one on the other half. If the NLL of the
non-members under the base is known, the splits therefore get one of each two rows that are next to
each other by NLL, drawn at random. The base never saw these rows, and the draw does not depend on
any candidate, so the report stays unbiased.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from mergeforget.console import say
from mergeforget.data.overlap import distinct_rows
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import DocumentLoss, Measured, Row
from mergeforget.data.transforms import limit_rows
from mergeforget.data.twins import imitated_name
from mergeforget.errors import InputError
from mergeforget.evaluate.measure import membership_documents
from mergeforget.evaluate.membership import matched, unseen
from mergeforget.files import jsonl_text, read_json_object, reading
from mergeforget.recipe import EvaluationSpec
from mergeforget.run import Run

PARTS = ("choose", "report")
SHARED = ("forget",)  # splits of the data that are in both parts
Group = tuple[str, str]  # (split, subject): a document; (split, id) in a split of one subject
FEWEST = 2  # non-members, one per split
BY_ANSWERS = "retain if revealed <= 0"  # objective of a search without non-members


def split_measured(
    measured: Measured, share: float, seed: int, difficulty: Mapping[str, float] | None = None
) -> dict[str, Measured]:
    """Split measurements by document, so that rows of one document stay together.

    If all rows of the retain set or all non-members are about one subject, the rows of that set are
    divided instead.

    Args:
        measured: Measurements of any model; the split depends on the rows and ``difficulty`` only.
        share: Fraction of the documents in the selection split, in (0, 1).
        seed: Random seed. Retain rows and non-members are split separately, stratified by task.
        difficulty: NLL of the non-members under the base, in nats per token, by subject, or by id
            if they are about one subject. The splits are matched by it; see ``_blocks``.

    Returns:
        ``choose``, the selection split, and ``report``. Forget rows are in both, since they are
        all that is to be forgotten, and MMLU, since its questions are not part of the data.
    """
    rows = [*(a.row for a in measured.answers), *(x.row for x in measured.likelihoods)]
    lone = lone_subjects([*map(group, rows), *map(loss_group, measured.losses)])
    pairs = [(group(row, lone), row.task) for row in rows]
    pairs += [(loss_group(loss, lone), loss.task) for loss in measured.losses]
    choosing = choosing_subjects(joined_tasks(pairs), share, seed, difficulty)

    def part_of(chooses: bool) -> Measured:
        def has(key: Group) -> bool:
            return key[0] in SHARED or (key in choosing) == chooses

        return replace(
            measured,
            answers=[a for a in measured.answers if has(group(a.row, lone))],
            losses=[x for x in measured.losses if has(loss_group(x, lone))],
            likelihoods=[x for x in measured.likelihoods if has(group(x.row, lone))],
        )

    return {part: part_of(part == "choose") for part in PARTS}


def lone_subjects(groups: Iterable[Group]) -> frozenset[str]:
    """Return the splits whose rows are all about one subject and have to be divided.

    >>> sorted(lone_subjects([("holdout", "Ann"), ("retain", "Bob"), ("retain", "Eve")]))
    ['holdout']
    """
    subjects: dict[str, set[str]] = {}
    for split, subject in groups:
        if split not in SHARED:
            subjects.setdefault(split, set()).add(subject)
    return frozenset(split for split, names in subjects.items() if len(names) == 1)


def check_enough(members: Sequence[Row], nonmembers: Sequence[Row], *, warn: bool = True) -> None:
    """Check that there is a member, and that both splits have non-members.

    Args:
        warn: Print a warning if all non-members are about one subject.

    Raises:
        InputError: There is no member, or there are fewer than two non-members.
    """
    if warn and lone_subjects(map(group, nonmembers)) and len(nonmembers) >= FEWEST:
        say(f"Warning: the non-members are all about one subject ({nonmembers[0].subject[:60]}). "
            f"Its {len(nonmembers)} rows are divided between the selection and the report split, "
            "which are therefore not independent.")  # fmt: skip
    if not members or len(nonmembers) < FEWEST:
        raise InputError(
            f"There are {len(members)} member and {len(nonmembers)} non-member documents. "
            f"Membership inference needs at least one member and {FEWEST} non-members, one for the "
            "selection split and one for the report split. Give more non-members with "
            "--holdout FILE. If documents are skipped because they are incomplete, compare rows "
            "instead: train the pair with --set evaluation.membership=rows."
        )


def joined_tasks(pairs: Iterable[tuple[Group, str]]) -> dict[Group, str]:
    """Return the tasks of each document as one stratum.

    Questions of several tasks about one person are one stratum, so that both splits have the same
    mixture of tasks: e-mail addresses and birth dates are not equally likely to a model, and a
    split with more of one kind shifts the AUC.

    >>> joined_tasks([(("forget", "Ann"), "phone"), (("forget", "Ann"), "birth")])
    {('forget', 'Ann'): 'birth+phone'}
    """
    found: dict[Group, set[str]] = {}
    for key, task in pairs:
        found.setdefault(key, set()).add(task)
    return {key: "+".join(sorted(tasks)) for key, tasks in found.items()}


def choosing_subjects(
    tasks: Mapping[Group, str],
    share: float,
    seed: int,
    difficulty: Mapping[str, float] | None = None,
) -> set[Group]:
    """Draw the documents of the selection split, stratified by split and task, and by difficulty.

    Several twins of one row are a stratum of their own, so that both splits have the same wordings.

    >>> tasks = {("holdout", name): "birth" for name in "abcd"}
    >>> found = choosing_subjects(tasks, 0.5, 0, {"a": 1.0, "b": 7.0, "c": 7.1, "d": 1.2})
    >>> [sum(("holdout", name) in found for name in pair) for pair in ("ad", "bc")]
    [1, 1]
    """
    strata: dict[tuple[str, str], list[Group]] = {}
    twins = Counter(imitated_name(name) for split, name in tasks if split == "holdout")
    for key in sorted(tasks):
        origin = imitated_name(key[1]) if key[0] == "holdout" else ""
        stratum = f"{tasks[key]} {origin}" if origin and twins[origin] > 1 else tasks[key]
        strata.setdefault((key[0], stratum), []).append(key)
    chosen: set[Group] = set()
    for split in sorted({split for split, _ in strata}):
        within = {task: keys for (s, task), keys in sorted(strata.items()) if s == split}
        known = difficulty if split == "holdout" and difficulty else {}
        chosen |= _draw(within, share, f"{seed}-{split}", known)
    return chosen


def group(row: Row, lone: Collection[str] = frozenset()) -> Group:
    """Return what a row is split by: (split, subject), or (split, id) in the splits of ``lone``."""
    return row.split, row.id if row.split in lone else row.subject


def loss_group(loss: DocumentLoss, lone: Collection[str] = frozenset()) -> Group:
    """Return what a loss is split by, as ``group``; members belong to the forget split."""
    split = "forget" if loss.member else "holdout"
    return split, loss.id if split in lone else loss.subject


def _draw(
    strata: dict[str, list[Group]], share: float, seed: str, difficulty: Mapping[str, float]
) -> set[Group]:
    """Draw ``share`` of each block; rounding errors do not add up over the blocks."""
    target, chosen = 0.0, set[Group]()
    total = sum(map(len, strata.values()))
    for name, keys in _blocks(strata, share, difficulty):
        target += share * len(keys)
        take = min(len(keys), max(0, round(target) - len(chosen)))
        random.Random(f"{seed}-{name}").shuffle(keys)
        chosen |= set(keys[:take])
    if total > 1 and len(chosen) in (0, total):  # neither split may be empty
        all_keys = [key for keys in strata.values() for key in keys]
        chosen ^= {all_keys[-1] if chosen else all_keys[0]}
    return chosen


def _blocks(
    strata: dict[str, list[Group]], share: float, difficulty: Mapping[str, float]
) -> Iterator[tuple[str, list[Group]]]:
    """Yield the strata, or, if the difficulty of any is known, pairs of similar difficulty.

    The pairs are ordered by task and difficulty; a task with an odd number of documents shares a
    pair with the next more difficult one. Unknown documents, such as those that another seed draws,
    have the median of the others. If ``share`` is not a half, the blocks are larger.
    """
    every = [key for keys in strata.values() for key in keys]
    known = [difficulty[key[1]] for key in every if key[1] in difficulty]
    if not known:
        yield from strata.items()
        return
    level = {key: difficulty.get(key[1], median(known)) for key in every}
    by_task = sorted(
        strata.values(), key=lambda keys: sum(map(level.__getitem__, keys)) / len(keys)
    )
    ordered = [key for keys in by_task for key in sorted(keys, key=lambda key: (level[key], key))]
    size = max(2, round(1 / min(share, 1 - share)))
    for start in range(0, len(ordered), size):
        yield str(start), ordered[start : start + size]


def count(losses: Iterable[DocumentLoss]) -> tuple[int, int]:
    """Count members and non-members."""
    kinds = [loss.member for loss in losses]
    return sum(kinds), len(kinds) - sum(kinds)


@dataclass(frozen=True)
class SearchData:
    """Rows that every candidate answers, and the documents of membership inference.

    Attributes:
        holdout: Text of a new ``data/holdout.jsonl`` with the non-members; empty if the run has
            its own.
        levels: NLL under the base of the twins of ``forget`` and ``unseen`` rows, each by row id,
            if a training with ``until`` measured it.
        total: Number of forget rows before ``evaluation.limit``; None if unknown.
        difficulty: NLL of the non-members under the base, if a training measured it; see
            ``split_measured``.
    """

    forget: list[Row]
    retain: list[Row]
    members: list[Row]
    nonmembers: list[Row]
    holdout: str = ""
    levels: dict[str, dict[str, float]] = field(default_factory=dict)
    total: int | None = None
    difficulty: dict[str, float] = field(default_factory=dict)

    @property
    def evaluated(self) -> tuple[int, int] | None:
        """Number of forget rows that a search evaluates, and number of rows to forget."""
        return None if self.total is None else (len(self.forget), self.total)

    def _rows(self) -> list[Row]:
        return [*self.forget, *self.retain, *self.members, *self.nonmembers]

    def lone(self) -> frozenset[str]:
        """Return the splits whose rows are all about one subject; see ``split_measured``."""
        return lone_subjects(map(group, self._rows()))

    def choosing(self, share: float, seed: int, figures: Collection[str]) -> SearchData:
        """Return the part of the selection split that the figures of an objective need.

        It has the same rows as ``split_measured``, so the scores are equal up to rounding.
        """
        rows, lone = self._rows(), self.lone()
        tasks = joined_tasks((group(row, lone), row.task) for row in rows)
        chosen = choosing_subjects(tasks, share, seed, self.difficulty)
        same = {"mia_level": "mia", "revealed": "forget"}
        figures = {same.get(name, name) for name in figures}
        aggregated = not figures <= {"mia", "retain", "forget"}

        def part(of: list[Row], figure: str) -> list[Row]:
            read = aggregated or figure in figures
            return [
                row for row in of if read and (row.split in SHARED or group(row, lone) in chosen)
            ]

        return SearchData(
            part(self.forget, "forget"),
            part(self.retain, "retain"),
            part(self.members, "mia"),
            part(self.nonmembers, "mia"),
            levels=self.levels,
            difficulty=self.difficulty,
        )


def load_data(
    run: Run,
    spec: EvaluationSpec,
    holdout: Path | None,
    seed: int,
    *,
    warn: bool = True,
    membership: bool = True,
) -> SearchData:
    """Read the rows of a run, with non-members that match its members.

    Args:
        holdout: File of rows that were never trained on, instead of the run's own; a copy of these
            changes nothing.
        seed: Random seed of the draw if there are more rows than needed.
        warn: Print a warning if all non-members are about one subject.
        membership: Refuse a run without non-members; else it has neither members nor non-members.

    Raises:
        InputError: There are no members, or too few non-members.
    """
    saved_holdout = run.data / "holdout.jsonl"
    if holdout is None and not run.has_holdout and membership:
        raise InputError(
            f"{run.root} has no non-members: membership inference compares the forget set with "
            "rows of the same kind that were never trained on. Give such rows with --holdout FILE, "
            f"or choose by answers alone: --objective '{BY_ANSWERS}'. "
            "`mergeforget train-pair --limit N` uses the rows beyond the limit as non-members."
        )
    forget, retain = (
        distinct_rows(read_rows(file, split=split), file)
        for split in ("forget", "retain")
        for file in (run.data / f"{split}.jsonl",)
    )
    if holdout is None and not run.has_holdout:
        asked, kept = (limit_rows(rows, spec.limit, seed)[0] for rows in (forget, retain))
        return SearchData(asked, kept, [], [], total=len(forget))
    file = holdout or saved_holdout
    outside = distinct_rows(read_rows(file, split="holdout"), file)
    outside = unseen(outside, [*forget, *retain], file)
    members, nonmembers = matched(
        membership_documents(forget, spec.membership),
        membership_documents(outside, spec.membership),
        seed,
    )
    check_enough(members, nonmembers, warn=warn)
    given = "" if holdout is None else jsonl_text(row.to_dict() for row in outside)
    if given and run.has_holdout and saved_holdout.read_bytes() == given.encode("utf-8"):
        given = ""  # the run's own rows, whose split stays the same
    return SearchData(
        limit_rows(forget, spec.limit, seed)[0],
        limit_rows(retain, spec.limit, seed)[0],
        members,
        nonmembers,
        given,
        _levels(run.root / "until" / "over.json"),
        total=len(forget),
        difficulty={} if given else _difficulty(run.difficulty),
    )


def _difficulty(path: Path) -> dict[str, float]:
    """Return the NLL of each non-member under the base; empty if no training measured it."""
    found = read_json_object(path) if path.exists() else {}
    with reading(path):
        return {str(name): float(value) for name, value in found.items()}


def _levels(path: Path) -> dict[str, dict[str, float]]:
    """Return the levels that a training with ``until`` measured; empty without such a training."""
    levels = read_json_object(path).get("levels") if path.exists() else None
    if not levels:
        return {}
    if isinstance(levels, dict) and not any(isinstance(v, dict) for v in levels.values()):
        levels = {"forget": levels, "unseen": levels}  # an earlier version: sets share their ids
    with reading(path):
        return {
            str(name): {str(key): float(value) for key, value in of_set.items()}
            for name, of_set in levels.items()
        }
