"""The user's own forget, retain and holdout rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergeforget.benchmarks import benchmark
from mergeforget.data.schema import Measured
from mergeforget.metrics import METRICS
from mergeforget.metrics._statistics import combined_draws, interval_of
from mergeforget.metrics.mia_signal_auc import attack_scores
from mergeforget.score import Score, find, harmonic_mean, mia_score

METRICS_OF_TEXTS = ("verbatim_rouge", "regurgitation")  # with words of any script
METRICS_OF_ROWS = (
    "exact_match",
    "refused",
    "empty",
    "verbatim_probability",
    "extraction_strength",
    "exact_memorisation",
    "nll",
)


@benchmark(
    "custom", source="mergeforget; its metrics are those of SemEval-2025 Task 4, TOFU and MUSE"
)
def custom(measured: Measured, *, known: Sequence[Score] = ()) -> list[Score]:
    """Answers, likelihoods and membership of any rows, regardless of kind, task and split.

    ``aggregate`` is the harmonic mean of 1 - ROUGE-L recall on the forget set, ROUGE-L recall on
    the retain set, and the membership score; it is 0 if one of them is 0. Words of any script are
    counted. Refused and empty answers are reported separately, because they are not evidence of
    forgetting.

    Args:
        known: Scores computed elsewhere, for example by lm-eval.
    """
    splits = dict.fromkeys(["forget", "retain", *(a.row.split for a in measured.answers)])
    found = [
        METRICS.get(name).fn(measured, split, words="unicode")
        for name in METRICS_OF_TEXTS
        for split in splits
    ]
    found += [METRICS.get(name).fn(measured, split) for name in METRICS_OF_ROWS for split in splits]
    found.append(METRICS.get("nll").fn(measured, "holdout"))
    found += [METRICS.get(name).fn(measured) for name in ("mia_auc", "mmlu")]
    scores = [s for s in found if s is not None] + attack_scores(measured) + list(known)
    parts = _parts(scores)
    if "mia_score" in parts:
        scores.append(_overall("mia_score", parts["mia_score"][0], 1, parts["mia_score"][1]))
    if len(parts) == 3:
        values, draws = zip(*parts.values(), strict=True)
        combined = combined_draws(draws, harmonic_mean)
        scores.append(_overall("aggregate", harmonic_mean(values), 3, combined))
    return scores


def _parts(scores: Sequence[Score]) -> dict[str, tuple[float, np.ndarray | None]]:
    """Return value and draws of each part of the aggregate."""
    forget, retain = (find(scores, "verbatim_rouge", split) for split in ("forget", "retain"))
    auc = find(scores, "mia_auc", "mia")
    parts = {}
    if forget is not None:
        parts["forgotten"] = 1 - forget.value, None if forget.draws is None else 1 - forget.draws
    if retain is not None:
        parts["kept"] = retain.value, retain.draws
    if auc is not None:
        drawn = combined_draws([auc.draws], lambda draw: mia_score(draw[0]))
        parts["mia_score"] = mia_score(auc.value), drawn
    return parts


def _overall(metric: str, value: float, n: int, draws: np.ndarray | None) -> Score:
    return Score(
        metric,
        "all",
        value,
        "higher",
        n,
        interval=interval_of(draws, value),
        definition=f"custom/{metric.replace('_', '-')}@1",
        draws=draws,
    )
