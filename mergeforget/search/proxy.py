"""Cheap scores: one pass of likelihoods tells most of what generation would."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mergeforget.data.schema import Measured
from mergeforget.metrics import METRICS
from mergeforget.score import Score

METRICS_READ = {  # metric -> splits
    "mia_auc": ("mia",),
    "greedy_match": ("forget", "retain"),
    "nll": ("forget", "retain", "holdout"),
}


def proxy_scores(measured: Measured) -> list[Score]:
    """Scores that need no generated answer."""
    found = [
        METRICS.get(name).fn(measured, split)
        for name, splits in METRICS_READ.items()
        for split in splits
    ]
    return [score for score in found if score is not None]


def only_proxy(scores: Iterable[Score]) -> list[Score]:
    """Those of ``proxy_scores``, so that like is compared with like."""
    return [s for s in scores if s.metric in METRICS_READ]


def with_proxy(scores: Sequence[Score], measured: Measured) -> list[Score]:
    """A benchmark's scores and the cheap ones that it does not have."""
    have = {(s.metric, s.split) for s in scores}
    return [*scores, *(s for s in proxy_scores(measured) if (s.metric, s.split) not in have)]
