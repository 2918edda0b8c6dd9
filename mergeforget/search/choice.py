"""Choose the balanced candidate and explain the choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergeforget.candidate import Candidate
from mergeforget.evaluate.paired import PairedDifference, paired_differences
from mergeforget.evaluate.verdict import ForgettingVerdict, judge
from mergeforget.evaluate.worst_case import HEADLINES, prompt_dependence
from mergeforget.score import Score, find
from mergeforget.search.objective import Objective, figure, known_share
from mergeforget.search.split import PARTS
from mergeforget.search.warnings import disagreement, one_sided, reasons_against, warning_of


@dataclass(frozen=True)
class Scored:
    """A candidate and its scores on both splits.

    Attributes:
        matching: Sentence about answers with more digits of their own secrets than by chance.
        evaluated: Number of forget rows that were evaluated, and number of rows to forget.
    """

    candidate: Candidate
    scores: list[Score]
    matching: str = ""
    evaluated: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """Name of the candidate."""
        return self.candidate.name


@dataclass(frozen=True)
class Anchors:
    """Scores of the models with which candidates are compared."""

    base: list[Score]
    over: list[Score]
    under: list[Score]


@dataclass(frozen=True)
class NextBest:
    """The second best candidate, compared with the chosen one on their common rows.

    Attributes:
        differences: Scores of the chosen candidate minus those of the second best.
    """

    chosen: str
    name: str
    differences: list[PairedDifference]

    @property
    def sentence(self) -> str:
        """Whether the two can be distinguished, with the differences and their intervals."""
        distinguishable = [d for d in self.differences if d.distinguishable]
        shown = "; ".join(map(str, distinguishable or self.differences))
        if distinguishable:
            return f"{self.chosen} differs from {self.name}, the next best candidate: {shown}."
        return (
            f"{self.chosen} cannot be distinguished from {self.name}, the next best candidate, on "
            f"the same rows: {shown}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = [d.to_dict() for d in self.differences]
        return {"name": self.name, "sentence": self.sentence, "differences": found}


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, as written to ``search/chosen.json``."""

    scored: Scored
    objective: Objective
    sentence: str
    warning: str | None
    pareto: list[str]
    measured: int
    verdict: ForgettingVerdict
    next_best: NextBest | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "name": self.scored.name,
            "candidate": self.scored.candidate.to_dict(),
            "objective": self.objective.text,
            "sentence": self.sentence,
            "warning": self.warning,
            "pareto": self.pareto,
            "measured": self.measured,
            "verdict": self.verdict.to_dict(),
            **({"next_best": self.next_best.to_dict()} if self.next_best else {}),
            "scores": {part: figures(self.scored.scores, part) for part in PARTS},
        }


def choose(
    scored: Sequence[Scored],
    anchors: Anchors,
    objective: Objective,
    matching: Callable[[str], str] = lambda name: "",
) -> Choice:
    """Choose the candidate with the best objective on the selection split, ties by name.

    Args:
        matching: Returns the sentence ``Scored.matching`` of a candidate by its name.
    """
    best = best_of(scored, anchors, objective, "choose")
    best = replace(best, matching=matching(best.name))
    warning = disagreement(best.name, best.scores)
    if warning and (other := best_of(scored, anchors, objective, "report").name) != best.name:
        warning += f" On the report split alone, {other} would be chosen."
    verdict = _judged(best, anchors)
    reasons = _reasons_against(best, anchors, objective)
    undecided = only_undecided(verdict, reasons)
    doubted = warning_of(best.name, reasons, undecided)
    warnings = [one_sided(anchors.over, anchors.under), doubted, warning]
    return Choice(
        scored=best,
        objective=objective,
        sentence=why(best, scored, anchors, objective),
        warning=" ".join(text for text in warnings if text) or None,
        pareto=pareto(scored),
        measured=len(scored),
        verdict=verdict,
    )


def _judged(best: Scored, anchors: Anchors) -> ForgettingVerdict:
    """Return the verdict on a candidate, without attacks."""
    return judge(best.scores, matching=best.matching, before=anchors.base, evaluated=best.evaluated)


def _reasons_against(best: Scored, anchors: Anchors, objective: Objective) -> list[str]:
    """Return why a candidate is not balanced, as sentences."""
    reasons = reasons_against(best.scores, anchors.base, objective, best.evaluated)
    return [*reasons, best.matching] if best.matching else reasons


def only_undecided(verdict: ForgettingVerdict, reasons: Sequence[str]) -> bool:
    """Return whether lack of data is the only reason not to call a candidate balanced."""
    distinguished = verdict.told_apart or (verdict.state == "FORGOTTEN" and verdict.over_forgotten)
    open_points = len(verdict.reasons if verdict.state != "FORGOTTEN" else verdict.uncertain)
    return verdict.state != "NOT FORGOTTEN" and not distinguished and len(reasons) <= open_points


