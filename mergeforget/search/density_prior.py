"""The first guess of a search: the density that the pair itself predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mergeforget.adapter import Adapter
from mergeforget.candidate import Candidate
from mergeforget.console import say
from mergeforget.data.schema import Row
from mergeforget.files import read_jsonl
from mergeforget.merge.prediction import predict_gaps
from mergeforget.metrics._statistics import loss_gap
from mergeforget.run import ANCHORS, Run
from mergeforget.search.split import SearchData


@dataclass
class Guess:
    """Predicts from the document losses of base, over and under on the half that chooses.

    Attributes:
        given: a density that the caller prefers to any prediction.
        made: what was predicted, by family.
    """

    run: Run
    pair: Sequence[Adapter]
    choosing: SearchData
    given: float | None

    def __post_init__(self) -> None:
        self.made: dict[str, float] = {}

    def __call__(self, candidate: Candidate, densities: Sequence[float]) -> float | None:
        """The density at which a family is predicted to be balanced; None without a density."""
        if self.given is not None or candidate.density is None:
            return self.given
        if candidate.family not in self.made:
            over, under = self.pair
            found = predict_gaps(over, under, self._gaps, candidate, sorted(set(densities)))
            self.made[candidate.family] = found.density
            where = "balanced at" if found.crosses else "never balanced; it comes nearest at"
            say(f"The pair predicts {candidate.family} to be {where} {found.density:.2f}.")
        return self.made[candidate.family]

    @cached_property
    def _gaps(self) -> dict[str, float]:
        return {name: gap(self.run, name, self.choosing) for name in ANCHORS}


def gap(run: Run, model: str, data: SearchData) -> float:
    """The ``loss_gap`` of a model on the documents of ``data``, in nats a token."""
    losses = {
        (bool(row["member"]), row["id"]): float(row["nll"])
        for row in read_jsonl(run.answers / f"{model}.losses.jsonl")
    }

    def of(rows: Sequence[Row], member: bool) -> list[float]:
        return [losses[member, row.id] for row in rows]

    return loss_gap(of(data.members, True), of(data.nonmembers, False))
