"""Runs side by side as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mergeforget.analysis.report import render
from mergeforget.analysis.tables import cell_of, label_of, measures_of
from mergeforget.errors import InputError, suggest
from mergeforget.files import write_text
from mergeforget.run import Run, open_run
from mergeforget.score import Score, read_scores


def compare(
    folders: Sequence[Path], model: str | None = None, part: str = "all"
) -> dict[str, list[Score]]:
    """Scores of one model of each run, by ``RUN: MODEL``.

    Args:
        model: base, over, under or a candidate; None takes each run's chosen candidate.

    Raises:
        InputError: a run has no such scores; the message names those it has.
    """
    found = {}
    for folder in folders:
        run = open_run(folder)
        scores = read_scores(run.scores, part)
        name = model or _chosen(run)
        if name not in scores:
            known = ", ".join(scores) or "none"
            raise InputError(
                f"{folder} has no scores of {name!r} (part {part}).{suggest(name, scores)} It has "
                f"scores of: {known}. `mergeforget evaluate {folder}` measures its models."
            )
        found[f"{_title(folder, folders)}: {name}"] = scores[name]
    return found


def _chosen(run: Run) -> str:
    name = run.chosen_name()
    if name is None:
        raise InputError(
            f"{run.root} has no chosen candidate. Choose one with `mergeforget search {run.root}`, "
            "or name a model with --run-model, for example --run-model over."
        )
    return name


def _title(folder: Path, folders: Sequence[Path]) -> str:
    """The run's name; its path where two runs have the same name."""
    same = [f for f in folders if f.name == folder.name]
    return folder.name if len(same) == 1 else str(folder)


def write_comparison(scores: Mapping[str, list[Score]], path: Path) -> None:
    """Write a page with a row a model and a column a score.

    Args:
        scores: by the name of the model, for example ``RUN: MODEL``, on one part of the data each.
    """
    measures = measures_of(dict(scores))
    rows = [(name, [cell_of(every, m) for m in measures]) for name, every in scores.items()]
    context = {"title": "mergeforget: comparison", "labels": map(label_of, measures), "rows": rows}
    write_text(path, render("comparison.html", context))
