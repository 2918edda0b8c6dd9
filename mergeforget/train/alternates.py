"""Alternate answers to the forget questions, for AltPO and EGUP: from a file or the model."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergeforget.console import say
from mergeforget.data.schema import Row
from mergeforget.data.sources import read_records
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.transforms import check_asks
from mergeforget.errors import InputError
from mergeforget.evaluate.generate import generate
from mergeforget.files import read_jsonl, reading, write_jsonl

FILE = "alternates.jsonl"  # in the run folder
QUESTIONS = ("input", "question", "prompt")  # keys of a file, in this order
ANSWERS = ("alternate", "sub_answer", "output", "answer")
TOKENS = 128  # most tokens of a generated answer
REQUEST = (
    "Question: {question}\nAnswer: {answer}\nWrite another answer to this question. Keep its form, "
    "and replace each fact in it by a different, plausible one."
)


def alternate_rows(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Row]],
    folder: Path,
    *,
    file: str | None = None,
    template: PromptTemplate = RAW,
    seed: int = 0,
    resume: bool = False,
) -> list[Row]:
    """Return the forget rows with an alternate answer to each question.

    Args:
        model: The model before unlearning, which writes the answers where there is no ``file``.
        sets: ``forget`` and ``retain``.
        folder: Run folder; the answers are written to ``alternates.jsonl`` there, with their
            origin: ``file``, ``model``, or ``retain`` where the model wrote nothing usable, and the
            answer of a retain row is used.
        file: Records with a question (input, question or prompt) and its answer (alternate,
            sub_answer, output or answer). Several for one question are drawn from.
        seed: Random seed of the draws.
        resume: Read the answers of the run folder, if there are some.

    Raises:
        InputError: A row is a window of a document, the file has no answer to a question, or no
            answer can be found.
    """
    rows = sets["forget"]
    check_asks(rows, "alternate answer")
    known = folder / FILE
    if resume and known.is_file():
        with reading(known):
            answers = {str(line["id"]): str(line["alternate"]) for line in read_jsonl(known)}
            return [replace(row, output=answers[row.id], cut=False) for row in rows]
    if file:
        found = _of_file(Path(file), rows, seed)
    else:
        found = _of_model(model, tokenizer, sets, template, seed)
    write_jsonl(
        known,
        [
            {"id": row.id, "input": row.prompt, "alternate": text, "origin": origin}
            for row, (text, origin) in zip(rows, found, strict=True)
        ],
    )
    return [
        replace(row, output=text, cut=False) for row, (text, _) in zip(rows, found, strict=True)
    ]


def _of_file(path: Path, rows: Sequence[Row], seed: int) -> list[tuple[str, str]]:
    known: dict[str, list[str]] = {}
    for line, record in read_records(path):
        question = next((record[k] for k in QUESTIONS if k in record), None)
        answer = next((record[k] for k in ANSWERS if k in record), None)
        if question is None or answer is None or not str(answer).strip():
            raise InputError(
                f"{path}, line {line}: expected a question ({', '.join(QUESTIONS)}) and another "
                f"answer to it ({', '.join(ANSWERS)}), and found the keys {', '.join(record)}."
            )
        known.setdefault(_key(str(question)), []).append(str(answer))
    drawn = random.Random(seed)
    answers = []
    for row in rows:
        alternates = [text for text in known.get(_key(row.input), []) if not _repeats(text, row)]
        if not alternates:
            raise InputError(
                f"{path} has no alternate answer to the question of row {row.id}: "
                f"{row.input[:60]!r}. "
                "Add one, or leave out alternates, and the model writes them."
            )
        answers.append((drawn.choice(alternates), "file"))
    return answers


def _of_model(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Row]],
    template: PromptTemplate,
    seed: int,
) -> list[tuple[str, str]]:
    rows = sets["forget"]
    ending = "" if template.kind == "chat" else "\nOther answer:"
    asked = [
        replace(row, input=REQUEST.format(question=row.input, answer=row.output) + ending)
        for row in rows
    ]
    longest = max(len(tokenizer(row.output)["input_ids"]) for row in rows)
    generated = generate(
        model,
        tokenizer,
        asked,
        template=template,
        max_new_tokens=min(TOKENS, 2 * longest + 8),
        label="Other answers",
    )
    drawn = random.Random(seed)
    spare = [row.output for row in sets.get("retain", ()) if row.output.strip()]
    found = []
    for row, text in zip(rows, generated, strict=True):
        answer = text.strip().split("\n")[0].strip()
        if answer and not _repeats(answer, row):
            found.append((answer, "model"))
            continue
        other = [text for text in spare if not _repeats(text, row)]
        if not other:
            raise InputError(
                f"The model wrote no alternate answer to row {row.id}, and no retain row has one. "
                "Give a file of alternate answers: train.alternates."
            )
        found.append((drawn.choice(other), "retain"))
    if borrowed := sum(origin == "retain" for _, origin in found):
        say(
            f"The model wrote no usable alternate answer to {borrowed} of {len(rows)} forget rows; "
            "answers of retain rows are used for them. To choose them yourself, give a file: "
            "train.alternates."
        )
    return found


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()


def _repeats(text: str, row: Row) -> bool:
    """Return whether a text contains the answer that must be forgotten."""
    secret = re.escape(_key(row.output).strip(" ."))
    return re.search(rf"(?<!\w){secret}(?!\w)", _key(text)) is not None
