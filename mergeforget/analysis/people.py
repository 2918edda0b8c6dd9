"""Results for each person or document of the forget set, and tables of all answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mergeforget.analysis.evidence import MissingError, models_shown, read_chosen
from mergeforget.attack.headline import results_of
from mergeforget.attack.result import Result
from mergeforget.attack.variants import entity_of
from mergeforget.data.fields import further_fields
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Answer, Row
from mergeforget.data.sources import read_records
from mergeforget.errors import InputError, suggest
from mergeforget.evaluate.paired import read_patterns
from mergeforget.files import read_jsonl, reading, replacing, write_text
from mergeforget.metrics._leaks import partly_leaked
from mergeforget.metrics._patterns import Patterns
from mergeforget.metrics.leak_rate import can_leak, is_leaked
from mergeforget.parsing import plain_name
from mergeforget.run import Run

OTHER_VARIANT = "questions, another prompt variant"


@dataclass(frozen=True)
class Leak:
    """An answer that a model revealed completely or in part.

    Attributes:
        attack: The attack that revealed it; ``questions`` for the questions of the data.
        part: The revealed part; empty if the whole answer was revealed.
    """

    person: str
    row: str
    attack: str
    prompt: str
    answer: str
    completion: str
    part: str = ""


@dataclass(frozen=True)
class PersonRecord:
    """One person (or document) of the forget set.

    Attributes:
        person: The subject of the rows.
        rows: Number of rows about it.
        before, after: Answers revealed by the base and by the chosen model: (leaks, asked).
        worst_attack: The attack that revealed most rows, with the number of rows.
        rank_before, rank: Rank of the person's loss among the people that are not in the training
            data, 1 for the lowest: (rank, people ranked).
        leaks: Every leak of the chosen model.
        name: The name that most prompts about the person contain; empty if ``person`` is one.
    """

    person: str
    rows: int
    before: tuple[int, int]
    after: tuple[int, int]
    worst_attack: tuple[str, int] | None = None
    rank_before: tuple[int, int] | None = None
    rank: tuple[int, int] | None = None
    leaks: list[Leak] = field(default_factory=list)
    name: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Flat values, for csv and JSON."""
        values = {
            "person": self.person, "name": self.name, "rows": self.rows,
            "leaks_before": self.before[0], "asked_before": self.before[1],
            "leaks_after": self.after[0], "asked_after": self.after[1],
            "worst_attack": self.worst_attack[0] if self.worst_attack else "",
            "rows_leaked_by_worst_attack": self.worst_attack[1] if self.worst_attack else 0,
        }  # fmt: skip
        for name, found in (("before", self.rank_before), ("after", self.rank)):
            values[f"membership_rank_{name}"] = found[0] if found else None
            values[f"people_ranked_{name}"] = found[1] if found else None
        return values


def run_people(run: Run) -> list[PersonRecord]:
    """Return the record of each person of the forget set, those with most leaks first.

    Raises:
        MissingError: The run has no forget set, or no question was evaluated yet.
    """
    chosen, model = read_chosen(run), shown_model(run)
    forget = run.data / "forget.jsonl"
    if not forget.is_file():
        raise MissingError(f"{run.root} has no forget rows. `mergeforget train-pair` writes them.")
    rows = read_rows(forget, split="forget")
    base, now = (forget_answers(run, name, rows) for name in ("base", model))
    if not base and not now:
        raise MissingError(
            f"There are no answers in {run.root}. `mergeforget evaluate {run.root}` generates the "
            "models' answers to the forget rows."
        )
    results = results_of(run, chosen.name if chosen else model)
    ranks = {name: person_ranks(run, name, rows) for name in ("base", model)}
    by_row = {row.id: row for row in rows}
    patterns = read_patterns(run, model)
    listed = [leak for result in results for leak in attack_leaks(result, by_row)]
    records = []
    for person in dict.fromkeys(row.subject for row in rows):
        own = [row for row in rows if row.subject == person]
        asked = [a for a in now if a.row.subject == person]
        leaks = [leak for a in asked if (leak := leak_of(a, person, patterns))]
        attacked = [leak for leak in listed if leak.person == person]
        records.append(
            PersonRecord(
                person,
                len(own),
                _counted([a for a in base if a.row.subject == person], patterns),
                _counted(asked, patterns),
                worst_attack(attacked),
                ranks["base"].get(person),
                ranks[model].get(person),
                [*leaks, *attacked],
                name_of(own),
            )
        )
    return sorted(records, key=lambda p: (-len(p.leaks), -p.after[0], p.person))


