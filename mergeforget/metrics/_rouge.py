"""ROUGE-L recall, the figures of the package rouge-score, many times faster."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any


def rouge_l_recall(target: str, prediction: str) -> float:
    """Share of the target's words that stand in the prediction in the same order, in [0, 1].

    Source: rouge_score 0.1.2, ``RougeScorer(["rougeL"], use_stemmer=True)``, its recall. Words and
        stems are cut by that package; the length of the longest common subsequence is counted
        with the bits of whole numbers (Hyyro 2004), a step a word instead of one a pair of words.
    """
    wanted, given = _words(target), _words(prediction)
    if not wanted or not given:
        return 0.0
    return longest_common_subsequence(wanted, given) / len(wanted)


def longest_common_subsequence(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Its length."""
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    everything = (1 << len(first)) - 1
    row = everything  # a 0 at place i: the subsequence is longer by one there
    for word in second:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & everything
    return len(first) - row.bit_count()


@lru_cache(maxsize=20_000)
def _words(text: str) -> tuple[str, ...]:
    from rouge_score.tokenize import tokenize

    return tuple(tokenize(text, _Stems()))


class _Stems:
    """What rouge-score's tokenizer asks a stemmer for; every word is stemmed once."""

    def stem(self, word: str) -> str:
        return _stem(word)


@lru_cache(maxsize=200_000)
def _stem(word: str) -> str:
    return str(_porter().stem(word))


@cache
def _porter() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()