def best_of(scored: Sequence[Scored], anchors: Anchors, objective: Objective, part: str) -> Scored:
    """Return the best candidate; ties are broken by name."""
    ordered = sorted(scored, key=lambda s: s.name)
    return max(ordered, key=lambda s: objective.rank(s.scores, anchors.base, part))


def next_best(
    chosen: str,
    scored: Sequence[Scored],
    anchors: Anchors,
    objective: Objective,
    answers: Path,
) -> NextBest | None:
    """Compare the chosen candidate with the next best one; None if there is nothing to compare.

    Args:
        answers: Folder of the answers and losses of each candidate.
    """
    others = [one for one in scored if one.name != chosen]
    if not others:
        return None
    second = best_of(others, anchors, objective, "choose").name
    differences = paired_differences(answers / f"{chosen}.jsonl", answers / f"{second}.jsonl")
    return NextBest(chosen, second, differences) if differences else None


def pareto(scored: Sequence[Scored], part: str = "choose") -> list[str]:
    """Return the sorted names of candidates that no other dominates in forgetting and retention."""
    points = {}
    for one in scored:
        forget, retain = (figure(name, one.scores, part) for name in ("forget", "retain"))
        if forget is not None and retain is not None:
            points[one.name] = (forget, retain)
    return sorted(
        name
        for name, (forget, retain) in points.items()
        if not any(
            f >= forget and r >= retain and (f, r) != (forget, retain) for f, r in points.values()
        )
    )


def why(best: Scored, scored: Sequence[Scored], anchors: Anchors, objective: Objective) -> str:
    """Explain the choice in a sentence for each split."""
    rank = objective.rank(best.scores, anchors.base, "choose")
    candidate = best.candidate
    layers = (
        f" (densities {candidate.densities} by layer)" if "density" in candidate.by_module else ""
    )
    chosen, over, under = (
        find(scores, "mia_auc", "mia", part="choose")
        for scores in (best.scores, anchors.over, anchors.under)
    )
    reasons = _reasons_against(best, anchors, objective)
    rating = f"is balanced and the best of {len(scored)} candidates"
    if reasons:
        lacking = only_undecided(_judged(best, anchors), reasons)
        rest = "there is not enough data to call it balanced" if lacking else "it is not balanced"
        several = f"is the nearest to balance of {len(scored)} candidates"
        rating = f"{several if len(scored) > 1 else 'is the only candidate'}, but {rest}"
    text = f"{best.name}{layers} {rating}. Selection split: "
    if objective.terms not in ((("mia", 1.0),), (("mia_level", 1.0),)):
        text += f"{objective.text.partition(' if ')[0]} {rank.value:.3f}"
        text += f", MIA AUC {chosen.value:.3f}" if chosen else ""
    elif chosen:
        text += f"MIA AUC {chosen.value:.3f}"
    if over and under:
        text += f" (over {over.value:.3f}, under {under.value:.3f})"
    text += _kept(best, "choose")
    if objective.floors:
        text += ", no candidate reaches the floor" if rank.shortfall else ", floor reached"
    reported = find(best.scores, "mia_auc", "mia", part="report")
    if reported:
        text += f". Report split: MIA AUC {reported.value:.3f}{_kept(best, 'report')}"
        if objective.floors:
            missed = objective.missed(best.scores, anchors.base, "report")
            text += ", floor not reached" if missed else ", floor reached"
    return text + "."


def figures(scores: Sequence[Score], part: str) -> dict[str, float]:
    """Return the overall scores of one split by name: ``knowledge_forget``, ``mia_auc``, ..."""
    return {
        f"{s.metric}_{s.split}" if s.split in ("forget", "retain", "holdout") else s.metric: s.value
        for s in scores
        if s.part == part and not s.task
    }


def _kept(best: Scored, part: str) -> str:
    known = {split: known_share(best.scores, split, part) for split in ("retain", "forget")}
    shares = [f"{v:.0%} of {split}" for split, v in known.items() if v is not None]
    return f", still known: {' and '.join(shares)}" if shares else ""


def with_variants(choice: Choice) -> tuple[Choice, dict[str, Any]]:
    """Add the scores of each prompt variant to the sentence and the warning of a choice.

    Returns:
        The choice, and the headline scores of the forget and the retain set: the worst case as
        ``value``, and the value of each variant. No scores if there is only one prompt variant.
    """
    scores = [s for s in choice.scored.scores if s.part == "all" and not s.task]
    shown = {
        f"{s.metric}_{s.split}": {"value": s.value, **s.by_variant}
        for s in scores
        if s.split in ("forget", "retain") and s.metric in HEADLINES and s.by_variant
    }
    if not shown:
        return choice, {}
    names = dict.fromkeys(variant for s in scores for variant in s.by_variant or {})
    listed = ", ".join(f"{key} {values['value']:.3f}" for key, values in shown.items())
    sentence = f"{choice.sentence} Worst case over the prompts {', '.join(names)}: {listed}."
    differ = prompt_dependence(choice.scored.name, scores)
    warning = " ".join(filter(None, [choice.warning, *differ])) or None
    return replace(choice, sentence=sentence, warning=warning), shown
