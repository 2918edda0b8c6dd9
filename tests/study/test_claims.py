"""Claims are judged on worked examples."""

from __future__ import annotations

import pytest

from benchmarks.study.claims import ClaimResult, Verdict, judge, settled
from benchmarks.study.definition import Claim

AUC = {"over": 0.022, "under": 0.818, "merged": 0.501}


def claim(kind: str, row: str = "merged", **more: object) -> Claim:
    return Claim.model_validate({"text": "T", "kind": kind, "column": "c", "row": row, **more})


@pytest.mark.parametrize(
    ("one", "holds", "detail"),
    [
        (claim("nearest"), True, "0.501 compared with 0.818 (under), ahead by 0.317"),
        (claim("nearest", "over"), False, "0.022 compared with 0.501 (merged), behind by 0.477"),
        (claim("largest", of=["over"]), True, "0.501 compared with 0.022 (over), ahead by 0.479"),
        (claim("smallest"), False, "0.501 compared with 0.022 (over), behind by 0.479"),
        (claim("within", low=0.45, high=0.55), True, "0.501 is within 0.45 to 0.55"),
        (claim("within", "over", low=0.45, high=0.55), False,
         "0.022 is outside 0.45 to 0.55, by 0.428"),
        (claim("within", "over", low=None, high=0.1), True, "0.022 is within 0.1 or less"),
        (claim("within", low=None, high=0.1), False, "0.501 is outside 0.1 or less, by 0.401"),
        (claim("order", "", of=["under", "merged", "over"]), True,
         "3 of 3 pairs have this order (under > merged > over)"),
        (claim("order", "", of=["under", "over", "merged"]), False,
         "2 of 3 pairs have this order (under > merged > over)"),
    ],
)  # fmt: skip
def test_a_claim_is_judged_by_its_scores(one: Claim, holds: bool, detail: str) -> None:
    found = judge(one, AUC)
    assert (found.holds, found.detail) == (holds, detail)


@pytest.mark.parametrize(
    ("one", "merged", "over", "sure"),
    [
        (claim("within", low=0.45, high=0.55), (0.46, 0.54), None, True),
        (claim("within", low=0.45, high=0.55), (0.60, 0.70), None, True),
        (claim("within", low=0.45, high=0.55), (0.40, 0.60), None, False),
        (claim("largest", of=["over"]), (0.40, 0.60), (0.0, 0.1), True),
        (claim("largest", of=["over"]), (0.40, 0.60), (0.0, 0.4), False),
        (claim("nearest", of=["over"]), (0.45, 0.60), (0.1, 0.3), True),
        (claim("nearest", of=["over"]), (0.45, 0.60), (0.1, 0.42), False),
        (claim("nearest", of=["over"]), (0.45, 0.60), None, None),
    ],
)
def test_a_claim_is_decided_by_the_intervals_or_left_open(
    one: Claim,
    merged: tuple[float, float],
    over: tuple[float, float] | None,
    sure: bool | None,
) -> None:
    found, told = settled(one, judge(one, AUC), {"merged": merged, "over": over})
    assert found is sure
    words = {True: "decide", False: "leave", None: ""}[sure]
    assert words in told and bool(told) == (sure is not None)


@pytest.mark.parametrize(
    ("under", "sure"), [((0.70, 0.75), True), ((0.42, 0.88), False), (None, None)]
)
def test_a_claim_is_open_while_any_row_could_beat_it(
    under: tuple[float, float] | None, sure: bool | None
) -> None:
    """Not only the one that is nearest by its figure."""
    one, figures = claim("nearest"), {"merged": 0.5, "over": 0.6, "under": 0.65}
    spans = {"merged": (0.48, 0.52), "over": (0.58, 0.62), "under": under}
    found, told = settled(one, judge(one, figures), spans)
    assert found is sure
    assert ("under" in told) == (sure is False)


def test_a_significantly_better_row_refutes_a_claim() -> None:
    one, figures = claim("largest"), {"merged": 0.5, "over": 0.6, "under": 0.9}
    spans = {"merged": (0.4, 0.55), "over": (0.5, 0.7), "under": (0.8, 1.0)}
    assert settled(one, judge(one, figures), spans)[0] is True
    assert settled(one, judge(one, figures), spans | {"under": (0.5, 1.0)})[0] is False


def test_a_tie_is_not_larger() -> None:
    assert judge(claim("largest"), {"merged": 0.5, "over": 0.5}).holds is False


@pytest.mark.parametrize("kind", ["largest", "nearest", "within", "order"])
def test_a_claim_with_a_missing_value_is_not_judged(kind: str) -> None:
    one = claim(kind, of=["over", "merged"])
    assert judge(one, {"merged": None, "over": 0.1}).holds is None
    if kind in ("largest", "nearest"):
        assert judge(one, {"merged": 0.1, "over": None}).holds is None


@pytest.mark.parametrize(
    ("published", "here", "word"),
    [
        (True, True, "Replicates"),
        (False, False, "Replicates"),
        (True, False, "Does not replicate"),
        (None, True, "Holds"),
        (None, False, "Does not hold"),
        (True, None, "Not measured yet"),
    ],
)
def test_the_verdict_compares_both_results(
    published: bool | None, here: bool | None, word: str
) -> None:
    assert Verdict(claim("largest"), ClaimResult(published), ClaimResult(here)).word == word
