"""Which weights a training keeps: those of the best step, or a mean of several steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from short_training import GA, GD, SETS

from mergeforget.errors import NumericError
from mergeforget.files import read_json, read_jsonl
from mergeforget.train_config import Average, Term, Watch


def test_the_result_is_the_mean_of_the_weights_that_count(train: Callable[..., Any]) -> None:
    settings = {"optimizer": "sgd", "schedule": "constant", "objective": [GA, GD]}
    each = [train(str(epochs), epochs=epochs, **settings)[0] for epochs in (1, 2, 3)]
    mean, _ = train("mean", epochs=3, average=Average(start=1 / 3, every=3), **settings)  # 9 steps
    for name, weight in mean.items():
        torch.testing.assert_close(weight, sum(one[name] for one in each) / 3)
    assert max(float((mean[n] - each[2][n]).abs().max()) for n in mean) > 1e-3


def test_early_stopping_stops_on_collapse_and_keeps_the_best_step(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    up = Term(loss="ga", on="retain")
    _, lines = train(
        "collapse", SETS, objective=[GA, up], epochs=10, learning_rate=0.05,
        watch=Watch(every=2, sample=3, collapse=0.12),
    )  # fmt: skip
    checks = read_jsonl(tmp_path / "collapse" / "proxies.jsonl")
    assert [x["step"] for x in checks[:2]] == [0, 2] and len(lines) < 30
    assert checks[-1]["retain_nll"] - checks[0]["retain_nll"] > 0.05
    assert all(0 <= x["mia_auc"] <= 1 and 0 <= x["forget_exact"] <= 1 for x in checks)
    end = read_json(tmp_path / "collapse" / "until" / "over.json")
    assert end["outcome"] == "collapsed"
    assert checks[-1]["step"] - 2 <= end["step"] < checks[-1]["step"]
    with pytest.raises(NumericError, match="collapsed within"):  # the first step passes it
        train("broken", SETS, objective=[GA, up], epochs=10, learning_rate=0.5,
              watch=Watch(every=2, sample=3, collapse=0.01))  # fmt: skip
    best, _ = train(
        "best", SETS, objective=[GA, up], epochs=2, learning_rate=0.05,
        watch=Watch(every=2, sample=3, best_by="retain_nll"),
    )  # fmt: skip
    first, _ = train("first", SETS, objective=[GA, up], epochs=2, learning_rate=0.05)
    assert any(not torch.equal(best[k], first[k]) for k in best)  # step 2, not the last
