"""Transformers' ``TrainingArguments`` for a section of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from mergeforget.console import quiet
from mergeforget.recipe import Memorise, Training

OPTIMIZERS = {  # names in a recipe -> names of the Trainer; 8-bit states need bitsandbytes
    "sgd": "sgd",
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


def arguments(
    training: Training | Memorise,
    folder: Path,
    *,
    steps_per_epoch: int,
    accumulation: int = 1,
    **more: Any,
) -> TrainingArguments:
    """Return the ``TrainingArguments`` for a section of a recipe.

    Args:
        folder: Folder of the checkpoints.
        steps_per_epoch: Optimiser steps of one pass over the first set.
    """
    warmup = round(getattr(training, "warmup_epochs", 0.0) * steps_per_epoch)
    warm = training.schedule == "constant" and warmup > 0  # "constant" has no warm-up
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": training.epochs,
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if warm else training.schedule,
        "warmup_steps": warmup,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "seed": training.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the default hides a NaN loss
        "save_strategy": "no",  # callbacks decide when
        "report_to": getattr(training, "report_to", None) or "none",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,  # two forward passes precede one backward pass
    }
    if isinstance(training, Training):
        settings["optim"] = OPTIMIZERS[training.optimizer]
        settings["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    with quiet():  # hide deprecation warnings
        made = TrainingArguments(**settings | more)
    made._n_gpu = min(made.n_gpu, 1)  # one process trains on one GPU, even if it sees several
    return made
