"""Finds what an answer repeats of its prompt by a pattern that other rows show.

LUME's e-mail addresses consist of the name and ``@me.com``. A model that learned this from the
retain rows gives the right address for any name, so such an answer is not evidence of memory.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from mergeforget.data.schema import Row
from mergeforget.metrics._identifiers import EMAIL
from mergeforget.metrics._leaks import Windows, common_windows, long_runs
from mergeforget.metrics._spellings import canonical, words_of

SUBJECTS = 2  # subjects whose rows have to show a pattern
AGREE = 0.8  # share of the subjects with the same question whose answers have to show it
COMMON = 0.2  # share of the subjects above which a word is not specific to one of them
NAMES = 3  # words of the prompt in a phrase of a long answer that may stand for a name
SLOT = "*"  # stands for one or more words that are specific to the prompt
Words = tuple[str, ...]


class Patterns:
    """Patterns in the prompts and answers of rows that a model may know.

    A pattern is a question and its answer without the words that both have in common, such as
    ``what is * email address`` and ``* me com``. At least two subjects have to show it, and four
    fifths of those who are asked this question. E-mail addresses within a longer answer are
    compared as well, whatever the prompt asks.

    Args:
        rows: Rows that the model may know, such as the retain rows.

    >>> known = Patterns(
    ...     Row(name, f"What is {name}'s email address?", f"{name}@x.org")
    ...     for name in ("ada", "bob", "carl")
    ... )
    >>> known.follows(Row("dora", "What is dora's email address?", "dora@x.org"))
    True
    >>> known.follows(Row("dora", "What is dora's email address?", "dora7@x.org"))
    False
    >>> known.without_addresses("at dora@x.org or in Rome.", "dora can be reached")
    'at  or in Rome.'
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows = rows = list(rows)
        self._documents = [row.document for row in rows]
        self._rows = [(row.output, row.prompt) for row in rows]
        self._frames: dict[int, set[Words]] = {}
        self._common_with: dict[tuple[str, str], Windows] = {}
        seen: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            for word in {*words_of(row.prompt), *words_of(row.output)}:
                seen[word].add(row.subject)
        most = max(SUBJECTS, COMMON * len({row.subject for row in rows}))
        self._common = {word for word, subjects in seen.items() if len(subjects) > most}
        asked: dict[Words, dict[Words, set[str]]] = defaultdict(lambda: defaultdict(set))
        addresses: dict[Words, set[str]] = defaultdict(set)
        for row in rows:
            question, answer = self._pattern(row)
            asked[question][answer].add(row.subject)
            for address in EMAIL.findall(_unescaped(row.output)):
                addresses[self._address(address, row.prompt)].add(row.subject)
        self._answers = {
            (question, answer) for question, answers in asked.items() for answer in _shown(answers)
        }
        self._addresses = _shown(addresses)

    @cached_property
    def common(self) -> Windows:
        """Phrases, numbers and parts of codes of the rows; see ``common_windows``."""
        return common_windows(self._documents)

    def common_with(self, answer: str, prompt: str) -> Windows:
        """Return ``common``, and the phrases of an answer that a row has with its own name.

        >>> text = "As far as we know today, {} works as a teacher at a school."
        >>> rows, answer = [Row("1", "Who is Bob?", text.format("Bob"))], text.format("Ada")
        >>> own = Patterns(rows).common_with(answer, "Who is Ada?") - Patterns(rows).common
        >>> min(map(" ".join, own))
        'as far as we know today ada works as a'
        """
        if (answer, prompt) not in self._common_with:
            framed = set()
            for one, asked in ((answer, prompt), (canonical(answer), canonical(prompt))):
                given = set(words_of(asked)) - self._common
                for run in long_runs(words_of(one)) - self.common:
                    if 0 < sum(word in given for word in run) <= NAMES:
                        frame = self._without(run, words_of(asked))
                        framed |= {run} if frame in self._frames_of(len(frame)) else set()
            self._common_with[answer, prompt] = self.common | framed if framed else self.common
        return self._common_with[answer, prompt]

    def _frames_of(self, size: int) -> set[Words]:
        """Return the phrases of a number of words of the rows, with ``SLOT`` for a name."""
        if size not in self._frames:
            texts = [*self._rows, *([*map(canonical, row)] for row in self._rows)]
            frames = [self._without(words_of(answer), words_of(asked)) for answer, asked in texts]
            self._frames[size] = {one[i : i + size] for one in frames
                                  for i in range(len(one) - size + 1)}  # fmt: skip
        return self._frames[size]

    def follows(self, row: Row) -> bool:
        """Return whether the whole answer of a row follows from its prompt."""
        return bool(self._answers) and self._pattern(row) in self._answers

    def without_addresses(self, text: str, prompt: str) -> str:
        """Return a text without the e-mail addresses that follow from the prompt."""
        if not self._addresses:
            return text

        def rest(match: re.Match[str]) -> str:
            return "" if self._address(match[0], prompt) in self._addresses else match[0]

        return EMAIL.sub(rest, _unescaped(text))

    def _address(self, address: str, prompt: str) -> Words:
        return self._without(words_of(address), words_of(prompt))

    def _pattern(self, row: Row) -> tuple[Words, Words]:
        prompt, answer = words_of(row.prompt), words_of(row.output)
        return self._without(prompt, answer), self._without(answer, prompt)

    def _without(self, words: Sequence[str], others: Sequence[str]) -> Words:
        """Replace the specific words that also occur in other text by ``SLOT``.

        Two consecutive words of one text may be written together in the other.
        """
        given = {*others, *map("".join, zip(others, others[1:], strict=False))}
        pairs = zip(words, words[1:], strict=False)
        given.update(word for pair in pairs if "".join(pair) in given for word in pair)
        found: list[str] = []
        for word in words:
            part = SLOT if word in given and word not in self._common else word
            if part != SLOT or found[-1:] != [SLOT]:
                found.append(part)
        return tuple(found)


def _unescaped(text: str) -> str:
    """Return a text whose e-mail addresses have no Markdown escapes and no ``mailto:``."""
    return text.replace("\\_", "_").replace("mailto:", "")


def _shown(patterns: Mapping[Words, set[str]]) -> set[Words]:
    """Return the patterns with a ``SLOT`` that enough of the subjects show."""
    most = max(SUBJECTS, AGREE * len(set().union(*patterns.values())))
    return {one for one, subjects in patterns.items() if SLOT in one and len(subjects) >= most}
