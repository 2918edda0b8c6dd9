"""The pair: an over-forgetting and an under-forgetting adapter from one base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergeforget.console import say
from mergeforget.data.limit import limit_rows
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.data.templating import PromptTemplate, has_chat_template, template_of
from mergeforget.distributed import on_main
from mergeforget.errors import RecipeError
from mergeforget.files import read_json, write_json, write_jsonl
from mergeforget.models import load_model
from mergeforget.recipe import DataSpec, Recipe, change, load_recipe, save_recipe
from mergeforget.run import Run, file_facts
from mergeforget.train.fit import CHECKPOINT_SECONDS, TrainingJob, train_adapter
from mergeforget.train.memorise import check_whole, is_memorised, memorise, memorised_folder
from mergeforget.train.objective import check_recipe, describe

SIDES = ("over", "under")


@dataclass(frozen=True)
class Sets:
    """The rows of a run."""

    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]


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
        memorise_first: fine-tune the base on forget + retain before anything is forgotten.
        resume: go on with a run that was interrupted; its own recipe is used.

    Raises:
        RecipeError: the recipe has a fault, or names no data.
        ResourceError: another process writes into the folder.
        NumericError: a training diverged or did not move.
        Interrupted: SIGTERM; what was done is saved.
    """
    if recipe.pair is None:
        raise RecipeError(
            f"The recipe {recipe.name} trains one adapter: give it to `mergeforget train`, or make "
            f"a pair of two recipes in a file: pair: {{over: {recipe.name}, under: zjuklab}}."
        )
    if any(side.full for side in (recipe.pair.over, recipe.pair.under)):
        raise RecipeError(
            "A pair is made of adapters, but a side trains weights of the model (`full`). Train "
            "each by `mergeforget train` and merge the models."
        )
    check_recipe(recipe)
    with run.lock():
        sets = prepare(recipe, run, resume=resume)
        base, name = _base(recipe, run, sets, memorise_first, resume, checkpoint_seconds)
        record_template(run, base.tokenizer, template_of(base.tokenizer, recipe.data))
        for side in SIDES:
            if resume and on_main(lambda side=side: run.state(side)) == "done":  # type: ignore[misc]
                say(f"{side}: done already")
                continue
            job = TrainingJob(run, side, resume, checkpoint_seconds)
            _train_side(base, name, recipe, sets, job)
    return run


def prepare(recipe: Recipe, run: Run, *, resume: bool = False) -> Sets:
    """Read, limit and keep the data in the run folder, with the recipe and the hashes."""
    return on_main(lambda: _prepare(recipe, run, resume))


def _prepare(recipe: Recipe, run: Run, resume: bool) -> Sets:
    if resume and run.recipe.exists():
        trust = {"trust_remote_code": recipe.model.trust_remote_code}  # of this call alone
        if change(load_recipe(run.recipe), model=trust) != recipe:
            raise RecipeError(
                f"{run.root} was begun with another recipe or other options. Go on with the same "
                "ones, or begin a new run with another --out."
            )
        return read_sets(run)
    sets = read_data(recipe.data)
    run.root.mkdir(parents=True, exist_ok=True)
    for name, rows in vars(sets).items():
        write_jsonl(run.data / f"{name}.jsonl", [row.to_dict() for row in rows])
    paths = {n: getattr(recipe.data, n) for n in ("forget", "retain", "holdout")}
    run.record(
        "data",
        files={n: file_facts(Path(p)) for n, p in paths.items() if p},
        rows={n: len(rows) for n, rows in vars(sets).items()},
    )
    save_recipe(recipe, run.recipe)
    return sets


def record_template(run: Run, tokenizer: Any, template: PromptTemplate) -> None:
    """Record in the manifest how prompts are rendered; warn where a chat model is trained raw."""
    run.record("template", **template.facts())
    if template.kind == "none" and has_chat_template(tokenizer):
        say(
            "The model has a chat template and is trained with raw prompts (data.template: none). "
            "Users who ask it in chat may find that it still knows; an evaluation asks both ways. "
            "Train in chat with --template chat."
        )


