"""Steps of SAM, GRU, GP and CR against their equations in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from short_training import GA, GD, TWO, training

from mergeforget.run import Run
from mergeforget.train.fit import TrainingJob
from mergeforget.train.pair import train_model
from mergeforget.train_config import Full

RATE, RADIUS, SMOOTHING = 0.05, 0.3, 0.9
FAR = 5.0  # a step after which the retain gradient differs
TRAINED = "model.layers.1.mlp.down_proj.weight"


def weights_after(
    folder: Path, make_model: Callable[..., Any], tokenizer: Any, **more: Any
) -> torch.Tensor:
    """The trained matrix after SGD steps over all rows of both sets at once."""
    model = make_model()
    settings: dict[str, Any] = {
        "objective": [GA, GD], "optimizer": "sgd", "schedule": "constant", "learning_rate": RATE,
        "max_grad_norm": 0.0, "weight_decay": 0.0, "batch_size": 5,
        "full": Full(layers=[1], modules=["down_proj"]),
    }  # fmt: skip
    job = TrainingJob(Run(folder), "over", checkpoint_seconds=1e9)
    train_model(model, tokenizer, TWO, training(**settings | more), job)
    found: torch.Tensor = dict(model.named_parameters())[TRAINED].detach().double()
    return found


class Twin:
    """The same model in float64: gradients of the mean NLL of the answers of a set."""

    def __init__(self, make_model: Callable[..., Any], tokenizer: Any) -> None:
        self.model = make_model().double().eval()
        self.weight = dict(self.model.named_parameters())[TRAINED]
        self.tokenizer = tokenizer

    def slope(self, name: str, theta: torch.Tensor, graph: bool = False) -> torch.Tensor:
        with torch.no_grad():
            self.weight.copy_(theta)
        losses = []
        for row in TWO[name]:
            prompt = self.tokenizer(row.input)["input_ids"]
            answer = [*self.tokenizer(" " + row.output)["input_ids"], self.tokenizer.eos_token_id]
            logits = self.model(input_ids=torch.tensor([prompt + answer])).logits[0]
            logps = logits[len(prompt) - 1 : -1].log_softmax(-1)
            losses += [-logps[i, token] for i, token in enumerate(answer)]
        mean = torch.stack(losses).mean()
        (found,) = torch.autograd.grad(mean, self.weight, create_graph=graph)
        return found


def test_a_step_of_sam_equals_its_equation_in_float64(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    ours = weights_after(
        tmp_path, make_model, tiny_tokenizer, direction="sam", sam_radius=RADIUS, epochs=1
    )
    twin = Twin(make_model, tiny_tokenizer)
    start = twin.weight.detach().clone()
    rise = -twin.slope("forget", start)  # gradient of ga
    retain = twin.slope("retain", start)

    def after(radius: float) -> torch.Tensor:
        sharp = -twin.slope("forget", start + radius * rise / rise.norm())
        stepped: torch.Tensor = start - RATE * (retain + sharp)
        return stepped

    right = after(RADIUS)
    size = (right - start).norm()
    assert (ours - right).norm() < 1e-4 * size
    for wrong in (after(-RADIUS), after(0.0)):
        assert (ours - wrong).norm() > 1e-2 * size


def test_two_steps_of_gru_equal_their_equation_in_float64(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    ours = weights_after(
        tmp_path, make_model, tiny_tokenizer, direction="gru", gru_smoothing=SMOOTHING, epochs=2,
        learning_rate=FAR,
    )  # fmt: skip
    twin = Twin(make_model, tiny_tokenizer)
    start = twin.weight.detach().clone()

    def after(new: float, old: float) -> torch.Tensor:
        """Weights if the smoothed gradient is new times the new and old times the previous one."""
        theta, smoothed = start, torch.zeros(0)
        for _ in range(2):
            rise, retain = -twin.slope("forget", theta), twin.slope("retain", theta)
            smoothed = new * retain + old * smoothed if len(smoothed) else retain
            conflict = (rise * smoothed).sum()
            assert conflict < 0
            theta = theta - FAR * (rise - conflict / (smoothed**2).sum() * smoothed)
        last: torch.Tensor = theta
        return last

    right = after(SMOOTHING, 1 - SMOOTHING)
    size = (right - start).norm()
    assert (ours - right).norm() < 1e-4 * size
    assert (ours - after(1 - SMOOTHING, SMOOTHING)).norm() > 1e-3 * size


@pytest.mark.parametrize(("direction", "penalty"), [("gp", 2.0), ("cr", 1000.0)])
def test_a_step_with_a_penalty_equals_its_equation_in_float64(
    direction: str,
    penalty: float,
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
) -> None:
    """The finite differences of float32 gradients equal derivatives by autograd."""
    radius = 0.05
    ours = weights_after(
        tmp_path, make_model, tiny_tokenizer, direction=direction, sam_radius=radius,
        penalty=penalty,
        epochs=1,
    )  # fmt: skip
    twin = Twin(make_model, tiny_tokenizer)
    start = twin.weight.detach().clone()
    rise = -twin.slope("forget", start)
    plain = start - RATE * (twin.slope("retain", start) + rise)

    def product(theta: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """The Hessian of the forget term times a vector."""
        slope = -twin.slope("forget", theta, graph=True)
        (found,) = torch.autograd.grad((slope * vector).sum(), twin.weight)
        return found

    ahead = start + radius * rise / rise.norm()
    change = -twin.slope("forget", ahead) - rise
    unit = change / change.norm()
    bends = {
        "gp": product(start, rise / rise.norm()),
        "cr": product(ahead, unit) - product(start, unit),
    }
    right = plain - RATE * penalty * bends[direction]
    size = (right - plain).norm()
    assert size > 1e-2 * (plain - start).norm()
    assert (ours - right).norm() < 0.1 * size
    for wrong in (plain, 2 * plain - right):
        assert (ours - wrong).norm() > 0.9 * size
