"""Evaluates the models of a run, or any model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from mergeforget.adapter_config import read_config
from mergeforget.benchmarks import score, selected
from mergeforget.console import say
from mergeforget.data.schema import AnswerLikelihood, Measured
from mergeforget.embedded_model import cache_folder
from mergeforget.errors import InputError, UsageError, suggest
from mergeforget.evaluate.evaluation import Evaluation
from mergeforget.evaluate.matching import matching_sentence
from mergeforget.evaluate.reference_models import WORST, ReferenceModels, measure_reference_models
from mergeforget.evaluate.worst_case import worst_case, worst_scores
from mergeforget.files import replacing, write_jsonl
from mergeforget.model_files import content_of
from mergeforget.run import ANCHORS, PAIR, Run
from mergeforget.score import Score, read_scores, write_scores

UTILITIES = ("mmlu", "model_utility")  # the first that was measured


def evaluate_run(
    run: Run,
    evaluation: Evaluation,
    names: Sequence[str] = (),
    *,
    again: bool = False,
    parquet: bool = False,
) -> dict[str, list[Score]]:
    """Measure and score models of a run, and write scores and answers to the run folder.

    Args:
        names: base, over, under, or candidates. The default is the base, the pair and the chosen
            candidate, or all candidates if none is chosen.
        parquet: Also write the answers as parquet.

    Raises:
        InputError: The run has no such model.
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
        references = measure_reference_models(evaluation)
        before = read_scores(run.scores, "all").get("base", [])
        for name in sorted(wanted, key=lambda n: n != "base"):
            measured, scores = evaluate_model(
                evaluation, references, models[name], name, before=before, again=again
            )
            before = scores if name == "base" else before
            found[name] = scores
            if main:
                write_model_scores(run.scores, run.answers, name, measured, scores, parquet=parquet)
        if main:
            record_weights(run, found)
            run.record("evaluate", settings=settings_of(evaluation), models=list(found))
    return {name: found[name] for name in wanted}


def evaluate_model(
    evaluation: Evaluation,
    references: ReferenceModels,
    adapter: Path | None,
    name: str,
    *,
    before: Sequence[Score] = (),
    again: bool = False,
) -> tuple[Measured, list[Score]]:
    """Measure and score one model.

    Args:
        references: Models that it is compared with.
        before: Scores of the model before unlearning, for the utility ratio.
    """
    spec = evaluation.settings
    found = evaluation.run_variants(adapter, name, again=again)
    variants = {variant: references.add_to(one, variant) for variant, one in found.items()}
    measured = replace(worst_case(variants), retrained=references.retrained.get(WORST))

    def scored(one: Measured) -> list[Score]:
        return score(spec.benchmark, one, metrics=spec.metrics, known=measured.known)

    by_variant = (
        {variant: scored(one) for variant, one in variants.items()} if len(variants) > 1 else {}
    )
    scores = worst_scores(scored(measured), by_variant)
    for text in spec.metrics:
        if not selected(text, measured):
            say(f"Warning: {name} has no score {text!r}: the rows have no data for that metric.")
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
    """Measure and score a model that does not belong to a run.

    Args:
        before: The model before unlearning, for the utility ratio.
    """
    evaluation.chat_from = adapter
    references = measure_reference_models(evaluation)
    theirs: list[Score] = []
    if before is not None:
        other = evaluation.varied(evaluation.rows, evaluation.settings, base=before)
        theirs = evaluate_model(other, ReferenceModels(), None, "before", again=again)[1]
    evaluation.rank = rank_of(adapter) if adapter else 0
    found = evaluate_model(evaluation, references, adapter, name, before=theirs, again=again)
    if sentence := matching_sentence([a for a in found[0].answers if a.row.split == "forget"]):
        say(f"Note: {name}: {sentence}")
    return found


def rank_of(adapter: Path) -> int:
    """Return the largest rank of an adapter's modules."""
    config = read_config(adapter)
    return max([int(config["r"]), *map(int, config.get("rank_pattern", {}).values())])


def models_of(run: Run) -> dict[str, Path | None]:
    """Return the adapter folder of every model of a run, by name; None for the base."""
    found: dict[str, Path | None] = {"base": None}
    for name in PAIR:
        if (run.root / name).is_dir():
            found[name] = run.root / name
    if run.candidates.is_dir():
        folders = sorted(p for p in run.candidates.iterdir() if not p.name.startswith("."))
        found |= {p.name: p for p in folders if (p / "adapter_config.json").is_file()}
    return found | snapshots_of(run)


def record_weights(run: Run, names: Iterable[str]) -> None:
    """Record the content of the adapters that were measured; scores are stored by name."""
    folders = models_of(run)
    now = {name: content_of(folder) for name in names if (folder := folders.get(name))}
    run.record("measured", weights=measured_weights(run) | now)


def measured_weights(run: Run) -> dict[str, str]:
    """Return the content of each adapter when it was measured last, where that is recorded."""
    weights = run.read_manifest()["stages"].get("measured", {}).get("weights", {})
    return {str(name): str(content) for name, content in weights.items()}


