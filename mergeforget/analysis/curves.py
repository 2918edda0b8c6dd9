"""Scores over the training of each adapter: what every snapshot forgets and keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mergeforget.analysis.evidence import (
    MissingError,
    read_history,
    read_snapshots,
    run_scores,
)
from mergeforget.run import PAIR, Run
from mergeforget.score import Score

PARTS = ("all", "report", "choose")  # the largest part that a model was scored on


@dataclass(frozen=True)
class Moment:
    """One score at one moment of a training.

    Attributes:
        side: ``over`` or ``under``.
        epoch: passes over the forget set; 0 is the base.
        task: empty over all tasks.
    """

    side: str
    epoch: float
    metric: str
    split: str
    task: str
    value: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def run_curves(run: Run) -> list[Moment]:
    """Scores of the base (epoch 0), of every snapshot that was scored and of the adapter itself.

    Raises:
        MissingError: no snapshot was scored.
    """
    try:
        scores = run_scores(run)
    except MissingError:
        scores = {}
    moments = [m for side in PAIR for m in side_curves(run, side, scores)]
    if not moments:
        raise MissingError(
            f"No snapshot of {run.root} was scored. `mergeforget evaluate {run.root} --snapshots` "
            "scores them."
        )
    return moments


def side_curves(run: Run, side: str, scores: Mapping[str, list[Score]]) -> list[Moment]:
    """Moments of one adapter; none where no snapshot of it was scored."""
    known = [s for s in read_snapshots(run, side) if s.folder.name in scores]
    if not known:
        return []
    times = [("base", 0.0)] if "base" in scores else []
    times += [(s.folder.name, s.epoch if s.epoch is not None else float(s.step)) for s in known]
    end = _end(run, side)
    if side in scores and end is not None and end > times[-1][1]:
        times.append((side, end))
    return [
        Moment(side, epoch, s.metric, s.split, s.task, s.value, s.n)
        for model, epoch in times
        for s in widest(scores[model])
    ]


def _end(run: Run, side: str) -> float | None:
    """The epoch at which a training ended."""
    try:
        rows = read_history(run).get(side, [])
    except MissingError:
        return None
    return rows[-1].get("epoch") if rows else None


def widest(scores: list[Score]) -> list[Score]:
    """Of each figure the one on the largest part of the data."""
    found: dict[tuple[str, str, str], Score] = {}
    for part in reversed(PARTS):
        found |= {(s.metric, s.split, s.task): s for s in scores if s.part == part}
    return list(found.values())