def name_of(rows: Sequence[Row]) -> str:
    """Return the name in most prompts about a person whose subject is an id without spaces.

    Empty if fewer than half of the prompts name the same person or thing.
    """
    subject = rows[0].subject
    if " " in subject:
        return ""
    names = Counter(name for row in rows if " " in (name := entity_of(row)))
    name, count = names.most_common(1)[0] if names else ("", 0)
    return name if 2 * count >= len(rows) else ""


def person_record(people: Sequence[PersonRecord], name: str) -> PersonRecord:
    """Return the record of one person.

    Raises:
        InputError: No such person is in the forget set, or several have this name.
    """
    found = [p for p in people if p.person == name] or [p for p in people if p.name == name]
    if len(found) > 1:
        ids = ", ".join(p.person for p in found)
        raise InputError(f"{len(found)} people have the name {name!r}. Name one of them: {ids}.")
    if found:
        return found[0]
    names = [p.name or p.person for p in people]
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    raise InputError(
        f"The forget set has no person {name!r}.{suggest(name, names)} It has: {shown}."
    )


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def person_text(one: PersonRecord) -> str:
    """Return the record of one person as text for a terminal."""
    lines = [
        f"{one.name or one.person}: {_rows(one.rows)} to forget",
        f"Answers revealed: {one.before[0]} of {one.before[1]} before, "
        f"{one.after[0]} of {one.after[1]} after.",
    ]
    if one.worst_attack:
        lines.append(f"Worst attack: {one.worst_attack[0]} ({_rows(one.worst_attack[1])}).")
    for when, rank in (("before", one.rank_before), ("after", one.rank)):
        if rank:
            lines.append(
                f"Membership rank {when}: {rank[0]} of {rank[1]} (1 is the lowest loss; the others "
                "are people who are not in the training data)."
            )
    lines += [
        f"- {leak.attack}, row {leak.row}" + (f", {leak.part} only" if leak.part else "")
        + f": {leak.prompt!r} -> {leak.completion!r}"
        for leak in one.leaks
    ]  # fmt: skip
    return "\n".join(lines if one.leaks else [*lines, "No answer about this person was revealed."])


def shown_model(run: Run) -> str:
    """Return the chosen candidate, or ``under`` before a search."""
    chosen = read_chosen(run)
    return chosen.name if chosen else "under"


def forget_answers(run: Run, model: str, rows: Sequence[Row]) -> list[Answer]:
    """Return a model's answers to the forget rows."""
    known = {row.id: row for row in rows}
    path = run.answers / f"{model}.jsonl"
    with reading(path):
        return [
            Answer(known[str(values["id"])], str(values["completion"]))
            for values in read_jsonl(path)
            if values["split"] == "forget" and str(values["id"]) in known
        ]


def leak_of(answer: Answer, person: str, patterns: Patterns | None = None) -> Leak | None:
    """Return what an answer reveals of the reference; None if it reveals nothing."""
    row = answer.row
    if patterns is not None and not can_leak(row, patterns):
        return None
    whole_answer = is_leaked(answer, patterns)
    part = "" if whole_answer else partly_leaked(row.output, answer.completion, row.prompt)
    if not whole_answer and not part:
        return None
    return Leak(person, row.id, "questions", row.prompt, row.output, answer.completion, part)


def attack_leaks(result: Result, rows: Mapping[str, Row]) -> list[Leak]:
    """Return the leaks that an attack lists, with their rows."""
    leaks = []
    for values in result.examples:
        row = rows.get(str(values.get("row", values.get("id", ""))))
        if row is not None and not values.get("part"):
            prompt, text = (str(values.get(k, "")) for k in ("prompt", "completion"))
            leaks.append(Leak(row.subject, row.id, result.attack, prompt, row.output, text))
    return leaks