def read_sets(run: Run) -> Sets:
    """The rows that a run uses, as it kept them."""
    names = ("forget", "retain", "holdout")
    files = {name: run.data / f"{name}.jsonl" for name in names}
    return Sets(
        **{
            n: read_rows(f, split=n) if f.exists() and f.stat().st_size else []
            for n, f in files.items()
        }
    )


def read_data(data: DataSpec) -> Sets:
    """The rows that a recipe names, as many of them as it says.

    Raises:
        RecipeError: it names none.
    """
    if not data.forget or not data.retain:
        raise RecipeError(
            "No data: give --forget and --retain, or data.forget and data.retain in the recipe. "
            "`mergeforget data make` writes made-up people to try with."
        )
    read: dict[str, list[Row]] = {"holdout": []}
    rest: list[Row] = []
    for name in ("forget", "retain"):
        rows = read_rows(Path(getattr(data, name)), split=name, columns=data.columns)
        if data.limit is not None:
            rows, left = limit_rows(rows, data.limit, data.seed)
            rest = left if name == "forget" else rest
        read[name] = rows
    if data.holdout:
        read["holdout"] = read_rows(Path(data.holdout), split="holdout", columns=data.columns)
    elif rest:
        read["holdout"] = _as_holdout(rest, len(read["forget"]), data.seed)
        say(
            f"No --holdout: {len(read['holdout'])} forget rows beyond --limit serve as "
            "non-members; they are never trained on."
        )
    return Sets(**read)


def _as_holdout(rest: list[Row], size: int, seed: int) -> list[Row]:
    kept, _ = limit_rows(rest, size, seed)
    return [replace(row, split="holdout") for row in kept]


def _base(
    recipe: Recipe, run: Run, sets: Sets, first: bool, resume: bool, seconds: float
) -> tuple[Any, str]:
    """The model that forgets, loaded, and the name that its adapters record."""
    if not first:
        loaded = load_model(recipe.model, frozen=True)
        return loaded, str(loaded.path or loaded.name)
    rows = sets.forget + sets.retain
    folder = on_main(lambda: memorised_folder(recipe, rows))
    if not on_main(lambda: is_memorised(folder)):
        check_whole()
        loaded = load_model(recipe.model)
        say(f"memorise: {len(rows)} rows, {recipe.memorise.epochs} epochs")
        job = TrainingJob(run, "memorise", resume, max(seconds, 300.0))
        run.set_state("memorise", "running")
        template = template_of(loaded.tokenizer, recipe.data)
        memorise(loaded.model, loaded.tokenizer, rows, recipe.memorise, folder, job, template)
    else:
        say(f"memorise: a model that knows these rows is there already: {folder}")
    run.set_state("memorise", "done")
    on_main(lambda: _record_base(recipe, run, folder))
    spec = recipe.model.model_copy(update={"name": str(folder)})
    return load_model(spec, frozen=True), str(folder)


def _record_base(recipe: Recipe, run: Run, folder: Path) -> None:
    manifest = read_json(run.manifest)
    manifest["base"] = {"name": recipe.model.name, "path": str(folder), "memorised": True}
    write_json(run.manifest, manifest)


def _train_side(base: Any, name: str, recipe: Recipe, sets: Sets, job: TrainingJob) -> None:
    training = getattr(recipe.pair, job.stage)
    say(
        f"{job.stage}: {describe(training)}, {training.epochs} epochs, "
        f"{training.batch_size * training.accumulation(len(sets.forget))} rows a step, "
        f"learning rate {training.learning_rate:g}"
    )
    job.run.set_state(job.stage, "running")
    sides: Mapping[str, list[Row]] = {"forget": sets.forget, "retain": sets.retain}
    if sets.holdout:
        sides = {**sides, "holdout": sets.holdout}
    try:
        template = template_of(base.tokenizer, recipe.data)
        train_adapter(base.model, base.tokenizer, sides, training, job, template)
    except Exception:
        job.run.set_state(job.stage, "failed")
        raise
    job.run.record(job.stage, seed=training.seed, base=name)
    job.run.set_state(job.stage, "done")
