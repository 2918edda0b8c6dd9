"""Predict the balanced density of a pair, the first density of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mergeforget.adapter import Adapter
from mergeforget.candidate import Candidate
from mergeforget.console import say
from mergeforget.data.schema import Row
from mergeforget.files import read_jsonl, reading
from mergeforget.merge.prediction import predict_gaps
from mergeforget.metrics._statistics import loss_gap
from mergeforget.run import ANCHORS, Run
from mergeforget.search.split import SearchData


@dataclass
class PredictedDensity:
    """Predict a density from the document losses of base, over and under (selection split).

    Attributes:
        given: Density set by the caller, which replaces every prediction.
        made: Predictions by family.
    """

    run: Run
    pair: Sequence[Adapter]
    choosing: SearchData
    given: float | None

    def __post_init__(self) -> None:
        self.made: dict[str, float] = {}

    def __call__(self, candidate: Candidate, densities: Sequence[float]) -> float | None:
        """Predict the density at which a family is balanced; None if its method has none."""
        if self.given is not None or candidate.density is None:
            return self.given
        if candidate.family not in self.made:
            over, under = self.pair
            prediction = predict_gaps(over, under, self._gaps, candidate, sorted(set(densities)))
            self.made[candidate.family] = prediction.density
            where = "" if prediction.crosses else ", although no density balances it"
            say(f"Predicted density of {candidate.family}: {prediction.density:.2f}{where}.")
        return self.made[candidate.family]

    @cached_property
    def _gaps(self) -> dict[str, float]:
        return {name: gap(self.run, name, self.choosing) for name in ANCHORS}


def gap(run: Run, model: str, data: SearchData) -> float:
    """Return the ``loss_gap`` of a model on the documents of ``data``, in nats per token."""
    path = run.answers / f"{model}.losses.jsonl"
    with reading(path):
        losses = {(bool(row["member"]), row["id"]): float(row["nll"]) for row in read_jsonl(path)}

    def of(rows: Sequence[Row], member: bool) -> list[float]:
        with reading(path):
            return [losses[member, row.id] for row in rows]

    return loss_gap(of(data.members, True), of(data.nonmembers, False))
