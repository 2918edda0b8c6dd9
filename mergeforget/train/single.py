"""Train a single adapter, or the weights of the model, into a run folder."""

from __future__ import annotations

from pathlib import Path

from mergeforget.console import say
from mergeforget.data.templating import template_of
from mergeforget.distributed import on_main
from mergeforget.models import load_model
from mergeforget.recipe import Recipe
from mergeforget.run import Run
from mergeforget.train.fit import CHECKPOINT_SECONDS, TrainingJob, train_adapter
from mergeforget.train.full import train_model
from mergeforget.train.objective import check_recipe, describe
from mergeforget.train.pair import end_of, prepare, record_template, rows_by_set


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
        until = training.until
        length = f"at most {until.max_steps} steps" if until else f"{training.epochs} epochs"
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
