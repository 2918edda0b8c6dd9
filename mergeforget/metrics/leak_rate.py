"""Share of answers that a model reveals, in any spelling and within any other text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from mergeforget.data.overlap import plain_text
from mergeforget.data.schema import Answer, Measured, Row
from mergeforget.metrics import metric
from mergeforget.metrics._characters import visible
from mergeforget.metrics._core import alternatives, parts_that_reveal
from mergeforget.metrics._identifiers import NUMBER, identifier
from mergeforget.metrics._leaks import WINDOW, leaked
from mergeforget.metrics._patterns import Patterns
from mergeforget.metrics._rows import answers_of, direction, similar_questions, subjects_of
from mergeforget.metrics._short_answers import short_words
from mergeforget.metrics._spellings import WORD, length, words_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.score import Score

DEFINITION = "leak-rate@11"
SHIFTS = 5  # number of other rows whose answers each completion is compared with
NEARBY = 200  # number of following rows of which those with the most similar prompts are used
GUESSABLE = 12  # characters; a shorter answer may be revealed by chance
_AMOUNT = re.compile(r"\W*\d{1,3}(?:[.,' ]?\d{3})*(?:[.,]\d\d?)?(?:\W*|\s?[^\d\s]+)")  # $50,000
COMMON = 3  # subjects with the same answer, which identifies none of them
ALONE = 0.2  # assumed chance of a short answer if all rows are about one subject


@metric("leak_rate", source="verbatim extraction, Carlini et al., arXiv:2202.07646, by _leaks")
def leak_rate(measured: Measured, split: str, task: str = "") -> Score | None:
    """Share of rows whose completion reveals the answer; see ``metrics._leaks.leaked``.

    Unlike exact match, it counts an answer inside a longer sentence or in another spelling. The
    chance level is how often a completion contains the answer of a row about another subject
    (``yes``, a country); see ``chance_of``.

    Rows that cannot leak are excluded: those whose prompt contains the answer, those whose answer
    is punctuation only, and those of the forget set whose answer follows from the prompt by a
    pattern of the retain rows; see ``metrics._patterns.Patterns``.
    """
    patterns = patterns_of(a.row for a in measured.answers) if split == "forget" else Patterns()
    return leak_score(answers_of(measured, split, task), split, patterns, task)


def leak_score(
    answers: Iterable[Answer], split: str, patterns: Patterns, task: str = ""
) -> Score | None:
    """Return the leak rate of answers, given the patterns that the model may know.

    Copies of a row with the same completions count once: a verdict tests the number of leaks.
    """
    rows = [a for a in distinct(answers) if can_leak(a.row, patterns)]
    return mean_score(
        "leak_rate",
        split,
        [float(is_leaked(a, patterns)) for a in rows],
        direction(split),
        subjects=subjects_of(rows),
        task=task,
        chance=chance_of(rows, patterns),
        definition=DEFINITION,
    )


def distinct(answers: Iterable[Answer]) -> list[Answer]:
    """Return the answers without those to copies of a row that have the same completions."""
    return [*{(a.row.subject, plain_text(a.row), a.texts): a for a in answers}.values()]


def patterns_of(rows: Iterable[Row]) -> Patterns:
    """Return the patterns of the retain rows among some rows."""
    return Patterns(row for row in rows if row.split == "retain")


def of_earlier_definition(score: Score) -> bool:
    """Return whether a score is a leak rate by an earlier definition."""
    return score.definition.startswith("leak-rate@") and score.definition != DEFINITION


def can_leak(row: Row, patterns: Patterns | None = None) -> bool:
    """Return whether a completion that repeats the row's answer would count as revealing it.

    Args:
        patterns: Patterns that the model may know; an answer that follows from them is no secret.
    """
    return is_leaked(Answer(row, row.output), patterns)


def is_leaked(answer: Answer, patterns: Patterns | None = None, about: str = "") -> bool:
    """Return whether the completion reveals the row's answer, but prompt and patterns do not.

    The paraphrased and the further answers of a row count as well. Of a long answer, words that the
    retain rows contain too reveal nothing.

    Args:
        about: Prompt to which the completion was generated, if that is not the prompt of the row.
    """
    row = answer.row
    if patterns is not None and patterns.follows(row):
        return False
    for secret in row.references:
        text = answer.completion
        if patterns is not None:
            secret, text = (patterns.without_addresses(one, row.prompt) for one in (secret, text))
        long = len(secret) > 2 * WINDOW or parts_that_reveal(secret)
        common = (patterns.common_with(secret, row.prompt) if patterns is not None and long
                  else frozenset())  # fmt: skip
        if leaked(secret, text, row.prompt, common, about):
            return True
    return False


def chance_of(rows: Sequence[Answer], patterns: Patterns | None = None) -> float:
    """Return the share of completions that contain the answer of another subject.

    Each completion is compared with the answers to the most similar questions about others, because
    an answer about an occupation says nothing about how easily a country is guessed. With several
    prompt variants, the completions of all of them count, as for the row's own answer. Of an
    answer, only the words are judged that its prompt does not give. Numbers, complete dates, e-mail
    addresses (see ``identifier``) and answers of more than ten words never count, unless several
    subjects of these rows and the retain rows have the same, and the result is 0 if a completion
    reveals its own such answer, because chance does not explain it. If no other answer is found in
    the completion of another subject and some are shorter than ``GUESSABLE`` characters, one is
    assumed: a few rows do not show that nobody guesses them. If all rows are about one subject, the
    completions are compared with the answers of its other rows, and the chance of short answers is
    at least ``ALONE``.
    """
    unguessable = _unguessable_of([a.row for a in rows], patterns.rows if patterns else ())
    if any(one and is_leaked(a, patterns) for one, a in zip(unguessable, rows, strict=True)):
        return 0.0
    hits = asked = 0
    alone = len({answer.row.subject for answer in rows}) == 1
    for answer, others in zip(rows, _compared([a.row for a in rows], alone), strict=True):
        for j in others:
            asked += 1
            hits += not unguessable[j] and any(
                is_leaked(Answer(rows[j].row, text), patterns, answer.row.prompt)
                for text in answer.texts
            )
    short = any(
        len(_news_of(a.row).strip()) < GUESSABLE and not one
        for one, a in zip(unguessable, rows, strict=True)
    )
    if alone and short:
        return max(ALONE, hits / asked if asked else 0.0)
    return (hits or float(short)) / asked if asked else 0.0


def _compared(rows: Sequence[Row], alone: bool) -> list[list[int]]:
    """Return, for each row, the places of rows about other subjects with similar prompts."""
    resemble = similar_questions(rows)
    chosen = []
    for i, row in enumerate(rows):
        places = ((i + step) % len(rows) for step in range(1, min(NEARBY, len(rows) - 1) + 1))
        others = [j for j in places if alone or rows[j].subject != row.subject]
        others.sort(key=lambda j: -resemble(i, j))
        chosen.append(others[:SHIFTS])
    return chosen


def _unguessable_of(rows: Sequence[Row], known: Sequence[Row]) -> list[bool]:
    """Return whether each answer identifies its subject, so that chance does not explain it.

    Args:
        known: Rows that the model may know. An answer that many of their subjects have, such as
            the number of an office, identifies nobody either.
    """
    news = [_news_of(row) for row in rows]
    subjects: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for row, text in zip((*rows, *known), (*news, *map(_news_of, known)), strict=True):
        subjects[words_of(text)].add(row.subject)
    return [_unguessable(text) and len(subjects[words_of(text)]) < COMMON for text in news]


def _news_of(row: Row) -> str:
    """Return the words of an answer that its prompt does not give; the answer if it is long."""
    if several := alternatives(row.output):
        return min((row.output[a:b] for a, b in several), key=len)
    core = short_words(row.output, row.prompt)
    if not core:
        return row.output
    text, end = "", core[0][0]
    for start, stop in core:
        between = row.output[end:start]  # the signs of a time or a number are kept
        text += (" " if WORD.search(between) else between) + row.output[start:stop]
        end = stop
    return text


def _unguessable(text: str) -> bool:
    """Return whether no completion contains an answer by chance: it identifies, or is long.

    The zeros at the end of a single number do not count: 50,000 is easier to guess than 54,321.
    """
    text = visible(text)
    number = re.sub(r"\D", "", text) if _AMOUNT.fullmatch(text) else ""
    if number and len(number.rstrip("0")) < NUMBER:
        return False
    return bool(identifier(text)) or length(text.split()) > WINDOW


def with_leaks(scores: Sequence[Score], measured: Measured) -> list[Score]:
    """Return the scores with the leak rates of forget and retain, if these are missing."""
    have = {(s.metric, s.split) for s in scores}
    rates = [leak_rate(measured, s) for s in ("forget", "retain") if ("leak_rate", s) not in have]
    return [*scores, *(s for s in rates if s is not None)]
