"""Train a pair of adapters from one base (over- and under-forgetting), or a single adapter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed

from mergeforget.console import say
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate, template_of
from mergeforget.distributed import on_main
from mergeforget.errors import NumericError, RecipeError
from mergeforget.files import read_json_object, reading, replacing, write_json
from mergeforget.models import LoadedModel, load_model
from mergeforget.recipe import Recipe, Training
from mergeforget.run import PAIR, Run
from mergeforget.train.fit import CHECKPOINT_SECONDS, TrainingJob, fit, train_adapter
from mergeforget.train.forward import decoder_layers
from mergeforget.train.joined_adapters import sharing_weights
from mergeforget.train.memorise import check_whole, is_memorised, memorise, memorised_folder
from mergeforget.train.objective import check_recipe, describe
from mergeforget.train.precision import widened_weights
from mergeforget.train.reference import reference_of
from mergeforget.train.run_rows import (
    Sets,
    end_of,
    measure_difficulty,
    prepare,
    record_template,
    rows_by_set,
)
from mergeforget.train.together import Partners, trains_together
from mergeforget.train.tokenize import encode_sets, within_positions
from mergeforget.train_config import Full


def train_pair(
    recipe: Recipe,
    run: Run,
    *,
    memorise_first: bool = False,
    resume: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Run:
    """Train both adapters of a recipe into a run folder.

    Args:
        memorise_first: Fine-tune the base on the forget and retain rows first.
        resume: Resume an interrupted run with its own recipe.

    Raises:
        RecipeError: The recipe is invalid, or names no data.
        ResourceError: Another process writes into the folder.
        NumericError: A training diverged, or the first step did not change the adapter.
        Interrupted: SIGTERM was received; a checkpoint is saved.
    """
    if recipe.pair is None:
        raise RecipeError(
            f"The recipe {recipe.name} trains one adapter: use `mergeforget train`, or combine two "
            f"recipes in a file: pair: {{over: {recipe.name}, under: zjuklab}}."
        )
    if any(side.full for side in (recipe.pair.over, recipe.pair.under)):
        raise RecipeError(
            "A pair consists of adapters, but one side trains the model itself (`full`). Train "
            "each model with `mergeforget train`, and merge them with `mergeforget merge-models`."
        )
    check_recipe(recipe)
    with run.lock():
        sets = prepare(recipe, run, resume=resume)
        base, name = _base(recipe, run, sets, memorise_first, resume, checkpoint_seconds)
        template = template_of(base.tokenizer, recipe.data)
        record_template(run, base.tokenizer, template)
        missing = []
        for side in PAIR:
            if resume and on_main(lambda side=side: run.state(side)) == "done":  # type: ignore[misc]
                say(f"{side}: done already")
            else:
                missing.append(side)
        if missing:
            checked = [side for side in missing if recipe.training(side).until]
            first = recipe.training((checked or missing)[0])
            measure_difficulty(run, recipe, sets, first, base, template)
        jobs = {side: TrainingJob(run, side, resume, checkpoint_seconds) for side in missing}
        if len(missing) == 2 and trains_together(recipe, base.model.device):
            _train_both(base, name, recipe, sets, jobs)
            return run
        for side, job in jobs.items():
            if side == "under" and recipe.pair.trajectory == "shared":
                _take_under(run, recipe, name)
            else:
                _train_side(base, name, recipe, sets, job)
    return run


def _train_both(
    base: LoadedModel, name: str, recipe: Recipe, sets: Sets, jobs: dict[str, TrainingJob]
) -> None:
    """Train both sides at the same time, with joined passes."""
    assert recipe.pair is not None
    partners = Partners(PAIR, required=recipe.pair.together is True)
    models = {"over": base, "under": replace(base, model=sharing_weights(base.model))}
    trainings = {
        side: partial(
            _train_side, models[side], name, recipe, sets, replace(job, partners=partners)
        )
        for side, job in jobs.items()
    }
    partners.run(trainings)


def _take_under(run: Run, recipe: Recipe, name: str) -> None:
    """Record that ``under``, a snapshot of the training of ``over``, is trained.

    Raises:
        NumericError: No snapshot meets the condition of ``under``.
    """
    if not on_main(run.under.is_dir):
        run.set_state("under", "failed")
        raise NumericError(_why_no_under(run, recipe))
    assert recipe.pair is not None
    run.record("under", seed=recipe.pair.over.seed, base=name, snapshot_of="over")
    run.set_state("under", "done")


def _why_no_under(run: Run, recipe: Recipe) -> str:
    """Return why no snapshot under-forgets, and what to change."""
    assert recipe.pair is not None and recipe.pair.under.until is not None
    path = run.root / "until" / "over.json"
    facts = on_main(lambda: read_json_object(path))
    low = recipe.pair.under.until.auc_at_least or 0.0
    with reading(path):
        before = facts["base"] or {}
        known = min(before.get("aucs") or [before.get("auc") or 1.0])
        collapsed = facts["outcome"] == "collapsed"
    again = "Start again in another folder (--out)"
    if known < low:
        return (
            f"The model does not know the forget rows better than unseen ones: their AUC is "
            f"{known:.2f} before the training, and pair.under.until.auc_at_least is {low:g}, so "
            "that no step of the training under-forgets. Check with `mergeforget evaluate` that "
            "the model knows the rows as they are asked, or give more rows."
        )
    if collapsed:
        return (
            "No snapshot of the training under-forgets: the retain NLL rose by more than "
            "pair.over.until.collapse before the first check, at every learning rate that was "
            f"tried. {again} with a lower pair.over.learning_rate, or with "
            "--set pair.over.until.every=1."
        )
    return (
        "No snapshot of the training under-forgets: the AUC of the forget rows fell below "
        f"pair.under.until.auc_at_least, {low:g}, before the first check. {again} with --set "
        "pair.over.until.every=1, or with a lower pair.over.learning_rate."
    )


def _base(
    recipe: Recipe, run: Run, sets: Sets, first: bool, resume: bool, seconds: float
) -> tuple[Any, str]:
    """Load the model to unlearn from; return it with the name that its adapters record."""
    if not first:
        loaded = load_model(recipe.model, frozen=True)
        return loaded, str(loaded.path or loaded.name)
    folder = memorised_base(recipe, run, sets, resume=resume, checkpoint_seconds=seconds)
    spec = recipe.model.model_copy(update={"name": folder})
    return load_model(spec, frozen=True), folder


def memorised_base(
    recipe: Recipe,
    run: Run,
    sets: Sets,
    *,
    resume: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> str:
    """Fine-tune the model of a recipe on the forget and retain rows; return its folder.

    A model that memorised the same rows with the same settings is reused.
    """
    rows = sets.forget + sets.retain
    folder = on_main(lambda: memorised_folder(recipe, rows))
    if not on_main(lambda: is_memorised(folder)):
        check_whole()
        loaded = load_model(recipe.model)
        say(f"memorise: {len(rows)} rows, {recipe.memorise.epochs} epochs")
        job = TrainingJob(run, "memorise", resume, max(checkpoint_seconds, 300.0))
        run.set_state("memorise", "running")
        template = template_of(loaded.tokenizer, recipe.data)
        memorise(loaded.model, loaded.tokenizer, rows, recipe.memorise, folder, job, template)
    else:
        say(f"memorise: reusing the model in {folder}, which memorised these rows.")
    run.set_state("memorise", "done")
    on_main(lambda: _record_base(recipe, run, folder))
    return str(folder)


def _record_base(recipe: Recipe, run: Run, folder: Path) -> None:
    manifest = run.read_manifest()
    manifest["base"] = {"name": recipe.model.name, "path": str(folder), "memorised": True}
    write_json(run.manifest, manifest)


def _train_side(base: Any, name: str, recipe: Recipe, sets: Sets, job: TrainingJob) -> None:
    training = getattr(recipe.pair, job.stage)
    length = f"{training.epochs} epochs"
    if training.until:
        length = "until its condition holds"
    say(
        f"{job.stage}: {describe(training)}, {length}, "
        f"{training.batch_size * training.accumulation(len(sets.forget))} rows per step, "
        f"learning rate {training.learning_rate:g}"
    )
    template = template_of(base.tokenizer, recipe.data)
    job.run.set_state(job.stage, "running")
    sides = rows_by_set(job.run, recipe, sets, training)
    assert recipe.pair is not None
    shared = recipe.pair.trajectory == "shared"
    try:
        train_adapter(base.model, base.tokenizer, sides, training, job, template,
                      under=recipe.pair.under.until if shared else None)  # fmt: skip
    except Exception:
        job.run.set_state(job.stage, "failed")
        raise
    joined = {"joint_passes": job.partners.passes} if job.partners is not None else {}
    job.run.record(job.stage, seed=training.seed, base=name, **joined)
    job.run.set_state(job.stage, "done", **end_of(job.run, job.stage))


def train_single(
    recipe: Recipe,
    run: Run,
    *,
    side: str = "over",
    resume: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Path:
    """Run the training of a recipe, or of one side of its pair, in a run folder.

    Returns:
        ``RUN/adapter``, a PEFT folder; or ``RUN/model``, if the recipe trains the model itself.

    Raises:
        RecipeError, ResourceError, NumericError, Interrupted: As in ``train_pair``.
    """
    check_recipe(recipe)
    training = recipe.training(side)
    stage = "model" if training.full else "adapter"
    with run.lock():
        sets = prepare(recipe, run, resume=resume)
        folder = run.root / stage
        if resume and on_main(lambda: run.state(stage)) == "done":
            say(f"{stage}: done already")
            return folder
        base = load_model(recipe.model, frozen=not training.full)
        template = template_of(base.tokenizer, recipe.data)
        record_template(run, base.tokenizer, template)
        length = f"{training.epochs} epochs"
        if training.until:
            length = "until its condition holds"
        say(f"{stage}: {describe(training)}, {length}")
        if training.until:
            measure_difficulty(run, recipe, sets, training, base, template)
        run.set_state(stage, "running")
        rows = rows_by_set(run, recipe, sets, training)
        train = train_model if training.full else train_adapter
        try:
            train(
                base.model,
                base.tokenizer,
                rows,
                training,
                TrainingJob(run, stage, resume, checkpoint_seconds),
                template,
            )
        except Exception:
            run.set_state(stage, "failed")
            raise
        run.record(stage, seed=training.seed, base=recipe.model.name)
        run.set_state(stage, "done", **end_of(run, stage))
    return folder


def train_model(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Row]],
    training: Training,
    job: TrainingJob,
    template: PromptTemplate = RAW,
) -> Path:
    """Train weights of the model itself and save it as a plain model folder.

    Args and errors as for ``train_adapter``; the model is changed in place.
    """
    assert training.full is not None
    set_seed(training.seed)
    choose_trained(model, training.full)
    training = within_positions(model, training)
    encoded = encode_sets(tokenizer, sets, training, template)
    with widened_weights(model):
        reference = reference_of(model, encoded, training, job.run.root)
        fit(model, tokenizer, encoded, training.objective, training, job, None, reference=reference)

    def save() -> None:
        with replacing(job.run.root / job.stage) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        shutil.rmtree(job.checkpoints, ignore_errors=True)

    on_main(save)
    return job.run.root / job.stage


def choose_trained(model: Any, full: Full) -> None:
    """Freeze all weights except those a recipe selects.

    Raises:
        RecipeError: The recipe selects no weight of this model.
    """
    layers = decoder_layers(model)
    last = range(max(0, len(layers) - (full.last_layers or 0)), len(layers))
    numbers = last if full.layers is None else full.layers
    ids_in_layers = {id(p) for n in numbers if n < len(layers) for p in layers[n].parameters()}
    every = full.last_layers is None and full.layers is None
    for name, parameter in model.named_parameters():
        in_layers = every or id(parameter) in ids_in_layers
        named = not full.modules or any(m in name.split(".") for m in full.modules)
        parameter.requires_grad_(in_layers and named)
    if not any(p.requires_grad for p in model.parameters()):
        modules = ", ".join(n for n, _ in layers[0].named_modules() if n)
        raise RecipeError(
            f"full names no weight of this model: it has {len(layers)} layers, counted from 0, "
            f"with the modules {modules}."
        )
