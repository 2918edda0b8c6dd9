"""ROUGE-L recall as computed by the package rouge-score, and a variant for words of any script."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Literal

from mergeforget.data.schema import Answer
from mergeforget.metrics._porter import stem

Words = Literal["latin", "unicode"]
LATIN = re.compile(r"[a-z0-9]+")
STEMMED = 4  # minimum number of characters of a word that is stemmed
NO_SPACES = (  # first and last code point of scripts that are written without spaces
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xA9E0, 0xA9FF),  # Myanmar extensions
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),  # Han, compatibility
    (0x20000, 0x3FFFF),  # Han, further extensions
)


def rouge_l_recall(target: str, prediction: str, words: Words = "latin") -> float:
    """Share of the target's words that are in the prediction in the same order, in [0, 1].

    Args:
        words: ``latin`` tokenises as rouge-score does, into runs of a to z and 0 to 9, so a text in
            another script has no words. ``unicode`` tokenises words of any script, and single
            characters if the script has no spaces; for plain English the score is the same.

    Source: rouge_score 0.1.2, ``RougeScorer(["rougeL"], use_stemmer=True)``, its recall. The length
        of the longest common subsequence is counted with the bits of integers (Hyyro 2004).

    Example:
        >>> rouge_l_recall("the cats sat down", "The cat has sat")
        0.75
        >>> rouge_l_recall("Она живёт в Москве", "она живёт в Москве!", "unicode")
        1.0
    """
    wanted, given = split_words(target, words), split_words(prediction, words)
    if not wanted or not given:
        return 0.0
    return longest_common_subsequence(wanted, given) / len(wanted)


def closest_recall(answer: Answer, prediction: str, words: Words = "latin") -> float:
    """Return the largest ROUGE-L recall of an answer's references, in [0, 1]."""
    return max(rouge_l_recall(target, prediction, words) for target in answer.references)


def longest_common_subsequence(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Length of the longest common subsequence."""
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    everything = (1 << len(first)) - 1
    row = everything  # a 0 at bit i: the subsequence is longer by one there
    for word in second:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & everything
    return len(first) - row.bit_count()


@lru_cache(maxsize=20_000)
def split_words(text: str, words: Words = "latin") -> tuple[str, ...]:
    """Return the words of a text in lower case; English words of four or more letters as stems."""
    found = LATIN.findall(text.lower()) if words == "latin" else _unicode_words(text)
    return tuple(stem(w) if len(w) >= STEMMED and LATIN.fullmatch(w) else w for w in found)


def _unicode_words(text: str) -> list[str]:
    """Return runs of letters, digits and marks, and single characters of scripts without spaces.

    A text without any letter or digit, for example of emoji, is split into its characters.
    """
    words: list[str] = []
    text = unicodedata.normalize("NFKC", text).casefold()
    grows = attaches = False  # whether a letter, or a mark, continues the last word
    for character in text:
        kind = unicodedata.category(character)[0]
        if kind == "M" and attaches:
            words[-1] += character
            continue
        attaches = kind in "LN"
        if not attaches:
            grows = False
            continue
        single = any(first <= ord(character) <= last for first, last in NO_SPACES)
        if grows and not single:
            words[-1] += character
        else:
            words.append(character)
        grows = not single
    return words or [character for character in text if not character.isspace()]
