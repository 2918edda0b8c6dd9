"""How well a model predicts members and non-members: the distributions behind an MIA AUC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergeforget.analysis.evidence import MissingError, models_shown
from mergeforget.files import read_jsonl
from mergeforget.metrics._statistics import auc, loss_gap
from mergeforget.run import Run


@dataclass(frozen=True)
class Losses:
    """Document losses of one model.

    Attributes:
        model: ``base``, ``over``, ``under`` or a candidate.
        members: (n,) mean NLL of each document of the forget set, nats a token.
        nonmembers: (m,) of documents the model was never trained on.
    """

    model: str
    members: NDArray[np.float64]
    nonmembers: NDArray[np.float64]

    @property
    def auc(self) -> float:
        """Probability that a member has a lower loss than a non-member; ties count one half."""
        return auc(-self.members, -self.nonmembers)

    @property
    def gap(self) -> float:
        """Mean loss of members minus that of non-members, in nats a token."""
        return loss_gap(self.members, self.nonmembers)


def run_membership(run: Run) -> list[Losses]:
    """Document losses of base, over, under and the chosen candidate, as far as measured.

    Raises:
        MissingError: none was measured.
    """
    found = [losses for model in models_shown(run) if (losses := read_losses(run, model))]
    if not found:
        raise MissingError(
            f"No document losses were measured in {run.root}. `mergeforget evaluate {run.root}` "
            "measures them; the run's data must have a holdout set."
        )
    return found


def read_losses(run: Run, model: str) -> Losses | None:
    """The document losses of one model, or None where they were not measured."""
    rows = read_jsonl(run.answers / f"{model}.losses.jsonl")
    members = [float(r["nll"]) for r in rows if r.get("member")]
    others = [float(r["nll"]) for r in rows if not r.get("member")]
    if not members or not others:
        return None
    return Losses(model, np.array(members), np.array(others))


def rows_of(found: list[Losses]) -> list[dict[str, Any]]:
    """One flat row a document, for csv."""
    return [
        {"model": losses.model, "member": member, "nll": float(nll)}
        for losses in found
        for member, values in ((True, losses.members), (False, losses.nonmembers))
        for nll in values
    ]
