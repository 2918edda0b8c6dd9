"""ROUGE-L recall equals the package that the benchmarks use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from mergeforget.metrics._rouge import longest_common_subsequence, rouge_l_recall

WORDS = st.lists(
    st.sampled_from(["the", "running", "runner's", "cats", "cat", "It-is", "2nd", "é", "", "\n"]),
    max_size=12,
).map(" ".join)


@given(WORDS, WORDS)
def test_recall_equals_the_package(target: str, prediction: str) -> None:
    theirs = RougeScorer(["rougeL"], use_stemmer=True).score(target, prediction)["rougeL"].recall
    assert rouge_l_recall(target, prediction) == theirs


def test_recall_by_hand() -> None:
    # the, cats (stem cat), sat: of the target's 4 words 3 come in order
    assert rouge_l_recall("the cats sat down", "The cat has sat") == 3 / 4


def test_nothing_against_something_is_zero() -> None:
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
