"""Train one adapter, or a whole model, on an objective; resumable to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, set_seed

from mergeforget.console import quiet, say
from mergeforget.data.schema import Row
from mergeforget.data.tokens import Encoded, encode_rows, truncation
from mergeforget.errors import InputError, NumericError
from mergeforget.files import explained, read_jsonl, whole, write_jsonl
from mergeforget.recipe import Memorise, Term, Training
from mergeforget.run import Run
from mergeforget.train.callbacks import (
    Bar,
    Checkpoints,
    Epochs,
    Guard,
    Snapshots,
    last_checkpoint,
)
from mergeforget.train.objective import mask_of
from mergeforget.train.rows import Collate, PairedRows
from mergeforget.train.trainer import UnlearningTrainer, arguments

CHECKPOINT_SECONDS = 60.0


@dataclass
class Job:
    """One training: what it is called, where its files go, and whether it goes on."""

    run: Run
    stage: str
    resume: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS

    @property
    def checkpoints(self) -> Path:
        return self.run.root / "checkpoints" / self.stage


def train_adapter(
    model: Any, tokenizer: Any, sets: Mapping[str, Sequence[Row]], training: Training, job: Job
) -> Path:
    """Train a LoRA adapter on a base model and save it as a plain PEFT folder.

    Args:
        model: the base; it is given back without the adapter, bit for bit as it was.
        sets: ``forget`` first, then ``retain``.

    Returns:
        The adapter's folder, ``run.root / job.stage``.

    Raises:
        NumericError: a loss that is not finite, or an adapter that does not move.
        Interrupted: SIGTERM; the step is saved.
    """
    from peft import LoraConfig, get_peft_model

    set_seed(training.seed)  # both adapters of a pair begin with the same A
    config = LoraConfig(task_type="CAUSAL_LM", **training.lora.model_dump(exclude_none=True))
    with quiet():
        policy = get_peft_model(model, config)
    encoded = _encode(tokenizer, sets, training)
    try:
        fit(
            policy,
            tokenizer,
            encoded,
            training.objective,
            training,
            job,
            snapshot=lambda step: save_adapter(policy, _snapshot(job, step)),
        )
        save_adapter(policy, job.run.root / job.stage)
    finally:
        policy.unload()
    shutil.rmtree(job.checkpoints, ignore_errors=True)
    return job.run.root / job.stage


def fit(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Encoded]],
    terms: Sequence[Term],
    training: Training | Memorise,
    job: Job,
    snapshot: Callable[[int], None] | None = None,
) -> None:
    """Run the Trainer on tokenised sets, from the last checkpoint where ``job.resume`` says so."""
    same_index = getattr(training, "retain_rows", "") == "same_index"
    rows = PairedRows(sets, seed=training.seed, same_index=same_index)
    tokens = getattr(training, "tokens", None)
    padding = tokens.padding if tokens else "none"
    accumulation = training.accumulation(len(rows)) if isinstance(training, Training) else 1
    per_epoch = -(-len(rows) // (training.batch_size * accumulation))
    callbacks = [Epochs(rows), Guard(), Bar(job.stage), Checkpoints(job.checkpoint_seconds)]
    if snapshot is not None and isinstance(training, Training):
        callbacks.insert(0, Snapshots(training.snapshots, snapshot))
    trainer = UnlearningTrainer(
        terms=terms,
        stage=job.stage,
        history=job.run.history,
        model=model,
        args=arguments(
            training,
            job.checkpoints,
            steps_per_epoch=per_epoch,
            accumulation=accumulation,
            save_total_limit=1,
        ),
        train_dataset=rows,
        data_collator=Collate(mask_of(terms), padding, _pad_id(tokenizer)),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    start = last_checkpoint(job.checkpoints) if job.resume else None
    _forget_history(job, int(start.name.split("-")[1]) if start else 0)
    if start is not None:
        say(f"{job.stage}: going on from {start.name.replace('-', ' ')}")
    else:
        shutil.rmtree(job.checkpoints, ignore_errors=True)
    with explained(job.checkpoints), quiet():
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    trainer.accelerator.free_memory()


def save_adapter(model: Any, folder: Path) -> None:
    """Save the adapter of a PEFT model as a plain PEFT folder, whole or not at all."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise NumericError(
                f"{name} is not finite after training. Lower the learning rate, or stop earlier."
            )
    with whole(folder) as temporary, quiet():
        model.save_pretrained(temporary)


def _encode(
    tokenizer: Any, sets: Mapping[str, Sequence[Row]], training: Training
) -> dict[str, list[Encoded]]:
    tokens = training.tokens
    encoded = {}
    for name, rows in sets.items():
        if not rows:
            raise InputError(f"The {name} set has no rows.")
        encoded[name] = encode_rows(
            tokenizer,
            rows,
            max_length=training.max_length,
            join=tokens.join,
            prompt_tokens=tokens.prompt_tokens,
        )
        if cut := truncation(encoded[name], name, training.max_length):
            say(cut)
    return encoded


def _snapshot(job: Job, step: int) -> Path:
    return job.run.snapshots / f"{job.stage}-step{step:05d}"


def _forget_history(job: Job, step: int) -> None:
    """Leave out the history's lines that will be written again after ``step``."""
    lines = read_jsonl(job.run.history)
    kept = [x for x in lines if x.get("stage") != job.stage or x.get("step", 0) <= step]
    if len(kept) < len(lines):
        write_jsonl(job.run.history, kept)


def _pad_id(tokenizer: Any) -> int:
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)
