"""TOFU's model utility: performance on everything that should be kept."""

from __future__ import annotations

from mergeforget.data.schema import Measured
from mergeforget.metrics import metric
from mergeforget.metrics._statistics import combined_draws, interval_of
from mergeforget.metrics.option_probability import option_probability
from mergeforget.metrics.truth_ratio import DEFINITIONS, Mean, named, truth_ratio
from mergeforget.metrics.verbatim_probability import verbatim_probability
from mergeforget.metrics.verbatim_rouge import verbatim_rouge
from mergeforget.score import Score, harmonic_mean

OPTION_SPLITS = ("real_authors", "world_facts")
SPLITS = ("retain", *OPTION_SPLITS)


@metric("model_utility", source="TOFU, arXiv:2401.06121, section 2.2.1")
def model_utility(
    measured: Measured, split: str = "all", task: str = "", *, mean: Mean = "arithmetic"
) -> Score | None:
    """Harmonic mean of probability, ROUGE-L recall and truth ratio on three sets, in [0, 1].

    The sets are ``retain``, ``real_authors`` and ``world_facts``; the latter two use the
    probability among options. None if one of the nine parts is missing. The interval combines the
    draws of the parts; the three parts of a set share their draws if they have the same rows.
    """
    parts = utility_parts(measured, task, mean)
    known = [part for part in parts.values() if part is not None]
    if len(known) < len(parts):
        return None
    draws = combined_draws([part.draws for part in known], harmonic_mean)
    definition = DEFINITIONS[mean].replace("truth-ratio", "model-utility")
    return Score(
        named("model_utility", mean),
        split,
        harmonic_mean([part.value for part in known]),
        "higher",
        len(known),
        task=task,
        interval=interval_of(draws),
        definition=definition,
        draws=draws,
    )


def utility_parts(
    measured: Measured, task: str = "", mean: Mean = "arithmetic"
) -> dict[str, Score | None]:
    """Return the nine parts by ``SPLIT METRIC``; None for a part without rows."""
    parts: dict[str, Score | None] = {}
    for split in SPLITS:
        probability = option_probability if split in OPTION_SPLITS else verbatim_probability
        parts[f"{split} probability"] = probability(measured, split, task)
        parts[f"{split} ROUGE"] = verbatim_rouge(measured, split, task)
        parts[f"{split} truth ratio"] = truth_ratio(measured, split, task, mean=mean)
    return parts
