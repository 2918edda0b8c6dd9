"""The first screen of a report: verdict, remaining leaks, retention, cost and uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergeforget.analysis.people import PersonRecord, shown_model, worst_attack
from mergeforget.attack.headline import results_of, run_verdict
from mergeforget.evaluate.verdict import ForgettingVerdict
from mergeforget.run import Run
from mergeforget.score import Score, find, read_scores


@dataclass(frozen=True)
class Summary:
    """The first screen of a report.

    Attributes:
        subjects: Numbers of people or documents and of rows to forget.
        leaks: Number of answers still revealed, and the worst attack.
        retention: Retained answers before and after.
        ability: General ability before and after.
        uncertain: Questions that the measurements leave open.
        attacks: (attack, finding, verdict) of each attack on the model.
    """

    verdict: ForgettingVerdict
    subjects: str
    leaks: str
    retention: str
    ability: str
    uncertain: list[str]
    attacks: list[tuple[str, str, str]]


def summary_of(run: Run, people: Sequence[PersonRecord]) -> Summary:
    """Return the first screen: verdict, leaks, retention, cost and uncertainty."""
    model = shown_model(run)
    scores = read_scores(run.scores)
    now, base = scores.get(model, []), scores.get("base", [])
    verdict = run_verdict(run, model)
    results = results_of(run, model)
    rows = sum(p.rows for p in people)
    return Summary(
        verdict,
        f"{len(people)} people or documents, {rows} rows",
        _leaks(people, verdict),
        _before_and_after(
            now, base, ("leak_rate", "knowledge", "exact_match"), "retain", "retained answers"
        )
        or "Retained answers were not measured.",
        _before_and_after(now, base, ("mmlu",), "mmlu", "MMLU accuracy")
        or _before_and_after(now, base, ("model_utility",), "all", "model utility")
        or "General ability was not measured; pass the folder of MMLU with --mmlu.",
        verdict.uncertain,
        [(r.attack, r.finding, r.verdict) for r in results],
    )


def _leaks(people: Sequence[PersonRecord], verdict: ForgettingVerdict) -> str:
    asked = sum(p.after[1] for p in people)
    text = f"{verdict.leaks} of {verdict.asked} forget answers"
    if asked:
        before, total = sum(p.before[0] for p in people), sum(p.before[1] for p in people)
        text = f"{sum(p.after[0] for p in people)} of {asked} forget answers when asked directly"
        text += f" ({before} of {total} before)" if total else ""
    worst = [leak for p in people for leak in p.leaks if leak.attack != "questions"]
    if found := worst_attack(worst):
        text += f"; {found[1]} rows under the attack {found[0]}"
    return text + "."


def _before_and_after(
    now: Sequence[Score], base: Sequence[Score], metrics: Sequence[str], split: str, what: str
) -> str:
    """``95 % of the retained answers before, 80 % after (95 % CI 60 % to 91 %).``"""
    for metric in metrics:
        for part in ("report", "all"):
            after = find(now, metric, split, part=part)
            if after is None:
                continue
            before = find(base, metric, split, part=part)
            text = f"{what[0].upper()}{what[1:]}: "
            text += f"{before.value:.0%} before, " if before else ""
            text += f"{after.value:.0%} after"
            if after.interval:
                text += f" (95 % CI {after.interval[0]:.0%} to {after.interval[1]:.0%})"
            return text + "."
    return ""
