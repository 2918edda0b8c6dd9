"""Train a pair: an over-forgetting and an under-forgetting adapter from one base."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mergeforget.console import say
from mergeforget.data.chat_template import has_chat_template
from mergeforget.data.overlap import check_overlap, plain_text
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.data.templating import PromptTemplate, template_of
from mergeforget.data.transforms import limit_rows
from mergeforget.data.twins import make_twins
from mergeforget.distributed import on_main
from mergeforget.errors import InputError, NumericError, RecipeError
from mergeforget.evaluate.membership import unseen
from mergeforget.files import read_json_object, reading, write_json, write_jsonl
from mergeforget.model_files import content_of, locate
from mergeforget.models import LoadedModel, load_model
from mergeforget.recipe import DataSpec, Recipe, change, load_recipe, save_recipe
from mergeforget.run import Run, file_facts
from mergeforget.search.split import group, load_data
from mergeforget.train.fit import CHECKPOINT_SECONDS, TrainingJob, train_adapter
from mergeforget.train.joined_adapters import sharing_weights
from mergeforget.train.memorise import check_whole, is_memorised, memorise, memorised_folder
from mergeforget.train.objective import check_recipe, describe
from mergeforget.train.together import Partners, trains_together
from mergeforget.train.tokenize import check_weights
from mergeforget.train_config import Training

SIDES = ("over", "under")
TWINS = 3  # held twins of each forget row


@dataclass(frozen=True)
class Sets:
    """The rows of a run, by set."""

    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]
    held: list[Row] = field(default_factory=list)  # unseen rows for terms on `held`


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
        record_template(run, base.tokenizer, template_of(base.tokenizer, recipe.data))
        missing = []
        for side in SIDES:
            if resume and on_main(lambda side=side: run.state(side)) == "done":  # type: ignore[misc]
                say(f"{side}: done already")
            else:
                missing.append(side)
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
    partners = Partners(("over", "under"), required=recipe.pair.together is True)
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
        raise NumericError(
            "No snapshot of the training under-forgets: the AUC crossed the whole range between "
            "two checks. Check more often, for example with "
            "--set pair.over.until.every=1, or lower pair.over.learning_rate."
        )
    assert recipe.pair is not None
    run.record("under", seed=recipe.pair.over.seed, base=name, snapshot_of="over")
    run.set_state("under", "done")


def prepare(recipe: Recipe, run: Run, *, resume: bool = False) -> Sets:
    """Read and limit the data, and save them in the run folder with the recipe and the hashes.

    Raises:
        InputError: The data are unusable; for a training with ``until``, also if they are too few
            for a selection and a report split.
    """
    return on_main(lambda: _prepare(recipe, run, resume))


def _prepare(recipe: Recipe, run: Run, resume: bool) -> Sets:
    sets = _read_and_save(recipe, run, resume)
    checked = [training for training in recipe.trainings().values() if training.until]
    if checked:  # fails before any training
        load_data(run, recipe.evaluation, None, recipe.search.seed)
    for training in checked:
        rows_by_set(run, recipe, sets, training)
    return sets


def _read_and_save(recipe: Recipe, run: Run, resume: bool) -> Sets:
    if resume and run.recipe.exists():
        trust: dict[str, dict[str, Any]] = {  # applies to this call only
            "model": {"trust_remote_code": recipe.model.trust_remote_code},
            "evaluation": {"lm_eval_folder": recipe.evaluation.lm_eval_folder},
        }
        if change(load_recipe(run.recipe), **trust) != recipe:
            raise RecipeError(
                f"{run.root} was started with another recipe or other options. Resume with the "
                "same ones, or start a new run with another --out."
            )
        _check_same_base(recipe, run)
        return read_sets(run)
    sets = add_twins(read_data(recipe.data), recipe)
    run.root.mkdir(parents=True, exist_ok=True)
    for name, rows in vars(sets).items():
        if name == "held" and not rows:
            continue
        write_jsonl(run.data / f"{name}.jsonl", [row.to_dict() for row in rows])
    paths = {n: getattr(recipe.data, n) for n in ("forget", "retain", "holdout")}
    run.record(
        "data",
        files={n: _file_facts(p) for n, p in paths.items() if p},
        rows={n: len(rows) for n, rows in vars(sets).items() if rows or n != "held"},
        base_content=base_content(recipe),
    )
    save_recipe(recipe, run.recipe)
    return sets


def base_content(recipe: Recipe) -> str:
    """Return a hash of the files of the base, independent of their location."""
    spec = recipe.model
    return content_of(locate(spec.name, trust_remote_code=spec.trust_remote_code))


def _check_same_base(recipe: Recipe, run: Run) -> None:
    """Raise InputError if the files of the base changed since the run was started."""
    known = run.read_manifest()["stages"].get("data", {}).get("base_content")
    if known and known != base_content(recipe):
        raise InputError(
            f"The files of {recipe.model.name} changed since {run.root} was started. Restore them, "
            "or start a new run with another --out."
        )


def record_template(run: Run, tokenizer: Any, template: PromptTemplate) -> None:
    """Record how prompts are rendered; warn if a chat model is trained with raw prompts."""
    run.record("template", **template.facts())
    if template.kind == "none" and has_chat_template(tokenizer):
        say(
            "The model has a chat template but is trained with raw prompts (data.template: none). "
            "It may still know the answers in chat, which an evaluation measures, too. Train with "
            "--template chat."
        )


def read_sets(run: Run) -> Sets:
    """Read the rows of a run from its folder."""
    names = ("forget", "retain", "holdout", "held")
    files = {name: run.data / f"{name}.jsonl" for name in names}
    return Sets(
        **{
            n: read_rows(f, split=n) if f.exists() and f.stat().st_size else []
            for n, f in files.items()
        }
    )


def read_data(data: DataSpec) -> Sets:
    """Read the rows that a recipe names, up to its limit.

    Raises:
        RecipeError: The recipe names no data.
    """
    if not data.forget or not data.retain:
        raise RecipeError(
            "No data: give --forget and --retain, or data.forget and data.retain in the recipe. "
            "`mergeforget data make` writes made-up people to try with."
        )
    row_sets: dict[str, list[Row]] = {"holdout": []}
    rest: list[Row] = []
    for name in ("forget", "retain"):
        rows = _read(getattr(data, name), name, data)
        if data.limit is not None:
            rows, left = limit_rows(rows, data.limit, data.seed)
            trained = set(map(plain_text, rows))  # copies of trained rows are no non-members
            left = [row for row in left if plain_text(row) not in trained]
            rest = left if name == "forget" else rest
        row_sets[name] = rows
    if data.holdout:
        row_sets["holdout"] = _read(data.holdout, "holdout", data)
    elif rest and (rest := about_others(rest, [*row_sets["forget"], *row_sets["retain"]])):
        row_sets["holdout"] = _as_holdout(rest, len(row_sets["forget"]), data.seed)
        say(
            f"No --holdout: {len(row_sets['holdout'])} forget rows beyond --limit serve as "
            "non-members; they are never trained on."
        )
    check_overlap(row_sets)
    check_weights("forget", row_sets["forget"])  # before a model memorises the rows
    return Sets(**row_sets)


def _file_facts(path: str) -> dict[str, Any]:
    """Return name, size and hash of a file or folder; the name of a data set of the hub."""
    return file_facts(Path(path)) if Path(path).exists() else {"name": path}


def _read(path: str, split: str, data: DataSpec) -> list[Row]:
    return read_rows(Path(path), split=split, columns=data.columns, turns=data.turns)


def about_others(rest: list[Row], trained: list[Row]) -> list[Row]:
    """Return rows beyond ``--limit`` about people who are not in the training rows."""
    try:
        return unseen(rest, trained, "Rows beyond --limit")
    except InputError as error:
        say(f"Warning: there are no non-members. {error}")
        return []


def add_twins(sets: Sets, recipe: Recipe) -> Sets:
    """Add perturbed twins if a training needs unseen rows that the data does not have.

    Twins of the forget rows become ``held`` if an objective has a term on it, and ``holdout``
    if a training has ``until`` and there is no holdout set.

    Raises:
        InputError: Twins are needed, but the rows have nothing to perturb.
    """
    trainings = recipe.trainings().values()
    needs_held = any(term.on == "held" for training in trainings for term in training.objective)
    compare = any(training.until for training in trainings) and not sets.holdout
    if not needs_held and not compare:
        return sets
    corpus = [*sets.retain, *sets.holdout]
    seed = recipe.data.seed
    held = make_twins(sets.forget, corpus=corpus, per_row=TWINS, seed=seed)
    twins = make_twins(sets.forget, corpus=corpus, seed=seed + 1)
    sufficient = len(twins) >= max(2, len(sets.forget) // 2)
    if not sufficient and not compare:
        say(
            "The forget rows have no names or numbers to perturb: half of the unseen rows of the "
            "selection split are used as `held` instead of twins."
        )
        return sets
    if not sufficient:
        raise InputError(
            f"Only {len(twins)} of {len(sets.forget)} forget rows have a name or a number "
            "that can be replaced, too few for perturbed twins. Give rows of the same kind, "
            "never trained on, with --holdout, or train with a recipe without `until`, such as "
            "zjuklab."
        )
    if compare:
        say(
            f"No --holdout: {len(twins)} perturbed twins of the forget rows are used as unseen "
            "rows."
        )
    holdout = [replace(t, id=f"b-{t.id}", subject=f"b-{t.subject}") for t in twins]
    return replace(
        sets, held=held if needs_held else [], holdout=holdout if compare else sets.holdout
    )


def rows_by_set(run: Run, recipe: Recipe, sets: Sets, training: Training) -> dict[str, list[Row]]:
    """Return the sets of a training, ``forget`` first.

    With ``until``, ``selected`` are the forget rows that are compared with non-members, ``unseen``
    the non-members of the selection split, and ``imitations`` are twins of ``unseen``. The
    non-members of the report split are not used.
    """
    rows = {"forget": sets.forget, "retain": sets.retain}
    if sets.holdout:
        rows["holdout"] = sets.holdout
    if any(term.on == "held" for term in training.objective):
        rows["held"] = sets.held
    if training.until:
        search = recipe.search
        every = load_data(run, recipe.evaluation, None, search.seed, warn=False)
        chosen = every.choosing(search.choose_share, search.seed, {"mia"})
        lone = every.lone()
        groups = {group(row, lone) for row in (*chosen.members, *chosen.nonmembers)}
        rows["selected"] = [row for row in sets.forget if group(row, lone) in groups]
        rows["unseen"] = [row for row in sets.holdout if group(row, lone) in groups]
        if "held" in rows and not sets.held:
            if len(rows["unseen"]) < 2:
                raise InputError(
                    "There are too few holdout rows: some are trained on as `held`, and others "
                    "must remain unseen. Give more rows with --holdout."
                )
            rows["held"], rows["unseen"] = rows["unseen"][::2], rows["unseen"][1::2]
        corpus = [*sets.forget, *sets.retain]
        imitations = make_twins(
            rows["unseen"], corpus=corpus, per_row=TWINS, seed=recipe.data.seed + 2
        )
        if imitations:
            rows["imitations"] = imitations
    return rows


def end_of(run: Run, stage: str) -> dict[str, Any]:
    """Return how a training with ``until`` ended: outcome, step and measurements."""
    path = run.root / "until" / f"{stage}.json"
    if not on_main(path.is_file):
        return {}
    facts = on_main(lambda: read_json_object(path))
    with reading(path):
        keys = ("outcome", "step", "auc", "forget_exact", "retain_exact")
        found = {key: facts[key] for key in keys}
        if found["outcome"] not in ("reached", "max_steps", "collapsed"):
            raise ValueError(f"outcome is {found['outcome']!r}")
        if not isinstance(found["step"], int):
            raise TypeError(f"step is {found['step']!r}")
    return found


def _as_holdout(rest: list[Row], size: int, seed: int) -> list[Row]:
    kept, _ = limit_rows(rest, size, seed)
    return [replace(row, split="holdout") for row in kept]


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
        length = f"at most {training.steps_until(len(sets.forget))[0]} steps"
    say(
        f"{job.stage}: {describe(training)}, {length}, "
        f"{training.batch_size * training.accumulation(len(sets.forget))} rows per step, "
        f"learning rate {training.learning_rate:g}"
    )
    job.run.set_state(job.stage, "running")
    sides = rows_by_set(job.run, recipe, sets, training)
    assert recipe.pair is not None
    shared = recipe.pair.trajectory == "shared"
    try:
        template = template_of(base.tokenizer, recipe.data)
        train_adapter(base.model, base.tokenizer, sides, training, job, template,
                      under=recipe.pair.under.until if shared else None)  # fmt: skip
    except Exception:
        job.run.set_state(job.stage, "failed")
        raise
    joined = {"joint_passes": job.partners.passes} if job.partners is not None else {}
    job.run.record(job.stage, seed=training.seed, base=name, **joined)
    job.run.set_state(job.stage, "done", **end_of(job.run, job.stage))
