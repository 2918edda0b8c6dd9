"""The coarse part of a search: likelihoods alone tell which candidates are worth more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergeforget.adapter import Adapter
from mergeforget.candidate import Candidate
from mergeforget.console import progress, say
from mergeforget.errors import NumericError
from mergeforget.merge.engine import merge_adapters
from mergeforget.recipe import SearchSpec
from mergeforget.score import Score
from mergeforget.search.budget import Budget
from mergeforget.search.choice import Scored, pareto
from mergeforget.search.coarse import coarse_scores, only_coarse
from mergeforget.search.data import SearchData
from mergeforget.search.evaluator import Evaluator
from mergeforget.search.merging import merge_all
from mergeforget.search.objective import Objective, Rank, estimate
from mergeforget.search.store import Store
from mergeforget.search.study import Study, size

REPEATS = 20  # draws in a row that bring nothing new, before a study is at its end
SHARE = 5  # one in so many is measured in full
FEWEST = 2


@dataclass
class Explorer:
    """Glances at candidates and remembers what it saw."""

    spec: SearchSpec
    objective: Objective
    store: Store
    evaluator: Callable[[], Evaluator]
    pair: Sequence[Adapter]

    def grid(self, candidates: Sequence[Candidate], budget: Budget) -> list[Candidate]:
        """Every candidate of a grid, in its order, until the budget is spent."""
        seen = [c for c in candidates if self.store.glanced(c.name)]
        todo = budget.cut([c for c in candidates if not self.store.glanced(c.name)], len(seen))
        with progress("Explore", len(seen) + len(todo), done=len(seen)) as bar:
            for merged in merge_all(self.pair, todo):
                if not budget.allows(len(seen)):
                    break
                if self._glance(merged.candidate, merged.adapter):
                    seen.append(merged.candidate)
                bar.advance(note=self._best(seen))
        return seen

    def study(self, study: Study, budget: Budget, first: float | None) -> list[Candidate]:
        """Candidates that a study asks for, until the budget is spent or nothing new comes."""
        seen = self.adopt(study)
        total = budget.candidates or size(study.axes)
        repeats = 0
        with progress("Explore", total, done=len(seen)) as bar:
            while budget.allows(len(seen)) and len(seen) < total and repeats < REPEATS:
                trial, candidate = study.suggest(first)
                known = candidate.name in seen
                repeats = repeats + 1 if known else 0
                if not self._tell(study, trial, candidate):
                    continue
                if not known:
                    seen[candidate.name] = candidate
                    bar.advance(note=self._best(list(seen.values())))
        return list(seen.values())

    def adopt(self, study: Study) -> dict[str, Candidate]:
        """What this and other workers have told the study, taken over into the run folder."""
        seen = {}
        for trial in study.finished():
            candidate = study.candidate_of(trial)
            seen[candidate.name] = candidate
            if not self.store.glanced(candidate.name):
                told = [Score.from_dict(score) for score in trial.user_attrs["scores"]]
                self.store.keep_glance(candidate.name, told)
        return seen

    def rank(self, name: str) -> Rank:
        """A candidate's rank by what likelihoods tell."""
        scores, base = (only_coarse(self.store.scores[n]) for n in (name, "base"))
        return self.objective.rank(scores, base, "choose", estimate)

    def _tell(self, study: Study, trial: Any, candidate: Candidate) -> bool:
        if not self.store.glanced(candidate.name):
            merged = merge_adapters(self.pair, candidate)
            if not self._glance(candidate, merged.adapter):
                study.fail(trial)
                return False
        study.tell(trial, self.rank(candidate.name), only_coarse(self.store.scores[candidate.name]))
        return True

    def _glance(self, candidate: Candidate, adapter: Adapter) -> bool:
        try:
            measured = self.evaluator().glance(adapter, candidate.name, self._data())
        except NumericError as error:
            say(f"{candidate.name} is left out: {error}")
            return False
        scores = [replace(score, part="choose") for score in coarse_scores(measured)]
        self.store.keep_glance(candidate.name, scores)
        return True

    def _data(self) -> SearchData:
        spec, every = self.spec, self.evaluator().data
        figures = self.objective.figures
        if spec.strategy == "nsga2":  # its front is of forgetting against retention
            figures = figures | {"forget", "retain"}
        return every.choosing(spec.choose_share, spec.seed, figures)

    def _best(self, seen: Sequence[Candidate]) -> str:
        if not seen:
            return ""
        best = max(seen, key=lambda c: self.rank(c.name))
        return f"best {best.name} ({self.objective.text}: {self.rank(best.name).value:.3f})"


def finalists(explorer: Explorer, seen: Sequence[Candidate], wanted: int | None) -> list[Candidate]:
    """The candidates that are worth generating with, the best first.

    Args:
        wanted: how many; None takes a fifth, at least two. Where the objective reads the MIA AUC
            alone, which a glance measures as well, only those that tie with the best.

    Returns:
        The best by rank; with the strategy nsga2 those on the Pareto front come first.
    """
    most = wanted or max(FEWEST, math.ceil(len(seen) / SHARE))
    front: set[str] = set()
    if explorer.spec.strategy == "nsga2":
        scores = explorer.store.scores
        front = set(pareto([Scored(c, only_coarse(scores[c.name])) for c in seen]))
    if not seen:
        return []
    ordered = sorted(seen, key=lambda c: c.name)
    ordered.sort(key=lambda c: (c.name in front, explorer.rank(c.name)), reverse=True)
    if wanted is None and explorer.objective.figures == {"mia"}:
        best = explorer.rank(ordered[0].name).value
        ordered = [c for c in ordered if explorer.rank(c.name).value == best]
    return ordered[:most]
