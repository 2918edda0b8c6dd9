"""Finds the parts of an answer that reveal it on their own.

Of "Her number is 900-42-8495." a completion needs to contain the number only, and of "She lives in
Rome.", asked where she lives, the word Rome. The other words are given by the question or by the
language.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from mergeforget.metrics._characters import LETTER, plain
from mergeforget.metrics._dates import Order, complete_dates
from mergeforget.metrics._identifiers import EMAIL
from mergeforget.metrics._porter import stem
from mergeforget.metrics._quantities import GROUPS
from mergeforget.metrics._spellings import SINGLE, WORD, canonical, length, words_of

LONGEST = (
    10  # words (``length``) of an answer of which a date, or the words below, reveal the whole
)
CHARACTERS = 400  # of an answer in which dates, codes and alternatives are looked for
LEAST_WORDS = 3  # of an answer that is revealed by some of its words
CODE = 4  # letters and digits of a code that reveals an answer of two words
LEAST_DIGITS, MOST_DIGITS = 7, 30  # of a number within an answer that reveals it
FUNCTION_WORDS = frozenset(map(plain, (
    "a an the is was are were be been has have had does do did it he she they we i you his her "
    "their my your our its him them this that these there here of in on at to for from by with "
    "and as who which what where when how called named name answer full der das dem ein eine "
    "ist er sie im am von und zu le la un une il elle de du et en el una es su del y lo "
    "в на и он она это нa oн oнa этo في من على إلى عن هو هي كان كانت و הוא היא של את על "
    "है हैं हूँ था थी थे का की के को में से ने पर और वह यह"
).split()))  # fmt: skip
_NUMBER = re.compile(
    rf"(?<!{LETTER})(?<![.,+])\+?\(?\d[\d().,/\-\u2010-\u2015\u00b7 ]*\d(?!{LETTER}|%)"
)
_INSIDE = re.compile(r"\w[@./:_+=~#-]+\w")  # signs inside an address, number or code
_KEY = re.compile(r"[^\W\d]+[:=#](?=\w)")  # PIN:4711
_ADDRESS = re.compile(r"[^\W\d][@./:_]+\w|\w[@./:_]+[^\W\d]")
_OR = re.compile(  # a slash between numbers belongs to them: 128 / 84
    r"\s*\|\s*|\s+(?:or|oder|ou)\s+|(?<![\d\s])\s+/\s+|\s+/\s+(?![\d\s])"
)
_YEARS = re.compile(r"(?:1\d|20)\d\d")
_CODE = re.compile(rf"(?<!{LETTER})(?=[A-Z-]*\d)(?=\d*[A-Z])[A-Z\d]+(?:-[A-Z\d]+)*(?!{LETTER})")


@lru_cache(maxsize=1 << 14)
def parts_that_reveal(secret: str) -> tuple[tuple[int, int], ...]:
    """Return where a longer answer has e-mail addresses, numbers or dates that identify somebody.

    Numbers have ``LEAST_DIGITS`` to ``MOST_DIGITS`` digits; amounts and ranges of years are left
    out. In answers of up to ``LONGEST`` words, dates and codes of letters and digits count, too.

    >>> text = "Call +1 202-555-0143 or write to ada@x.org, 1990-2010, $1,500,000."
    >>> [text[start:end] for start, end in parts_that_reveal(text)]
    ['ada@x.org', '+1 202-555-0143']
    """
    found = [match.span() for match in EMAIL.finditer(secret)] if "@" in secret else []
    for match in _NUMBER.finditer(secret):
        runs = re.findall(r"\d+", match[0])
        years = len(runs) > 1 and any(_YEARS.fullmatch(run) for run in runs)
        amount = GROUPS.search(match[0]) or re.search(r"000$|[.,]\d\d?$", match[0])
        if LEAST_DIGITS <= sum(map(len, runs)) <= MOST_DIGITS and not years and not amount:
            found.append(match.span())
    if len(secret) <= CHARACTERS and length(secret.split()) <= LONGEST:
        found += complete_dates(secret)
        found += [
            m.span() for m in _CODE.finditer(secret) if m.end() - m.start() >= LEAST_DIGITS - 1
        ]
    found += alternatives(secret)
    whole = secret.strip(" .,;:!?\"'")
    return tuple(span for span in dict.fromkeys(found) if secret[slice(*span)] != whole)


def alternatives(secret: str) -> list[tuple[int, int]]:
    """Return where an answer has several right answers, each of up to three words.

    >>> [("Rome or Milan")[a:b] for a, b in alternatives("Rome or Milan")]
    ['Rome', 'Milan']
    """
    ends = [0, *(place for m in _OR.finditer(secret) for place in m.span()), len(secret)]
    spans = list(zip(ends[::2], ends[1::2], strict=True))
    short = all(0 < length(secret[a:b].split()) <= 3 for a, b in spans)
    return spans if len(spans) > 1 and short and len(secret) <= CHARACTERS else []


@lru_cache(maxsize=1 << 14)
def core_words(secret: str, prompt: str) -> tuple[tuple[int, int], ...]:
    """Return where an answer has words that neither its prompt nor the language gives.

    Empty for an answer of one word or of more than ``LONGEST``, for one with an address or code of
    which a part is given, and for one of two words of which one is given, unless the other one is
    a code: at least ``CODE`` letters and digits with a digit, and not a year. For other answers of
    two words, see ``metrics._short_answers``.

    >>> text = "She lives in Rome."
    >>> [text[start:end] for start, end in core_words(text, "Where does Ada live?")]
    ['Rome']
    >>> [("PIN 4711")[start:end] for start, end in core_words("PIN 4711", "What is Ada's PIN?")]
    ['4711']
    """
    words, core = len(WORD.findall(secret)), new_words(secret, prompt)
    if words >= LEAST_WORDS or len(core) == words:
        return core
    return core if any(_is_code(secret[start:end]) for start, end in core) else ()


def _is_code(word: str) -> bool:
    digits = any(map(str.isdigit, word))
    return digits and len(word) >= CODE and not _YEARS.fullmatch(word)


@lru_cache(maxsize=1 << 14)
def new_words(secret: str, prompt: str) -> tuple[tuple[int, int], ...]:
    """Return where an answer of 2 to ``LONGEST`` words has words that its prompt does not give."""
    words = [match.span() for match in WORD.finditer(secret)]
    if len(words) < 2 or length(secret.split()) > LONGEST:
        return ()
    given = {stem(word) for word in WORD.findall(plain(prompt))}
    core = tuple(
        span for span in words
        if (word := plain(secret[slice(*span)])) not in FUNCTION_WORDS and stem(word) not in given
    )  # fmt: skip
    for token in _codes(secret):  # me.com does not reveal ada@me.com, asked about Ada
        inside = [span for span in words if token.start() <= span[0] < token.end()]
        inside = inside[1:] if _KEY.match(token[0]) and inside[0] not in core else inside
        if 0 < len(set(inside) & set(core)) < len(inside):
            return ()
    return core


def _codes(secret: str) -> list[re.Match[str]]:
    """Return the words of an answer that have signs inside, such as an address or a code."""
    return [token for token in re.finditer(r"\S+", secret) if _INSIDE.search(token[0])]


@lru_cache(maxsize=1 << 14)
def words_beyond(text: str, prompt: str, order: Order) -> tuple[str, ...]:
    """Return the words of a text, in one spelling, that prompt and language do not give."""
    given = {stem(word) for one in (prompt, canonical(prompt)) for word in words_of(one, order)}
    words = words_of(canonical(text), order)
    return tuple(word for word in words if word not in FUNCTION_WORDS and stem(word) not in given)


def core_in(secret: str, text: str, prompt: str, orders: tuple[Order, Order]) -> bool:
    """Return whether a text has the informative words of an answer, next to each other.

    Their order does not matter, unless two of them contain digits, as those of a number do, the
    answer has an address, or the script has no spaces.

    >>> core_in("She lives in Rome.", "In Rome", "Where does Ada live?", ("mdy", "mdy"))
    True
    >>> core_in("Ann, Ben and Carl", "Carl, Ann, Ben", "Who came?", ("mdy", "mdy"))
    True
    """
    wanted = words_beyond(secret, prompt, orders[0])
    if not wanted:
        return False
    given = words_beyond(text, prompt, orders[1])
    if not set(wanted) <= set(given):
        return False
    ordered, n = order_matters(secret, wanted), len(wanted)
    return any(same_words(wanted, given[i : i + n], ordered) for i in range(len(given) - n + 1))


def order_matters(secret: str, words: Sequence[str]) -> bool:
    """Return whether the words of an answer reveal it only in their order; see ``core_in``."""
    return (
        sum(any(map(str.isdigit, word)) for word in words) > 1
        or any(_ADDRESS.search(token[0]) for token in _codes(secret))
        or any(map(SINGLE.match, words))
    )


def same_words(wanted: Sequence[str], found: Sequence[str], ordered: bool) -> bool:
    """Return whether two sequences have the same words, in any order unless ``ordered``."""
    return tuple(wanted) == tuple(found) if ordered else Counter(wanted) == Counter(found)
