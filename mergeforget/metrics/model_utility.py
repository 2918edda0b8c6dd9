"""What the model still knows of all that it should keep, as TOFU counts it."""

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

    The sets are ``retain``, ``real_authors`` and ``world_facts``; the latter two count the
    probability among options. None where one of the nine figures is missing. The interval draws the
    rows of each set, and all three figures of a set from the same draw; a set of which some rows
    lack a figure draws the figures apart.
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
    """The nine figures by ``SPLIT METRIC``; None where the rows do not give one."""
    parts: dict[str, Score | None] = {}
    for split in SPLITS:
        probability = option_probability if split in OPTION_SPLITS else verbatim_probability
        parts[f"{split} probability"] = probability(measured, split, task)
        parts[f"{split} ROUGE"] = verbatim_rouge(measured, split, task)
        parts[f"{split} truth ratio"] = truth_ratio(measured, split, task, mean=mean)
    return parts
