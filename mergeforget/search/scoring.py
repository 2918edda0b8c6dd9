"""Score the measurements of a candidate, in full or by proxy, over the prompt variants."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from mergeforget.benchmarks import score as score_by
from mergeforget.data.schema import DocumentLoss, Measured
from mergeforget.data.templating import PromptTemplate
from mergeforget.evaluate.worst_case import worst_case, worst_scores
from mergeforget.metrics import METRICS
from mergeforget.recipe import SearchSpec
from mergeforget.score import Score
from mergeforget.search.split import PARTS, split_measured


def with_level(
    one: DocumentLoss, levels: Mapping[str, Mapping[str, float]], variant: PromptTemplate
) -> DocumentLoss:
    """Add the signal ``level``: the NLL of the row's twins minus that of the row, if known.

    A training with ``also_raw`` or ``forget_variants`` has levels for each form of prompts; for
    other variants, the levels of the training's own variant are used.

    Args:
        levels: Levels by row id, of the ``forget`` and of the ``unseen`` rows.
    """
    known = levels.get("forget" if one.member else "unseen", {})
    level = known.get(f"{one.id}@{variant.name}", known.get(one.id))
    return one if level is None else replace(one, signals=one.signals | {"level": level - one.nll})


def leak_scores(
    name: str, variants: Mapping[str, Measured], shown: Collection[str], spec: SearchSpec
) -> list[Score]:
    """Score the share of forget answers known verbatim.

    Args:
        shown: Ids of rows that are left out, since the model was trained on them.
    """
    by_metric: dict[str, list[Score]] = {}
    for measured in variants.values():
        parts = {"all": measured} | split_measured(measured, spec.choose_share, spec.seed)
        for part, one in parts.items():
            left = [x for x in one.likelihoods if x.row.id not in shown]
            score = METRICS.get("greedy_match").fn(replace(one, likelihoods=left), "forget")
            if score is not None:
                by_metric.setdefault(part, []).append(score)
    worst = {part: max(scores, key=lambda s: s.value) for part, scores in by_metric.items()}
    return [replace(score, metric=name, part=part, better="lower", definition="", draws=None)
            for part, score in worst.items()]  # fmt: skip


def score_parts(
    variants: Mapping[str, Measured],
    spec: SearchSpec,
    benchmark: str,
    metrics: Sequence[str] = (),
    keeping: Collection[str] | None = None,
    difficulty: Mapping[str, float] | None = None,
) -> list[Score]:
    """Score all rows and both splits, each by the worst case over the prompt variants.

    Args:
        keeping: Variants that count for retention; see ``known_variants``. None for all.
        difficulty: As in ``split_measured``.
    """
    parts = {
        variant: {"all": measured}
        | split_measured(measured, spec.choose_share, spec.seed, difficulty)
        for variant, measured in variants.items()
    }

    def scored(one: Measured) -> list[Score]:
        return with_proxy(score_by(benchmark, one, metrics=metrics), one)

    return [
        replace(score, part=part)
        for part in ("all", *PARTS)
        for score in worst_by(scored, {variant: p[part] for variant, p in parts.items()}, keeping)
    ]


def worst_by(
    scored: Callable[[Measured], list[Score]],
    variants: Mapping[str, Measured],
    keeping: Collection[str] | None = None,
) -> list[Score]:
    """Score measurements with several prompt variants, and return the worst case of each score."""
    by_variant = (
        {variant: scored(one) for variant, one in variants.items()} if len(variants) > 1 else {}
    )
    return worst_scores(scored(worst_case(variants, keeping)), by_variant, keeping)


PROXY_METRICS = {  # metric -> splits
    "mia_auc": ("mia",),
    "greedy_match": ("forget", "retain"),
    "nll": ("forget", "retain", "holdout"),
}


def proxy_scores(measured: Measured) -> list[Score]:
    """Compute the scores that need no generated answers."""
    scores = [
        METRICS.get(name).fn(measured, split)
        for name, splits in PROXY_METRICS.items()
        for split in splits
    ]
    scores.append(METRICS.get("mia_signal_auc").fn(measured, signal="level"))
    return [score for score in scores if score is not None]


def only_proxy(scores: Iterable[Score]) -> list[Score]:
    """Select the scores that ``proxy_scores`` computes."""
    return [s for s in scores if s.metric in PROXY_METRICS or s.metric == "mia_auc_level"]


def with_proxy(scores: Sequence[Score], measured: Measured) -> list[Score]:
    """Add the proxy scores that a benchmark does not compute itself."""
    have = {(s.metric, s.split) for s in scores}
    return [*scores, *(s for s in proxy_scores(measured) if (s.metric, s.split) not in have)]
