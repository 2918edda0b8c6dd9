"""Merges the candidates of a search with as few passes over the pair as memory allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mergeforget.adapter import Adapter, read_adapter
from mergeforget.candidate import Candidate
from mergeforget.errors import InputError
from mergeforget.merge.engine import Merged, sweep
from mergeforget.run import Run
from mergeforget.search.grid import families

KEPT = 16  # merged candidates in memory, over all families


def merge_all(pair: Sequence[Adapter], candidates: Sequence[Candidate]) -> Iterator[Merged]:
    """Merge candidates in their order; those that differ in density only share their sweeps."""
    waiting = list(candidates)
    at_once = max(1, KEPT // max(1, len(families(waiting))))
    made: dict[str, Merged] = {}
    for candidate in candidates:
        if candidate.name not in made:
            (family,) = (f for f in families(waiting).values() if candidate in f)
            densities = [c.density for c in family[:at_once]]
            made |= {m.candidate.name: m for m in sweep(pair, candidate, densities)}
        waiting.remove(candidate)
        yield made.pop(candidate.name)


def read_pair(run: Run) -> list[Adapter]:
    """Over and under.

    Raises:
        InputError: they are not there.
    """
    for folder in (run.over, run.under):
        if not folder.is_dir():
            raise InputError(
                f"{run.root} has no {folder.name} adapter yet. Train the pair first: "
                f"mergeforget train-pair --out {run.root} --resume"
            )
    return [read_adapter(run.over, "over"), read_adapter(run.under, "under")]
