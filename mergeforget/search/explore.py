"""The proxy part of a search: likelihoods alone tell which candidates are worth more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mergeforget.adapter import Adapter
from mergeforget.candidate import Candidate
from mergeforget.console import progress, say
from mergeforget.errors import NumericError
from mergeforget.evaluate.worst_case import known_ways
from mergeforget.merge.engine import merge_adapters
from mergeforget.merge.prediction import zero_of
from mergeforget.recipe import SearchSpec
from mergeforget.score import Score
from mergeforget.search.budget import SearchBudget
from mergeforget.search.choice import Scored, pareto
from mergeforget.search.density_prior import Guess
from mergeforget.search.evaluator import Evaluator, merge_all, only_proxy, proxy_scores, worst_by
from mergeforget.search.grid import begin_at, families, layer_groups, with_densities
from mergeforget.search.objective import Objective, Rank, compared_auc, estimate
from mergeforget.search.optuna_study import OptunaStudy, size
from mergeforget.search.split import SearchData
from mergeforget.search.store import Store

REPEATS = 20  # draws in a row that bring nothing new, before a study is at its end
SHARE = 5  # one in so many is measured in full
FEWEST = 2
PAUSE = 1.0  # seconds between two looks at what other workers do


@dataclass
class Explorer:
    """Glances at candidates and remembers what it saw."""

    spec: SearchSpec
    objective: Objective
    store: Store
    evaluator: Callable[[], Evaluator]
    pair: Sequence[Adapter]
    guess: Guess

    def grid(self, candidates: Sequence[Candidate], budget: SearchBudget) -> list[Candidate]:
        """Every candidate of a grid, in its order, until the budget is spent."""
        seen = [c for c in candidates if self.known(c)]
        todo = [c for c in candidates if not self.known(c)]
        if budget.limited and todo:
            todo = begin_at(todo, self.guess(todo[0], self.spec.densities))
        todo = budget.cut(todo, len(seen))
        with progress("Explore", len(seen) + len(todo), done=len(seen)) as bar:
            for merged in merge_all(self.pair, todo):
                if not budget.allows(len(seen)):
                    break
                if self._glance(merged.candidate, merged.adapter):
                    seen.append(merged.candidate)
                bar.advance(note=self._best(seen))
        return seen

    def refine(self, candidates: Sequence[Candidate], budget: SearchBudget) -> list[Candidate]:
        """Along the densities of each family from its first guess on, by ever smaller steps.

        The upper end is looked at too, and where both look as if they missed a floor the lower one:
        it may hold there alone, far from where the gap is predicted to close. The walk begins at
        the best of them. As soon as the AUC passes 0.5 between two looks, the density where it is
        expected to is looked at next.
        """
        seen: dict[str, Candidate] = {}
        for family in families(candidates).values():
            line = sorted(family, key=lambda c: c.density or 0.0)
            nearest = begin_at(line, self.guess(line[0], [c.density or 1.0 for c in line]))[0]

            def look(place: Place, line: list[Candidate] = line) -> Rank | None:
                return self._look(line[place[0]], seen, budget)

            def passing(line: list[Candidate] = line) -> Place | None:
                return self._passing([c for c in line if c.name in seen], line)

            starts = dict.fromkeys([line.index(nearest), len(line) - 1])
            ranks = {start: look((start,)) for start in starts}
            if all(rank is None or rank.shortfall for rank in ranks.values()):
                ranks[0] = look((0,))
            known = [(rank, start) for start, rank in ranks.items() if rank is not None]
            start = max(known, key=lambda found: found[0])[1] if known else line.index(nearest)
            climb(look, (start,), len(line), passing)
        return list(seen.values())

    def lowest(self, candidates: Sequence[Candidate], budget: SearchBudget) -> list[Candidate]:
        """The lowest density of each family, of those that were not looked at."""
        seen: dict[str, Candidate] = {}
        for family in families(candidates).values():
            low = min(family, key=lambda c: c.density or 0.0)
            if not self.known(low):
                self._look(low, seen, budget)
        return list(seen.values())

    def refine_groups(self, seen: Sequence[Candidate], budget: SearchBudget) -> list[Candidate]:
        """A density for each group of layers, from the best of those with one for all of them."""
        densities = sorted(set(self.spec.densities))
        equal = [c for c in seen if c.density in densities]
        if not equal:
            return list(seen)
        best = max(sorted(equal, key=lambda c: c.name), key=lambda c: self.rank(c.name))
        groups = layer_groups(self.pair[0].deltas, self.spec.groups)
        found = {c.name: c for c in seen}

        def look(place: Place) -> Rank | None:
            one = with_densities(best, groups, [densities[i] for i in place])
            return self._look(one, found, budget)

        climb(look, (densities.index(best.density or 1.0),) * len(groups), len(densities))
        return list(found.values())

    def study(self, study: OptunaStudy, budget: SearchBudget) -> list[Candidate]:
        """Candidates that a study asks for, until the budget is spent or nothing new comes."""
        seen = self.adopt(study)
        total = budget.candidates or size(study.axes)
        first = self.guess(study.first, self.spec.densities)
        repeats = 0
        with progress("Explore", total, done=len(seen)) as bar:
            while budget.allows(len(seen)) and len(seen) < total and repeats < REPEATS:
                trial, candidate = study.suggest(first)
                seen |= self.adopt(study)  # what other workers have told since
                known = candidate.name in seen
                repeats = repeats + 1 if known or study.taken(trial) else 0
                if not known and study.taken(trial):
                    study.give_up(trial)
                    continue
                if not self._tell(study, trial, candidate):
                    continue
                if not known:
                    seen[candidate.name] = candidate
                    bar.advance(note=self._best(list(seen.values())))
        return list(seen.values())

    def await_others(self, study: OptunaStudy) -> list[Candidate]:
        """Everything that was told, once no other worker is at a candidate any more."""
        if study.busy():
            say("Other workers are still at candidates; waiting for them.")
        while study.busy():
            time.sleep(PAUSE)
        return list(self.adopt(study).values())

    def adopt(self, study: OptunaStudy) -> dict[str, Candidate]:
        """What this and other workers have told the study, taken over into the run folder."""
        seen = {}
        for trial in study.finished():
            candidate = study.candidate_of(trial)
            seen[candidate.name] = candidate
            if not self.known(candidate):
                told = [Score.from_dict(score) for score in trial.user_attrs["scores"]]
                self.store.keep_explored(candidate, told)
        return seen

    def rank(self, name: str) -> Rank:
        """A candidate's rank by what likelihoods tell."""
        base = only_proxy(self.store.scores["base"])
        return self.objective.rank(self.scores(name), base, "choose", estimate)

    def scores(self, name: str) -> list[Score]:
        """What likelihoods tell of a candidate, as it was when it was looked at."""
        explored = self.store.explored.get(name, [])
        return explored if self._tells(explored) else only_proxy(self.store.scores.get(name, []))

    def known(self, candidate: Candidate) -> bool:
        """Whether it was looked at, with every figure that the objective reads."""
        return self.store.glanced(candidate.name) and self._tells(self.scores(candidate.name))

    def _tells(self, scores: Sequence[Score]) -> bool:
        figures = self.objective.figures
        return all(estimate(figure, scores, "choose") is not None for figure in figures)

    def _passing(self, looked: Sequence[Candidate], line: Sequence[Candidate]) -> Place | None:
        """Where the AUC is expected to pass 0.5 on a line, from looks at some of it."""
        aucs = [compared_auc(self.scores(c.name), "choose") for c in looked]
        known = [
            (line.index(c), auc.value - 0.5)
            for c, auc in zip(looked, aucs, strict=True)
            if auc is not None
        ]
        if len(known) < 2:
            return None
        where, passes = zero_of(*np.array(known).T)
        return (round(where),) if passes else None

    def _look(
        self, candidate: Candidate, seen: dict[str, Candidate], budget: SearchBudget
    ) -> Rank | None:
        """Its rank; None where the budget is spent or it gives no numbers."""
        if not self.known(candidate):
            if not budget.allows(len(seen)):
                return None
            if not self._glance(candidate, merge_adapters(self.pair, candidate).adapter):
                return None
        if candidate.name not in seen:
            seen[candidate.name] = candidate
            say(f"{len(seen)} explored, {self._best(list(seen.values()))}")
        return self.rank(candidate.name)

    def _tell(self, study: OptunaStudy, trial: Any, candidate: Candidate) -> bool:
        if not self.known(candidate):
            merged = merge_adapters(self.pair, candidate)
            if not self._glance(candidate, merged.adapter):
                study.fail(trial)
                return False
        study.tell(trial, self.rank(candidate.name), self.scores(candidate.name))
        return True

    def _glance(self, candidate: Candidate, adapter: Adapter) -> bool:
        try:
            measured = self.evaluator().glance(adapter, candidate.name, self._data())
        except NumericError as error:
            say(f"{candidate.name} is left out: {error}")
            return False
        found = worst_by(proxy_scores, measured, known_ways(self.store.scores["base"]))
        scores = [replace(score, part="choose") for score in found]
        self.store.keep_explored(candidate, scores)
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
        front = set(pareto([Scored(c, explorer.scores(c.name)) for c in seen]))
    if not seen:
        return []
    ordered = sorted(seen, key=lambda c: c.name)
    ordered.sort(key=lambda c: (c.name in front, explorer.rank(c.name)), reverse=True)
    if wanted is None and explorer.objective.figures in ({"mia"}, {"mia_level"}):
        best = explorer.rank(ordered[0].name).value
        ordered = [c for c in ordered if explorer.rank(c.name).value == best]
    return ordered[:most]


