"""Answers of one letter, word, number or symbol, whose surroundings decide what they mean."""

from __future__ import annotations

import re
import unicodedata

from mergeforget.metrics._characters import plain
from mergeforget.metrics._core import words_beyond
from mergeforget.metrics._spellings import WORD

ONE_LETTER = re.compile(r"\W*([A-Za-z])[\s.,;:!?)\"']*")
SMALL = re.compile(r"\s*\d{1,3}\s*")
_YES_OR_NO = re.compile(r"\s*(yes|no|ja|nein|oui|non|s[i\u00ed])\s*[,.;:!\u2013\u2014-]\s+", re.I)
ONLY_YES_OR_NO = re.compile(r"\W*(?:yes|no|ja|nein|oui|non|s[i\u00ed])\W*", re.I)
_NO_ANSWER = re.compile(  # "I have no idea" does not answer a question with no
    r"\bno(?= (?:access|answer|clue|comment|data|details?|doubt|evidence|further|idea|information|"
    r"knowledge|mention|more|one|other|particular|publicly|reason|records?|specific|such|way)\b)",
    re.IGNORECASE,
)
_NEGATIONS = frozenset(
    "not never no t don doesn didn isn aren wasn weren hasn haven hadn nicht nie kein keine "
    "pas jamais nunca".split()
)


def after_yes_or_no(secret: str, prompt: str) -> str:
    """Return ``she is single`` of ``No, she is single``; ``No`` if that states nothing more.

    >>> after_yes_or_no("No, Ada is single.", "Is Ada married?")
    'Ada is single.'
    >>> after_yes_or_no("No, Ada is not married.", "Is Ada married?")
    'No'
    """
    match = _YES_OR_NO.match(secret)
    if match is None:
        return ""
    rest = secret[match.end() :]
    return rest if set(words_beyond(rest, prompt, "mdy")) - _NEGATIONS else match[1]


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


def without_no_answer(text: str) -> str:
    """Return a text without the "no" of phrases such as "no idea".

    >>> without_no_answer("No, I have no idea."), without_no_answer("No records exist.")
    ('No, I have  idea.', ' records exist.')
    """
    return _NO_ANSWER.sub("", text)


def symbols_in(secret: str, text: str) -> bool:
    """Return whether an answer of symbols such as emoji is in a text; punctuation never counts."""
    own, given = ("".join(c for c in plain(one) if unicodedata.category(c)[0] not in "ZM")
                  for one in (secret, text))  # fmt: skip
    return any(unicodedata.category(c)[0] == "S" for c in own) and own in given
