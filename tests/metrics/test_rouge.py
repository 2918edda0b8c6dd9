"""ROUGE-L recall equals the package that the benchmarks use."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

from mergeforget.data.readers import read_rows
from mergeforget.metrics._porter import IRREGULAR, stem
from mergeforget.metrics._rouge import longest_common_subsequence, rouge_l_recall, split_words

WORDS = st.lists(
    st.sampled_from(["the", "running", "runner's", "cats", "cat", "It-is", "2nd", "é", "", "\n"]),
    max_size=12,
).map(" ".join)


@given(WORDS, WORDS)
def test_recall_equals_the_package(target: str, prediction: str) -> None:
    theirs = RougeScorer(["rougeL"], use_stemmer=True).score(target, prediction)["rougeL"].recall
    assert rouge_l_recall(target, prediction) == theirs


def test_recall_matches_a_hand_calculation() -> None:
    # the, cats (stem cat), sat: of the target's 4 words 3 come in order
    assert rouge_l_recall("the cats sat down", "The cat has sat") == 3 / 4


def test_an_empty_answer_scores_zero() -> None:
    assert rouge_l_recall("", "a word") == rouge_l_recall("a word", "!?") == 0


@given(st.lists(st.integers(0, 3), max_size=9), st.lists(st.integers(0, 3), max_size=9))
def test_subsequence_equals_the_textbook_table(first: list[int], second: list[int]) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
            )
    words = tuple(map(str, first)), tuple(map(str, second))
    assert longest_common_subsequence(*words) == table[-1][-1]


ENDINGS = st.sampled_from(
    "s es ies sses ss ed ied eed ing ings y ly ational tional enci anci izer bli alli entli eli "
    "ousli ization ation ator alism iveness fulness ousness aliti iviti biliti fulli logi icate "
    "ative alize iciti ical ful ness al ance ence er ic able ible ant ement ment ent ion sion tion "
    "ou ism ate iti ous ive ize e ll at bl iz".split()
)


@given(st.text("abeijklosty0", max_size=6), st.lists(ENDINGS, max_size=3))
def test_stems_equal_the_packages(beginning: str, endings: list[str]) -> None:
    word = beginning + "".join(endings)
    assert stem(word) == PorterStemmer().stem(word)


@pytest.mark.parametrize("word", [*IRREGULAR, "dies", "tied", "flies", "theology", "by", "y", ""])
def test_irregular_and_short_words_have_the_packages_stems(word: str) -> None:
    assert stem(word) == PorterStemmer().stem(word)


def test_recall_of_real_texts_equals_the_package(data_folder: Path) -> None:
    rows = read_rows(next((data_folder / "lume").rglob("*forget*")))[:60]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for row, other in pairwise(rows):
        theirs = scorer.score(row.document, other.document)["rougeL"].recall
        assert rouge_l_recall(row.document, other.document) == theirs
        assert rouge_l_recall(row.document, row.document, "unicode") == 1


@pytest.mark.parametrize(
    ("text", "other", "share"),
    [
        ("Она живёт в Москве", "Она живёт в Киеве", 3 / 4),
        ("Η Άννα ζει εδώ", "η άννα", 2 / 4),
        ("वह दिल्ली में रहती है", "वह दिल्ली में", 3 / 5),  # vowel signs stay in their words
        ("她住在北京", "她在北京", 4 / 5),  # characters: Chinese has no spaces
        ("彼女は東京にいる", "彼女は", 3 / 8),
        ("그녀는 서울에 산다", "그녀는 서울에", 2 / 3),
        ("تعيش في القاهرة", "تعيش في", 2 / 3),
        ("היא גרה בחיפה", "היא", 1 / 3),
        ("café crème", "cafe\u0301", 1 / 2),  # composed or not
        ("ＡＢＣ１", "abc1", 1),
        ("🙂🙃", "🙂", 1 / 2),
        ("Sie wohnt in Köln", "sie wohnt in koln", 3 / 4),
    ],
)
def test_words_of_any_script_count(text: str, other: str, share: float) -> None:
    assert rouge_l_recall(text, text, "unicode") == 1
    assert rouge_l_recall(text, other, "unicode") == share


@given(WORDS.map(lambda text: text.replace("é", "e")), WORDS.map(lambda t: t.replace("é", "")))
def test_plain_english_scores_alike_with_both_tokenisers(target: str, prediction: str) -> None:
    latin = rouge_l_recall(target, prediction)
    unicode = rouge_l_recall(target, prediction, "unicode")
    assert unicode == latin or not split_words(target)
