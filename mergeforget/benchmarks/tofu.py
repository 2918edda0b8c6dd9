"""TOFU, A Task of Fictitious Unlearning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from mergeforget.benchmarks import benchmark
from mergeforget.data.schema import Measured
from mergeforget.metrics import METRICS
from mergeforget.metrics.mia_signal_auc import attack_scores
from mergeforget.metrics.model_utility import OPTION_SPLITS
from mergeforget.metrics.truth_ratio import Mean
from mergeforget.score import Score

SPLITS = ("forget", "retain", *OPTION_SPLITS)
FURTHER = (
    "refused",
    "empty",
    "nll",
    "extraction_strength",
    "exact_memorisation",
)
MEANS: tuple[Mean, ...] = get_args(Mean)


@benchmark("tofu", source="TOFU, arXiv:2401.06121; its code: locuslab/tofu", copies=True)
def tofu(measured: Measured, *, known: Sequence[Score] = ()) -> list[Score]:
    """Probability, ROUGE and truth ratio of each set, model utility, forget quality, PrivLeak.

    The sets are ``forget``, ``retain``, ``real_authors`` and ``world_facts``. Scores based on the
    truth ratio are computed with both published means; see ``truth_ratio``. Forget quality and
    PrivLeak compare with ``measured.retrained`` and are omitted without it.

    Args:
        known: Scores computed elsewhere.
    """
    scores = [score for split in SPLITS for score in _of_split(measured, split)]
    scores += [METRICS.get(m).fn(measured, s) for m in FURTHER for s in ("forget", "retain")]
    scores += [METRICS.get(name).fn(measured) for name in ("mia_auc", "mmlu")]
    scores += attack_scores(measured)
    scores += [METRICS.get("privleak").fn(measured)]
    scores += [
        METRICS.get(name).fn(measured, mean=mean)
        for name in ("model_utility", "forget_quality")
        for mean in MEANS
    ]
    return [score for score in scores if score is not None] + list(known)


def _of_split(measured: Measured, split: str) -> list[Score | None]:
    probability = "option_probability" if split in OPTION_SPLITS else "verbatim_probability"
    ratios = [METRICS.get("truth_ratio").fn(measured, split, mean=mean) for mean in MEANS]
    return [
        METRICS.get(probability).fn(measured, split),
        METRICS.get("verbatim_rouge").fn(measured, split),
        *ratios,
    ]
