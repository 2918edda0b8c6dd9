"""A pair trained together: the adapters of separate trainings, in half as many forward passes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook

from mergeforget.errors import Interrupted, NumericError, RecipeError
from mergeforget.files import read_json, read_jsonl, write_jsonl
from mergeforget.recipe import Recipe, load_recipe
from mergeforget.run import Run
from mergeforget.train.callbacks import last_checkpoint
from mergeforget.train.joined_adapters import why_apart
from mergeforget.train.pair import train_pair
from mergeforget.train.together import Partners, trains_together

TERMS = "[{loss: npo, on: forget}, {loss: gd, on: retain}, {loss: kl, on: retain, weight: 0.5}]"
OVER = {"objective": TERMS, "epochs": 2, "batch_size": 1, "gradient_accumulation": 2,
        "tokens_per_pass": 1024, "learning_rate": 3e-3, "lora.r": 4,
        "lora.lora_dropout": 0.2}  # fmt: skip
UNDER = {"objective": "[{loss: ga, on: forget}, {loss: rmu, on: retain, layer: 1}]",
         "epochs": 1, "batch_size": 2, "gradient_accumulation": 1, "lora.r": 2,
         "lora.target_modules": "[q_proj, down_proj]", "learning_rate": 1e-3, "seed": 7,
         "schedule": "cosine"}  # fmt: skip


@pytest.fixture(scope="module")
def pair_recipe(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Recipe]:
    folder = tmp_path_factory.mktemp("people")
    files = {split: folder / f"{split}.jsonl" for split in ("forget", "retain")}
    for split, file in files.items():
        rows = [(f"{split}{i}-qa0", f"Who is {split} {i}?", f"Ada {i}." * i) for i in range(1, 7)]
        write_jsonl(file, [dict(zip(("id", "input", "output"), row, strict=True)) for row in rows])

    def make(*more: str) -> Recipe:
        settings = [
            f"model.name={tiny_folder}",
            *(f"data.{n}={folder / n}.jsonl" for n in ("forget", "retain")),
        ]
        for side, own in (("over", OVER), ("under", UNDER)):
            settings += [f"pair.{side}.{k}={v}" for k, v in own.items()]
        return load_recipe("zjuklab", [*settings, *more])

    return make


def adapters(run: Run) -> dict[str, torch.Tensor]:
    return {
        f"{side} {name}": value
        for side in ("over", "under")
        for name, value in load_file(run.root / side / "adapter_model.safetensors").items()
    }


def trained(recipe: Recipe, folder: Path, **more: Any) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The adapters of a run, and the tokens of each of its passes with gradients."""
    passes: list[int] = []

    def count(module: Any, inputs: Any) -> None:
        if type(module).__name__ == "Embedding" and torch.is_grad_enabled() and module.training:
            passes.append(inputs[0].numel())

    hook = register_module_forward_pre_hook(count)
    try:
        run = train_pair(recipe, Run(folder), **more)
    finally:
        hook.remove()
    return adapters(run), passes


@pytest.fixture(scope="module")
def apart(
    pair_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], list[int], Path]:
    folder = tmp_path_factory.mktemp("apart")
    return *trained(pair_recipe(), folder), folder


