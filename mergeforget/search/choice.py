"""The balanced candidate, and why it is that one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergeforget.candidate import Candidate
from mergeforget.score import Score, find
from mergeforget.search.objective import Objective, figure, known_share
from mergeforget.search.split import PARTS
from mergeforget.search.warnings import disagreement, doubts, one_sided, warning_of


@dataclass(frozen=True)
class Scored:
    """A candidate and what it scored on both parts."""

    candidate: Candidate
    scores: list[Score]

    @property
    def name(self) -> str:
        return self.candidate.name


@dataclass(frozen=True)
class Anchors:
    """Scores of the models around the candidates: before, and the two ends."""

    base: list[Score]
    over: list[Score]
    under: list[Score]


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, as ``search/chosen.json`` holds it."""

    scored: Scored
    objective: Objective
    sentence: str
    warning: str | None
    pareto: list[str]
    measured: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.scored.name,
            "candidate": self.scored.candidate.to_dict(),
            "objective": self.objective.text,
            "sentence": self.sentence,
            "warning": self.warning,
            "pareto": self.pareto,
            "measured": self.measured,
            "scores": {part: figures(self.scored.scores, part) for part in PARTS},
        }


def choose(scored: Sequence[Scored], anchors: Anchors, objective: Objective) -> Choice:
    """The candidate that is best on the choosing part; names break what ties are left."""
    best = best_of(scored, anchors, objective, "choose")
    warning = disagreement(best.name, best.scores)
    if warning and (other := best_of(scored, anchors, objective, "report")) is not best:
        warning += f" The reporting half alone would choose {other.name}."
    doubted = warning_of(best.name, doubts(best.scores, anchors.base, objective))
    warnings = [one_sided(anchors.over, anchors.under), doubted, warning]
    return Choice(
        scored=best,
        objective=objective,
        sentence=why(best, scored, anchors, objective),
        warning=" ".join(text for text in warnings if text) or None,
        pareto=pareto(scored),
        measured=len(scored),
    )


def best_of(scored: Sequence[Scored], anchors: Anchors, objective: Objective, part: str) -> Scored:
    """The first of the best, in the order of names."""
    ordered = sorted(scored, key=lambda s: s.name)
    return max(ordered, key=lambda s: objective.rank(s.scores, anchors.base, part))


def pareto(scored: Sequence[Scored], part: str = "choose") -> list[str]:
    """Names of candidates that no other beats in forgetting and retention both, sorted."""
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
    """One sentence with the figures that decided."""
    rank = objective.rank(best.scores, anchors.base, "choose")
    candidate = best.candidate
    told = (
        f" (densities {candidate.densities} by layer)" if "density" in candidate.by_module else ""
    )
    chosen, over, under = (
        find(scores, "mia_auc", "mia", part="choose")
        for scores in (best.scores, anchors.over, anchors.under)
    )
    balanced = not doubts(best.scores, anchors.base, objective)
    what = "is the balanced one" if balanced else "comes nearest to balance, and is not balanced,"
    parts = [f"{best.name}{told} {what} of {len(scored)}: on the half that chooses"]
    if objective.terms == (("mia", 1.0),) and chosen:
        parts.append(f"its MIA AUC, {chosen.value:.3f}, is nearest 0.5")
    else:
        parts.append(f"it has the highest {objective.text.partition(' if ')[0]}, {rank.value:.3f}")
        if chosen:
            parts[-1] += f", with a MIA AUC of {chosen.value:.3f}"
    if over and under:
        parts[-1] += f" (over {over.value:.3f}, under {under.value:.3f})"
    text = " ".join(parts) + _kept(best, "choose")
    if objective.floors:
        text += "; no candidate keeps the floor" if rank.shortfall else "; the floor is kept"
    reported = find(best.scores, "mia_auc", "mia", part="report")
    if reported:
        text += f". On the half that reports the AUC is {reported.value:.3f}"
        text += _kept(best, "report")
        if objective.floors:
            missed = objective.missed(best.scores, anchors.base, "report")
            text += "; there the floor is not kept" if missed else "; there the floor is kept"
    return text + "."


def figures(scores: Sequence[Score], part: str) -> dict[str, float]:
    """Every overall figure of one part, ``knowledge_forget`` and so on."""
    return {
        f"{s.metric}_{s.split}" if s.split in ("forget", "retain", "holdout") else s.metric: s.value
        for s in scores
        if s.part == part and not s.task
    }


def _kept(best: Scored, part: str) -> str:
    known = {split: known_share(best.scores, split, part) for split in ("retain", "forget")}
    told = [f"{v:.0%} of {split}" for split, v in known.items() if v is not None]
    return f", and it still knows {' and '.join(told)}" if told else ""
