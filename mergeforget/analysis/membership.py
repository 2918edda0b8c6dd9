"""How well a model predicts members and non-members: the distributions behind an MIA AUC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from mergeforget.analysis.evidence import MissingError, subjects_shown
from mergeforget.files import read_jsonl
from mergeforget.run import Run


@dataclass(frozen=True)
class Losses:
    """Document losses of one model.

    Attributes:
        subject: ``base``, ``over``, ``under`` or a candidate.
        members: (n,) mean NLL of each document of the forget set, nats a token.
        nonmembers: (m,) of documents the model was never trained on.
    """

    subject: str
    members: NDArray[np.float64]
    nonmembers: NDArray[np.float64]

    @property
    def auc(self) -> float:
        """Chance that a member is predicted better than a non-member; ties count one half."""
        n, m = len(self.members), len(self.nonmembers)
        if not n or not m:
            return float("nan")
        ranks = rankdata(-np.concatenate([self.members, self.nonmembers]))
        return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def run_membership(run: Run) -> list[Losses]:
    """Document losses of base, over, under and the chosen candidate, as far as measured.

    Raises:
        MissingError: none was measured.
    """
    found = [losses for subject in subjects_shown(run) if (losses := read_losses(run, subject))]
    if not found:
        raise MissingError(
            f"No document losses were measured in {run.root}. `mergeforget evaluate {run.root}` "
            "measures them; the run's data must have a holdout set."
        )
    return found


def read_losses(run: Run, subject: str) -> Losses | None:
    """The document losses of one model, or None where they were not measured."""
    rows = read_jsonl(run.answers / f"{subject}.losses.jsonl")
    members = [float(r["nll"]) for r in rows if r.get("member")]
    others = [float(r["nll"]) for r in rows if not r.get("member")]
    if not members or not others:
        return None
    return Losses(subject, np.array(members), np.array(others))


def rows_of(found: list[Losses]) -> list[dict[str, Any]]:
    """One flat row a document, for csv."""
    return [
        {"subject": losses.subject, "member": member, "nll": float(nll)}
        for losses in found
        for member, values in ((True, losses.members), (False, losses.nonmembers))
        for nll in values
    ]