Place = tuple[int, ...]


def climb(
    rank: Callable[[Place], Any],
    start: Place,
    size: int,
    hint: Callable[[], Place | None] = lambda: None,
) -> Place:
    """The best place that is reached by steps along one axis at a time.

    The first steps are a quarter of an axis; where none improves, steps are halved, and the walk
    ends at a place that no neighbour beats.

    Args:
        rank: of a place, larger is better; None where it has none. A place is asked for once.
        start: one number in [0, size) for each axis.
        size: places on each axis.
        hint: asked after each rank: where the best is now expected, if anywhere. Where that is
            better than all before, the walk goes on from there by the smallest steps.
    """
    known: dict[Place, Any] = {}
    best, step = start, max(1, size // 4)

    def better(place: Place) -> bool:
        if place in known:
            return False
        known[place] = rank(place)
        return known[place] is not None and (known[best] is None or known[place] > known[best])

    def follow(best: Place, step: int) -> tuple[Place, int, bool]:
        place = hint()
        return (place, 1, True) if place is not None and better(place) else (best, step, False)

    known[start] = rank(start)
    best, step, _ = follow(best, step)
    while step:
        moved = False
        for axis in range(len(start)):
            for way in (-1, 1):
                place = (*best[:axis], best[axis] + way * step, *best[axis + 1 :])
                if 0 <= place[axis] < size and better(place):
                    best, moved = place, True
                best, step, followed = follow(best, step)
                moved = moved or followed
        step = step if moved else step // 2
    return best
