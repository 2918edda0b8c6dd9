"""What a reader of the scores must be told: what is missing, and what fell below a floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergeforget.evaluate.utility import below_floor
from mergeforget.recipe import EvaluationSpec
from mergeforget.score import Score, find

RETRAINED = (
    "Forget quality and PrivLeak are not computed: they compare with a model that was trained "
    "without the forget set. Give it with --retrained MODEL; or measure it once with `mergeforget "
    "evaluate --model MODEL --benchmark tofu --forget FILE --holdout FILE --out DIR`, and give "
    "--retrained DIR/answers/NAME.likelihoods.jsonl."
)
UTILITY = (
    "Model utility is not computed: it needs retain rows with perturbed answers (--rows "
    "retain=retain_perturbed.jsonl), --rows real_authors=real_authors_perturbed.jsonl and --rows "
    "world_facts=world_facts_perturbed.jsonl."
)


def notes(spec: EvaluationSpec, scores: Mapping[str, Sequence[Score]]) -> list[str]:
    """Warnings and remarks on the scores of some models, each once."""
    told = []
    for name, every in scores.items():
        ratio = find(every, "utility_ratio", "all")
        if ratio is not None:
            told.append(below_floor(name, ratio, spec.floor))
        if spec.benchmark.replace("-", "_") == "tofu":
            told.append("" if find(every, "forget_quality", "forget") else RETRAINED)
            told.append("" if find(every, "model_utility", "all") else UTILITY)
    return list(dict.fromkeys(filter(None, told)))
