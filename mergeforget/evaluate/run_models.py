"""Evaluates the models of a run, or any model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mergeforget.adapter import read_config
from mergeforget.benchmarks import score, selected
from mergeforget.console import say
from mergeforget.data.schema import Measured
from mergeforget.embedded_model import cache_folder
from mergeforget.errors import InputError, suggest
from mergeforget.evaluate.evaluation import Evaluation
from mergeforget.evaluate.reference_models import WORST, Beside, read_beside
from mergeforget.evaluate.store import write_model_scores
from mergeforget.evaluate.utility import utility_ratio
from mergeforget.evaluate.worst_case import worst_case, worst_scores
from mergeforget.run import ANCHORS, Run
from mergeforget.score import Score, read_scores


def evaluate_run(
    run: Run,
    evaluation: Evaluation,
    names: Sequence[str] = (),
    *,
    again: bool = False,
    parquet: bool = False,
) -> dict[str, list[Score]]:
    """Measure and score the models of a run, and write scores and answers there.

    Args:
        names: base, over, under, or candidates; by default the pair and the chosen candidate, or
            all candidates where none is chosen.
        parquet: write the answers as parquet as well.

    Raises:
        InputError: the run has no such model.
    """
    models = models_of(run)
    unknown = [name for name in names if name not in models]
    if unknown:
        raise InputError(
            f"{run.root} has no model {unknown[0]!r}.{suggest(unknown[0], models)} It has: "
            f"{', '.join(models)}."
        )
    found: dict[str, list[Score]] = {}
    main = evaluation.sharing.main
    wanted = list(names or default_models(run))
    evaluation.rank = max((rank_of(p) for n in wanted if (p := models[n])), default=0)
    with run.lock() if main else nullcontext():
        beside = read_beside(evaluation)
        before = read_scores(run.scores, "all").get("base", [])
        for name in sorted(wanted, key=lambda n: n != "base"):
            measured, scores = evaluate_model(
                evaluation, beside, models[name], name, before=before, again=again
            )
            before = scores if name == "base" else before
            found[name] = scores
            if main:
                write_model_scores(run.scores, run.answers, name, measured, scores, parquet=parquet)
        if main:
            run.record("evaluate", settings=asdict_of(evaluation), models=list(found))
    return {name: found[name] for name in wanted}


def evaluate_model(
    evaluation: Evaluation,
    beside: Beside,
    adapter: Path | None,
    name: str,
    *,
    before: Sequence[Score] = (),
    again: bool = False,
) -> tuple[Measured, list[Score]]:
    """Measure one model and score it.

    Args:
        beside: what it is compared with.
        before: scores of the model before unlearning, for the ratio of utility.
    """
    spec = evaluation.settings
    found = evaluation.run_ways(adapter, name, again=again)
    ways = {way: beside.add_to(one, way) for way, one in found.items()}
    measured = replace(worst_case(ways), retrained=beside.retrained.get(WORST))

    def scored(one: Measured) -> list[Score]:
        return score(spec.benchmark, one, metrics=spec.metrics, known=measured.known)

    by_way = {way: scored(one) for way, one in ways.items()} if len(ways) > 1 else {}
    scores = worst_scores(scored(measured), by_way)
    for text in spec.metrics:
        if not selected(text, measured):
            say(f"Warning: {name} has no score {text!r}: the rows hold no data for that metric.")
    ratio = utility_ratio(scores, before, spec.utility) if before and name != "base" else None
    return measured, [*scores, *([ratio] if ratio else [])]


def evaluate_any(
    evaluation: Evaluation,
    adapter: Path | None,
    name: str,
    *,
    before: str | None = None,
    again: bool = False,
) -> tuple[Measured, list[Score]]:
    """Measure and score a model that belongs to no run.

    Args:
        before: the model before unlearning, for the ratio of utility.
    """
    beside = read_beside(evaluation)
    theirs: list[Score] = []
    if before is not None:
        other = evaluation.varied(evaluation.rows, evaluation.settings, base=before)
        theirs = evaluate_model(other, Beside(), None, "before", again=again)[1]
    evaluation.rank = rank_of(adapter) if adapter else 0
    return evaluate_model(evaluation, beside, adapter, name, before=theirs, again=again)


def rank_of(adapter: Path) -> int:
    """The largest rank of an adapter's modules."""
    config = read_config(adapter)
    return max([int(config["r"]), *map(int, config.get("rank_pattern", {}).values())])


def models_of(run: Run) -> dict[str, Path | None]:
    """Every model of a run: its name, and its adapter (None for the base)."""
    found: dict[str, Path | None] = {"base": None}
    for name in ("over", "under"):
        if (run.root / name).is_dir():
            found[name] = run.root / name
    if run.candidates.is_dir():
        folders = sorted(p for p in run.candidates.iterdir() if not p.name.startswith("."))
        found |= {p.name: p for p in folders if (p / "adapter_config.json").is_file()}
    return found | snapshots_of(run)


def snapshots_of(run: Run) -> dict[str, Path | None]:
    """The pair at set steps of its training, for example ``over-step00010``."""
    folders = sorted(run.snapshots.glob("*-step*")) if run.snapshots.is_dir() else []
    return {p.name: p for p in folders if (p / "adapter_config.json").is_file()}


def default_models(run: Run) -> list[str]:
    """The pair and the chosen candidate, or every candidate where none is chosen."""
    models = [name for name in models_of(run) if name not in snapshots_of(run)]
    name = run.chosen_name()
    if name is None:
        return models
    return [s for s in models if s in ANCHORS or s == name]


def asdict_of(evaluation: Evaluation) -> dict[str, Any]:
    """The settings of an evaluation, as plain values."""
    rows = {name: len(group) for name, group in asdict(evaluation.rows).items()}
    return {**evaluation.settings.model_dump(mode="json"), "rows": rows}


def kept_folder() -> Path:
    """Where evaluations of models that belong to no run are kept."""
    return cache_folder() / "evaluations"
