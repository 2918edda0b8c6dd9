"""The Trainer's arguments, batches and callbacks for a section of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainingArguments

from mergeforget.console import quiet
from mergeforget.data.tokens import Encoded
from mergeforget.recipe import Memorise, Training
from mergeforget.train.callbacks import (
    Checkpoints,
    DualWeight,
    Epochs,
    FreshOptimizer,
    Guard,
    ProgressBar,
    Snapshots,
    StopWhenLearned,
    WeightAverage,
)
from mergeforget.train.dataset import PairedRows
from mergeforget.train.early_stopping import Watcher
from mergeforget.train.objective import reads_of
from mergeforget.train.samplers import (
    AlternatingSampler,
    BySetSampler,
    ChunkedSampler,
    JointSampler,
    LayeredSampler,
    Order,
)
from mergeforget.train.until import UntilController

if TYPE_CHECKING:
    from mergeforget.train.fit import TrainingJob

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


def callbacks_of(
    training: Training | Memorise,
    sets: Mapping[str, Sequence[Encoded]],
    rows: PairedRows,
    order: Order,
    job: TrainingJob,
    dual: DualWeight | None = None,
    controller: UntilController | None = None,
    snapshot: Callable[[int], None] | None = None,
) -> list[TrainerCallback]:
    """Return the callbacks of a training in the order in which the Trainer calls them.

    Args:
        snapshot: Saves the adapter at a step; used unless ``controller`` saves the steps.
    """
    plan = training if isinstance(training, Training) else None
    stop_at = training.stop_at if isinstance(training, Memorise) else None
    checkpoints = Checkpoints(job.checkpoint_seconds, job.run.history)
    if job.partners is not None:
        job.partners.register(checkpoints)
    callbacks: list[TrainerCallback] = [] if dual is None else [dual]
    if plan is not None and plan.watch is not None:
        callbacks.append(Watcher(plan.watch, sets, job.run.root, job.stage, job.checkpoints))
    if isinstance(order, ChunkedSampler):
        callbacks.append(FreshOptimizer(order))
    if controller is not None:
        callbacks.append(controller)
    elif snapshot is not None and plan is not None:
        callbacks.append(Snapshots(plan.snapshots, snapshot))
    if plan is not None and plan.average is not None:
        callbacks.append(WeightAverage(plan.average))
    bar = ProgressBar(job.stage, controller, at_most=stop_at is not None)
    callbacks += [Epochs(rows, order), Guard(), bar, checkpoints]
    return callbacks if stop_at is None else [*callbacks, StopWhenLearned(stop_at)]


def order_of(training: Training | Memorise, data: PairedRows, accumulation: int) -> Order:
    """Return the sampler of the micro-batches of a training."""
    rows = len(data)
    if isinstance(training, Memorise):
        return JointSampler(rows, training.batch_size // accumulation, training.seed)
    size, seed = training.batch_size, training.seed
    if training.batches == "by_set":
        sizes = {name: len(data.sets[name]) for name in reads_of(training.objective)}
        return BySetSampler(sizes, size, accumulation, seed)
    if training.batches == "alternating":
        return AlternatingSampler(rows, size, accumulation, seed)
    if training.folds:
        folds = [one.fold for one in data.sets["forget"]]
        return LayeredSampler(folds, training.epochs, size, accumulation, seed)
    if training.chunk_rows:
        return ChunkedSampler(rows, training.chunk_rows, training.epochs, size, accumulation, seed)
    return JointSampler(rows, size, seed)


def steps_per_epoch(order: Order, accumulation: int) -> int:
    """Return the optimiser steps of one pass over the first set, or over all chunks."""
    if isinstance(order, ChunkedSampler):
        return sum(order.chunk_steps) // order.epochs
    return -(-len(order) // accumulation)
