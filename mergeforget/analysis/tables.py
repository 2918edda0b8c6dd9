"""Tables of scores: cards of the chosen candidate, and a table of all models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mergeforget.analysis.density import display_order
from mergeforget.candidate import Candidate
from mergeforget.run import ANCHORS
from mergeforget.score import Score, find

PARTS = ("report", "all", "choose")  # in order of preference
SPLITS = ("mia", "forget", "retain", "holdout", "mmlu", "all")
LABELS = {
    ("mia_auc", "mia"): "MIA AUC",
    ("mia_score", "mia"): "MIA score",
    ("mia_score", "all"): "MIA score",
    ("knowledge", "forget"): "Knowledge, forget",
    ("knowledge", "retain"): "Knowledge, retain",
    ("regurgitation", "forget"): "Regurgitation, forget",
    ("regurgitation", "retain"): "Regurgitation, retain",
    ("exact_match", "forget"): "Exact, forget",
    ("exact_match", "retain"): "Exact, retain",
    ("nll", "forget"): "NLL, forget",
    ("nll", "retain"): "NLL, retain",
    ("nll", "holdout"): "NLL, holdout",
    ("task_aggregate", "all"): "Task aggregate",
    ("mmlu", "mmlu"): "MMLU",
    ("aggregate", "all"): "Aggregate",
    ("leak_rate", "forget"): "Leaked answers, forget",
    ("leak_rate", "retain"): "Known answers, retain",
    ("rouge_l", "forget"): "ROUGE-L recall, forget",
    ("rouge_l", "retain"): "ROUGE-L recall, retain",
    ("verbatim_rouge", "forget"): "ROUGE-L, forget",
    ("verbatim_rouge", "retain"): "ROUGE-L, retain",
    ("model_utility", "all"): "Model utility",
    ("forget_quality", "forget"): "Forget quality",
    ("truth_ratio", "forget"): "Truth ratio, forget",
}
WHAT = {
    "mia_auc": "0.5: members cannot be identified; above: remembers; below: forgot too much",
    "mia_score": "1 at an AUC of 0.5",
    "regurgitation": "ROUGE-L recall of the continued documents",
    "knowledge": "share of questions answered exactly",
    "exact_match": "share of questions answered exactly",
    "nll": "nats per answer token",
    "task_aggregate": "harmonic mean over tasks and splits",
    "mmlu": "accuracy on general questions",
    "leak_rate": "share of answers that are revealed, in any spelling",
    "verbatim_rouge": "share of the reference answer's words that are given in order",
    "model_utility": "harmonic mean of probability, ROUGE-L and truth ratio",
    "forget_quality": "p-value of the test against a model without the data",
    "truth_ratio": "likelihood of wrong answers relative to the true one",
}
AGGREGATES = ("task aggregate", "MIA score", "MMLU")  # of SemEval-2025 Task 4
Measure = tuple[str, str]  # metric, split


@dataclass(frozen=True)
class TableCell:
    """One score of the table: on the report split, and on the selection split if there is one."""

    value: float | None
    interval: tuple[float, float] | None = None
    n: int = 0
    choose: float | None = None

    @property
    def text(self) -> str:
        """The value as the table shows it."""
        return f"{self.value:.3f}" if self.value is not None else ""

    @property
    def note(self) -> str:
        """``0.41 to 0.61, 95 %; n 120``"""
        parts = [f"n {self.n}"] if self.n else []
        if self.interval:
            low, high = self.interval
            parts.insert(0, f"{low:.3f} to {high:.3f}, 95\N{NO-BREAK SPACE}%")
        return "; ".join(parts)


@dataclass(frozen=True)
class Line:
    """One model of the table."""

    model: str
    role: str  # base, over, under, chosen, candidate
    method: str
    space: str
    density: float | None
    densities: str  # the density as text; several if it differs by layer
    cells: list[TableCell]


@dataclass(frozen=True)
class Card:
    """One score of the chosen candidate, and the same score before unlearning."""

    label: str
    what: str
    now: TableCell
    before: TableCell
    direction: str


def measures_of(scores: dict[str, list[Score]]) -> list[Measure]:
    """Return all (metric, split) over all tasks, the best-known metrics first."""
    found = {(s.metric, s.split) for every in scores.values() for s in every if not s.task}
    return sorted(found, key=lambda m: (display_order(m[0]), _split_place(m[1]), m))


def shown_measures(scores: dict[str, list[Score]]) -> list[Measure]:
    """Return the measures with a readable name; the others are in scores.jsonl only."""
    measures = measures_of(scores)
    return [measure for measure in measures if measure in LABELS] or measures


def aggregate_of(definition: str) -> str:
    """Return a description of the terms of an aggregate.

    >>> aggregate_of("semeval2025-task4/aggregate-without-mmlu@1")
    'mean of task aggregate and MIA score'
    """
    if definition.startswith("custom/"):
        return "harmonic mean of 1 - forget ROUGE-L, retain ROUGE-L and MIA score"
    missing = definition.partition("-without-")[2].replace("_", "-")
    parts = [p for p in AGGREGATES if p.replace(" ", "-").lower() not in missing.lower()]
    return "mean of " + (" and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1
                         else parts[0])  # fmt: skip


def label_of(measure: Measure, scores: dict[str, list[Score]] | None = None) -> str:
    """Return the readable name of a measure; that of an aggregate includes its terms."""
    metric, split = measure
    if metric == "aggregate" and scores:
        every = (s for found in scores.values() for s in found if s.metric == metric)
        definition = next((s.definition for s in every), "")
        return f"Aggregate ({aggregate_of(definition)})"
    if metric.startswith("mia_"):  # mia_auc_min_k_20, mia_tpr; of members and non-members
        name, split = metric.replace("_", " ").replace("mia auc", "MIA AUC"), "all"
        name = name.replace("mia tpr", "MIA TPR").replace("AUC level", "AUC relative to the twins")
    else:
        name = metric.replace("_", " ").capitalize()
    return LABELS.get(measure, name if split == "all" else f"{name}, {split}")


def cell_of(scores: Iterable[Score], measure: Measure) -> TableCell:
    """Return the score of one model, on the report split if there is one."""
    scores_of_model = list(scores)
    by_part = {p: s for p in PARTS if (s := find(scores_of_model, *measure, part=p)) is not None}
    shown = next((by_part[p] for p in PARTS if p in by_part), None)
    if shown is None:
        return TableCell(None)
    choose = by_part["choose"].value if "choose" in by_part and shown.part != "choose" else None
    return TableCell(shown.value, shown.interval, shown.n, choose)


def lines_of(
    scores: dict[str, list[Score]], candidates: dict[str, Candidate], chosen: str
) -> list[Line]:
    """Return the lines of base, over, under and the chosen candidate, then of the others."""
    measures = shown_measures(scores)
    first = [s for s in (*ANCHORS, chosen) if s in scores]
    others = sorted(
        (s for s in scores if s not in first and s in candidates),
        key=lambda s: (candidates[s].method, candidates[s].space, candidates[s].density or 0.0, s),
    )
    lines = []
    for model in [*first, *others]:
        candidate = candidates.get(model)
        role = "chosen" if model == chosen else model if model in ANCHORS else "candidate"
        lines.append(
            Line(
                model=model,
                role=role,
                method=candidate.method if candidate else "",
                space=candidate.space if candidate else "",
                density=candidate.density if candidate else None,
                densities=candidate.densities if candidate else "",
                cells=[cell_of(scores[model], m) for m in measures],
            )
        )
    return lines


def cards_of(scores: dict[str, list[Score]], chosen: str) -> list[Card]:
    """Return the cards of the chosen candidate, compared with the model before unlearning."""
    cards = []
    known = measures_of(scores)
    for measure in known:
        if measure[0] == "exact_match" and ("knowledge", measure[1]) in known:
            continue  # equals the knowledge score
        now = cell_of(scores.get(chosen, []), measure)
        if now.value is None or measure not in LABELS or measure[0] in ("nll", "mia_score"):
            continue
        better = next(s.better for s in scores[chosen] if (s.metric, s.split) == measure)
        before = cell_of(scores.get("base", []), measure)
        direction = "nearer 0.5 is better" if better == "nearer" else f"{better} is better"
        what = WHAT.get(measure[0], "")
        if measure[0] == "aggregate":
            what = aggregate_of(
                next(s.definition for s in scores[chosen] if s.metric == "aggregate")
            )
        cards.append(Card(label_of(measure), what, now, before, direction))
    return cards


def _split_place(split: str) -> int:
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)
