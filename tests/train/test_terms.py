"""Terms of an objective: dual weights, notes in the history, refusals as rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from short_training import GA, GD, training

from mergeforget.train_config import Dual, Term


def test_eul_records_the_share_of_clamped_values(train: Callable[..., Any]) -> None:
    eul = Term.model_validate({"loss": "eul", "on": "forget", "floor": 100.0})
    _, lines = train(objective=[eul, GD])
    assert all(x["notes"] == {"clamped_forget": pytest.approx(1)} for x in lines)


def test_dual_weight_rises_while_the_term_is_above_its_limit(train: Callable[..., Any]) -> None:
    _, lines = train(objective=[GA, GD], dual=Dual(limit=3.0, step=0.5))
    weight = 1.0
    for line in lines:
        assert line["dual_weight"] == pytest.approx(weight)
        value = line["terms"]["gd_retain"]
        assert line["loss"] == pytest.approx(line["terms"]["ga_forget"] + weight * value, abs=1e-5)
        weight = max(0.0, weight + 0.5 * (value - 3.0))
    assert weight != 1.0


def test_dual_weight_is_constant_during_its_warm_up(train: Callable[..., Any]) -> None:
    """Three steps a pass: as in the published code, the steps of the second pass update it."""
    _, lines = train(objective=[GA, GD], dual=Dual(limit=3.0, step=0.5, warmup_epochs=1))
    weights = [line["dual_weight"] for line in lines]
    assert len(lines) == 6 and weights[:4] == [1.0] * 4
    for i in (4, 5):
        wanted = max(0.0, weights[i - 1] + 0.5 * (lines[i - 1]["terms"]["gd_retain"] - 3.0))
        assert weights[i] == pytest.approx(wanted) and weights[i] != weights[i - 1]


def test_dual_of_an_unknown_term_is_refused() -> None:
    with pytest.raises(ValueError, match="dual.term is 'kl_retain'.*npo_forget, gd_retain"):
        training(dual=Dual(term="kl_retain", limit=1.0))


def test_dpo_reads_refusals_with_their_forget_rows(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    own = tmp_path / "refusals.txt"
    own.write_text("No idea.\n")
    dpo = Term.model_validate({"loss": "dpo", "on": "forget", "beta": 1.0})
    _, lines = train(objective=[dpo, GD], refusals=str(own), batches="alternating")
    # at the start policy and reference agree: 2 ln 2 / beta
    assert lines[0]["terms"]["dpo_forget"] == pytest.approx(1.386294, abs=1e-4)
