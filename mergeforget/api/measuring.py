"""Evaluate the models of a run, or any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergeforget.api.results import (
    AnyRun,
    Scores,
    UnlearningRun,
    as_run,
    optional_path,
)
from mergeforget.parsing import usable_path
from mergeforget.run import Run

if TYPE_CHECKING:
    from mergeforget.distributed import RankShare
    from mergeforget.recipe import DataSpec, EvaluationSpec
    from mergeforget.score import Score

    Scored = tuple[EvaluationSpec, dict[str, list[Score]]]

SETTINGS = ("benchmark", "limit", "max_new_tokens", "mmlu_shots", "mmlu_limit", "membership",
            "retrained", "reference", "utility", "floor", "backend", "ask")  # fmt: skip


def evaluate(
    model: str | Path | Run | UnlearningRun | None = None,
    *,
    run: AnyRun | None = None,
    adapter: str | Path | None = None,
    run_models: Sequence[str] = (),
    snapshots: bool = False,
    benchmark: str | None = None,
    metrics: Sequence[str] = (),
    forget: str | Path | None = None,
    retain: str | Path | None = None,
    holdout: str | Path | None = None,
    members: str | Path | None = None,
    nonmembers: str | Path | None = None,
    rows: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    template: Literal["auto", "none", "chat"] | None = None,
    system_prompt: str | None = None,
    turns: Literal["last", "every"] | None = None,
    ask: Literal["all", "own"] | None = None,
    system_prompts: Sequence[str] = (),
    retrained: str | None = None,
    reference: str | None = None,
    gradient_norm: bool = False,
    before: str | None = None,
    utility: str | None = None,
    floor: float | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    mmlu: str | Path | None = None,
    mmlu_shots: int | None = None,
    mmlu_limit: int | None = None,
    membership: Literal["documents", "rows", "answers"] | None = None,
    lm_eval: Sequence[str] = (),
    lm_eval_folder: str | Path | None = None,
    backend: Literal["transformers", "vllm"] | None = None,
    batch_tokens: int | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    parquet: bool = False,
    again: bool = False,
) -> Scores:
    """Generate answers, compute likelihoods, and score them with a benchmark.

    Args:
        model: A model (hub id, folder or ``smollm2``), or a run folder, whose base, pair and chosen
            candidate are then evaluated on the run's own rows.
        run: Run to use when ``model`` is omitted; None is the newest under ``runs/``.
        adapter: PEFT folder to load on the model.
        run_models: Models of the run: base, over, under or candidates.
        snapshots: Evaluate the base and every snapshot of the pair instead.
        benchmark: ``semeval2025-task4``, ``tofu``, ``muse``, ``rwku``, ``knowundo`` or ``custom``;
            the recipe's when omitted.
        metrics: Further metrics, ``NAME`` or ``NAME/SPLIT``, besides those of the benchmark.
        forget, retain, holdout: Files of rows to forget, of rows to retain, and of rows
            that were never trained on.
        members, nonmembers: Documents for membership inference instead of forget's and holdout's.
        rows: Files of further splits, by split.
        columns: Column names of the files by column name, for example ``{"input": "question"}``.
        template: How prompts are rendered: raw (``none``), with the tokenizer's chat template, or
            ``auto``; the run's when omitted.
        system_prompt: System message of a chat.
        turns: With a model: assistant turns of a conversation that become rows; the last one when
            omitted.
        ask: ``all`` asks a model with a chat template raw and in chat, and reports the worst
            case; ``own`` uses only ``template``.
        system_prompts: Further system messages to ask with, in addition to the usual variants.
        retrained: Model trained without the forget set, for forget quality and PrivLeak.
        reference: Model whose loss is subtracted, for membership inference.
        gradient_norm: Use gradient norms for membership inference, too.
        before: The model before unlearning, for the utility ratio.
        utility: Score of the utility ratio, ``METRIC`` or ``METRIC/SPLIT``.
        floor: Warn if the utility ratio is below this value.
        limit: Maximum number of rows per split.
        max_new_tokens: Maximum number of tokens to generate per answer.
        mmlu: Folder with MMLU's csv files; ``mmlu_shots`` examples, ``mmlu_limit`` questions per
            subject.
        membership: Text that is judged as member or non-member.
        lm_eval: Tasks of lm-eval; ``lm_eval_folder`` holds further tasks.
        backend: Library that generates answers.
        batch_tokens: Tokens per batch; as many as fit when omitted.
        device: ``cpu``, ``cuda``, ...; the GPU where there is one.
        out: With a model: folder for scores and answers.
        parquet: Write the answers as parquet, too.
        again: Ignore cached measurements.

    Returns:
        Scores by model. With several processes, each returns the same scores.

    Raises:
        UsageError: An option does not apply, or the benchmark is unknown.
        InputError: A model or a file cannot be read.
        NumericError: The model's outputs are not finite.
    """
    options = dict(locals())
    from mergeforget.distributed import rank_share
    from mergeforget.errors import UsageError
    from mergeforget.evaluate.table import notes

    sharing = rank_share()
    if model is not None and is_run(model):
        if run is not None:
            raise UsageError("Give the run once: evaluate(RUN) or evaluate(run=RUN).")
        model, run = None, model
    if model is not None:
        if run is not None or run_models or snapshots:
            raise UsageError(
                "Give RUN or --model, not both; --run-model and --snapshots belong to a run."
            )
        spec, scores = _evaluate_model(str(model), sharing, options)
    else:
        only = {n: f"--{n}" for n in ("adapter", "forget", "retain", "before", "out", "turns")}
        unfit = [o for n, o in (only | {"columns": "--column"}).items() if options[n]]
        if unfit:
            raise UsageError(f"{', '.join(unfit)} belongs to --model; a run has its own.")
        spec, scores = _evaluate_run(as_run(run), sharing, options)
    return Scores(scores, notes(spec, scores))


def is_run(place: object) -> bool:
    """Return whether this is a run or a run folder."""
    if isinstance(place, Run | UnlearningRun):
        return True
    return (usable_path(str(place)) / "recipe.yaml").is_file()


def _evaluate_run(run: Run, sharing: RankShare, options: dict[str, Any]) -> Scored:
    from mergeforget.evaluate.evaluation import Evaluation
    from mergeforget.evaluate.rows import rows_of_run
    from mergeforget.evaluate.run_models import evaluate_run, snapshots_of
    from mergeforget.recipe import load_recipe

    recipe = load_recipe(run.recipe)
    spec = _spec(recipe.evaluation, options)
    files = {n: optional_path(options[n]) for n in ("holdout", "members", "nonmembers")}
    evaluation = Evaluation(
        base=run.base(),
        data=data_of(recipe.data, options),
        spec=recipe.model,
        settings=spec,
        rows=rows_of_run(run, spec, **files, seed=recipe.search.seed),
        folder=run.root / "evaluation",
        device=options["device"],
        batch_tokens=options["batch_tokens"],
        sharing=sharing,
    )
    names = list(options["run_models"])
    if options["snapshots"]:
        names = [*names, "base", *snapshots_of(run)]
    again, parquet = options["again"], options["parquet"]
    return spec, evaluate_run(run, evaluation, names, again=again, parquet=parquet)


def _evaluate_model(model: str, sharing: RankShare, options: dict[str, Any]) -> Scored:
    from mergeforget.evaluate.evaluation import Evaluation
    from mergeforget.evaluate.rows import rows_of_files
    from mergeforget.evaluate.run_models import cache_of_models, evaluate_any, write_model_scores
    from mergeforget.recipe import DataSpec, EvaluationSpec, ModelSpec

    spec = _spec(EvaluationSpec(), options)
    splits = ("forget", "retain", "holdout", "members", "nonmembers")
    files: dict[str, Any] = {n: optional_path(options[n]) for n in splits}
    evaluation = Evaluation(
        base=model,
        data=data_of(DataSpec(), options),
        spec=ModelSpec(name=model),
        settings=spec,
        rows=rows_of_files(
            **files,
            spec=spec,
            columns=dict(options["columns"] or {}),
            turns=options["turns"] or "last",
        ),  # fmt: skip
        folder=cache_of_models(),
        device=options["device"],
        batch_tokens=options["batch_tokens"],
        sharing=sharing,
    )
    adapter, out = optional_path(options["adapter"]), optional_path(options["out"])
    name = adapter.name if adapter else Path(model).name
    measured, scores = evaluate_any(
        evaluation, adapter, name, before=options["before"], again=options["again"]
    )
    if out is not None and sharing.main:
        write_model_scores(
            out / "scores.jsonl", out / "answers", name, measured, scores,
            parquet=options["parquet"],
        )  # fmt: skip
    return spec, {name: scores}


def data_of(data: DataSpec, options: Mapping[str, Any]) -> DataSpec:
    """Return the section ``data`` of a recipe with the given template and system prompt."""
    names = ("template", "system_prompt")
    return data.model_copy(update={n: options[n] for n in names if options.get(n) is not None})


def _spec(spec: EvaluationSpec, options: dict[str, Any]) -> EvaluationSpec:
    """Return the section ``evaluation`` of a recipe with the given options."""
    from mergeforget.benchmarks import BENCHMARKS
    from mergeforget.metrics import METRICS
    from mergeforget.recipe import NEW_TOKENS, UNITS

    changes = {name: options[name] for name in SETTINGS if options[name] is not None}
    folders = {name: options[name] for name in ("mmlu", "lm_eval_folder") if options[name]}
    changes |= {name: str(folder) for name, folder in folders.items()}
    if options["system_prompts"]:
        changes["system_prompts"] = list(options["system_prompts"])
    if options["lm_eval"]:
        changes["lm_eval"] = list(options["lm_eval"])
    if options["metrics"]:
        changes["metrics"] = list(options["metrics"])
    if options["gradient_norm"]:
        changes["gradient_norm"] = True
    if "benchmark" in changes:
        name = changes["benchmark"]
        defaults = {"max_new_tokens": NEW_TOKENS.get(name, 256),
               "membership": UNITS.get(name, "documents")}  # fmt: skip
        changes = defaults | changes
    changes["rows"] = spec.rows | dict(options["rows"] or {})
    changed = spec.model_copy(update=changes)
    BENCHMARKS.get(changed.benchmark)
    for text in changed.metrics:
        METRICS.get(text.partition("/")[0].strip())
    return changed