def is_outdated(run: Run, name: str) -> bool:
    """Return whether the adapter of a model was changed after the model was measured."""
    folder, known = models_of(run).get(name), measured_weights(run).get(name)
    return folder is not None and known is not None and content_of(folder) != known


def snapshots_of(run: Run) -> dict[str, Path | None]:
    """Return the snapshots of the pair during training, for example ``over-step00010``."""
    folders = sorted(run.snapshots.glob("*-step*")) if run.snapshots.is_dir() else []
    return {p.name: p for p in folders if (p / "adapter_config.json").is_file()}


def default_models(run: Run) -> list[str]:
    """Return the base, the pair and the chosen candidate, or every candidate if none is chosen."""
    models = [name for name in models_of(run) if name not in snapshots_of(run)]
    name = run.chosen_name()
    if name is None:
        return models
    return [s for s in models if s in ANCHORS or s == name]


def settings_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return the settings of an evaluation as plain values for JSON."""
    rows = {name: len(group) for name, group in asdict(evaluation.rows).items()}
    return {**evaluation.settings.model_dump(mode="json"), "rows": rows}


def cache_of_models() -> Path:
    """Return the folder of cached measurements of models that do not belong to a run."""
    return cache_folder() / "evaluations"


def utility_ratio(
    scores: Sequence[Score], before: Sequence[Score], metric: str | None = None
) -> Score | None:
    """Return the utility of a model divided by that of the model before unlearning.

    Returns None if either was not measured, or was measured on other data.

    Args:
        metric: Score whose higher values are better: NAME, NAME/SPLIT or NAME/SPLIT/TASK. The
            default is MMLU, or TOFU's model utility if MMLU was not measured.

    Raises:
        UsageError: There is no such score, or lower values of it are better.
    """
    named = [metric] if metric else [name for name in UTILITIES if _named_score(scores, name)]
    if not named:
        return None
    own, theirs = _named_score(scores, named[0]), _named_score(before, named[0])
    if own is None or own.better != "higher":
        fit = sorted({f"{s.metric}/{s.split}" for s in scores if s.better == "higher"})
        raise UsageError(
            f"{metric!r} cannot serve as utility: "
            f"{'there is no such score' if own is None else 'higher values are not better'}."
            f"{suggest(named[0], fit)} Available: {', '.join(fit)}."
        )
    if (
        theirs is None
        or theirs.value <= 0
        or (own.n, own.definition) != (theirs.n, theirs.definition)
    ):
        return None
    return Score(
        "utility_ratio",
        "all",
        own.value / theirs.value,
        "higher",
        own.n,
        definition=f"utility-ratio/{own.metric}/{own.split}@1",
    )


def _named_score(scores: Sequence[Score], named: str) -> Score | None:
    """Return the first score of that name; the score over all tasks if it names no task."""
    metric, split, task = [*named.split("/", 2), "", ""][:3]
    fit = [s for s in scores if s.metric == metric and (not split or s.split == split)]
    return next((s for s in fit if s.task == task), None)


def write_model_scores(
    scores_path: Path,
    answers: Path,
    model: str,
    measured: Measured,
    scores: Sequence[Score],
    *,
    parquet: bool = False,
) -> None:
    """Write a model's answers and document losses, then replace its scores.

    Scores of the two splits of a search (parts choose and report) are not changed.

    Args:
        parquet: Also write the answers as parquet.
    """
    write_answers(answers, model, measured, parquet=parquet)
    found = read_scores(scores_path)
    found[model] = [s for s in found.get(model, []) if s.part != "all"] + list(scores)
    write_scores(scores_path, found)


def write_answers(folder: Path, model: str, measured: Measured, *, parquet: bool = False) -> None:
    """Write the answers, losses and likelihoods of a model.

    ``MODEL.jsonl`` contains the answers, ``MODEL.losses.jsonl`` the losses of documents, and
    ``MODEL.likelihoods.jsonl`` the likelihoods of answers, for ``--retrained`` of an evaluation.
    """
    losses = [
        {**loss.to_dict(), "membership": measured.membership, "signals": loss.signals}
        for loss in measured.losses
    ]
    write_jsonl(folder / f"{model}.losses.jsonl", losses)
    likelihoods = [_likelihood(one) for one in measured.likelihoods]
    write_jsonl(folder / f"{model}.likelihoods.jsonl", likelihoods)
    answers = [answer.to_dict() for answer in measured.answers]
    if parquet:
        _write_parquet(folder / f"{model}.parquet", answers)
    write_jsonl(folder / f"{model}.jsonl", answers)


def _likelihood(one: AnswerLikelihood) -> dict[str, Any]:
    """Return the likelihoods of one answer as plain values, with id, task and split of the row."""
    row = {"id": one.row.id, "task": one.row.task, "split": one.row.split}
    values = {f.name: getattr(one, f.name) for f in fields(one) if f.name != "row"}
    return row | values | {"perturbed": list(one.perturbed)}


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
