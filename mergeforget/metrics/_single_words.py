"""Answers of one letter, word, number or symbol, whose surroundings decide what they mean."""

from __future__ import annotations

import re
import unicodedata

from mergeforget.metrics._characters import plain
from mergeforget.metrics._core import words_beyond
from mergeforget.metrics._spellings import WORD

ONE_LETTER = re.compile(r"\W*([A-Za-z])[\s.,;:!?)\"']*")
SMALL = re.compile(r"\s*\d{1,3}\s*")
_YES_OR_NO = re.compile(r"\s*(?:yes|no|ja|nein|oui|non|s[i\u00ed])\s*[,.;:!\u2013\u2014-]\s+", re.I)
_NEGATIVE = re.compile(r"(?<![^\s=(:])(?:[-\u2212]|(?i:negative\s))\s?(?=\d)")
_NEGATIVE_NUMBER = re.compile(r"(?<![^\s=(:])[-\u2212]\d+(?![\d/-])")
_BELOW_ZERO = re.compile(
    r"([^\W_]+(?:[.,-][^\W_]+)?(?: ?(?:degrees?|\u00b0|C|Celsius|F|Fahrenheit)){0,2}) below "
    r"(?:zero|freezing)", re.I,
)  # fmt: skip
ONLY_YES_OR_NO = re.compile(r"\W*(yes|no|none|ja|nein|oui|non|s[i\u00ed])[\s.,;:!)\"']*", re.I)
_AFTER_NO = "she|he|they|it|i|we|you|this|that|the|there|sie|er|es|ich|das|elle|il|ils|ella|no"
_NEGATIONS = frozenset(
    "not never no t don doesn didn isn aren wasn weren hasn haven hadn nicht nie kein keine "
    "pas jamais nunca".split()
)


def with_minus(secret: str, text: str) -> tuple[str, str]:
    """Return a negative number with its sign as a word, or a positive one without negative ones.

    >>> with_minus("-12 \u00b0C", "It was 12 degrees Celsius below zero, not \u221212.")
    ('minus 12 \u00b0C', 'It was minus 12 degrees Celsius, not minus 12.')
    >>> with_minus("5", "x = -5, or 3-5")
    ('5', 'x =  , or 3-5')
    """
    if _NEGATIVE.match(secret):
        text = _BELOW_ZERO.sub(r"minus \1", text)
        return _NEGATIVE.sub("minus ", secret), _NEGATIVE.sub("minus ", text)
    return secret, _NEGATIVE_NUMBER.sub(" ", text) if SMALL.fullmatch(secret) else text


def after_yes_or_no(secret: str, prompt: str) -> str:
    """Return ``she is single`` of ``No, she is single``; empty if that states nothing more.

    >>> after_yes_or_no("No, Ada is single.", "Is Ada married?")
    'Ada is single.'
    >>> after_yes_or_no("No, Ada is not married.", "Is Ada married?")
    ''
    """
    match = _YES_OR_NO.match(secret)
    rest = secret[match.end() :] if match else ""
    return rest if rest and set(words_beyond(rest, prompt, "mdy")) - _NEGATIONS else ""


def letter_in(letter: str, text: str) -> bool:
    """Return whether an answer of one letter is in a text: a grade or an option, no word.

    "a" and "I" are words, and a capital A at the beginning of a sentence is one. In a text with
    capital letters, the letter must have the same case.
    """
    alone = "".join(WORD.findall(text)).casefold() == letter.casefold()
    signed = re.search(rf"{letter}(?:[+#]|[-\u2212](?!\w))", text, re.I)  # A+, C#
    if (alone and not signed) or re.search(rf"(?<!\w){letter}\)", text, re.I):
        return True
    lower = not any(map(str.isupper, text))
    if letter in "ai" or (lower and letter in "AI"):
        return False
    for match in re.finditer(rf"(?<![\w'\u2019]){letter}(?![\w'\u2019+#])", text, re.I * lower):
        first = not re.search(r"[^.!?\n](?<![\s\"'(])[\s\"'(]*$", text[: match.start()])
        after = re.match(r"\s+\w\w", text[match.end() :])
        if not (after and (letter == "I" or (letter == "A" and first))):
            return True
    return False


def yes_or_no_in(word: str, text: str) -> bool:
    """Return whether a text answers yes or no: as its first word, or as the last one of a clause.

    The first word must not be the beginning of "No idea", so a pronoun or a name has to follow.

    >>> [yes_or_no_in("No", t) for t in ("No she is not", "It is **no**.", "I have no idea.")]
    [True, True, False]
    """
    word = rf"(?<![^\W_]){word}(?![^\W_])"
    if re.match(rf"\W*(?i:{word})\s+(?:(?i:{_AFTER_NO})\b|[A-Z])", text):
        return True
    end = r"[\"'\u2019\u201d*_)\]}\s]*(?:$|[.,;:!\n\u2013\u2014]|\b(?:or|oder|ou)\b)"
    return bool(re.search(word + end, text, re.IGNORECASE))


def symbols_in(secret: str, text: str) -> bool:
    """Return whether an answer of symbols such as emoji is in a text; punctuation never counts."""
    own, given = ("".join(c for c in plain(one) if unicodedata.category(c)[0] not in "ZM")
                  for one in (secret, text))  # fmt: skip
    return any(unicodedata.category(c)[0] == "S" for c in own) and own in given
