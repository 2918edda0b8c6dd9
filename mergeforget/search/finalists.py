"""Select the next candidates to measure in full, one after the other."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from mergeforget.candidate import Candidate
from mergeforget.score import Score
from mergeforget.search.explore import Explorer
from mergeforget.search.objective import Rank, estimate, figure

# figures for which proxy scores are a good approximation
PROXY_FIGURES = {"mia", "mia_level", "retain", "forget", "revealed"}


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
