"""Steps along other directions than the gradient of the objective, and their rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from short_training import GA, GD, NPO, training

from mergeforget.train import directions, ngdiff_trainer
from mergeforget.train_config import AutoRate, Average, Watch


def test_ngdiff_steps_along_its_direction(train: Callable[..., Any]) -> None:
    settings = {
        "objective": [GA, GD], "direction": "ngdiff", "optimizer": "sgd", "schedule": "constant",
        "max_grad_norm": 0.0, "weight_decay": 0.0, "epochs": 1,
    }  # fmt: skip
    small, lines = train("small", batch_size=1, gradient_accumulation=5, **settings)
    large, _ = train("large", batch_size=5, **settings)
    # lora_B is 0 at first, so lora_A has no gradient and the first step moves lora_B alone
    moved = torch.cat([v.flatten() for k, v in large.items() if "lora_B" in k])
    assert lines[0]["grad_norm"] <= 2 and moved.norm() == pytest.approx(
        1e-2 * lines[0]["grad_norm"], rel=1e-3
    )
    for key, value in large.items():
        torch.testing.assert_close(small[key], value, rtol=1e-3, atol=1e-6)


def test_gru_never_steps_against_the_smoothed_retain_gradient(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def spied(objective: Any, retain: Any) -> list[torch.Tensor]:
        step = directions.rectified(objective, retain)
        size = directions.norm(step) * directions.norm(retain)
        seen.append(directions.inner(step, retain) / size)
        return step

    monkeypatch.setattr(ngdiff_trainer, "rectified", spied)
    train(objective=[GA, GD], direction="gru")
    assert len(seen) == 6 and min(seen) > -1e-5


def test_sam_takes_the_forget_gradient_at_the_perturbed_weights(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = train("plain", objective=[NPO, GD], optimizer="sgd", max_grad_norm=0.0)
    tiny, lines = train("tiny", direction="sam", sam_radius=1e-7, objective=[NPO, GD],
                        optimizer="sgd", max_grad_norm=0.0)  # fmt: skip
    for name, weight in plain.items():
        torch.testing.assert_close(tiny[name], weight, rtol=1e-4, atol=1e-6)
    assert set(lines[0]["terms"]) == {"npo_forget", "gd_retain"}
    wide, _ = train("wide", direction="sam", sam_radius=0.5, objective=[NPO, GD],
                    optimizer="sgd", max_grad_norm=0.0)  # fmt: skip
    assert any(not torch.allclose(wide[name], plain[name], atol=1e-5) for name in plain)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"direction": "gru", "objective": [GA]}, "needs terms on forget and on retain"),
        ({"gru_smoothing": 0.5}, "applies only to direction gru"),
        ({"sam_radius": 0.5}, "applies only to the directions sam, gp and cr"),
        ({"direction": "sam", "penalty": 0.5}, "applies only to the directions gp and cr"),
        ({"direction": "gp", "objective": [GD]}, "direction gp perturbs .* add a forget term"),
        ({"average": Average(), "watch": Watch(every=2)}, "leave out average"),
        ({"clip_each": 1.0}, "applies only to direction ngdiff"),
    ],
)
def test_settings_of_another_direction_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training(**more)


def test_values_of_clipped_micro_batches_are_averaged(train: Callable[..., Any]) -> None:
    settings = {
        "objective": [GA, GD], "direction": "ngdiff", "optimizer": "sgd", "schedule": "constant",
        "batch_size": 1, "gradient_accumulation": "epoch", "max_grad_norm": 0.0, "epochs": 1,
    }  # fmt: skip
    _, (clipped,) = train("clipped", clip_each=1.0, **settings)
    _, (plain,) = train("plain", **settings)  # five answers of nearly one length
    assert clipped["loss"] == pytest.approx(plain["loss"], abs=0.02)
    for label in ("ga_forget", "gd_retain"):
        assert clipped["terms"][label] == pytest.approx(plain["terms"][label], rel=0.01)
    assert clipped["loss"] == pytest.approx(sum(clipped["terms"].values()), abs=1e-5)


@pytest.mark.parametrize("method", ["probe", "fit"])
def test_fitted_rates_are_used_and_recorded(method: str, train: Callable[..., Any]) -> None:
    rate = AutoRate(method=method, every=2)  # type: ignore[arg-type]
    _, lines = train(
        objective=[GA, GD], direction="ngdiff", optimizer="sgd", schedule="constant",
        auto_rate=rate, max_grad_norm=0.0, clip_each=1.0 if method == "fit" else 0.0,
        weight_decay=0.0,
    )  # fmt: skip
    fits = [x.get("auto_rate") for x in lines]
    assert [f is not None for f in fits] == [True, False, True, False, True, False]
    for i in (0, 2, 4):
        assert lines[i]["learning_rate"] == lines[i + 1]["learning_rate"] == fits[i]["rate"]
        assert set(fits[i]) == {"rate", "fitted", "curvature", "accepted"}


def test_a_rate_probe_restores_the_weights_bit_for_bit(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "objective": [GA, GD], "direction": "ngdiff", "optimizer": "sgd", "schedule": "constant",
    }  # fmt: skip
    without, _ = train("without", **settings)
    monkeypatch.setattr(ngdiff_trainer.NGDiffTrainer, "_set_rate", lambda self, fit: None)
    probed, _ = train("probed", auto_rate=AutoRate(every=1), **settings)
    assert all(torch.equal(without[k], probed[k]) for k in without)
