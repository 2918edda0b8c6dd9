"""The same questions before and after: what each model answers, and which parts leak."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from mergeforget.analysis.evidence import models_shown
from mergeforget.data.schema import Row
from mergeforget.files import read_jsonl
from mergeforget.run import Run

WORD = re.compile(r"[\w@](?:[\w@.'/-]*[\w@])?")
RUN_OF_WORDS = 3  # fewer in a row are chance, unless they identify somebody
Segment = tuple[str, bool]  # text, and whether it is in the reference answer


@dataclass(frozen=True)
class Comparison:
    """One question, and what each model answers.

    Attributes:
        answers: (model, its completion in segments).
    """

    row: Row
    answers: list[tuple[str, list[Segment]]]


def compare_answers(run: Run, limit: int) -> list[Comparison]:
    """Up to ``limit`` questions of each split that every shown model answered.

    The tasks take turns, so that none crowds out the others.
    """
    answered = {s: _completions(run, s) for s in models_shown(run)}
    answered = {model: found for model, found in answered.items() if found}
    if not answered:
        return []
    first, *others = answered.values()
    shared = [row for row, _ in first.values() if all(_key(row) in found for found in others)]
    return [
        Comparison(
            row,
            [
                (s, matching_parts(found[_key(row)][1], row.output, row.input))
                for s, found in answered.items()
            ],
        )
        for split in ("forget", "retain")
        for row in take_turns([r for r in shared if r.split == split], limit)
    ]


def take_turns(rows: list[Row], limit: int) -> list[Row]:
    """The first rows, one of each task and kind after the other."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.kind), []).append(row)
    longest = max((len(g) for g in groups.values()), default=0)
    turns = [g[i] for i in range(longest) for g in groups.values() if i < len(g)]
    return turns[:limit]


def matching_parts(completion: str, reference: str, prompt: str) -> list[Segment]:
    """Cut a completion into segments; True where it repeats the reference answer.

    A part counts when it is three words in a row, the whole of a shorter reference, or a word with
    a digit or an ``@`` (dates, numbers, addresses), and when a word of it is not in the prompt:
    repeating the question gives nothing away. Case and punctuation between words do not matter.
    """
    said = list(WORD.finditer(completion))
    words = [m[0].casefold() for m in said]
    meant = [m.casefold() for m in WORD.findall(reference)]
    asked = {m.casefold() for m in WORD.findall(prompt)}
    spans = []
    blocks = SequenceMatcher(None, words, meant, autojunk=False).get_matching_blocks()
    for start, _, size in blocks:
        for low, high in _telling(words[start : start + size], asked, len(meant)):
            spans.append((said[start + low].start(), said[start + high - 1].end()))
    return _segments(completion, spans)


def _telling(block: list[str], asked: set[str], whole: int) -> list[tuple[int, int]]:
    """Ranges of a matching block that give something away."""
    if len(block) >= min(RUN_OF_WORDS, max(1, whole)) and not set(block) <= asked:
        return [(0, len(block))]
    return [
        (i, i + 1)
        for i, word in enumerate(block)
        if word not in asked and ("@" in word or any(c.isdigit() for c in word))
    ]


def _segments(text: str, spans: list[tuple[int, int]]) -> list[Segment]:
    found: list[Segment] = []
    at = 0
    for start, end in spans:
        found += [(text[at:start], False)] * (start > at) + [(text[start:end], True)]
        at = end
    return found + [(text[at:], False)] * (at < len(text))


def _completions(run: Run, model: str) -> dict[tuple[str, str], tuple[Row, str]]:
    """(split, id) -> row and completion of one model."""
    found = {}
    for values in read_jsonl(run.answers / f"{model}.jsonl"):
        fields = ("id", "input", "output", "task", "split")
        texts: dict[str, Any] = {k: str(values.get(k, "")) for k in fields}
        row = Row(**texts)
        found[_key(row)] = (row, str(values.get("completion", "")).strip())
    return found


def _key(row: Row) -> tuple[str, str]:
    return row.split, row.id
