"""The reinforced model of "Who's Harry Potter": the base after training on the forget set."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import set_seed

from mergeforget.console import quiet
from mergeforget.data.schema import Row
from mergeforget.data.templating import PromptTemplate
from mergeforget.distributed import on_main
from mergeforget.errors import RecipeError
from mergeforget.recipe import Term, Training
from mergeforget.train.forward import output_matrix
from mergeforget.train.lora_targets import lora_config
from mergeforget.train.objective import any_needs, mask_of
from mergeforget.train.reference import Reference, StoredOutputs, load_or_compute
from mergeforget.train.tokenize import encode_sets
from mergeforget.train_config import Reinforce

if TYPE_CHECKING:
    from mergeforget.train.fit import TrainingJob


def reinforce(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Row]],
    training: Training,
    job: TrainingJob,
    template: PromptTemplate,
) -> StoredOutputs:
    """Train an adapter on the forget set, and return its outputs there; the adapter is dropped.

    Raises:
        RecipeError: The model's logits are not its last hidden state times a matrix.
    """
    from peft import get_peft_model

    from mergeforget.train.fit import TrainingJob, fit  # fit.py calls this function

    more = training.reinforce or Reinforce()
    plan = Training(
        objective=[Term(loss="gd", on="forget", **_mask_of(training, "reinforced"))],
        transforms=[step for step in training.transforms if step.on == "forget"],
        epochs=more.epochs, learning_rate=more.learning_rate, optimizer=training.optimizer,
        batch_size=training.batch_size, gradient_accumulation=training.gradient_accumulation,
        weight_decay=training.weight_decay, max_grad_norm=training.max_grad_norm,
        max_length=training.max_length, seed=training.seed, tokens=training.tokens,
        lora=training.lora, gradient_checkpointing=training.gradient_checkpointing,
        tokens_per_pass=training.tokens_per_pass,
    )  # fmt: skip
    stage = f"{job.stage}-reinforced"
    own_job = TrainingJob(job.run, stage, job.resume, job.checkpoint_seconds)
    set_seed(training.seed)
    with quiet():
        policy = get_peft_model(
            model, lora_config(model, **plan.lora.model_dump(exclude_none=True))
        )
    try:
        encoded = encode_sets(tokenizer, {"forget": sets["forget"]}, plan, template)
        head = output_matrix(policy)
        if head is None:
            raise RecipeError(
                "whp stores the outputs of the reinforced model as inputs of its output layer, and "
                f"{type(model).__name__} changes its logits after that layer. Use another "
                "objective, for example undial."
            )
        folder, label = job.run.root / "reference", f"{stage}-"
        stored = on_main(lambda: sorted(folder.glob(f"{label}*.safetensors")))
        if not (job.resume and stored):
            on_main(lambda: _remove(stored))
            reference = Reference(head=head)
            fit(policy, tokenizer, encoded, plan.objective, plan, own_job, reference=reference)
        kinds = mask_of(training.objective)
        rows = encoded["forget"]
        known = load_or_compute("hidden", policy, rows, kinds, folder, head, before={}, label=label)
    finally:
        policy.unload()
    on_main(lambda: shutil.rmtree(own_job.checkpoints, ignore_errors=True))
    return known


def _mask_of(training: Training, need: str) -> dict[str, Any]:
    """Return the mask of the term with a need as an argument; empty for the default mask."""
    term = next(t for t in training.objective if any_needs([t], need))
    return {"mask": term.arguments["mask"]} if "mask" in term.arguments else {}


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()