def test_joint_training_equals_separate_training_with_fewer_passes(
    pair_recipe: Callable[..., Recipe], apart: Any, tmp_path: Path
) -> None:
    expected, passes, folder = apart
    found, fewer = trained(pair_recipe("pair.together=true"), tmp_path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    steps = {"over": 6, "under": 3}
    assert sum(fewer) == sum(passes)  # it costs no computation
    assert len(passes) == sum(steps.values()) and len(fewer) == max(steps.values())
    for side, count in steps.items():
        one, other = (losses(f, side) for f in (folder, tmp_path))
        assert len(one) == count and one == pytest.approx(other, abs=1e-5)
    stages = [read_json(f / "manifest.json")["stages"]["under"] for f in (tmp_path, folder)]
    assert stages[0]["joint_passes"] == 3 and "joint_passes" not in stages[1]


def losses(folder: Path, side: str) -> list[float]:
    return [x["loss"] for x in read_jsonl(folder / "history.jsonl") if x["stage"] == side]


@pytest.mark.slow
def test_two_trainings_with_until_end_as_they_do_apart(
    pair_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    settings = [
        "pair.over.warmup_epochs=0", "pair.under.warmup_epochs=0",
        "pair.over.schedule=constant", "pair.under.schedule=constant",
        "pair.over.until={auc_at_most: 0.9, forget_risen: 0.05, every: 2, max_steps: 8}",
        "pair.under.until={forget_risen: 0.02, every: 2, max_steps: 6}",
    ]  # fmt: skip
    found = {}
    for joined in ("true", "false"):
        recipe = pair_recipe(*settings, f"pair.together={joined}")
        found[joined] = trained(recipe, tmp_path / joined)[0]
    for name, value in found["false"].items():
        torch.testing.assert_close(found["true"][name], value, rtol=0, atol=1e-6)
    ends = [{side: read_json(tmp_path / joined / "until" / f"{side}.json")
             for side in ("over", "under")} for joined in found]  # fmt: skip
    for side in ("over", "under"):
        joint, alone = (end[side] for end in ends)
        assert joint["outcome"] == alone["outcome"] and joint["step"] == alone["step"] > 0
    stage = read_json(tmp_path / "true" / "manifest.json")["stages"]["under"]
    assert stage["joint_passes"] > 0


def test_a_signal_saves_both_trainings_and_resume_continues_both(
    pair_recipe: Callable[..., Recipe], apart: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = Partners._join

    def joined(self: Partners, both: Any) -> None:
        join(self, both)
        if self.passes == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # the main thread handles the signal

    monkeypatch.setattr(Partners, "_join", joined)
    recipe, run = pair_recipe("pair.together=true"), Run(tmp_path)
    with pytest.raises(Interrupted):
        train_pair(recipe, run)
    saved = {side: last_checkpoint(tmp_path / "checkpoints" / side) for side in ("over", "under")}
    assert all(saved.values()) and not run.over.exists() and not run.under.exists()
    monkeypatch.undo()
    found, _ = trained(recipe, tmp_path, resume=True)
    for name, value in apart[0].items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    assert [len(losses(tmp_path, side)) for side in ("over", "under")] == [6, 3]


def test_a_failure_of_one_training_saves_the_other(
    pair_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = Run(tmp_path)
    with pytest.raises(NumericError, match="did not change"):
        train_pair(pair_recipe("pair.together=true", "pair.over.learning_rate=1e-60"), run)
    assert run.state("over") == "failed" and not run.over.exists()
    assert last_checkpoint(tmp_path / "checkpoints" / "under") is not None
    with pytest.raises(NumericError, match="start again with --set pair.together=false"):
        train_pair(
            pair_recipe("pair.together=true", "pair.over.learning_rate=1e30"), Run(tmp_path / "b")
        )


@pytest.mark.parametrize(
    ("setting", "named"),
    [("direction=ngdiff", "direction: ngdiff"), ("robust={noise: 0.1}", "robust"),
     ("tokens={padding: left}", "padding: left"),
     ("gradient_checkpointing=true", "gradient_checkpointing"), ("report_to=[wandb]", "report_to"),
     ("lora.target_parameters=[q_proj.weight]", "target_parameters")],
)  # fmt: skip
def test_a_setting_that_forbids_joint_passes_is_refused_by_name(
    setting: str, named: str, pair_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=f"over has .*{named}"):
        pair_recipe("pair.together=true", f"pair.over.{setting}")
    recipe = pair_recipe("pair.together=auto", f"pair.over.{setting}")
    assert not trains_together(recipe, torch.device("cuda"))


def test_auto_joins_passes_on_a_gpu_only(pair_recipe: Callable[..., Recipe]) -> None:
    gpu = torch.device("cuda")
    assert trains_together(pair_recipe("pair.together=auto"), gpu)
    assert not trains_together(pair_recipe("pair.together=auto"), torch.device("cpu"))
    assert not trains_together(pair_recipe(), gpu)
    quantised = pair_recipe("model.quantization=4bit", "pair.together=auto")
    assert not trains_together(quantised, gpu)
    with pytest.raises(RecipeError, match="the base is quantised"):
        trains_together(pair_recipe("model.quantization=4bit", "pair.together=true"), gpu)


def test_a_model_that_cannot_join_passes_is_trained_apart_or_refused(
    make_model: Callable[..., Any],
) -> None:
    def policy(**changes: Any) -> Any:
        model = make_model()
        model.config.update({k: v for k, v in changes.items() if k == "attention_dropout"})
        targets = changes.get("targets", ["q_proj"])
        return get_peft_model(model, LoraConfig(r=2, target_modules=targets))

    assert not why_apart(policy(), policy(targets=["embed_tokens", "up_proj"]))
    assert "attention_dropout" in why_apart(policy(attention_dropout=0.1), policy())
    reason = why_apart(policy(), policy(targets=["lm_head"]))
    assert "do not see every token, for example base_model.model.lm_head" in reason
    with pytest.raises(RecipeError, match="pair.together is true, but"):
        Partners(("over", "under"), required=True).separate(reason)
    partners = Partners(("over", "under"), required=False)
    partners.separate(reason)
    ran: list[str] = []
    partners.run({side: lambda side=side: ran.append(side) for side in ("over", "under")})  # type: ignore[misc]
    assert ran == ["over", "under"] and not partners.joined
