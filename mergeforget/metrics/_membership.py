"""Every membership score of what was measured."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import METRICS
from mergeforget.metrics.mia_signal_auc import SIGNALS
from mergeforget.score import Score


def attack_scores(measured: Measured) -> list[Score]:
    """The loss attack's certain hits, and the AUC of every other signal, where there is data."""
    found = [METRICS.get("mia_tpr").fn(measured)]
    found += [METRICS.get("mia_signal_auc").fn(measured, signal=signal) for signal in SIGNALS]
    return [score for score in found if score is not None]
