"""Sections of a report: the summary, and the answers of several models side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from mergeforget.analysis.evidence import models_shown
from mergeforget.analysis.people import PersonRecord, shown_model, worst_attack
from mergeforget.attack.headline import results_of, run_verdict
from mergeforget.data.schema import Row
from mergeforget.evaluate.verdict import ForgettingVerdict
from mergeforget.files import read_jsonl, reading
from mergeforget.run import Run
from mergeforget.score import Score, find, read_scores

WORD = re.compile(r"[\w@](?:[\w@.'/-]*[\w@])?")
RUN_OF_WORDS = 3  # consecutive words that count as a leak; fewer may be chance
Segment = tuple[str, bool]  # text, and whether it is in the reference answer


@dataclass(frozen=True)
class Comparison:
    """One question and the answer of each model.

    Attributes:
        answers: (model, completion in segments).
    """

    row: Row
    answers: list[tuple[str, list[Segment]]]


def compare_answers(run: Run, limit: int) -> list[Comparison]:
    """Return up to ``limit`` questions of each split that every shown model answered.

    Questions are selected from the tasks in turn.
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
    """Return the first rows, alternating between tasks and kinds of rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.kind), []).append(row)
    longest = max((len(g) for g in groups.values()), default=0)
    turns = [g[i] for i in range(longest) for g in groups.values() if i < len(g)]
    return turns[:limit]


def matching_parts(completion: str, reference: str, prompt: str) -> list[Segment]:
    """Split a completion into segments; True marks parts of the reference answer.

    A part is marked if it has three consecutive words, is the whole of a shorter reference, or is a
    word with a digit or an ``@`` (dates, numbers, addresses). At least one of its words must not be
    in the prompt, because repeating the question reveals nothing. Case and punctuation between
    words are ignored.
    """
    completion_words = list(WORD.finditer(completion))
    words = [m[0].casefold() for m in completion_words]
    meant = [m.casefold() for m in WORD.findall(reference)]
    asked = {m.casefold() for m in WORD.findall(prompt)}
    spans = []
    blocks = SequenceMatcher(None, words, meant, autojunk=False).get_matching_blocks()
    for start, _, size in blocks:
        for low, high in _telling(words[start : start + size], asked, len(meant)):
            spans.append(
                (completion_words[start + low].start(), completion_words[start + high - 1].end())
            )
    return _segments(completion, spans)


def _telling(block: list[str], asked: set[str], whole: int) -> list[tuple[int, int]]:
    """Return the ranges of a matching block that reveal part of the answer."""
    if len(block) >= min(RUN_OF_WORDS, max(1, whole)) and not set(block) <= asked:
        return [(0, len(block))]
    return [
        (i, i + 1)
        for i, word in enumerate(block)
        if word not in asked and ("@" in word or any(c.isdigit() for c in word))
    ]


def _segments(text: str, spans: list[tuple[int, int]]) -> list[Segment]:
    segments: list[Segment] = []
    at = 0
    for start, end in spans:
        segments += [(text[at:start], False)] * (start > at) + [(text[start:end], True)]
        at = end
    return segments + [(text[at:], False)] * (at < len(text))


def _completions(run: Run, model: str) -> dict[tuple[str, str], tuple[Row, str]]:
    """Return row and completion of one model by (split, id)."""
    completions = {}
    path = run.answers / f"{model}.jsonl"
    for values in read_jsonl(path):
        with reading(path):
            fields = ("id", "input", "output", "split")
            texts: dict[str, Any] = {k: str(values[k]) for k in fields}
            row = Row(**texts, task=str(values.get("task", "")))
            completions[_key(row)] = (row, str(values["completion"]).strip())
    return completions


def _key(row: Row) -> tuple[str, str]:
    return row.split, row.id


@dataclass(frozen=True)
class Summary:
    """The first screen of a report.

    Attributes:
        subjects: Numbers of people or documents and of rows to forget.
        leaks: Number of answers still revealed, and the worst attack.
        retention: Retained answers before and after.
        ability: General ability before and after.
        uncertain: Questions that the measurements leave open.
        attacks: (attack, finding, verdict) of each attack on the model.
    """

    verdict: ForgettingVerdict
    subjects: str
    leaks: str
    retention: str
    ability: str
    uncertain: list[str]
    attacks: list[tuple[str, str, str]]


def summary_of(run: Run, people: Sequence[PersonRecord]) -> Summary:
    """Return the first screen: verdict, leaks, retention, cost and uncertainty."""
    model = shown_model(run)
    scores = read_scores(run.scores)
    now, base = scores.get(model, []), scores.get("base", [])
    verdict = run_verdict(run, model)
    results = results_of(run, model)
    rows = sum(p.rows for p in people)
    return Summary(
        verdict,
        f"{len(people)} people or documents, {rows} rows",
        _leaks(people, verdict),
        _before_and_after(
            now, base, ("leak_rate", "knowledge", "exact_match"), "retain", "retained answers"
        )
        or "Retained answers were not measured.",
        _before_and_after(now, base, ("mmlu",), "mmlu", "MMLU accuracy")
        or _before_and_after(now, base, ("model_utility",), "all", "model utility")
        or "General ability was not measured; pass the folder of MMLU with --mmlu.",
        verdict.uncertain,
        [(r.attack, r.finding, r.verdict) for r in results],
    )


def _leaks(people: Sequence[PersonRecord], verdict: ForgettingVerdict) -> str:
    asked = sum(p.after[1] for p in people)
    text = f"{verdict.leaks} of {verdict.asked} forget answers"
    text = text if verdict.asked else "No forget answer was counted"
    if asked:
        before, total = sum(p.before[0] for p in people), sum(p.before[1] for p in people)
        text = f"{sum(p.after[0] for p in people)} of {asked} forget answers when asked directly"
        text += f" ({before} of {total} before)" if total else ""
    worst = [leak for p in people for leak in p.leaks if leak.attack != "questions"]
    if found := worst_attack(worst):
        text += f"; {found[1]} rows under the attack {found[0]}"
    return text + "."


def _before_and_after(
    now: Sequence[Score], base: Sequence[Score], metrics: Sequence[str], split: str, what: str
) -> str:
    """``95 % of the retained answers before, 80 % after (95 % CI 60 % to 91 %).``"""
    for metric in metrics:
        for part in ("report", "all"):
            after = find(now, metric, split, part=part)
            if after is None:
                continue
            before = find(base, metric, split, part=part)
            text = f"{what[0].upper()}{what[1:]}: "
            text += f"{before.value:.0%} before, " if before else ""
            text += f"{after.value:.0%} after"
            if after.interval:
                text += f" (95 % CI {after.interval[0]:.0%} to {after.interval[1]:.0%})"
            return text + "."
    return ""
