"""The rows of a run: read, limit and save them, add perturbed twins, and divide them into sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from mergeforget.console import say
from mergeforget.data.chat_template import has_chat_template
from mergeforget.data.overlap import check_overlap, plain_text
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.data.templating import PromptTemplate
from mergeforget.data.tokens import Encoded, check_token_ids
from mergeforget.data.transforms import limit_rows
from mergeforget.data.twins import (
    as_stand_ins,
    enough,
    make_twins,
    nonmember_twins,
    origin_of,
    stand_in_note,
)
from mergeforget.distributed import on_main, sharded
from mergeforget.errors import InputError, RecipeError
from mergeforget.evaluate.membership import unseen
from mergeforget.files import read_json_object, read_jsonl, reading, write_json, write_jsonl
from mergeforget.model_files import content_of, locate
from mergeforget.outputs import ANSWER
from mergeforget.recipe import DataSpec, Recipe, change, load_recipe
from mergeforget.run import Run, file_facts
from mergeforget.search.split import group, load_data
from mergeforget.train.tokenize import check_replaceable, check_weights
from mergeforget.train_config import Training

SHOWN = 5  # differences between two recipes that a message names
TWINS = 3  # held twins of each forget row


@dataclass(frozen=True)
class Sets:
    """The rows of a run, by set."""

    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]
    held: list[Row] = field(default_factory=list)  # unseen rows for terms on `held`


def prepare(recipe: Recipe, run: Run, *, resume: bool = False) -> Sets:
    """Read and limit the data, and save them in the run folder with the recipe and the hashes.

    Raises:
        InputError: The data are unusable; for a training with ``until``, also if they are too few
            for a selection and a report split.
    """
    return on_main(lambda: _prepare(recipe, run, resume))


def _prepare(recipe: Recipe, run: Run, resume: bool) -> Sets:
    sets = _read_and_save(recipe, run, resume)
    for training in recipe.trainings().values():
        check_replaceable(sets.forget, training)
    checked = [training for training in recipe.trainings().values() if training.until]
    if checked:  # fails before any training
        load_data(run, recipe.evaluation, None, recipe.search.seed)
        if len(sets.retain) < 2:
            raise InputError(
                f"The retain set has {len(sets.retain)} row. A training with `until` needs at "
                "least two: one for the selection split and one for the report split. Give more "
                "rows with --retain."
            )
    for training in checked:
        rows_by_set(run, recipe, sets, training)
    return sets


def _read_and_save(recipe: Recipe, run: Run, resume: bool) -> Sets:
    if resume and run.recipe.exists():
        _check_same_recipe(recipe, run)
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
    run.write_recipe(recipe)
    return sets


def _check_same_recipe(recipe: Recipe, run: Run) -> None:
    """Raise RecipeError if a run was started with another recipe; name the keys that differ.

    Files and models may have another path, as in another working directory or in a run folder that
    was moved, if their content is the same. The run then refers to the new paths.
    """
    stored = load_recipe(run.recipe)
    trust: dict[str, dict[str, Any]] = {  # applies to this call only
        "model": {"trust_remote_code": recipe.model.trust_remote_code},
        "evaluation": {"lm_eval_folder": recipe.evaluation.lm_eval_folder},
    }
    if change(stored, **trust) == recipe:
        return
    facts = run.read_manifest()["stages"].get("data", {})
    for name in ("forget", "retain", "holdout"):
        now, before = getattr(recipe.data, name), getattr(stored.data, name)
        if now and before and now != before:
            known = (facts.get("files") or {}).get(name) or {}
            if known.get("sha256") and known["sha256"] == _file_facts(now).get("sha256"):
                stored = change(stored, data={name: now})
    if recipe.model.name != stored.model.name and (known := facts.get("base_content")):
        if known == base_content(recipe):
            stored = change(stored, model={"name": recipe.model.name})
    stored = change(stored, **trust)
    if stored != recipe:
        was, now = (dict(_keys_of(one.model_dump(mode="json"))) for one in (stored, recipe))
        keys = [key for key in {**was, **now} if was.get(key) != now.get(key)]
        changed = "; ".join(
            f"{key} was {was.get(key)}, now {now.get(key)}" for key in keys[:SHOWN]
        ) + (f"; and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
        raise RecipeError(
            f"{run.root} was started with another recipe or other options: {changed}. Resume with "
            "the same ones, or start a new run with another --out."
        )
    run.write_recipe(recipe)


def _keys_of(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested settings, joined by dots, with their values."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _keys_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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


def _file_facts(path: str) -> dict[str, Any]:
    """Return name, size and hash of a file or folder; the name of a data set on the Hub."""
    return file_facts(Path(path)) if Path(path).exists() else {"name": path}


def read_data(data: DataSpec) -> Sets:
    """Read the rows that a recipe names, up to its limit.

    Raises:
        RecipeError: The recipe names no data.
    """
    if data.forget and not data.retain:
        raise RecipeError(
            "No retain rows: give --retain, or data.retain in the recipe. `mergeforget unlearn` "
            "needs --forget only: it takes the model's own answers as retain rows."
        )
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


def _read(path: str, split: str, data: DataSpec) -> list[Row]:
    return read_rows(
        Path(path), split=split, columns=data.columns, turns=data.turns, check_split="any"
    )


def about_others(rest: list[Row], trained: list[Row]) -> list[Row]:
    """Return rows beyond ``--limit`` about people who are not in the training rows."""
    try:
        return unseen(rest, trained, "Rows beyond --limit")
    except InputError as error:
        say(f"Warning: there are no non-members. {error}")
        return []


def _as_holdout(rest: list[Row], size: int, seed: int) -> list[Row]:
    kept, _ = limit_rows(rest, size, seed)
    return [replace(row, split="holdout") for row in kept]


def add_twins(sets: Sets, recipe: Recipe) -> Sets:
    """Add perturbed twins if a training needs unseen rows that the data does not have.

    Twins of the forget rows become ``held`` if an objective has a term on it, and ``holdout``
    if a training has ``until`` and there is no holdout set.

    Raises:
        InputError: Twins are needed, but fewer than half of the rows have one.
    """
    trainings = recipe.trainings().values()
    needs_held = any(term.on == "held" for training in trainings for term in training.objective)
    compare = any(training.until for training in trainings) and not sets.holdout
    if not needs_held and not compare:
        return sets
    corpus = [*sets.retain, *sets.holdout]
    seed = recipe.data.seed
    twins = nonmember_twins(sets.forget, corpus=corpus, seed=seed + 1)
    others = [*corpus, *twins] if compare else corpus  # a non-member is never trained on
    held = make_twins(sets.forget, corpus=others, per_row=TWINS, seed=seed)
    imitated = len({origin_of(twin) for twin in twins})
    if not enough(twins, sets.forget) and not compare:
        say(
            f"Only {imitated} of {len(sets.forget)} forget rows have a perturbed twin: half "
            "of the unseen rows of the selection split are used as `held` instead of twins."
        )
        return sets
    if not enough(twins, sets.forget):
        raise InputError(
            f"Only {imitated} of {len(sets.forget)} forget rows have a perturbed twin, too "
            "few to serve as unseen rows. A twin needs a name or a number in the prompt, and "
            "either another one in the answer or a row with the same question and another answer; "
            "names are found by their upper-case first letter. Give rows of the same kind, never "
            "trained on, with --holdout, or use a recipe without `until`, such as --recipe "
            "zjuklab-small: membership is then not measured."
        )
    if compare:
        say(stand_in_note(twins, sets.forget))
    return replace(
        sets,
        held=held if needs_held else [],
        holdout=as_stand_ins(twins) if compare else sets.holdout,
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


def measure_difficulty(
    run: Run, recipe: Recipe, sets: Sets, training: Training, loaded: Any, template: PromptTemplate
) -> None:
    """Measure the NLL of the non-members under the base, by which they are split.

    This is done once, before the first training, since the checks of ``until`` measure the
    non-members of the selection split. The NLL is the mean over the forms of prompts that are
    trained; it is unknown if it is not finite, as that of a row whose answer was truncated away.
    Without ``until``, it is not needed until a search: nothing is measured if the rows cannot be
    split, or if several processes share the weights of the base.

    Args:
        training: The training whose forms of prompts are measured.
        loaded: The base model with its tokenizer.

    Raises:
        InputError: There are too few rows for a training with ``until``.
        ResourceError: A single row does not fit into memory.
    """
    from mergeforget.train.prompt_forms import forms_to_add
    from mergeforget.train.tokenize import encode_set, within_positions

    path = run.difficulty
    if on_main(lambda: path.exists() or _was_checked(run)):
        return
    try:
        data = load_data(run, recipe.evaluation, None, recipe.search.seed, warn=False)
    except InputError:
        if training.until:
            raise
        return
    if sharded() and not training.until:
        return
    training = within_positions(loaded.model, training)
    lone = data.lone()
    groups = {group(row, lone) for row in data.nonmembers}
    rows = [row for row in sets.holdout if group(row, lone) in groups]
    found: dict[str, list[float]] = {}
    others = forms_to_add(loaded.tokenizer, {"forget": rows}, training, template)
    for variant in (template, *others):
        try:
            examples = encode_set(loaded.tokenizer, rows, "unseen", training, variant)
            check_token_ids(loaded.model, [one.ids for one in examples])
        except InputError:  # a variant that the template cannot render is not trained either
            continue
        for one, nll in _finite_nlls(loaded.model, examples):
            found.setdefault(group(rows[one.source], lone)[1], []).append(nll)
    means = {name: sum(nlls) / len(nlls) for name, nlls in sorted(found.items())}
    on_main(lambda: write_json(path, means))


def _finite_nlls(model: Any, examples: list[Encoded]) -> Iterator[tuple[Encoded, float]]:
    """Yield the examples whose NLL is finite, with it; halve their number if memory runs out."""
    from mergeforget.evaluate.batching import run_halving
    from mergeforget.train.nlls import read_nlls

    def nlls_of(places: list[int]) -> list[float]:
        nlls: list[float] = read_nlls(model, [examples[i] for i in places])[0].tolist()
        return nlls

    answered = [i for i, one in enumerate(examples) if ANSWER in one.kinds[1:]]
    if answered:
        for place, nll in run_halving(answered, nlls_of, str(model.device)):
            if isfinite(nll):
                yield examples[place], nll


def _was_checked(run: Run) -> bool:
    """Return whether a training of this run has measured its non-members."""
    return any("until" in line for line in read_jsonl(run.history))


def record_template(run: Run, tokenizer: Any, template: PromptTemplate) -> None:
    """Record how prompts are rendered; warn if a chat model is trained with raw prompts."""
    run.record("template", **template.facts())
    if template.kind == "none" and has_chat_template(tokenizer):
        say(
            "The model has a chat template but is trained with raw prompts (data.template: none). "
            "It may still know the answers in chat, which an evaluation measures, too. Train with "
            "--template chat."
        )


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
