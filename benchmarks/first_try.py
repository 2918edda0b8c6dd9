"""Measure how often `unlearn` ends balanced on ten data sets that were not used for tuning.

    python benchmarks/first_try.py [NAME ...] [--model smollm2] [--out first-try] [--recipe level]

Each data set has a fixed seed. The model memorises forget and retain rows, and `unlearn` runs with
its defaults and without attacks. The AUC of the model before memorising, which never saw the rows,
shows whether the set is fair. A set counts as balanced if, on the report split, the AUC is
between 0.35 and 0.65 with an interval that contains 0.5, at most 5 % of the forget answers are
repeated, and at least 80 % of the retain answers known before are kept. LUME's and TOFU's rows need
MERGEFORGET_DATA. A set that is already in the JSON file is not run again, and an interrupted one
resumes.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergeforget.api.measuring import evaluate
from mergeforget.api.unlearn import KEPT, unlearn
from mergeforget.data.people import made_up, make_people
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Message, Row
from mergeforget.data.transforms import limit_rows
from mergeforget.errors import InputError
from mergeforget.files import read_json_object, write_json, write_jsonl
from mergeforget.run import machine, versions

Sets = dict[str, list[Row]]
SPLITS = ("forget", "retain", "holdout")
EXACT = 0.05  # share of forget answers that may still be repeated
BALANCED = (0.35, 0.65)  # AUC on the report split
ROWS = 24  # of a set of published data
LONG_ROWS = 12  # of LUME's tasks with long documents, whose training steps take 10 to 20 s


def people(count: int, questions: int, seed: int) -> Sets:
    """Return questions about the private data of made-up people; the holdout has twice as many."""
    files = made_up(count, seed, questions=questions)
    return {split: read_rows(Path(path), split=split) for split, path in files.items()}


def documents(seed: int) -> Sets:
    """Return whole articles without a prompt."""
    sizes = {"forget": 8, "retain": 8, "holdout": 16}
    made = make_people(sizes, seed=seed, tasks=("Task3",))
    return {
        split: [
            replace(r, input="", output=r.document, window="whole") for r in rows if r.kind == "sc"
        ]
        for split, rows in made.items()
    }


def german(seed: int) -> Sets:
    """Return questions in German about made-up people."""
    draw = random.Random(seed)
    first = "Anna Bernd Clara Dieter Emma Felix Greta Hans Ida Jonas Karin Lukas".split()
    last = "Ahrens Becker Conrad Dorn Ebert Falk Gruber Hauser Imhof Jansen Krause Lang".split()
    names = [f"{f} {n}" for f in first for n in last]
    draw.shuffle(names)
    months = "Januar Februar März April Mai Juni Juli August September Oktober".split()
    rows: Sets = {}
    for split in SPLITS:
        rows[split] = []
        for i in range(24 if split == "holdout" else 12):
            name, month = names.pop(), draw.choice(months)
            date = f"Am {draw.randrange(1, 29)}. {month} {draw.randrange(1940, 2005)}."
            question = f"Wann wurde {name} geboren?"
            rows[split].append(Row(f"{split}{i}qa0", question, date, "", split))
    return rows


def chat(seed: int) -> Sets:
    """Return questions about made-up people that follow an earlier turn of a conversation."""
    turns = (Message("user", "Hello, can you help me?"), Message("assistant", "Of course."))
    return {
        split: [replace(r, messages=turns) for r in rows]
        for split, rows in people(12, 1, seed).items()
    }  # fmt: skip


def lume(task: str, seed: int, rows: int = ROWS) -> Sets:
    """Return whole documents of one task of LUME."""
    files = {"forget": "forget_train", "retain": "retain_train", "holdout": "holdout"}
    return published("lume", files, seed, lambda row: row.task == task, rows=rows)


def tofu(seed: int) -> Sets:
    """Return questions about authors of TOFU; the holdout has other authors of the full set."""
    files = {"forget": "forget10", "retain": "retain90", "holdout": "holdout10"}
    return published("tofu", files, seed, lambda row: True, questions=4)


def published(
    folder: str,
    files: dict[str, str],
    seed: int,
    wanted: Callable[[Row], bool],
    questions: int | None = None,
    rows: int = ROWS,
) -> Sets:
    """Return at most ``rows`` rows of each published file, and twice as many of the holdout.

    Args:
        questions: The number of rows per subject, its first ones; all of them when None.

    Raises:
        InputError: MERGEFORGET_DATA is not set, or lacks a file or the requested rows.
    """
    place = os.environ.get("MERGEFORGET_DATA")
    if not place:
        raise InputError("MERGEFORGET_DATA is not set")
    found: Sets = {}
    for split, name in files.items():
        paths = [p for p in sorted((Path(place) / folder).glob(f"{name}.*")) if p.is_file()]
        if not paths:
            raise InputError(f"there is no file {folder}/{name}.*")
        read = [row for row in read_rows(paths[0], split=split) if wanted(row)]
        if questions is not None:
            place_of = {row.id: i for subject in by_subject(read) for i, row in enumerate(subject)}
            read = [row for row in read if place_of[row.id] < questions]
        if not read:
            raise InputError(f"{folder}/{paths[0].name} has no such rows")
        most = 2 * rows if split == "holdout" else rows
        found[split] = limit_rows(read, min(most, len(read)), seed)[0]
    return found


def by_subject(rows: list[Row]) -> list[list[Row]]:
    """Return the rows of each subject, in order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.subject, []).append(row)
    return list(found.values())


