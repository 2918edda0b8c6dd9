"""Finds rows that repeat others: copies within a data set, and rows in two sets.

Texts are compared without regard to case, whitespace and Unicode form.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mergeforget.console import say
from mergeforget.data.schema import Row
from mergeforget.errors import InputError

SHOWN = 5  # maximum number of rows in one message
OPENING = 8  # words of a document that are looked for in other documents
EDGES = " .,;:!?…。．！？、،؟\"'“”‘’«»()[]"


def plain_text(row: Row) -> str:
    """Return the text of a row in the form in which rows are compared.

    >>> plain_text(Row("a", "Where  is it?", "ROME"))
    'where is it? rome'
    """
    return folded(row.document)


def folded(text: str) -> str:
    """Return a text in the form in which texts are compared: case, spaces, Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shared_rows(rows: Sequence[Row], others: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return pairs of a row and another row with the same text, or that contains its document.

    Punctuation around words does not count, nor does a system message that only one of both has.

    >>> rows = [Row("a", "Where does Ann live?", "Rome"), Row("b", "Who is Bob?", "A baker")]
    >>> [(one.id, other.id) for one, other in
    ...  shared_rows(rows, [Row("c", "Where does Ann live?", "Rome.")])]
    [('a', 'c')]
    """
    whole = {_shared_text(row): row for row in rows}
    bare = {_shared_text(row, system=False): row for row in rows if _has_system(row)}
    openings: dict[tuple[str, ...], list[tuple[str, Row]]] = {}
    for text, row in whole.items():
        words = text.split()
        if len(words) >= OPENING and (row.window or not row.prompt):
            openings.setdefault(tuple(words[:OPENING]), []).append((text, row))
    found = []
    for other in others:
        text = _shared_text(other)
        alone = whole.get(_shared_text(other, system=False)) if _has_system(other) else None
        same = whole.get(text) or alone or (None if _has_system(other) else bare.get(text))
        first = same or _contained(text, openings)
        if first is not None:
            found.append((first, other))
    return found


def _contained(text: str, openings: Mapping[tuple[str, ...], list[tuple[str, Row]]]) -> Row | None:
    """Return the row whose document a text contains."""
    words = text.split() if openings else []
    places = (tuple(words[i : i + OPENING]) for i in range(len(words) - OPENING + 1))
    known = (pair for place in places for pair in openings.get(place, ()))
    return next((row for document, row in known if document in text), None)


def _has_system(row: Row) -> bool:
    return any(message.role == "system" for message in row.messages)


def _shared_text(row: Row, system: bool = True) -> str:
    """Return the text in which rows of two sets are compared."""
    if not system:
        row = replace(row, messages=tuple(m for m in row.messages if m.role != "system"))
    return without_punctuation(row.document)


def without_punctuation(text: str) -> str:
    """Return a folded text without the punctuation around its words.

    >>> without_punctuation("Where does  \u201cAnn\u201d live?  In C++, -1.5.")
    'where does ann live in c++ -1.5'
    """
    plain = folded(text)
    return " ".join(filter(None, (word.strip(EDGES) for word in plain.split()))) or plain


def occurs(needle: str, text: str) -> bool:
    """Return whether a folded text contains another one, at word boundaries if its script has them.

    >>> occurs("rome", "romeo and juliet"), occurs("北京", "他住在北京。")
    (False, True)
    """
    if needle not in text:
        return False
    before = r"(?<![^\W_])" if _spaced(needle[0]) else ""
    after = r"(?![^\W_])" if _spaced(needle[-1]) else ""
    return re.search(before + re.escape(needle) + after, text) is not None


def _spaced(character: str) -> bool:
    """Return whether a character is a letter or digit of a script that separates words."""
    name = unicodedata.name(character, "")
    scripts = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
    return character.isalnum() and not name.startswith(scripts)


def originals(rows: Sequence[Row]) -> dict[str, str]:
    """Return the subject that each subject repeats; a subject that repeats none is absent.

    A subject is a copy if all its texts are texts of one other subject. Of subjects with the same
    texts, the first one is the original.

    >>> originals([Row("a", "Who?", "Ada"), Row("b", "who?", "ADA"), Row("c", "Who?", "Bob")])
    {'b': 'a'}
    """
    texts: dict[str, set[str]] = {}
    for row in rows:
        texts.setdefault(row.subject, set()).add(plain_text(row))
    first: dict[frozenset[str], str] = {}
    for subject, own in texts.items():
        first.setdefault(frozenset(own), subject)
    holders: dict[str, set[str]] = {}
    for every, subject in first.items():
        for text in every:
            holders.setdefault(text, set()).add(subject)
    whole = {}  # the subject that has all texts of a set, and most texts
    for every, subject in first.items():
        sides = sorted((holders[text] for text in every), key=len)
        shared = set.intersection(*sides)
        whole[every] = max(sorted(shared), key=lambda s: (len(texts[s]), s == subject))
    found = {subject: whole[frozenset(own)] for subject, own in texts.items()}
    return {subject: original for subject, original in found.items() if subject != original}


def distinct_rows(rows: Sequence[Row], source: object = "") -> list[Row]:
    """Return the rows without copies, with a message that names them.

    A copy adds no evidence, but would narrow intervals, make p-values smaller, and could be
    in another split than its original. Copies are rows of a subject that repeats another one, and
    repeated rows of one subject. A person that shares some answers with another is not a copy.

    Args:
        source: File of the rows, for the message.
    """
    copied = originals(rows)
    by_text: dict[tuple[str, str], Row] = {}
    copies: list[tuple[Row, Row]] = []
    for row in rows:  # the originals first: a copy may be before its original
        if row.subject not in copied:
            first = by_text.setdefault((row.subject, plain_text(row)), row)
            copies += [(row, first)] if first is not row else []
    copies += [(row, by_text[copied[row.subject], plain_text(row)])
               for row in rows if row.subject in copied]  # fmt: skip
    if not copies:
        return list(rows)
    pairs = ", ".join(f"{copy.id} = {first.id}" for copy, first in copies[:SHOWN])
    more = f" and {len(copies) - SHOWN} more" if len(copies) > SHOWN else ""
    say(
        f"Note: {source}: {len(copies)} of {len(rows)} rows repeat others and count once: "
        f"{pairs}{more}."
    )
    left_out = {id(copy) for copy, _ in copies}
    return [row for row in rows if id(row) not in left_out]


def with_copies(rows: Sequence[Row], source: object = "") -> list[Row]:
    """Return all rows, each copy with the subject of its original, and a message about copies.

    For scores whose published values count every row. Rows of one subject are one cluster, so
    copies do not narrow the intervals.

    Args:
        source: File of the rows, for the message.
    """
    copied = originals(rows)
    found = [replace(row, subject=copied.get(row.subject, row.subject)) for row in rows]
    copies = len(found) - len(without_copies(found))
    if copies and source:
        say(
            f"Note: {source}: {copies} of {len(rows)} rows repeat others. Each counts, as in the "
            "published code of the benchmark; intervals and the leak rate count them once."
        )
    return found


def without_copies(rows: Sequence[Row]) -> list[Row]:
    """Return the first of the rows with the same subject and text, without a message."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        first.setdefault((row.subject, plain_text(row)), row)
    return list(first.values())


def check_overlap(sets: Mapping[str, Sequence[Row]], names: Mapping[str, object] = {}) -> None:  # noqa: B006
    """Raise an error for rows that are in two sets.

    Args:
        sets: Rows by split.
        names: Name of each split in messages, for example its file.

    Raises:
        InputError: The text of a row is in two sets; see ``shared_rows``.
    """
    every = list(sets)
    for i, one in enumerate(every):
        for other in every[i + 1 :]:
            shared = shared_rows(sets[one], sets[other])
            if shared:
                pairs = [f"{first.id} = {second.id}" for first, second in shared[:SHOWN]]
                more = f" and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
                raise InputError(
                    f"{len(shared)} rows are in both {names.get(one, one)} and "
                    f"{names.get(other, other)}: {', '.join(pairs)}{more}. Remove them from one of "
                    "the two: a row cannot be both forgotten and kept, and holdout rows must not "
                    "be in the training data."
                )