def person_ranks(run: Run, model: str, rows: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """Rank each person's mean loss among people outside the training data: (rank, people)."""
    members: dict[str, list[float]] = {}
    others: dict[str, list[float]] = {}
    holdout = run.data / "holdout.jsonl"
    outside = read_rows(holdout, split="holdout") if run.has_holdout else []
    subject = {(True, r.id): r.subject for r in rows} | {(False, r.id): r.subject for r in outside}
    path = run.answers / f"{model}.losses.jsonl"
    for values in read_jsonl(path):
        with reading(path):
            member, row_id = bool(values.get("member")), str(values["id"])
            loss = float(values["nll"])
        side = members if member else others
        person = subject.get((member, row_id), Row(row_id, "", "").subject)
        side.setdefault(person, []).append(loss)
    level = sorted(float(np.mean(v)) for v in others.values())
    if not level:
        return {}
    return {
        person: (1 + int(np.searchsorted(level, float(np.mean(v)), "left")), len(level) + 1)
        for person, v in members.items()
    }


def answer_rows(run: Run) -> list[dict[str, Any]]:
    """Return every prompt and completion of the shown models and of the attacks, flat.

    The prompt of a row is without template; completions in other prompt variants, such as with a
    system message, follow that of the row, with the attack ``OTHER_VARIANT``.
    """
    rows = []
    subjects: dict[tuple[str, str], str] = {}
    for split in ("forget", "retain"):
        path = run.data / f"{split}.jsonl"
        if path.is_file():
            subjects |= {(split, r.id): r.subject for r in read_rows(path, split=split)}
    for model in models_shown(run):
        path = run.answers / f"{model}.jsonl"
        for values in read_jsonl(path):
            with reading(path):
                row = Row(str(values["id"]), str(values["input"]), str(values["output"]),
                          **further_fields(values))  # fmt: skip
                split, text = str(values["split"]), str(values["completion"])
                others = list(map(str, values.get("others") or []))
            for number, completion in enumerate([text, *others]):
                leak = leak_of(Answer(row, completion), "")
                rows.append(
                    {
                        "model": model, "attack": OTHER_VARIANT if number else "questions",
                        "split": split, "row": row.id,
                        "person": subjects.get((split, row.id), row.subject), "prompt": row.prompt,
                        "answer": row.output, "completion": completion,
                        "leaked": leak is not None and not leak.part,
                        "part": leak.part if leak else "",
                    }
                )  # fmt: skip
    for result in results_of(run, shown_model(run)):
        rows += _attack_answers(run, result, subjects)
    return rows


def _attack_answers(
    run: Run, result: Result, subjects: Mapping[tuple[str, str], str]
) -> list[dict[str, Any]]:
    """Return every prompt and completion of an attack: of the attacked model and its comparisons.

    An attack without prompts, such as a rounding of the weights, has its leaks only.
    """
    name = result.figures.get("answers")
    stem = plain_name(Path(str(name)).stem, run.attacks / f"{result.attack}.json") if name else ""
    path = run.attacks / "answers" / f"{stem}.parquet"
    if stem and path.is_file():
        listed = [values for _, values in read_records(path)]
        with reading(path):
            for values in listed:
                values["model"], values["leaked"]
    else:
        listed = [{"model": result.model, "leaked": not e.get("part"), **e}
                  for e in result.examples]  # fmt: skip
    rows = []
    for values in listed:
        row = str(values.get("row", values.get("id", "")))
        person = values.get("person") or subjects.get(("forget", row), row)
        rows.append(
            {
                "model": str(values["model"]), "attack": result.attack, "split": "forget",
                "row": row, "person": str(person), "prompt": str(values.get("prompt", "")),
                "answer": str(values.get("secret", values.get("answer", ""))),
                "completion": str(values.get("completion", "")),
                "leaked": bool(values["leaked"]),
                "part": str(values.get("partial") or values.get("part") or ""),
            }
        )  # fmt: skip
    return rows


def write_people(run: Run, folder: Path, people: Sequence[PersonRecord]) -> list[Path]:
    """Write ``people.csv``, ``leaks.csv``, and ``answers`` as csv and parquet.

    Returns:
        The files.
    """
    import pyarrow
    import pyarrow.parquet

    from mergeforget.analysis.findings import to_csv

    answers = answer_rows(run)
    tables = {
        "people.csv": [one.to_dict() for one in people],
        "leaks.csv": [asdict(leak) for one in people for leak in one.leaks],
        "answers.csv": answers,
    }
    for name, rows in tables.items():
        write_text(folder / name, to_csv(rows))
    files = [folder / name for name in tables]
    if answers:
        columns = {key: [row[key] for row in answers] for key in answers[0]}
        with replacing(folder / "answers.parquet") as temporary:
            pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
        files.append(folder / "answers.parquet")
    return files


def base_name(run: Run) -> str:
    """Return the name of the base model in the manifest."""
    base = run.read_manifest().get("base") or {}
    with reading(run.manifest):
        return str(base.get("name") or base.get("path") or run.base())


def _counted(answers: Sequence[Answer], patterns: Patterns) -> tuple[int, int]:
    """Return the number of revealed answers, and of those that could be revealed."""
    secret = [answer for answer in answers if can_leak(answer.row, patterns)]
    return sum(is_leaked(answer, patterns) for answer in secret), len(secret)


def worst_attack(leaks: Sequence[Leak]) -> tuple[str, int] | None:
    """Return the attack that revealed most rows, with the number of rows."""
    rows: dict[str, set[str]] = {}
    for leak in leaks:
        rows.setdefault(leak.attack, set()).add(leak.row)
    if not rows:
        return None
    name = max(rows, key=lambda attack: (len(rows[attack]), attack))
    return name, len(rows[name])
