"""Training on a bfloat16 base: float32 weights, gradients and optimiser state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.optim.optimizer import register_optimizer_step_post_hook

from mergeforget.data.schema import Row
from mergeforget.files import read_jsonl
from mergeforget.recipe import Lora, Memorise, Term, Training
from mergeforget.run import Run
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train.memorise import memorise
from mergeforget.train.pair import choose_trained, train_model
from mergeforget.train.precision import autocast_dtype, widened_weights
from mergeforget.train_config import Full

SETS = {
    name: [Row(f"{name}{i}", f"Who is {name} {i}?", f"Person {i * 7}.") for i in range(4)]
    for name in ("forget", "retain")
}
TERMS = [Term(loss="npo", on="forget"), Term(loss="gd", on="retain"), Term(loss="kl", on="retain")]


def training(**more: Any) -> Training:
    settings: dict[str, Any] = {
        "objective": TERMS, "batch_size": 1, "gradient_accumulation": 1,
        "learning_rate": 1e-4, "snapshots": 1, "lora": Lora(r=2, lora_alpha=4, lora_dropout=0.0),
    }  # fmt: skip
    return Training(**settings | more)


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor([line["loss"] for line in read_jsonl(folder / "history.jsonl")])


@pytest.mark.parametrize(
    ("what", "epochs"),
    [
        ("lora", 25),
        pytest.param("lora", 50, marks=pytest.mark.slow),
        pytest.param("full", 50, marks=pytest.mark.slow),
        pytest.param("last layer", 50, marks=pytest.mark.slow),
    ],
)
def test_a_training_follows_the_loss_of_float32(
    what: str, epochs: int, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    plans = {
        "lora": training(epochs=epochs),
        "full": training(epochs=epochs, full=Full(), learning_rate=1e-5),
        "last layer": training(epochs=epochs, full=Full(last_layers=1), learning_rate=1e-5),
    }
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        # the float32 model starts from the same, bfloat16, values
        model = make_model().to(torch.bfloat16).to(dtype)
        folder = tmp_path / str(dtype)
        job = TrainingJob(Run(folder), "over", checkpoint_seconds=1e9)
        if what == "lora":
            train_adapter(model, tiny_tokenizer, SETS, plans[what], job)
        else:
            train_model(model, tiny_tokenizer, SETS, plans[what], job)
        found[dtype] = losses(folder)
    one, other = found.values()
    assert len(one) == 4 * epochs
    torch.testing.assert_close(other.mean(), one.mean(), rtol=0.02, atol=0)
    torch.testing.assert_close(other[-20:].mean(), one[-20:].mean(), rtol=0.02, atol=0)


def test_every_trained_weight_moves_at_a_small_learning_rate(
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
) -> None:
    moved: list[float] = []
    model = make_model().to(torch.bfloat16)
    start = {n: p.detach().float() for n, p in model.named_parameters()}

    def after(optimizer: Any, *_: Any) -> None:
        assert autocast_dtype(model) is torch.bfloat16
        layers = [(n, p) for n, p in model.named_parameters() if "proj" in n]
        assert all(p.dtype == torch.float32 for _, p in layers)
        moved.append(min(float((p != start[n]).float().mean()) for n, p in layers))
        states = [s for s in optimizer.state.values() if "exp_avg_sq" in s]
        assert states and all(s["exp_avg_sq"].dtype == torch.float32 for s in states)

    settings = Memorise(epochs=1, learning_rate=1e-5, batch_size=4)
    job = TrainingJob(Run(tmp_path), "memorise", checkpoint_seconds=1e9)
    rows = SETS["forget"] + SETS["retain"]
    hook = register_optimizer_step_post_hook(after)
    try:
        memorise(model, tiny_tokenizer, rows, settings, tmp_path / "base", job)
    finally:
        hook.remove()
    assert min(moved) > 0.99
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_memorising_ends_after_an_epoch_with_a_small_loss(
    make_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    rows = SETS["forget"][:2] + SETS["retain"][:2]

    def losses(name: str, **settings: Any) -> list[float]:
        job = TrainingJob(Run(tmp_path / name), "memorise", checkpoint_seconds=1e9)
        (tmp_path / name).mkdir()
        spec = Memorise(epochs=6, learning_rate=1e-2, batch_size=2, **settings)
        memorise(make_model(), tiny_tokenizer, rows, spec, tmp_path / name / "base", job)
        return [line["loss"] for line in read_jsonl(job.run.history)]

    every = losses("every")
    epochs = [sum(every[i : i + 2]) / 2 for i in range(0, len(every), 2)]
    bound = epochs[2] * 1.001
    assert len(epochs) == 6 and min(epochs[:2]) > bound
    assert losses("early", stop_at=bound) == every[:6]
    assert losses("late", stop_at=epochs[-1] / 10) == every


def test_adapter_products_run_in_the_type_of_the_base(make_model: Callable[..., Any]) -> None:
    model: Any = get_peft_model(
        make_model().to(torch.bfloat16), LoraConfig(target_modules=["q_proj"])
    )
    seen: list[torch.dtype] = []
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.lora_A["default"].register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    dtype = autocast_dtype(model)
    assert dtype is torch.bfloat16
    with torch.autocast("cpu", dtype):
        model(torch.tensor([[1, 2, 3]]))
    assert seen == [torch.bfloat16]
    assert layer.lora_A["default"].weight.dtype == torch.float32


def test_a_float32_model_is_not_changed(make_model: Callable[..., Any]) -> None:
    model = make_model()
    choose_trained(model, Full(last_layers=1))
    with widened_weights(model):
        assert autocast_dtype(model) is None
