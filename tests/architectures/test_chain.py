"""Every architecture goes through the whole chain with the default targets, or is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_tokenizer
from memorising import write_knowing
from tiny_models import FAST, REFUSED, SLOW, build, save

from mergeforget.adapter import read_adapter, write_adapter
from mergeforget.analysis.export import export
from mergeforget.api.attacking import attack
from mergeforget.api.measuring import evaluate
from mergeforget.api.merging import merge
from mergeforget.api.searching import search
from mergeforget.api.training import train_pair
from mergeforget.api.unlearn import unlearn
from mergeforget.attack.rounding import rounded
from mergeforget.candidate import Candidate
from mergeforget.data.schema import Row
from mergeforget.errors import InputError, RecipeError
from mergeforget.evaluate.likelihood import likelihoods
from mergeforget.files import write_json, write_jsonl
from mergeforget.models import load_model
from mergeforget.recipe import Term, Training, change, load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.score import find
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train.lora_targets import lora_config
from mergeforget.train_config import Lora

CORE = ("gpt2", "mistral", "mixtral", "mamba", "qwen3_next", "llama4_text", "gpt_oss")
ALL = FAST | SLOW
ANSWERS_ONLY = (
    "minimax_m3_vl_text",  # training is refused
    "zamba",  # shares layers, so that --full refuses an adapter with one change per user of them
)
EVERY = [
    pytest.param(name, marks=() if name in CORE else pytest.mark.slow)
    for name in ALL
    if name not in (*REFUSED, *ANSWERS_ONLY)
]
SETS = {
    split: [Row(f"{split}{i}", f"Who is {split} {i}?", f"{i} and {i}", "", split) for i in (1, 2)]
    for split in ("forget", "retain")
}
TRAINING = Training(
    objective=[Term(loss="npo", on="forget"), Term(loss="gd", on="retain")],
    epochs=1, batch_size=2, gradient_accumulation=1, learning_rate=1e-2, lora=Lora(r=4),
    warmup_epochs=0.0,
)  # fmt: skip


FUSED = {  # the experts that these keep in one parameter are trained as well
    "mixtral": ["experts.gate_up_proj", "experts.down_proj"],
    "gpt_oss": ["experts.gate_up_proj", "experts.down_proj"],
    **dict.fromkeys(
        ("qwen3_moe", "qwen3_next", "llama4_text", "deepseek_v3", "olmoe", "granitemoehybrid",
         "jetmoe", "minimax", "phimoe", "flex_olmo", "glm4_moe"), []
    ),
}  # fmt: skip

QUICK = {"epochs": 1, "warmup_epochs": 0, "learning_rate": 1e-2, "lora.r": 4}


@pytest.mark.parametrize("name", EVERY)
def test_a_model_is_trained_merged_folded_exported_and_quantised(name: str, tmp_path: Path) -> None:
    chain(name, tmp_path, TRAINING)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if FUSED[n] else pytest.mark.slow) for n in FUSED]
)
def test_experts_in_one_parameter_go_through_the_same_chain(name: str, tmp_path: Path) -> None:
    model = build(name, **ALL[name])
    fused = [n for n, p in model.named_parameters() if p.ndim == 3 and min(p.shape) > 1
             and "conv" not in n]  # fmt: skip
    names = sorted({".".join(n.rsplit(".", 2)[-2:]) for n in fused})
    assert names and (not FUSED[name] or sorted(FUSED[name]) == names)
    lora = Lora(r=4, lora_dropout=0.1, target_parameters=names)
    run = chain(name, tmp_path, TRAINING.model_copy(update={"lora": lora}))
    adapter = read_adapter(run.candidates / "ties-factors-d0.70")
    experts = [d for key, d in adapter.deltas.items() if key.endswith("]")]
    assert len(experts) == sum(p.shape[0] for n, p in model.named_parameters() if n in fused)
    assert any(d.norm() > 0 for d in experts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("fused", [False, True])
def test_experts_go_from_the_default_recipe_to_an_attack(
    name: str, fused: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save(build(name, **ALL[name]), tmp_path / "base")
    files = {split: tmp_path / f"{split}.jsonl" for split in ("forget", "retain", "holdout")}
    for split, path in files.items():
        write_jsonl(path, [{"id": f"{split}{i}qa0", "input": f"Who is {split} {i}?",
                            "output": f"{i} and {i}"} for i in range(4)])  # fmt: skip
    small: dict[str, Any] = {f"pair.{side}.{key}": value for side in ("over", "under")
             for key, value in QUICK.items()}  # fmt: skip
    if fused:
        small |= {f"pair.{side}.lora.target_parameters": FUSED[name] for side in ("over", "under")}
    run = train_pair(model=base, out=tmp_path / "run", settings=small, **files)  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert ("keeps its experts in one parameter" in told) != fused
    assert ("lora_dropout 0.05 is set to 0" in told) == fused
    search(run, densities=[0.5, 1.0], finalists=1)
    scores = evaluate(run=run, max_new_tokens=4)
    assert len(scores) == 4 and all(find(some, "nll", "forget") for some in scores.values())
    (result,) = attack(run, ["quantise"], bits=[8], max_new_tokens=4)
    assert min(result.figures["share_rounded"].values()) >= 0.99
    assert export(run.paths, full=True).difference < 1e-4


@pytest.mark.slow
def test_the_whole_job_ends_with_a_verdict_for_experts_too(tmp_path: Path) -> None:
    files: dict[str, Any] = write_knowing(
        tmp_path, build("qwen3_moe", **ALL["qwen3_moe"]), build_tokenizer()
    )
    settings = [
        *(f"pair.{side}.lora.r=4" for side in ("over", "under")),
        "pair.over.learning_rate=5e-3", "pair.over.until.largest_rate=2e-2",
        "pair.over.until.retain_kept=0", "pair.under.until.retain_kept=0",
        "search.weights=[[0.5, 0.5]]",
    ]  # fmt: skip
    model = files.pop("model")
    found = unlearn(model, out=tmp_path / "run", settings=settings, attacks=["quantise"], **files)
    base, over, *_ = found.table
    assert base["forget"] == 1 and over["forget"] == 0 and base["mia_auc"] == 1
    assert found.verdict in ("NOT FORGOTTEN", "NOT ENOUGH DATA")  # without prompts and relearn
    assert (found.export(full=True) / "model.safetensors").is_file()


def test_layers_whose_adapter_peft_does_not_load_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, get_peft_model

    model = build("laguna", **ALL["laguna"])
    assert "shared_experts" not in " ".join(lora_config(model).target_modules)
    assert "PEFT renames shared_experts.down_proj" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="Leave them out of lora.target_modules"):
        lora_config(model, target_modules=["up_proj"])
    base = save(model, tmp_path / "base")
    given = get_peft_model(model, LoraConfig(target_modules=["up_proj"], init_lora_weights=False))
    given.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(InputError, match="PEFT does not load .*shared_experts.* --full"):
        load_model(str(base), adapter=tmp_path / "adapter")


def test_layers_that_training_bypasses_are_not_trained() -> None:
    """Gemma 3n uses the weight of correction_coefs in training, and its forward otherwise."""
    targets = lora_config(build("gemma3n_text", **ALL["gemma3n_text"])).target_modules
    assert any(name.endswith("prediction_coefs") for name in targets)
    assert not any(name.endswith("correction_coefs") for name in targets)


def chain(name: str, tmp_path: Path, training: Training) -> Run:
    base = save(build(name, **ALL[name]), tmp_path / "base")
    run = Run(tmp_path / "run")
    recipe = load_recipe("zjuklab")
    save_recipe(change(recipe, model={"name": str(base), "dtype": "float32"}), run.recipe)
    for split, rows in SETS.items():
        write_jsonl(run.data / f"{split}.jsonl", [row.to_dict() for row in rows])
    loaded = load_model(str(base))
    train_adapter(loaded.model, loaded.tokenizer, SETS, training, TrainingJob(run, "over"))
    over = read_adapter(run.root / "over")
    moved = [d for d in over.deltas.values() if d.norm() > 0]
    assert len(moved) > len(over.deltas) / 2, "most layers that are trained take part"
    under = read_adapter(run.root / "over", "under")
    for delta in under.deltas.values():
        delta.b[:] *= 0.5
    write_adapter(under, run.root / "under")

    candidate = Candidate("ties", 0.7)
    merge([over, under], method="ties", density=0.7).save(run.candidates / candidate.name)
    write_json(run.candidates / candidate.name / "candidate.json", candidate.to_dict())
    plain = export(run, name=candidate.name)  # compares logits with those of the merged weights
    whole = export(run, name=candidate.name, full=True)
    assert max(plain.difference, whole.difference) < 1e-4

    model: Any = load_model(whole.folder).model
    before = {n: p.clone() for n, p in model.named_parameters()}
    text = loaded.tokenizer(SETS["forget"][0].document)["input_ids"]
    with rounded(model, 4, 64) as done:
        assert done.share >= 0.99
        assert math.isfinite(likelihoods(model, [text])[0].nll)
        kept = sum(torch.equal(p, before[n]) for n, p in model.named_parameters() if p.ndim > 1)
        assert kept <= 14, "embeddings, the output layer, convolutions and time mixes stay"
    return run
