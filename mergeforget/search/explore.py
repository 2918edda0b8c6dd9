"""Explore candidates by proxy evaluations, without generated answers, and select finalists."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mergeforget.adapter import Adapter
from mergeforget.candidate import Candidate
from mergeforget.console import progress, say
from mergeforget.errors import NumericError
from mergeforget.evaluate.worst_case import known_variants
from mergeforget.merge.prediction import zero_of
from mergeforget.recipe import SearchSpec
from mergeforget.score import Score
from mergeforget.search.budget import SearchBudget
from mergeforget.search.choice import Scored, pareto
from mergeforget.search.evaluator import Evaluator, merge_all
from mergeforget.search.grid import (
    PredictedDensity,
    along_weights,
    begin_at,
    first_share,
    grid,
    layer_groups,
    lines,
    refusal,
    usable_densities,
    with_densities,
)
from mergeforget.search.objective import Objective, Rank, compared_auc, estimate, figure
from mergeforget.search.optuna_study import OptunaStudy
from mergeforget.search.scoring import only_proxy, proxy_scores, worst_by
from mergeforget.search.split import SearchData
from mergeforget.search.store import Store

REPEATS = 20  # consecutive known or failed suggestions after which a study ends
SHARE = 5  # one candidate in five is evaluated in full
FEWEST = 2  # finalists
PAUSE = 1.0  # seconds between two polls of the other workers
# figures for which proxy scores are a good approximation
PROXY_FIGURES = {"mia", "mia_level", "retain", "forget", "revealed"}


@dataclass
class Explorer:
    """Evaluate candidates by proxy scores, which are stored in the run folder.

    Attributes:
        failed: Names of candidates without finite scores; they count in the budget.
    """

    spec: SearchSpec
    objective: Objective
    store: Store
    evaluator: Callable[[], Evaluator]
    pair: Sequence[Adapter]
    guess: PredictedDensity
    failed: set[str] = field(default_factory=set)

    def grid(self, candidates: Sequence[Candidate], budget: SearchBudget) -> list[Candidate]:
        """Explore the candidates of a grid in order until the budget is spent."""
        seen = [c for c in candidates if self.known(c)]
        todo = [c for c in candidates if not self.known(c)]
        if budget.limited and todo:
            todo = begin_at(todo, self.guess(todo[0], self.spec.densities))
        todo = budget.cut(todo, len(seen))
        with progress("Explore", len(seen) + len(todo), done=len(seen)) as bar:
            for merged in merge_all(self.pair, todo):
                if not budget.allows(len(seen) + len(self.failed)):
                    break
                if self._measure_proxy(merged.candidate, merged.adapter):
                    seen.append(merged.candidate)
                bar.advance(note=self._best(seen))
        return seen

    def refine(self, candidates: Sequence[Candidate], budget: SearchBudget) -> list[Candidate]:
        """Climb along the densities of each family, or with one density, along the weights.

        Densities start at the predicted one. The largest is evaluated, too, and the smallest if
        both miss a floor: it may be the only one that reaches the floor. The climb starts from the
        best of these. Weights start where the AUC of a straight line from under to over is 0.5.
        Once the AUC crosses 0.5 between two evaluated points, the interpolated one is evaluated
        next.
        """
        seen: dict[str, Candidate] = {}
        for line in lines(candidates):

            def rank(point: Place, line: list[Candidate] = line) -> Rank | None:
                return self._explore(line[point[0]], seen, budget)

            def passing(line: list[Candidate] = line) -> Place | None:
                return self._crossing([c for c in line if c.name in seen], line)

            if not along_weights(line):
                climb(rank, (self._best_start(line, rank),), len(line), passing)
            elif crossing := passing():
                climb(rank, crossing, len(line), passing, step=1)
            else:
                climb(rank, (len(line) // 2,), len(line), passing)
        return list(seen.values())

    def _best_start(self, line: Sequence[Candidate], rank: Callable[[Place], Rank | None]) -> int:
        """Return the best of the predicted and the extreme densities."""
        nearest = begin_at(line, self.guess(line[0], [c.density or 1.0 for c in line]))[0]
        starts = dict.fromkeys([line.index(nearest), len(line) - 1])
        ranks = {start: rank((start,)) for start in starts}
        if all(found is None or found.shortfall for found in ranks.values()):
            ranks[0] = rank((0,))
        known = [(found, start) for start, found in ranks.items() if found is not None]
        return max(known, key=lambda found: found[0])[1] if known else line.index(nearest)

    def lowest(
        self, candidates: Sequence[Candidate], explored: Sequence[Candidate], budget: SearchBudget
    ) -> list[Candidate]:
        """Explore the smallest density of each family, or all weights, if not known yet.

        Args:
            explored: Candidates that were explored before; they count in the budget.
        """
        seen = {c.name: c for c in explored}
        for line in lines(candidates):
            for low in line if along_weights(line) else line[:1]:
                if not self.known(low):
                    self._explore(low, seen, budget)
        return list(seen.values())[len(explored) :]

    def refine_groups(self, seen: Sequence[Candidate], budget: SearchBudget) -> list[Candidate]:
        """Climb from the best uniform density to one density per group of layers."""
        equal = [c for c in seen if c.density in self.spec.densities]
        if not equal:
            return list(seen)
        best = max(sorted(equal, key=lambda c: c.name), key=lambda c: self.rank(c.name))
        densities = usable_densities(best, self.spec.densities)
        groups = layer_groups(self.pair[0].deltas, self.spec.groups)
        by_name = {c.name: c for c in seen}

        def rank(point: Place) -> Rank | None:
            one = with_densities(best, groups, [densities[i] for i in point])
            if refusal(one):  # the mean, for modules outside the layers, may not be usable
                mean = one.density or 1.0
                one = replace(one, density=min(densities, key=lambda d: abs(d - mean)))
            return self._explore(one, by_name, budget)

        climb(rank, (densities.index(best.density or 1.0),) * len(groups), len(densities))
        return list(by_name.values())

    def study(self, study: OptunaStudy, budget: SearchBudget) -> list[Candidate]:
        """Explore the suggestions of a study until the budget is spent or they repeat."""
        seen = self.adopt(study)
        every = {c.name for c in grid(self.spec)}
        total = min(len(every), budget.candidates or len(every))
        first = self.guess(study.first, self.spec.densities)
        repeats = 0
        with progress("Explore", total, done=len(seen)) as bar:
            while (begun := len(seen) + len(self.failed)) < total and repeats < REPEATS:
                if not budget.allows(begun):
                    break
                trial, candidate = study.suggest(first)
                seen |= self.adopt(study)  # finished by other workers since
                repeats += 1  # unless the candidate is new and has finite scores
                known = candidate.name in seen
                impossible = candidate.name in self.failed or candidate.name not in every
                if impossible or (not known and study.is_taken(trial)):
                    study.skip(trial)
                elif self._tell(study, trial, candidate) and not known:
                    seen[candidate.name] = candidate
                    repeats = 0
                    bar.advance(note=self._best(list(seen.values())))
        return list(seen.values())

    def wait_for_workers(self, study: OptunaStudy) -> list[Candidate]:
        """Wait until no other worker evaluates a candidate, and return all finished ones."""
        if study.busy():
            say("Waiting for the candidates that other workers are evaluating.")
        while study.busy():
            time.sleep(PAUSE)
        return list(self.adopt(study).values())

    def adopt(self, study: OptunaStudy) -> dict[str, Candidate]:
        """Copy the finished trials of all workers into the run folder."""
        seen = {}
        for trial in study.finished():
            candidate = study.candidate_of(trial)
            seen[candidate.name] = candidate
            if not self.known(candidate):
                scores = [Score.from_dict(score) for score in trial.user_attrs["scores"]]
                self.store.keep_explored(candidate, scores)
        self.failed |= study.failed() - seen.keys()
        return seen

    def rank(self, name: str) -> Rank:
        """Return the rank of a candidate by its proxy scores."""
        base = only_proxy(self.store.scores["base"])
        return self.objective.rank(self.scores(name), base, "choose", estimate)

    def scores(self, name: str) -> list[Score]:
        """Return the proxy scores of a candidate from its exploration."""
        explored = self.store.explored.get(name, [])
        return (
            explored if self._has_figures(explored) else only_proxy(self.store.scores.get(name, []))
        )

    def known(self, candidate: Candidate) -> bool:
        """Return whether a candidate has proxy scores for every figure of the objective."""
        return self.store.has_proxy(candidate.name) and self._has_figures(
            self.scores(candidate.name)
        )

    def _has_figures(self, scores: Sequence[Score]) -> bool:
        figures = self.objective.figures
        return all(estimate(figure, scores, "choose") is not None for figure in figures)

    def _crossing(self, explored: Sequence[Candidate], line: Sequence[Candidate]) -> Place | None:
        """Interpolate where the AUC crosses 0.5 on a line of candidates; None if it does not.

        On a line of weights, under and over are the ends.
        """
        weighted = along_weights(line)
        places = [(first_share(c) or 0.0) if weighted else float(i) for i, c in enumerate(line)]
        points = [(places[line.index(c)], c.name) for c in explored]
        if weighted:
            points = [(0.0, "under"), *points, (1.0, "over")]
        aucs = [compared_auc(self.scores(name), "choose") for _, name in points]
        known = [(x, auc.value - 0.5) for (x, _), auc in zip(points, aucs, strict=True) if auc]
        if len(known) < 2:
            return None
        where, passes = zero_of(*np.array(known).T)
        return (int(np.argmin(np.abs(np.array(places) - where))),) if passes else None

    def _explore(
        self, candidate: Candidate, seen: dict[str, Candidate], budget: SearchBudget
    ) -> Rank | None:
        """Explore a candidate; None if the budget is spent or its scores are not finite."""
        if not self.known(candidate):
            if candidate.name in self.failed or not budget.allows(len(seen) + len(self.failed)):
                return None
            if not self._merge_and_measure(candidate):
                return None
        if candidate.name not in seen:
            seen[candidate.name] = candidate
            say(f"{len(seen)} explored, {self._best(list(seen.values()))}")
        return self.rank(candidate.name)

    def _tell(self, study: OptunaStudy, trial: Any, candidate: Candidate) -> bool:
        if not self.known(candidate) and not self._merge_and_measure(candidate):
            study.fail(trial)
            return False
        study.tell(trial, self.rank(candidate.name), self.scores(candidate.name))
        return True

    def _merge_and_measure(self, candidate: Candidate) -> bool:
        for merged in merge_all(self.pair, [candidate]):
            return self._measure_proxy(merged.candidate, merged.adapter)
        self.failed.add(candidate.name)
        return False

    def _measure_proxy(self, candidate: Candidate, adapter: Adapter) -> bool:
        try:
            measured = self.evaluator().measure_proxy(adapter, candidate.name, self._data())
        except NumericError as error:
            say(f"Skipped {candidate.name}: {error}")
            self.failed.add(candidate.name)
            return False
        worst = worst_by(proxy_scores, measured, known_variants(self.store.scores["base"]))
        scores = [replace(score, part="choose") for score in worst]
        self.store.keep_explored(candidate, scores)
        return True

    def _data(self) -> SearchData:
        spec, data = self.spec, self.evaluator().data
        figures = self.objective.figures
        if spec.strategy == "nsga2":  # its Pareto front compares forgetting with retention
            figures = figures | {"forget", "retain"}
        return data.choosing(spec.choose_share, spec.seed, figures)

    def _best(self, seen: Sequence[Candidate]) -> str:
        if not seen:
            return ""
        best = max(seen, key=lambda c: self.rank(c.name))
        return f"best {best.name} ({self.objective.text}: {self.rank(best.name).value:.3f})"


def finalists(explorer: Explorer, seen: Sequence[Candidate], wanted: int | None) -> list[Candidate]:
    """Select the candidates that generate answers, the best first.

    Args:
        wanted: Number of finalists; None selects a fifth, at least two. If the objective reads the
            MIA AUC alone, which a proxy evaluation measures exactly, None selects only the
            candidates that tie with the best.

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


