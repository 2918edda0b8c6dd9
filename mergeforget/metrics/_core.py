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
from itertools import pairwise

from mergeforget.metrics._characters import LETTER, plain
from mergeforget.metrics._dates import Order, complete_dates
from mergeforget.metrics._identifiers import EMAIL
from mergeforget.metrics._porter import stem
from mergeforget.metrics._quantities import GROUPS, UNIT_WORD
from mergeforget.metrics._spellings import SINGLE, WORD, canonical, length, words_of

LONGEST = 10  # words (``length``) of an answer of which the words below reveal the whole
SENTENCE = 30  # words of an answer of which a date reveals the whole
CHARACTERS = 400  # of an answer in which dates, codes and alternatives are looked for
LEAST_WORDS = 3  # of an answer that is revealed by some of its words
CODE = 4  # letters and digits of a code that reveals an answer of two words
LEAST_ITEMS, BETWEEN_ITEMS = 3, 12  # items of a list; words between two of them
LEAST_DIGITS, MOST_DIGITS = 7, 30  # of a number within an answer that reveals it
FUNCTION_WORDS = frozenset(map(plain, (
    "a an the is was are were be been has have had does do did it he she they we i you his her "
    "their my your our its him them this that these there here of in on at to for from by with "
    "and as who which what where when how called named name answer full der das dem ein eine "
    "ist er sie im am von und zu le la un une il elle de du et en el una es su del y lo "
    "в на и он она это нa oн oнa этo في من على إلى عن هو هي كان كانت و הוא היא של את על "
    "है हैं हूँ था थी थे का की के को में से ने पर और वह यह"
).split()))  # fmt: skip
NEGATIONS = frozenset("not never no none nicht nie kein keine pas jamais nunca".split())
WEAK_WORDS = NEGATIONS | set("only very also quite really too".split())  # "I do not know."
_NUMBER = re.compile(
    rf"(?<!{LETTER})(?<![.,+])\+?\(?\d[\d().,/\-\u2010-\u2015\u00b7 ]*\d(?!{LETTER}|%)"
)
_CAPITAL_A = re.compile(r"(?<=[^\W\d] )A(?![\w.'\u2019+-])")  # Nguyen Van A is not Nguyen Van B
_INSIDE = re.compile(r"\w[@./:_+=~#-]+\w")  # signs inside an address, number or code
_KEY = re.compile(r"[^\W\d]+[:=#](?=\w)")  # PIN:4711
_ADDRESS = re.compile(r"[^\W\d][@./:_]+\w|\w[@./:_]+[^\W\d]")
_OR = re.compile(  # a slash between numbers belongs to them: 128 / 84
    r"\s*\|\s*|\s+(?:or|oder|ou)\s+|(?<![\d\s])\s+/\s+|\s+/\s+(?![\d\s])"
)
_YEARS = re.compile(r"(?:1\d|20)\d\d")
_CODE = re.compile(rf"(?<!{LETTER})(?=[A-Z-]*\d)(?=\d*[A-Z])[A-Z\d]+(?:-[A-Z\d]+)*(?!{LETTER})")
_LONG_CODE = re.compile(  # DE89 3704 0044, AB 12 34 56 C, sk-4f9a8b7c, 3f2504e0-4f89-11d3
    r"(?<![\w@])(?:[A-Z]{2}(?:\d\d)?(?: [A-Z\d]{2,4}){2,8}(?: [A-Z\d]{1,3})?"
    r"|[A-Za-z\d]{1,99}(?:[-_.:/&+=~#%!$]{1,3}[A-Za-z\d]{1,99}){0,20})(?![\w@])"
)
_BETWEEN_ITEMS = re.compile(
    r"\s*[,;\n|\u3001\uff0c\uff1b\u060c]\s*(?:(?:and|und|et|y|e|or|&)\s+)?"
    r"|\s+(?:and|und|et|y|e|&|\u0438)\s+|\s+[-*\u2022]\s+"
)
_SIZE = re.compile(r"[\d.,]+(?:[x\u00d7][\d.,]+)+|[\d.,]+-?(?P<unit>[^\W\d]+)")
LONG_CODE, CODE_DIGITS, CODE_CHANGES = 8, 6, 5  # characters, digits, and changes of a code


