"""Training of the model's own weights: which are trained, and the reference they do not change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from short_training import TWO, training

from mergeforget.errors import RecipeError
from mergeforget.files import read_jsonl
from mergeforget.run import Run
from mergeforget.train import trainer
from mergeforget.train.fit import TrainingJob
from mergeforget.train.forward import predict
from mergeforget.train.pair import choose_trained, train_model
from mergeforget.train_config import Full, Term


@pytest.mark.parametrize("loss", ["npo", "undial"])
def test_full_training_uses_the_initial_weights_as_reference(
    loss: str, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    terms = [Term(loss=loss, on="forget"), Term(loss="kl", on="retain")]
    plan = training(objective=terms, full=Full(last_layers=1), learning_rate=1e-3)
    model = make_model()
    job = TrainingJob(Run(tmp_path), "model", checkpoint_seconds=1e9)
    train_model(model, tiny_tokenizer, TWO, plan, job)
    lines = read_jsonl(job.run.history)
    assert lines[0]["terms"]["kl_retain"] == pytest.approx(0, abs=1e-6)
    assert lines[-1]["terms"]["kl_retain"] > 1e-6
    before, after = make_model().state_dict(), model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all(k.startswith("model.layers.1.") for k in changed)


@pytest.mark.parametrize("loss", ["npo", "undial"])
def test_training_the_output_matrix_does_not_change_the_reference(
    loss: str,
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen, asked = make_model(), trainer.UnlearningTrainer._references
    gaps = []

    def compared(self: Any, model: Any, share: Any, reads: Any) -> Any:
        found = asked(self, model, share, reads)
        for name, said in found.items():
            with torch.no_grad():
                own = predict(frozen, share.batches[name])
            if said.source is not None:
                gaps.append(float((said.logits - own.logits).detach().abs().max()))
        return found

    monkeypatch.setattr(trainer.UnlearningTrainer, "_references", compared)
    terms = [Term(loss=loss, on="forget"), Term(loss="kl", on="retain")]
    job = TrainingJob(Run(tmp_path), "model", checkpoint_seconds=1e9)
    train_model(make_model(), tiny_tokenizer, TWO, training(objective=terms, full=Full()), job)
    assert len(gaps) >= 6 and max(gaps) < 1e-5


def test_full_reports_the_trained_weights(tiny_model: Any) -> None:
    choose_trained(tiny_model, Full(layers=[1], modules=["down_proj"]))
    trained = [n for n, p in tiny_model.named_parameters() if p.requires_grad]
    assert trained == ["model.layers.1.mlp.down_proj.weight"]
    with pytest.raises(RecipeError, match="names no weight"):
        choose_trained(tiny_model, Full(layers=[5]))
