"""The user's own rows: scores of every split, and one number."""

from __future__ import annotations

import pytest

from mergeforget.benchmarks.custom import custom
from mergeforget.data.schema import Answer, DocumentLoss, Measured, Row
from mergeforget.score import find


def answer(split: str, completion: str) -> Answer:
    return Answer(Row(f"{split}-1", "Who?", "one two three four", "", split), completion)


def test_further_splits_are_scored_but_not_aggregated() -> None:
    answers = [
        answer("forget", "one"),
        answer("retain", "one two three"),
        answer("news", "one two"),
    ]
    losses = [DocumentLoss("a", True, 1.0), DocumentLoss("b", True, 3.0),
              DocumentLoss("c", False, 2.0), DocumentLoss("d", False, 4.0)]  # fmt: skip
    scores = custom(Measured(answers, losses))
    found = {s.split: s.value for s in scores if s.metric == "verbatim_rouge"}
    assert found == {"forget": 0.25, "retain": 0.75, "news": 0.5}
    # AUC: -1 beats both, -3 beats -4: 3 of 4 pairs; 1 - 2 |.75 - .5| = .5
    aggregate = find(scores, "aggregate", "all")
    assert aggregate is not None
    assert aggregate.value == pytest.approx(3 / (1 / 0.75 + 1 / 0.75 + 1 / 0.5))
