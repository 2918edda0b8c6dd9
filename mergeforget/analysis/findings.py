"""Runs analyses by name, and writes their sentences, rows and figures.

To add an analysis, write ``analysis/NAME.py`` that returns numbers, a function in plots that draws
them, and an entry in ANALYSES that combines the two.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeforget.analysis.evidence import MissingError, read_chosen
from mergeforget.analysis.style import SavedFigure, save
from mergeforget.errors import UnknownNameError, UsageError
from mergeforget.files import write_json, write_text
from mergeforget.run import PAIR, Run

Found = tuple[list[str], list[dict[str, Any]], list[SavedFigure]]  # sentences, rows, figures


@dataclass(frozen=True)
class Finding:
    """The result of one analysis.

    Attributes:
        sentences: The result in words.
        rows: The numbers in the figures, as flat rows.
        figures: ``{"name", "title", "alt", "marks"}`` each; files NAME.svg and NAME.png.
        missing: Why there is no result, and which command is needed; empty otherwise.
    """

    name: str
    title: str
    sentences: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    missing: str = ""


def analyse(run: Run, name: str, folder: Path) -> Finding:
    """Run one analysis and write NAME.json, NAME.csv and its figures into ``folder``.

    Raises:
        UnknownNameError: There is no such analysis.
        MissingError: The run lacks the files that the analysis needs.
    """
    if name not in ANALYSES:
        raise UnknownNameError("analysis", name, list(ANALYSES))
    title, function = ANALYSES[name]
    return write_finding(folder, name, title, function(run))


def analyse_against(run: Run, other: Run, folder: Path) -> Finding:
    """Compare the dynamics of two runs and write dynamics-against.json, .csv and its figure.

    Raises:
        MissingError: Nothing was trained in one of them.
    """
    title = "Dynamics of two trainings"
    return write_finding(folder, "dynamics-against", title, compare_dynamics(run, other))


def write_finding(folder: Path, name: str, title: str, found: Found) -> Finding:
    """Write a result: the numbers as json and csv, the figures as png and svg."""
    sentences, rows, pictures = found
    figures = [
        {"name": p.name, "title": p.title, "alt": p.alt, "marks": save(p, folder)} for p in pictures
    ]
    values = {"title": title, "sentences": sentences, "figures": figures, "rows": rows}
    write_json(folder / f"{name}.json", values)
    write_text(folder / f"{name}.csv", to_csv(rows))
    return Finding(name, title, sentences, rows, figures)


def analyse_all(run: Run, folder: Path) -> list[Finding]:
    """Run every analysis; one that lacks files says which command creates them."""
    findings = []
    for name, (title, _) in ANALYSES.items():
        try:
            findings.append(analyse(run, name, folder))
        except MissingError as missing:
            findings.append(Finding(name, title, missing=str(missing)))
    return findings


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Format flat rows as csv; missing values are empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def angles(run: Run) -> Found:
    """Angles between weight changes, within a training and between the pair."""
    from mergeforget.analysis import training_plots
    from mergeforget.analysis.angles import FORWARD, run_angles

    result = run_angles(run)
    sentences = []
    for a in result:
        if a.group == "all" and a.model == "pair" and a.step is None and a.degrees is not None:
            what = "changes of the weights" if a.space == "delta" else f"factors {a.space.upper()}"
            sentences.append(f"The angle between over and under is {a.degrees:.1f}° ({what}).")
    for side in PAIR:
        mine = [
            a.degrees
            for a in result
            if (a.model, a.vectors, a.group, a.space) == (side, FORWARD, "all", "delta")
            and a.degrees is not None
        ]
        if mine:
            sentences.append(
                f"In {side}, the angle between the change up to a step and the change after it is "
                f"{_range(mine)}. At 0° the training continues in the same "
                "direction, at 90° in a new one, and above 90° it reverses part of its change."
            )
    return sentences, [a.to_dict() for a in result], training_plots.draw_angles(result)


def _range(degrees: list[float]) -> str:
    low, high = f"{min(degrees):.1f}°", f"{max(degrees):.1f}°"
    return low if low == high else f"{low} to {high}"


def dynamics(run: Run) -> Found:
    """Losses, norms and events during training."""
    from mergeforget.analysis import training_plots
    from mergeforget.analysis.dynamics import events_of, rows_of, run_dynamics

    stages = run_dynamics(run)
    events = [event for stage in stages for event in events_of(stage)]
    rows = [row for stage in stages for row in rows_of(stage)]
    return [e.text for e in events], rows, training_plots.draw_dynamics(stages, events)


def compare_dynamics(run: Run, other: Run) -> Found:
    """Dynamics of two runs in one figure, for example of NPO and of NPO + GDR + KLR."""
    from mergeforget.analysis import training_plots
    from mergeforget.analysis.dynamics import levels, rows_of, side_by_side

    named = side_by_side([run, other])
    rows = [{"training": name} | row for name, stage in named for row in rows_of(stage)]
    return [levels(*one) for one in named], rows, training_plots.draw_against(named)


def density(run: Run) -> Found:
    """Scores by density of the merge."""
    from mergeforget.analysis import plots
    from mergeforget.analysis.density import rows_of, run_density

    result = run_density(run)
    chosen = read_chosen(run)
    sentences = [text for text in (chosen.sentence, chosen.warning) if text] if chosen else []
    pictures = plots.draw_pareto(result, result.chosen) + plots.draw_density(result)
    return sentences, rows_of(result.curves), pictures


def mia(run: Run) -> Found:
    """Membership inference: ROC curves and loss distributions."""
    from mergeforget.analysis import plots
    from mergeforget.analysis.evidence import rows_of, run_membership

    result = run_membership(run)
    sentences = [
        f"{x.model}: MIA AUC {x.auc:.3f} over {len(x.members)} members and "
        f"{len(x.nonmembers)} non-members."
        for x in result
    ]
    return sentences, rows_of(result), plots.draw_membership(result)


def weights(run: Run) -> Found:
    """Norms and sign agreement of the pair by layer and kind of module."""
    from mergeforget.analysis import training_plots
    from mergeforget.analysis.weights import run_weights

    facts, agreements = run_weights(run)
    rows = [f.to_dict() for f in facts] + [a.to_dict() for a in agreements]
    sentences = []
    for side in PAIR:
        mine = [f for f in facts if f.model == side]
        length = sum(f.norm**2 for f in mine) ** 0.5
        rank = sum(f.effective_rank for f in mine) / len(mine)
        sentences.append(
            f"The norm of the change of {side} is {length:.3g}. The mean effective rank of its "
            f"modules is {rank:.1f} of {max(f.rank for f in mine)}."
        )
    if agreements:
        sentences.append(
            f"Without trimming, {agreements[-1].conflict:.1%} of the entries that both factors "
            "change have opposite signs in over and under; 50 % are expected by chance."
        )
    else:
        sentences.append("The ranks of over and under differ, so factors cannot be compared.")
    return sentences, rows, training_plots.draw_weights(facts, agreements)


def curves(run: Run) -> Found:
    """Scores of the snapshots during training."""
    from mergeforget.analysis import plots
    from mergeforget.analysis.dynamics import run_curves

    moments = run_curves(run)
    return [], [m.to_dict() for m in moments], plots.draw_curves(moments)


def prediction(run: Run) -> Found:
    """Compare the density predicted from the pair with the chosen one."""
    from mergeforget.analysis import plots
    from mergeforget.analysis.density import prediction_rows, run_prediction

    try:
        result = run_prediction(run)
    except UsageError as error:  # the first sentence; the rest is about options of a merge
        reason = str(error).partition(". ")[0].rstrip(".")
        raise MissingError(f"The gap of these merges cannot be predicted: {reason}.") from error
    return [result.sentence], prediction_rows(result), plots.draw_prediction(result)


def attacks(run: Run) -> Found:
    """Results of the attacks on the run."""
    from mergeforget.analysis.attacks import draw_attacks, rows_of, run_attacks

    result = run_attacks(run)
    return [f"{r.attack}: {r.verdict}" for r in result], rows_of(result), draw_attacks(result)


ANALYSES: dict[str, tuple[str, Callable[[Run], Found]]] = {
    "density": ("Density of the merge", density),
    "mia": ("Membership inference", mia),
    "attacks": ("Attacks", attacks),
    "prediction": ("Prediction of the balanced density", prediction),
    "angles": ("Angles between weight changes", angles),
    "weights": ("Norms, signs and ranks", weights),
    "curves": ("Scores during training", curves),
    "dynamics": ("Training dynamics", dynamics),
}
