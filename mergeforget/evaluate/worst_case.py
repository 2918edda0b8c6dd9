"""The worst case over prompt variants: raw prompts, the chat template, other system messages.

A row of the forget set counts as forgotten only if no variant reveals its answer. Any other row
counts as kept only if every variant reveals it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergeforget.data.prompt_variants import known_best
from mergeforget.data.schema import Answer, AnswerLikelihood, DocumentLoss, Measured
from mergeforget.metrics import METRICS
from mergeforget.metrics._patterns import Patterns
from mergeforget.metrics._rouge import closest_recall
from mergeforget.metrics.knowledge import is_exact
from mergeforget.metrics.leak_rate import is_leaked, patterns_of
from mergeforget.score import Score, find

COMPARED = ("forget_quality", "privleak")  # with another model, for the same prompt variant
HEADLINES = ("exact_match", "knowledge", "verbatim_rouge", "regurgitation", "greedy_match")


def known_variants(base: Sequence[Score]) -> set[str] | None:
    """Return the prompt variants in which the model before unlearning knows its retain set.

    A variant counts where the share of known retain rows is at least 75 % of that in the best
    variant; see ``known_best``.

    Args:
        base: Scores of the model before.

    Returns:
        Names of variants; None where the scores are not of several variants, or where nothing is
        known in any.
    """
    found = (find(base, metric, "retain") for metric in HEADLINES)
    shares = next(
        (score.by_variant for score in found if score is not None and score.by_variant), None
    )
    return known_best(shares or {}) or None


def worst_case(
    variants: Mapping[str, Measured],
    keeping: Collection[str] | None = None,
    patterns: Patterns | None = None,
) -> Measured:
    """Combine the measurements of several prompt variants row by row.

    Args:
        variants: Measurements of one model on the same rows, by the name of the variant.
        keeping: Variants that count for rows outside the forget set; see ``known_variants``. None
            for all.
        patterns: Patterns that the model may know; of the retain rows that were asked if omitted.

    Returns:
        For each forget row, the answer closest to the reference, the smallest NLL and the largest
        shares of known tokens; for any other row the opposite. Membership losses are those of the
        variant whose AUC is farthest from 0.5, because members and non-members must be asked in the
        same way; they name the variant, and contain the NLL in every variant.
    """
    every = list(variants.values())
    first = every[0]
    if len(every) == 1:
        (only,) = variants
        return replace(first, losses=[replace(loss, variant=only) for loss in first.losses])
    patterns = patterns or patterns_of(answer.row for answer in first.answers)
    farthest = max(variants, key=lambda variant: _distance(variants[variant]))
    kept = [m for variant, m in variants.items() if keeping is None or variant in keeping] or every

    def rows(name: str) -> Iterator[Sequence[Any]]:
        """Return each row's answers or likelihoods in the variants that count for it."""
        own = zip(*(getattr(m, name) for m in kept), strict=True)
        for all_ways, counted in zip(
            zip(*(getattr(m, name) for m in every), strict=True), own, strict=True
        ):
            yield all_ways if all_ways[0].row.split == "forget" else counted

    return replace(
        first,
        answers=[_answer(found, patterns) for found in rows("answers")],
        likelihoods=[_likelihood(found) for found in rows("likelihoods")],
        losses=_losses(variants, farthest),
    )


def worst_scores(
    combined: Sequence[Score],
    variants: Mapping[str, Sequence[Score]],
    keeping: Collection[str] | None = None,
) -> list[Score]:
    """Return the worst value of each score over the combined measurements and every variant.

    Args:
        combined: Scores of ``worst_case``.
        variants: Scores of each variant. Scores that compare with another model are taken from
            these.
        keeping: As of ``worst_case``: variants that count for scores of other sets than the forget
            set, except membership.

    Returns:
        The scores of ``combined`` with their worst value, its interval, and ``by_variant``.
    """
    if len(variants) < 2:
        return list(combined)
    found = []
    for score in combined:
        same = {
            variant: s
            for variant, every in variants.items()
            for s in every
            if _key(s) == _key(score)
        }
        own = [] if score.metric in COMPARED and same else [score]
        counted = [
            s for variant, s in same.items()
            if keeping is None or variant in keeping or score.split in ("forget", "mia")
        ]  # fmt: skip
        worst = max([*own, *counted], key=_badness)
        found.append(
            replace(worst, by_variant={variant: s.value for variant, s in same.items()} or None)
        )
    return found


def prompt_dependence(name: str, scores: Sequence[Score]) -> list[str]:
    """Return a sentence for each forget score that depends on the prompt variant."""
    sentences = []
    for score in scores:
        variants = score.by_variant or {}
        if (score.split, score.task) != ("forget", "") or score.metric not in HEADLINES:
            continue
        if len(set(variants.values())) > 1:
            each = ", ".join(f"{variant} {value:.4f}" for variant, value in variants.items())
            sentences.append(
                f"{name}: {score.metric} of the forget set depends on the prompt: {each}. "
                "The worst case is reported."
            )
    return sentences


def _key(score: Score) -> tuple[str, str, str, str]:
    return score.metric, score.split, score.task, score.definition


def _badness(score: Score) -> float:
    if score.target is not None:
        return abs(score.value - score.target)
    return score.value if score.better == "lower" else -score.value


def _distance(measured: Measured) -> float:
    """Return the distance of the MIA AUC from 0.5."""
    score: Score | None = METRICS.get("mia_auc").fn(measured)
    return 0.0 if score is None else abs(score.value - 0.5)


def _losses(variants: Mapping[str, Measured], chosen: str) -> list[DocumentLoss]:
    """Return the losses of one variant, each with its NLL by variant."""
    every = zip(*(measured.losses for measured in variants.values()), strict=True)
    nlls = [{name: loss.nll for name, loss in zip(variants, losses, strict=True)}
            for losses in every]  # fmt: skip
    return [
        replace(loss, variant=chosen, by_variant=of_variants)
        for loss, of_variants in zip(variants[chosen].losses, nlls, strict=True)
    ]


def _answer(found: Sequence[Answer], patterns: Patterns) -> Answer:
    if found[0].row.split != "forget":
        return min(found, key=_known)
    best = max(found, key=lambda answer: _known(answer, patterns))
    texts = dict.fromkeys(answer.completion for answer in found)
    return replace(best, others=tuple(text for text in texts if text != best.completion))


def _known(answer: Answer, patterns: Patterns | None = None) -> tuple[bool, bool, float]:
    return is_exact(answer), is_leaked(answer, patterns), closest_recall(answer, answer.completion)


def _likelihood(found: Sequence[AnswerLikelihood]) -> AnswerLikelihood:
    forget = found[0].row.split == "forget"
    one = (min if forget else max)(found, key=lambda x: x.nll)
    choose = max if forget else min
    return replace(
        one,
        greedy=choose(x.greedy for x in found),
        extracted=choose(x.extracted for x in found),
    )
