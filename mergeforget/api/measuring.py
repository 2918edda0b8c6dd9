"""Evaluate and attack the models of a run, or any model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergeforget.api.results import (
    AnyRun,
    AttackResults,
    Scores,
    UnlearningRun,
    as_run,
    optional_path,
)
from mergeforget.parsing import usable_path
from mergeforget.run import Run

if TYPE_CHECKING:
    from mergeforget.attack.result import Result
    from mergeforget.attack.target import Target
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
        run: The run, where ``model`` is omitted; None is the newest under ``runs/``.
        adapter: PEFT folder to load on the model.
        run_models: Models of the run: base, over, under or candidates.
        snapshots: Evaluate the base and every snapshot of the pair instead.
        benchmark: ``semeval2025-task4``, ``tofu`` or ``custom``; the recipe's when omitted.
        metrics: Further metrics, ``NAME`` or ``NAME/SPLIT``, besides those of the benchmark.
        forget, retain, holdout: Files of rows to forget, of rows to retain, and of rows
            that no training saw.
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
        given = [o for n, o in (only | {"columns": "--column"}).items() if options[n]]
        if given:
            raise UsageError(f"{', '.join(given)} belongs to --model; a run has its own.")
        spec, scores = _evaluate_run(as_run(run), sharing, options)
    return Scores(scores, notes(spec, scores))


def attack(
    model: str | Path | Run | UnlearningRun | None = None,
    attacks: Sequence[str] = (),
    *,
    run: AnyRun | None = None,
    run_models: Sequence[str] = (),
    adapter: str | Path | None = None,
    base: str | None = None,
    control: str | None = None,
    forget: str | Path | None = None,
    retain: str | Path | None = None,
    holdout: str | Path | None = None,
    template: Literal["auto", "none", "chat"] | None = None,
    system_prompt: str | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    again: bool = False,
    quick: bool = False,
    on_result: Callable[[Result], None] | None = None,
    **arguments: Any,
) -> AttackResults:
    """Try to recover the forgotten data, and judge the claim that it is gone.

    Args:
        model: A model (hub id, folder or ``smollm2``) or a run folder.
        attacks: Names of attacks (``mergeforget list attacks``); every attack when empty.
        run: The run, where ``model`` is omitted; None is the newest under ``runs/``.
        run_models: Models of the run: chosen (the default), base, over, under or candidates.
        adapter: PEFT folder to load on the model.
        base: With a model: the model before unlearning.
        control: A model that never saw the data.
        forget, retain, holdout: Files of rows; the run's own when omitted.
        template, system_prompt: How prompts are rendered; as in the run's recipe when omitted, else
            ``auto``.
        limit: Maximum number of rows per split.
        max_new_tokens: Maximum number of tokens to generate per answer.
        seed: Random seed.
        batch_tokens: Tokens per batch; as many as fit when omitted.
        device: ``cpu``, ``cuda``, ...; the GPU where there is one.
        out: Folder of the results; ``RUN/attacks``, or ``attacks``, when omitted.
        again: Ignore cached measurements.
        quick: Run the quick set of attacks on at most 24 rows per split.
        on_result: Called with each result as soon as it is available.
        arguments: Arguments of the attacks, for example ``steps=20`` or ``bits=[8, 4]``.

    Raises:
        UsageError: No attack in ``attacks`` takes one of the arguments.
        InputError: A model or a file cannot be read, or no candidate is chosen.
    """
    from mergeforget.attack.driver import QUICK_ROWS, attack_names, carry_out

    names = attack_names(attacks, quick=quick)
    limit = QUICK_ROWS if quick and limit is None else limit
    check_arguments(arguments, names)
    if model is not None and is_run(model):
        model, run = None, model
    options = {
        "adapter": optional_path(adapter), "base": base, "control": control, "limit": limit,
        "forget": optional_path(forget), "retain": optional_path(retain),
        "holdout": optional_path(holdout), "max_new_tokens": max_new_tokens, "seed": seed,
        "batch_tokens": batch_tokens, "device": device, "out": optional_path(out), "again": again,
        "template": template, "system_prompt": system_prompt,
    }  # fmt: skip
    results, figures = [], []
    with _targets(None if model is None else str(model), run, run_models, options) as targets:
        for result, every in carry_out(targets, names, arguments, quick=quick):
            results.append(result)
            figures += [_draw(every, targets[0].folder)] if any(r.rows for r in every) else []
            if on_result is not None:
                on_result(result)
        folder = targets[0].folder
    names = [*names, "verdict"]
    files = [*(folder / f"{name}.json" for name in names), *dict.fromkeys(figures)]
    return AttackResults(results, folder, files)


def is_run(place: object) -> bool:
    """Return whether this is a run or a run folder."""
    if isinstance(place, Run | UnlearningRun):
        return True
    return (usable_path(str(place)) / "recipe.yaml").is_file()


def check_arguments(arguments: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise UsageError for an argument that none of the named attacks takes."""
    from mergeforget.attack.methods import ATTACKS
    from mergeforget.errors import UsageError, suggest

    every = {name: set(ATTACKS.get(name).parameters) for name in ATTACKS.names()}
    for key in arguments:
        if any(key in every[name] for name in names):
            continue
        owners = [name for name, keys in every.items() if key in keys]
        if owners:
            option = f"--{key.replace('_', '-')}"
            raise UsageError(f"{option} belongs to the attack {', '.join(owners)}.")
        known = sorted(set().union(*every.values()))
        raise UsageError(
            f"No attack takes {key!r}.{suggest(key, known)} Known: {', '.join(known)}."
        )


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
    if options["lm_eval"]:
        changes["lm_eval"] = list(options["lm_eval"])
    if options["metrics"]:
        changes["metrics"] = list(options["metrics"])
    if options["gradient_norm"]:
        changes["gradient_norm"] = True
    if "benchmark" in changes:
        name = changes["benchmark"]
        own = {"max_new_tokens": NEW_TOKENS.get(name, 256),
               "membership": UNITS.get(name, "documents")}  # fmt: skip
        changes = own | changes
    changes["rows"] = spec.rows | dict(options["rows"] or {})
    changed = spec.model_copy(update=changes)
    BENCHMARKS.get(changed.benchmark)
    for text in changed.metrics:
        METRICS.get(text.partition("/")[0].strip())
    return changed


