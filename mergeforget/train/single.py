"""Train a single adapter, or weights of the model itself, into a run folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from mergeforget.console import say
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate, template_of
from mergeforget.distributed import on_main
from mergeforget.errors import RecipeError
from mergeforget.files import replacing
from mergeforget.models import load_model
from mergeforget.recipe import Recipe, Training
from mergeforget.run import Run
from mergeforget.train.fit import CHECKPOINT_SECONDS, TrainingJob, fit, train_adapter
from mergeforget.train.forward import decoder_layers
from mergeforget.train.objective import check_recipe, describe
from mergeforget.train.precision import widened_weights
from mergeforget.train.reference import reference_of
from mergeforget.train.run_rows import end_of, prepare, record_template, rows_by_set
from mergeforget.train.tokenize import encode_sets, within_positions
from mergeforget.train_config import Full


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
            length = f"at most {training.steps_until(len(sets.forget))[0]} steps"
        say(f"{stage}: {describe(training)}, {length}")
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