@lru_cache(maxsize=1 << 14)
def parts_that_reveal(secret: str) -> tuple[tuple[int, int], ...]:
    """Return where a longer answer has e-mail addresses, numbers or dates that identify somebody.

    Numbers have ``LEAST_DIGITS`` to ``MOST_DIGITS`` digits; amounts and ranges of years are left
    out. Codes of letters and digits, such as an IBAN, a key or a UUID, count if they are long and
    look random (``_is_random``). In answers of up to ``SENTENCE`` words, dates count, too, and in
    those of up to ``LONGEST`` words, shorter codes.

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
    found += [m.span() for m in _LONG_CODE.finditer(secret) if _is_random(m[0])]
    words = length(secret.split()) if len(secret) <= CHARACTERS else SENTENCE + 1
    if words <= SENTENCE:
        found += complete_dates(secret)
    if words <= LONGEST:
        found += [
            m.span() for m in _CODE.finditer(secret) if m.end() - m.start() >= LEAST_DIGITS - 1
        ]
    found += alternatives(secret)
    whole = secret.strip(" .,;:!?\"'")
    return tuple(span for span in dict.fromkeys(found) if secret[slice(*span)] != whole)


def _is_random(code: str) -> bool:
    """Return whether a text without words is a code that nobody guesses: an IBAN, a key, a UUID.

    It has ``LONG_CODE`` letters and digits or more, and ``CODE_DIGITS`` digits or ``CODE_CHANGES``
    changes between letters and digits. Dates, ranges of years, amounts and sizes are none.

    >>> [_is_random(one) for one in ("C01X00T47", "sk-proj-4f9a8b7c", "DE89370400440532013000")]
    [True, True, True]
    >>> [_is_random(one) for one in ("COVID-19", "FY2020-2021", "1920x1080", "EUR2500000")]
    [False, False, False, False]
    """
    signs = "".join(filter(str.isalnum, code))
    digits = [sign.isdigit() for sign in signs]
    changes = sum(a != b for a, b in pairwise(digits))
    if len(signs) < LONG_CODE or not changes:
        return False
    if sum(digits) < CODE_DIGITS and changes < CODE_CHANGES:
        return False
    runs = re.findall(r"\d+", code)
    size = _SIZE.fullmatch(code)
    if size and (size["unit"] is None or UNIT_WORD.fullmatch(plain(size["unit"]))):
        return False
    amount = len(runs) == 1 and len(runs[0].rstrip("0")) < CODE_DIGITS - 1
    return not (amount or all(map(_YEARS.fullmatch, runs)) or complete_dates(code))


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
    text, prompt = with_letter_a(text), with_letter_a(prompt)
    given = {stem(word) for one in (prompt, canonical(prompt)) for word in words_of(one, order)}
    words = words_of(canonical(text), order)
    return tuple(word for word in words if word not in FUNCTION_WORDS and stem(word) not in given)


def with_letter_a(text: str) -> str:
    """Mark each capital A that is no article, before ``canonical`` makes it one.

    >>> with_letter_a("A case of Hepatitis A")
    'A case of Hepatitis lettera'
    """
    return _CAPITAL_A.sub("lettera", text)


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
    if WEAK_WORDS.issuperset(wanted):
        return False
    given = words_beyond(text, prompt, orders[1])
    if not set(wanted) <= set(given):
        return False
    ordered, n = order_matters(secret, wanted), len(wanted)
    return any(same_words(wanted, given[i : i + n], ordered) for i in range(len(given) - n + 1))


def list_in(secret: str, text: str, prompt: str, orders: tuple[Order, Order]) -> bool:
    """Return whether a text has all items of a list, in any order and with words between them.

    A list has at least ``LEAST_ITEMS`` different items of words that the prompt does not give.
    Between two items, there are at most ``BETWEEN_ITEMS`` words on average. Of two items, which may
    be a name, both are capitalised, with numbers only between them: Ann (3) and Ben.

    >>> text = "The oldest is Anna, then comes Ben, and the youngest is called Carl."
    >>> orders = ("mdy", "mdy")
    >>> list_in("Anna, Ben and Carl", text, "Who are the children?", orders)
    True
    >>> list_in("Anna, Ben and Dora", text, "Who are the children?", orders)
    False
    """
    items = _items(secret, prompt, orders[0])
    if not items:
        return False
    given = words_beyond(text, prompt, orders[1])
    if not set().union(*items) <= set(given):
        return False
    if len(items) < LEAST_ITEMS:  # adjacent items are found by core_in
        own = set().union(*items)
        given = tuple(word for word in given if word in own or not word.isdigit())
    places = sorted(
        (i, k)
        for k, item in enumerate(items)
        for i in range(len(given) - len(item) + 1)
        if same_words(item, given[i : i + len(item)], any(map(SINGLE.match, item)))
    )
    between = BETWEEN_ITEMS if len(items) >= LEAST_ITEMS else 0
    reach = sum(map(len, items)) + between * (len(items) - 1)
    last: dict[int, int] = {}  # place of each item, the latest one
    for place, item in places:
        last[item] = place
        if len(last) == len(items) and place - min(last.values()) < reach:
            return True
    return False


@lru_cache(maxsize=1 << 14)
def _items(secret: str, prompt: str, order: Order) -> tuple[tuple[str, ...], ...]:
    """Return the words of each item of a list, without those of the prompt; empty if it is none."""
    parts = _BETWEEN_ITEMS.split(secret) if len(secret) <= CHARACTERS else []
    items = tuple(dict.fromkeys(filter(None, (words_beyond(p, prompt, order) for p in parts))))
    named = all(any(not word.isdigit() for word in item) and len(item) <= 4 for item in items)
    pair = len(items) == 2 == len(parts) and all(part.strip()[:1].isupper() for part in parts)
    return items if named and (len(items) >= LEAST_ITEMS or pair) else ()


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