@contextmanager
def _targets(
    model: str | None, run: AnyRun | None, run_models: Sequence[str], options: dict[str, Any]
) -> Iterator[list[Target]]:
    """Yield the models to attack; a run is locked inside the block."""
    from mergeforget.attack.driver import SPLITS, target_of_model, targets_of_run
    from mergeforget.errors import UsageError
    from mergeforget.recipe import DataSpec, load_recipe

    names = ("seed", "again", "batch_tokens", "max_new_tokens")
    settings: dict[str, Any] = {n: options[n] for n in names if options[n] is not None}
    settings |= {n: options[n] for n in ("control", "limit", "device", "out")}
    settings["files"] = {name: options[name] for name in SPLITS}
    here = None if model is not None else as_run(run)
    spec = DataSpec() if here is None else load_recipe(here.recipe).data
    settings["data"] = data_of(spec, options)
    if model is not None:
        if run is not None or run_models:
            raise UsageError("Give RUN or --model, not both; --run-model belongs to a run.")
        more = {"adapter": options["adapter"], "before": options["base"]}
        yield [target_of_model(model, **more, **settings)]
        return
    given = [f"--{n}" for n in ("adapter", "base") if options[n]]
    if given:
        raise UsageError(f"{', '.join(given)} belongs to --model; a run has its own.")
    assert here is not None
    targets = targets_of_run(here, run_models, **settings)
    with here.lock() if options["out"] is None else nullcontext():
        yield targets


def _draw(results: list[Result], folder: Path) -> Path:
    """Draw the figure of an attack next to its numbers."""
    from mergeforget.analysis.attacks import draw_attack
    from mergeforget.analysis.style import save

    picture = draw_attack(results)
    save(picture, folder)
    return folder / f"{picture.name}.svg"