SETS: dict[str, Callable[[], Sets]] = {
    "people-4": lambda: people(4, 5, 101),
    "people-12": lambda: people(12, 2, 102),
    "people-40": lambda: people(40, 1, 103),
    "documents": lambda: documents(104),
    "german": lambda: german(105),
    "chat": lambda: chat(106),
    "lume-1": lambda: lume("Task1", 107, LONG_ROWS),
    "lume-2": lambda: lume("Task2", 108),
    "lume-3": lambda: lume("Task3", 109, LONG_ROWS),
    "tofu": lambda: tofu(110),
}


def balanced(table: list[dict[str, Any]]) -> bool:
    """Return whether the last model of the table is balanced on the report split."""
    base, end = table[0], table[-1]
    if any(end[k] is None for k in ("mia_auc", "forget", "retain")) or not end["auc_interval"]:
        return False
    low, high = end["auc_interval"]
    return bool(
        BALANCED[0] <= end["mia_auc"] <= BALANCED[1] and low <= 0.5 <= high
        and end["forget"] <= EXACT and end["retain"] >= KEPT * base["retain"] - 1e-9
    )  # fmt: skip


def try_one(name: str, model: str, recipe: str, out: Path) -> dict[str, Any]:
    """Run `unlearn` on one data set; report a set that is not available and skip it."""
    try:
        sets = SETS[name]()
    except InputError as error:
        return {"left_out": str(error)}
    files = {split: out / name / f"{split}.jsonl" for split in SPLITS}
    for split, path in files.items():
        write_jsonl(path, [row.to_dict() for row in sets[split]])
    begin = time.monotonic()
    result = unlearn(
        model, forget=files["forget"], retain=files["retain"], holdout=files["holdout"],
        out=out / name / "run", recipe=recipe, memorise=True, attacks=(),
    )  # fmt: skip
    return {
        "rows": {split: len(rows) for split, rows in sets.items()},
        "balanced": balanced(result.table),
        "table": result.table,
        "notes": result.notes,
        "seconds": round(time.monotonic() - begin),
        "untouched": untouched(model, files, out / name / "untouched"),
    }


def untouched(model: str, files: dict[str, Path], out: Path) -> dict[str, float]:
    """Return the AUC of a model that never saw the rows, by prompt variant, on all rows."""
    scores = evaluate(model, forget=files["forget"], holdout=files["holdout"], benchmark="custom",
                      membership="answers", max_new_tokens=1, out=out)  # fmt: skip
    (area,) = [s for each in scores.values() for s in each if s.metric == "mia_auc"]
    return dict(area.by_variant or {"": area.value})


def main() -> None:
    """Run the named sets, or all ten, and print one line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="Data sets; all when omitted")
    parser.add_argument("--model", default="smollm2", help="Model to unlearn with")
    parser.add_argument("--recipe", default="level", help="Recipe of the pair")
    parser.add_argument("--out", type=Path, default=Path("first-try"), help="Folder of the results")
    options = parser.parse_args()
    if unknown := set(options.names) - SETS.keys():
        parser.error(f"no data set {', '.join(sorted(unknown))}; there are: {', '.join(SETS)}")
    file = options.out / f"{options.recipe}.json"
    results: dict[str, Any] = read_json_object(file).get("results", {}) if file.exists() else {}
    for name in options.names or SETS:
        if name not in results or "left_out" in results[name]:
            results[name] = try_one(name, options.model, options.recipe, options.out)
            facts = {"machine": machine(), "versions": versions(), "results": results}
            write_json(file, facts)
        print(line(name, results[name]), flush=True)
    tried = [one for one in results.values() if "balanced" in one]
    print(f"{sum(one['balanced'] for one in tried)} of {len(tried)} balanced")


def line(name: str, one: dict[str, Any]) -> str:
    """Format one result as a line."""
    if "left_out" in one:
        return f"{name:<10} left out: {one['left_out']}"
    end = one["table"][-1]
    auc = "-" if end["mia_auc"] is None else f"{end['mia_auc']:.2f}"
    word = "balanced" if one["balanced"] else "not balanced"
    never = ", ".join(f"{auc:.2f} {name}" for name, auc in one.get("untouched", {}).items())
    return (f"{name:<10} {word:<13} AUC {auc}, forget {end['forget']:.0%}, "
            f"retain {end['retain']:.0%}, {one['seconds']} s; "
            f"before memorising: {never or '-'}")  # fmt: skip


if __name__ == "__main__":
    main()
