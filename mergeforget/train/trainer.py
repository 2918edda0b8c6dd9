"""transformers' Trainer with an unlearning objective: several sets a step, terms in the history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from mergeforget.data.batches import Batch
from mergeforget.files import append_jsonl
from mergeforget.outputs import TokenOutputs
from mergeforget.recipe import Memorise, Term, Training
from mergeforget.train.forward import as_reference, predict
from mergeforget.train.objective import compute, needs_reference


@dataclass
class Share:
    """A micro-batch and the totals of the optimiser step that it is a part of."""

    batches: dict[str, Batch]
    rows: dict[str, int]
    tokens: dict[str, dict[int, int]]


class UnlearningTrainer(Trainer):
    """Minimises the terms of a recipe; everything else is transformers'.

    The losses of the micro-batches of a step add up to the loss of the whole step (each knows the
    step's totals), so gradient accumulation equals the larger batch, uneven parts included.
    """

    loss_is_scaled_for_ga = True  # our shares add up; the Trainer must not divide once more

    def __init__(
        self, *, terms: Sequence[Term], stage: str, history: Path | None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.terms, self.stage, self.history = list(terms), stage, history
        self._values: dict[str, float] = {}
        self._compared = sorted({t.on for t in self.terms if needs_reference(t)})

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """The micro-batches of one optimiser step, each with the totals of all of them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        names = batches[0] if batches else {}
        rows = {n: sum(b[n].rows for b in batches) for n in names}
        tokens = {n: _added([b[n].count() for b in batches]) for n in names}
        return [Share(b, rows, tokens) for b in batches], None

    def _prepare_inputs(self, inputs: Any) -> Any:
        if isinstance(inputs, Share):
            inputs.batches = {n: b.to(self.args.device) for n, b in inputs.batches.items()}
        return inputs

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _track_num_input_tokens(self, inputs: Any) -> None:
        self.state.num_input_tokens_seen += sum(b.tokens for b in inputs.batches.values())

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        reference: dict[str, TokenOutputs] = {}
        for name in self._compared:
            with as_reference(model):
                reference[name] = self._predict(model, inputs, name)
        policy = {name: self._predict(model, inputs, name) for name in inputs.batches}
        loss, values = compute(self.terms, policy, reference)
        for label, value in values.items():
            self._values[label] = self._values.get(label, 0.0) + value
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms of the step that was just taken, and keep a line of the history."""
        if "loss" in logs and self._values:
            line = {"stage": self.stage, "step": self.state.global_step}
            line |= {"epoch": self.state.epoch, "loss": logs["loss"], "terms": dict(self._values)}
            line |= {k: logs[k] for k in ("grad_norm", "learning_rate") if k in logs}
            if self.history is not None and self.is_world_process_zero():
                append_jsonl(self.history, [line])
            logs = logs | {f"term/{label}": value for label, value in self._values.items()}
            self._values = {}
        super().log(logs, start_time)

    def _predict(self, model: Any, share: Share, name: str) -> TokenOutputs:
        return predict(
            model, share.batches[name], row_total=share.rows[name], token_total=share.tokens[name]
        )


def arguments(
    training: Training | Memorise,
    folder: Path,
    *,
    steps_per_epoch: int,
    accumulation: int = 1,
    **more: Any,
) -> TrainingArguments:
    """The Trainer's settings for a section of a recipe.

    Args:
        folder: where checkpoints go.
        steps_per_epoch: optimiser steps of one pass over the first set.
    """
    warmup = round(getattr(training, "warmup_epochs", 0.0) * steps_per_epoch)
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": training.epochs,
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": warmup,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "seed": training.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the default hides a NaN loss
        "save_strategy": "no",  # callbacks decide when
        "report_to": "none",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
    }
    return TrainingArguments(**settings | more)


def _added(counts: Sequence[dict[int, int]]) -> dict[int, int]:
    return {kind: sum(count[kind] for count in counts) for kind in counts[0]}