def next_finalists(
    explorer: Explorer, waiting: Sequence[Candidate], measured: Sequence[Candidate], most: int = 1
) -> list[Candidate]:
    """Return the waiting candidates with the best corrected proxy scores.

    A proxy evaluation counts an answer as known if each of its tokens is the most likely one. A
    model that does not stop there generates another answer. This bias is similar for all candidates
    of a pair, so the mean difference between full and proxy scores of the measured candidates is
    added to the proxy scores of the others.

    Args:
        waiting: Candidates without a full measurement; the first wins a tie.
        measured: Candidates with one.
        most: Maximum number of candidates to return.

    Returns:
        Candidates whose corrected proxy rank exceeds the best measured rank, the best first.
    """
    store, objective = explorer.store, explorer.objective
    base, best = store.scores["base"], best_rank(explorer, measured)
    shifts = shifts_of(explorer, measured)

    def read(name: str, scores: Sequence[Score], part: str) -> float | None:
        value = estimate(name, scores, part)
        return value if value is None or scores is base else value + shifts[name]

    ranks = {c.name: objective.rank(explorer.scores(c.name), base, "choose", read) for c in waiting}
    better = [c for c in waiting if best is None or ranks[c.name][:2] > best[:2]]
    return heapq.nlargest(most, better, key=lambda c: ranks[c.name])


