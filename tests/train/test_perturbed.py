"""Forget terms through rounded and noisy weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError

from mergeforget.attack.rounding import round_to_nearest, rounded
from mergeforget.data.schema import Row
from mergeforget.errors import RecipeError
from mergeforget.files import read_jsonl
from mergeforget.run import Run
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train.perturbed import perturb, perturbed
from mergeforget.train_config import Lora, Robust, Term, Training

IDS = torch.tensor([[3, 5, 7, 9]])
SETS = {n: [Row(f"{n}{i}-qa0", f"Who is {i}?", f"Ada {i} {n}.", "", n) for i in range(4)]
        for n in ("forget", "retain")}  # fmt: skip


def with_lora(model: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"]}
    policy = get_peft_model(model, LoraConfig(**settings | more))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return policy.eval()


def test_the_gradient_passes_straight_through_rounding_and_noise() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    factor = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    for spec in (Robust(bits=4), Robust(noise=0.1), Robust(bits=4, noise=0.1)):
        weight.grad = None
        (factor * perturb(weight, spec)).sum().backward()
        torch.testing.assert_close(weight.grad, factor)
    expected = round_to_nearest(weight.detach(), 4, 64)
    torch.testing.assert_close(perturb(weight, Robust(bits=4)).detach(), expected)


def test_noise_has_the_stated_size() -> None:
    weight = 3 * torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    noise = perturb(weight, Robust(noise=0.1), torch.Generator().manual_seed(1)) - weight
    assert float(noise.std()) == pytest.approx(0.1 * 3, rel=0.02)


def test_a_rounded_pass_equals_the_merged_model_stored_in_4_bits(
    make_model: Callable[..., Any],
) -> None:
    policy = with_lora(make_model())
    with torch.no_grad(), perturbed(policy, Robust(bits=4)) as layers:
        found = policy(input_ids=IDS).logits
    plain = policy(input_ids=IDS).logits
    merged = policy.merge_and_unload()
    with torch.no_grad(), rounded(merged, 4, 64) as done:
        expected = merged(input_ids=IDS).logits
    assert layers == done.matrices  # the same matrices as the attack rounds
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-3)
    torch.testing.assert_close(merged(input_ids=IDS).logits, plain, atol=1e-5, rtol=1e-4)


def test_the_model_is_restored_after_the_block(make_model: Callable[..., Any]) -> None:
    policy = with_lora(make_model())
    before = policy(input_ids=IDS).logits
    with pytest.raises(KeyError), perturbed(policy, Robust(bits=3)):
        raise KeyError
    assert torch.equal(policy(input_ids=IDS).logits, before)


def test_an_adapter_other_than_plain_lora_is_refused(make_model: Callable[..., Any]) -> None:
    policy = with_lora(make_model(), use_dora=True)
    with pytest.raises(RecipeError, match="LoRA variant"), perturbed(policy, Robust(bits=4)):
        pass


def test_training_with_fine_rounding_equals_plain_training(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    """With 16 bits nothing changes; with 3 bits only the forget term uses other weights."""

    def first(name: str, **more: Any) -> dict[str, float]:
        plan = Training(
            objective=[Term(loss="ga", on="forget"), Term(loss="gd", on="retain")], epochs=1,
            batch_size=2, gradient_accumulation=1, snapshots=1,
            lora=Lora(r=2, lora_alpha=4, lora_dropout=0.0), **more,
        )  # fmt: skip
        job = TrainingJob(Run(tmp_path / name), "over", checkpoint_seconds=1e9)
        train_adapter(make_model(), tiny_tokenizer, SETS, plan, job)
        return dict(read_jsonl(job.run.history)[0]["terms"])

    plain, fine = first("plain"), first("fine", robust=Robust(bits=16))
    coarse = first("coarse", robust=Robust(bits=3))
    assert fine == pytest.approx(plain, rel=1e-3)
    assert coarse["gd_retain"] == pytest.approx(plain["gd_retain"], rel=1e-5)
    assert coarse["ga_forget"] != pytest.approx(plain["ga_forget"], rel=1e-4)


def test_layers_are_not_recomputed_at_unperturbed_weights() -> None:
    objective = [Term(loss="ga", on="forget")]
    assert Training(objective=objective).gradient_checkpointing == "auto"
    robust = Training(objective=objective, robust=Robust(bits=4))
    assert robust.gradient_checkpointing is False


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"robust": {}}, "no perturbation"),
        ({"robust": {"bits": 1}}, "greater than or equal to 2"),
        ({"robust": {"bits": 4}, "gradient_checkpointing": True}, "gradient_checkpointing"),
        ({"robust": {"bits": 4}, "objective": [{"loss": "gd", "on": "retain"}]}, "on forget"),
    ],
)
def test_settings_that_cannot_work_are_refused(more: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"objective": [{"loss": "ga", "on": "forget"}]}
    with pytest.raises(ValidationError, match=message):
        Training.model_validate(settings | more)
