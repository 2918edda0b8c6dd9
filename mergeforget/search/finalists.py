"""The race of the finalists: who is measured in full next, and when nobody can win any more."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from mergeforget.candidate import Candidate
from mergeforget.score import Score
from mergeforget.search.explore import Explorer
from mergeforget.search.objective import Rank, estimate, figure

# figures that likelihoods tell, at least nearly
READ_BY_LOOKS = {"mia", "mia_level", "retain", "forget"}


def next_finalists(
    explorer: Explorer, waiting: Sequence[Candidate], measured: Sequence[Candidate], most: int = 1
) -> list[Candidate]:
    """The best of those that wait, by looks corrected by what was measured.

    A look takes an answer for known where every token is the model's own choice; a model that then
    writes on gives another answer when it generates. Candidates of one pair differ alike, so the
    mean difference of those that were measured is added to the looks of the others.

    Args:
        waiting: the first of equals is taken.
        most: how many are measured at once.

    Returns:
        Those that look better than the best that was measured, the best first.
    """
    store, objective = explorer.store, explorer.objective
    base, best = store.scores["base"], best_rank(explorer, measured)
    shifts = shifts_of(explorer, measured)

    def read(name: str, scores: Sequence[Score], part: str) -> float | None:
        found = estimate(name, scores, part)
        return found if found is None or scores is base else found + shifts[name]

    ranks = {c.name: objective.rank(explorer.scores(c.name), base, "choose", read) for c in waiting}
    better = [c for c in waiting if best is None or ranks[c.name][:2] > best[:2]]
    return heapq.nlargest(most, better, key=lambda c: ranks[c.name])


def best_rank(explorer: Explorer, measured: Sequence[Candidate]) -> Rank | None:
    """The rank of the best that was measured in full."""
    store, objective = explorer.store, explorer.objective
    base = store.scores["base"]
    ranks = [objective.rank(store.scores[c.name], base, "choose") for c in measured]
    return max(ranks, default=None)


def shifts_of(explorer: Explorer, measured: Sequence[Candidate]) -> dict[str, float]:
    """By how much each figure of the objective, measured in full, lies above its look."""
    shifts = {}
    for name in explorer.objective.figures:
        pairs = [
            (
                figure(name, explorer.store.scores[c.name], "choose"),
                estimate(name, explorer.scores(c.name), "choose"),
            )
            for c in measured
        ]
        apart = [full - look for full, look in pairs if full is not None and look is not None]
        shifts[name] = sum(apart) / len(apart) if apart else 0.0
    return shifts
