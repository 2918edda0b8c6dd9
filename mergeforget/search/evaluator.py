"""Measures candidates on one loaded model: each is applied in place and taken off again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mergeforget.adapter import Adapter
from mergeforget.benchmarks import BENCHMARKS
from mergeforget.data.schema import Measured
from mergeforget.evaluate.measure import Membership, measure
from mergeforget.evaluate.readings import Kept
from mergeforget.files import write_jsonl
from mergeforget.merge.apply import Buffers, applied
from mergeforget.recipe import Recipe, SearchSpec
from mergeforget.score import Score
from mergeforget.search.coarse import with_coarse
from mergeforget.search.data import SearchData
from mergeforget.search.halves import halve


@dataclass
class Evaluator:
    """The model before, its tokenizer, and the rows; what a candidate is measured with.

    Attributes:
        model: plain, without an adapter.
        buffers: memory of merged weights, used again for each candidate.
        readings: folder of what glances have read, a file a candidate; None keeps nothing.
    """

    model: Any
    tokenizer: Any
    data: SearchData
    max_new_tokens: int
    membership: Membership = "documents"
    buffers: Buffers = field(default_factory=dict)
    readings: Path | None = None

    def glance(self, adapter: Adapter | None, label: str, data: SearchData) -> Measured:
        """Likelihoods of some of the data, without a generated answer; kept for ``measure``."""
        kept = Kept()
        measured = self._measure(adapter, label, data, 0, kept)
        if self.readings is not None:
            rows = [{"key": key, **asdict(one)} for key, one in kept.readings.items()]
            write_jsonl(self.readings / f"{label}.jsonl", rows)
        return replace(measured, answers=[])

    def measure(self, adapter: Adapter | None, label: str) -> Measured:
        """Everything that is read off the model with an adapter, or without.

        What a glance has read of the same candidate is not read again.
        """
        kept = Kept()
        if self.readings is not None:
            kept.readings |= Kept(self.readings / f"{label}.jsonl").readings
        return self._measure(adapter, label, self.data, self.max_new_tokens, kept)

    def _measure(
        self, adapter: Adapter | None, label: str, data: SearchData, max_new_tokens: int, kept: Kept
    ) -> Measured:
        change = nullcontext() if adapter is None else applied(self.model, adapter, self.buffers)
        with change:
            return measure(
                self.model,
                self.tokenizer,
                forget=data.forget,
                retain=data.retain,
                members=data.members,
                nonmembers=data.nonmembers,
                max_new_tokens=max_new_tokens,
                membership=self.membership,
                label=label,
                kept=kept,
            )


def score_parts(measured: Measured, spec: SearchSpec, benchmark: str) -> list[Score]:
    """Every score of the whole and of both halves."""
    scores_of: Callable[[Measured], list[Score]] = BENCHMARKS.get(benchmark).fn
    parts = {"all": measured} | halve(measured, spec.choose_share, spec.seed)
    return [
        replace(score, part=part)
        for part, one in parts.items()
        for score in with_coarse(scores_of(one), one)
    ]


def load_evaluator(
    recipe: Recipe, base: str, data: SearchData, device: str | None, readings: Path | None = None
) -> Evaluator:
    """The model that forgets, ready to be changed."""
    from mergeforget.models import load_model

    loaded = load_model(recipe.model.model_copy(update={"name": base}), device=device)
    spec = recipe.evaluation
    return Evaluator(
        loaded.model,
        loaded.tokenizer,
        data,
        spec.max_new_tokens,
        membership=spec.membership,
        readings=readings,
    )
