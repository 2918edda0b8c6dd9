"""Primal-dual weight of one term: raised while the term is above its limit, lowered below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from mergeforget.recipe import Dual, Term
from mergeforget.train.trainer import UnlearningTrainer


class DualWeight(TrainerCallback, ExportableState):
    """Updates the weight of a term after every optimiser step, by projected dual ascent.

    ``weight <- max(0, weight + step * (value - limit))``, where ``value`` is the term of the step
    that was just taken, before its weight. The weight is part of each checkpoint, so a resumed
    training continues bit for bit. The history records the weight used by each step.

    Args:
        term: Label of the term, for example ``gd_retain``.
        limit: Value, in nats, that the term should not exceed.
        step: Step size of the dual ascent, in weight per nat.
        weight: The recipe's weight, used until the first update.

    Source: Entesari et al. 2025, arXiv:2506.05314, algorithm 1.
    """

    def __init__(self, term: str, limit: float, step: float, weight: float) -> None:
        self.term, self.limit, self.step = term, limit, step
        self.start = weight
        self.weight = weight
        self.trainer: UnlearningTrainer | None = None

    @classmethod
    def of(cls, dual: Dual, terms: Sequence[Term]) -> DualWeight:
        """The callback for a recipe's section ``dual``, with the weight of the term it names."""
        (weight,) = (term.weight for term in terms if term.label == dual.term)
        return cls(dual.term, dual.limit, dual.step, weight)

    def state(self) -> dict[str, Any]:
        """Arguments and the current weight, as the Trainer stores them in a checkpoint."""
        args = {"term": self.term, "limit": self.limit, "step": self.step, "weight": self.start}
        return {"args": args, "attributes": {"weight": self.weight}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(saved, dict):  # of the checkpoint that the training resumes from
            self.weight = float(saved["attributes"]["weight"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        terms = self.trainer.terms
        self.trainer.terms = [
            term.model_copy(update={"weight": self.weight}) if term.label == self.term else term
            for term in terms
        ]
        self.trainer.note(dual_weight=self.weight)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        value = self.trainer.value_of(self.term)
        if value is not None:  # None in a step that holds the other set only
            self.weight = max(0.0, self.weight + self.step * (value - self.limit))
