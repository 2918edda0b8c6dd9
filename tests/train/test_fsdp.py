"""Two processes that hold a part of the model each train the adapters of one that holds it all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_distributed import FSDP, start
from test_resume import GA, GD, KL, NPO, SETS, STEEPEST, Killed, cut
from torch import nn

from mergeforget.distributed import check_launch, rank, sharded
from mergeforget.files import read_json, write_json
from mergeforget.models import LoadedModel, load_model
from mergeforget.run import Run
from mergeforget.train import forward
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train.forward import output_matrix
from mergeforget.train_config import AutoRate, Lora, Term, Tokens, Training, Watch

DPO, KL_ALL, *RMU = (
    Term.model_validate(term)
    for term in (
        {"loss": "dpo", "on": "forget"},
        {"loss": "kl", "on": "retain", "mask": "all"},
        {"loss": "rmu", "on": "forget", "layer": 0},
        {"loss": "adaptive_rmu", "on": "forget", "layer": 0},
        {"loss": "rmu_retain", "on": "retain", "layer": 0},
    )
)
WAYS: dict[str, dict[str, Any]] = {
    "together": {"epochs": 2, "watch": Watch(every=2, sample=2, best_by="retain_nll")},
    "padding": {  # a separate pass for every set, and the reference in every step
        "objective": [DPO, KL_ALL],
        "tokens": Tokens(padding="left"),
    },
    "hidden": {"objective": RMU, "batches": "alternating"},
    "checkpointing": {"gradient_checkpointing": True},
    "auto-rate": STEEPEST | {"auto_rate": AutoRate(every=2), "objective": [GA, GD, KL]},
    "clip-each": STEEPEST | {"auto_rate": AutoRate(method="fit", every=2), "clip_each": 1.0},
}


def train(base: LoadedModel, way: str, folder: Path, resume: bool = False) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "objective": [NPO, GD, KL], "epochs": 1, "batch_size": 1, "gradient_accumulation": 3,
        "learning_rate": 1e-2, "snapshots": 1, "lora": Lora(r=2, lora_dropout=0.0),
    }  # fmt: skip
    job = TrainingJob(Run(folder), "over", resume, checkpoint_seconds=1e9)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(forward, "TOGETHER", 37)  # rows of one process are long, another's short
        done = train_adapter(
            base.model, base.tokenizer, SETS, Training(**settings | WAYS[way]), job
        )
    return load_file(done / "adapter_model.safetensors")


@pytest.fixture
def untied(make_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """A model with a separate output layer, which is sharded like the other layers."""
    model = make_model()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone().flip(0))
    model.save_pretrained(tmp_path / "untied")
    tiny_tokenizer.save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


@pytest.mark.slow
def test_every_training_mode_gives_the_same_result_when_sharded(
    untied: Path, tmp_path: Path
) -> None:
    base = load_model(str(untied), device="cpu")
    wanted = {way: train(base, way, tmp_path / "one" / way) for way in WAYS}
    two = tmp_path / "two"
    both = start([__file__, str(untied), str(two)], tmp_path, **FSDP)
    assert [code for code, *_ in both] == [0, 0], both[0][2] + both[1][2]
    weights = sum(p.numel() for p in base.model.parameters())
    here = [read_json(two / f"part{number}.json") for number in (0, 1)]
    assert sum(part["numbers"] for part in here) == weights
    assert max(part["numbers"] for part in here) < 0.51 * weights
    assert all(part["head"] for part in here)
    for way, adapter in wanted.items():
        ours = load_file(two / way / "over" / "adapter_model.safetensors")
        assert ours.keys() == adapter.keys()
        for key, value in adapter.items():
            torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-5, msg=f"{way}: {key}")
    whole, again = (load_file(two / n / "over" / "adapter_model.safetensors")
                    for n in ("together", "resumed"))  # fmt: skip
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def work(model: str, folder: Path) -> None:
    """What each of the processes does."""
    check_launch(trains=True)
    assert sharded()
    base = load_model(model, frozen=True)
    numbers = sum(p.to_local().numel() for p in base.model.parameters())
    head = output_matrix(base.model)
    chunked = head is not None and torch.equal(head, load_model(model).model.lm_head.weight)
    for way in WAYS:
        train(base, way, folder / way)
    with pytest.MonkeyPatch.context() as patched:
        cut(patched, 2, killed=3)
        with pytest.raises(Killed):
            train(base, "together", folder / "resumed")
    train(base, "together", folder / "resumed", resume=True)
    write_json(folder / f"part{rank()}.json", {"numbers": numbers, "head": chunked})


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