def best_rank(explorer: Explorer, measured: Sequence[Candidate]) -> Rank | None:
    """Return the rank of the best candidate that was measured in full."""
    store, objective = explorer.store, explorer.objective
    base = store.scores["base"]
    ranks = [objective.rank(store.scores[c.name], base, "choose") for c in measured]
    return max(ranks, default=None)


def shifts_of(explorer: Explorer, measured: Sequence[Candidate]) -> dict[str, float]:
    """Return the mean difference of the full and the proxy value of each figure."""
    shifts = {}
    for name in explorer.objective.figures:
        pairs = [
            (
                figure(name, explorer.store.scores[c.name], "choose"),
                estimate(name, explorer.scores(c.name), "choose"),
            )
            for c in measured
        ]
        differences = [
            full - proxy for full, proxy in pairs if full is not None and proxy is not None
        ]
        shifts[name] = sum(differences) / len(differences) if differences else 0.0
    return shifts


Place = tuple[int, ...]


def climb(
    rank: Callable[[Place], Any],
    start: Place,
    size: int,
    hint: Callable[[], Place | None] = lambda: None,
    step: int | None = None,
) -> Place:
    """Pattern search: climb by steps along one axis at a time.

    The first steps are ``step``, by default a quarter of an axis. They are halved when none
    improves the rank, and the climb ends at a point that is better than all its neighbours.

    Args:
        rank: Returns the rank of a point, larger is better, or None. Called once per point.
        start: One index in [0, size) for each axis.
        size: Number of points on each axis.
        hint: Called after each rank; returns the point where the best is now expected, or None. If
            it is better than all before, the climb continues there with the smallest steps.

    Returns:
        The best point.
    """
    known: dict[Place, Any] = {}
    best, step = start, step or max(1, size // 4)

    def better(point: Place) -> bool:
        if point in known:
            return False
        known[point] = rank(point)
        return known[point] is not None and (known[best] is None or known[point] > known[best])

    def follow(best: Place, step: int) -> tuple[Place, int, bool]:
        point = hint()
        return (point, 1, True) if point is not None and better(point) else (best, step, False)

    known[start] = rank(start)
    best, step, _ = follow(best, step)
    while step:
        moved = False
        for axis in range(len(start)):
            for direction in (-1, 1):
                point = (*best[:axis], best[axis] + direction * step, *best[axis + 1 :])
                if 0 <= point[axis] < size and better(point):
                    best, moved = point, True
                best, step, followed = follow(best, step)
                moved = moved or followed
        step = step if moved else step // 2
    return best
