"""The worst case over prompt variants: raw prompts, the chat template, other system messages.

A row of the forget set counts as forgotten only if no variant reveals its answer. Any other row
counts as kept only if every variant reveals it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mergeforget.data.schema import Answer, AnswerLikelihood, Measured
from mergeforget.metrics import METRICS
from mergeforget.metrics._rouge import rouge_l_recall
from mergeforget.metrics.knowledge import is_exact
from mergeforget.metrics.leak_rate import is_leaked
from mergeforget.score import Score

COMPARED = ("forget_quality", "privleak")  # with another model, asked in the same way
HEADLINES = ("exact_match", "knowledge", "verbatim_rouge", "regurgitation", "greedy_match")


def worst_case(ways: Mapping[str, Measured]) -> Measured:
    """Combine the measurements of several prompt variants row by row.

    Args:
        ways: Measurements of one model on the same rows, by the name of the variant.

    Returns:
        For each forget row, the answer closest to the reference, the smallest NLL and the largest
        shares of known tokens; for any other row the opposite. Membership losses are those of the
        variant whose AUC is farthest from 0.5, because members and non-members must be asked in the
        same way.
    """
    every = list(ways.values())
    first = every[0]
    if len(every) == 1:
        return first
    apart = max(every, key=_distance)
    return replace(
        first,
        answers=[_answer(found) for found in zip(*(m.answers for m in every), strict=True)],
        likelihoods=[
            _likelihood(found) for found in zip(*(m.likelihoods for m in every), strict=True)
        ],
        losses=apart.losses,
    )


def worst_scores(combined: Sequence[Score], ways: Mapping[str, Sequence[Score]]) -> list[Score]:
    """Return the worst value of each score over the combined measurements and every variant.

    Args:
        combined: Scores of ``worst_case``.
        ways: Scores of each variant. Scores that compare with another model are taken from these.

    Returns:
        The scores of ``combined`` with their worst value, its interval, and ``ways``.
    """
    if len(ways) < 2:
        return list(combined)
    found = []
    for score in combined:
        same = {way: s for way, every in ways.items() for s in every if _key(s) == _key(score)}
        own = [] if score.metric in COMPARED and same else [score]
        worst = max([*own, *same.values()], key=_badness)
        found.append(replace(worst, ways={way: s.value for way, s in same.items()} or None))
    return found


def prompt_dependence(name: str, scores: Sequence[Score]) -> list[str]:
    """Return a sentence for each forget score that depends on the prompt variant."""
    told = []
    for score in scores:
        ways = score.ways or {}
        if (score.split, score.task) != ("forget", "") or score.metric not in HEADLINES:
            continue
        if len(set(ways.values())) > 1:
            each = ", ".join(f"{way} {value:.4f}" for way, value in ways.items())
            told.append(
                f"{name}: {score.metric} of the forget set depends on the prompt: {each}. "
                "Reported is the worst case."
            )
    return told


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


def _answer(found: Sequence[Answer]) -> Answer:
    choose = max if found[0].row.split == "forget" else min
    return choose(found, key=_known)


def _known(answer: Answer) -> tuple[bool, bool, float]:
    return is_exact(answer), is_leaked(answer), rouge_l_recall(answer.row.output, answer.completion)


def _likelihood(found: Sequence[AnswerLikelihood]) -> AnswerLikelihood:
    forget = found[0].row.split == "forget"
    one = (min if forget else max)(found, key=lambda x: x.nll)
    choose = max if forget else min
    return replace(
        one,
        greedy=choose(x.greedy for x in found),
        extracted=choose(x.extracted for x in found),
    )
