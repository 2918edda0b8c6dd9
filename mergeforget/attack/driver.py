"""Runs attacks on the models of a run, or on any model, and saves the results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergeforget.attack.headline import keep_verdict, measure_control
from mergeforget.attack.methods import ATTACKS, QUICK
from mergeforget.attack.result import Result, write_result
from mergeforget.attack.target import Models, NotApplicableError, Target, TargetModel
from mergeforget.attack.tuning import train_control
from mergeforget.console import say
from mergeforget.data.overlap import check_overlap, distinct_rows, plain_text
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.data.templating import template_of
from mergeforget.data.transforms import limit_rows
from mergeforget.errors import InputError, UsageError, suggest
from mergeforget.evaluate.membership import unseen
from mergeforget.evaluate.run_models import models_of
from mergeforget.recipe import DataSpec, ModelSpec, load_recipe
from mergeforget.run import Run

SPLITS = ("forget", "retain", "holdout")
CHOSEN = "chosen"
NEW_TOKENS = 64  # maximum tokens per answer without a recipe
ORDER = (  # the cheapest attacks first
    "exposure", "logit_lens", "multiple_choice", "prompts", "formats", "in_context", "translation",
    "second_turn", "neighbours", "own_paraphrase", "quantise", "nf4", "gptq", "awq", "probe",
    "sampling", "relearn", "relearn_unrelated",
)  # fmt: skip
QUICK_ROWS = 24  # maximum rows per split, so that the cost is independent of the data size


def attack_names(names: Sequence[str] = (), *, quick: bool = False) -> list[str]:
    """Return the names of the attacks to run, the cheapest first.

    Args:
        names: Selected attacks; none, or ``all``, selects every attack, or the quick set.
        quick: Use the quick set.
    """
    available = list(QUICK) if quick else ATTACKS.names()
    wanted = [ATTACKS.get(name).name for name in names if name != "all"]
    chosen = wanted if wanted and "all" not in names else available
    rank = {name: place for place, name in enumerate(ORDER)}
    return sorted(dict.fromkeys(chosen), key=lambda name: rank.get(name, len(rank)))


def carry_out(
    targets: Sequence[Target],
    names: Sequence[str],
    options: Mapping[str, Any],
    *,
    quick: bool = False,
) -> Iterator[tuple[Result, list[Result]]]:
    """Run attacks, and save each result and the verdict on each model.

    The control of a run is evaluated first, because the verdict compares with it. Evidence on the
    same weights accumulates, see ``write_result``. An attack that
    does not apply to the data or the model is reported as ``no power``, unless it is the only one.

    Args:
        names: Names of the attacks.
        options: Arguments by name; each attack gets those that it accepts.
        quick: Use the arguments of the quick set, unless ``options`` contain others.

    Yields:
        A result, and all saved results of the same attack.
    """
    for target in targets[:1]:
        if target.run is not None:
            measure_control(target)
    for name in names:
        entry = ATTACKS.get(name)
        given = (QUICK.get(name, {}) if quick else {}) | dict(options)
        arguments = {key: value for key, value in given.items() if key in entry.parameters}
        for target in targets:
            try:
                result = entry.fn(target, **arguments)
            except NotApplicableError as error:
                if len(names) == 1:
                    raise
                result = Result(name, target.attacked.role, "no power", f"Not run: {error}", [])
            known = target.models.facts(target.attacked)
            facts: dict[str, Any] = {
                "weights": known["adapter"],
                "base": known["base"],
                "data": rows_hash(target.all_rows("forget")),
                "usual_tokens": _usual_tokens(target),
                "template": target.data.template,
                "system_prompt": target.data.system_prompt,
                "forget_rows": [len(target.forget), len(target.all_rows("forget"))],
                "given": {
                    key: str(value) if isinstance(value, Path) else value
                    for key, value in arguments.items()
                },
            }
            result = replace(result, settings=result.settings | facts)
            saved = write_result(target.folder, result)
            if result not in saved:
                say(
                    f"Warning: {name} keeps the earlier result on the same weights, which a repeat "
                    f"does not refute: {saved[-1].finding}. Delete {target.folder / name}.json to "
                    "discard it, for example after a run with an unsuitable control."
                )
            keep_verdict(target.folder, target.attacked.role, target.run)
            yield result, saved


def rows_hash(rows: Sequence[Row]) -> str:
    """Return a hash of rows, whatever their order."""
    texts = sorted(json.dumps(row.to_dict(), sort_keys=True) for row in rows)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _usual_tokens(target: Target) -> int:
    """Return the maximum number of tokens per answer that is not given with the attack."""
    if target.run is None:
        return NEW_TOKENS
    return load_recipe(target.run.recipe).evaluation.max_new_tokens


def targets_of_run(
    run: Run,
    names: Sequence[str] = (),
    *,
    control: str | None = None,
    files: Mapping[str, Path | None] | None = None,
    limit: int | None = None,
    device: str | None = None,
    out: Path | None = None,
    **settings: Any,
) -> list[Target]:
    """Return targets for models of a run, with base and control.

    Args:
        names: base, over, under, chosen, or a candidate; the chosen candidate by default.
        control: A model that never saw the data. The default is the model before memorising, if
            the base was made by memorising, with a LoRA trained on the retain rows alone.
        files: Data files by split, instead of those of the run.
        limit: Maximum number of rows per split; whole documents are kept.
        out: Folder of the results; a folder of the run by default.
        settings: Fields of ``Target``.

    Raises:
        InputError: The run has no such model, or no candidate was chosen.
    """
    recipe = load_recipe(run.recipe)
    base = TargetModel("before", run.base(), name="the base")
    attacked_models = [_model_of_run(run, name) for name in names or [CHOSEN]]
    own = {split: run.data / f"{split}.jsonl" for split in SPLITS}
    chosen = {split: path for split, path in (files or {}).items() if path is not None}
    whole = read_splits(own | chosen)
    rows = limited(whole, limit, recipe.search.seed)
    folder = out or run.attacks
    if "forget" in chosen and folder == run.attacks and own["forget"].is_file():
        whole["forget"] = _rows_to_forget(run, whole["forget"], chosen["forget"])
    models = Models(recipe.model, device)
    never = TargetModel("control", control, name=control) if control else (
        _control_of(run, models, whole["retain"], settings.get("data", recipe.data))
    )  # fmt: skip
    for attacked in attacked_models:
        _check_control(models, attacked, never)
    spec = recipe.evaluation
    own_settings = {"max_new_tokens": spec.max_new_tokens, "membership": spec.membership}
    settings = {**own_settings, "data": recipe.data, "systems": spec.system_prompts, **settings}
    return [
        Target(
            models,
            attacked,
            base if attacked.role != "base" else None,
            never,
            **rows,
            whole=whole,
            folder=folder,
            run=run,
            **settings,
        )
        for attacked in attacked_models
    ]


def target_of_model(
    model: str,
    *,
    files: Mapping[str, Path | None],
    adapter: Path | None = None,
    before: str | None = None,
    control: str | None = None,
    limit: int | None = None,
    device: str | None = None,
    out: Path | None = None,
    **settings: Any,
) -> Target:
    """Return a target for any model, with or without an adapter, and data files.

    Args:
        before: The model before unlearning, if available.
        out: Folder of the results; ``attacks`` in the working folder by default.

    Raises:
        UsageError: No forget rows are given.
    """
    if files.get("forget") is None:
        raise UsageError("--model requires --forget, the rows to forget.")
    name = adapter.name if adapter else Path(model).name
    whole = read_splits(files)
    rows = limited(whole, limit, settings.get("seed", 0))
    models = Models(ModelSpec(name=model), device, chat_from=adapter)
    attacked = TargetModel(name, model, adapter, name)
    never = TargetModel("control", control, name=control) if control else None
    _check_control(models, attacked, never)
    return Target(
        models,
        attacked,
        TargetModel("before", before, name=before) if before else None,
        never,
        **rows,
        whole=whole,
        folder=out or Path("attacks"),
        **{"max_new_tokens": NEW_TOKENS} | settings,
    )


def read_splits(files: Mapping[str, Path | None]) -> dict[str, list[Row]]:
    """Read the rows of each split; without copies; a missing or empty file gives none.

    Raises:
        InputError: A row is in two of the splits.
    """
    splits: dict[str, list[Row]] = {}
    for split in SPLITS:
        path = files.get(split)
        there = path is not None and (not path.exists() or path.stat().st_size > 0)
        rows = (
            read_rows(path, split=split, check_split="part") if path is not None and there else []
        )
        splits[split] = distinct_rows(rows, path)
    check_overlap(splits, files)
    if splits["holdout"]:
        trained = [*splits["forget"], *splits["retain"]]
        splits["holdout"] = unseen(splits["holdout"], trained, files.get("holdout"))
    return splits


def limited(splits: Mapping[str, list[Row]], limit: int | None, seed: int) -> dict[str, Any]:
    """Return at most ``limit`` rows per split."""
    return {
        split: limit_rows(rows, limit, seed)[0] if rows else [] for split, rows in splits.items()
    }


def _rows_to_forget(run: Run, rows: Sequence[Row], path: Path) -> list[Row]:
    """Return all rows that a run forgets, of which ``rows`` must be a part.

    Raises:
        InputError: A row is not one of them. A finding for it would change the verdict on the run.
    """
    own = distinct_rows(read_rows(run.data / "forget.jsonl", split="forget"))
    texts = set(map(plain_text, own))
    others = [row.id for row in rows if plain_text(row) not in texts]
    if others:
        raise InputError(
            f"{path} has rows that {run.root} does not forget, such as {others[0]!r}, and the "
            "verdict on the run is about its own. Pass a folder for these results with --out."
        )
    return own


def _check_control(models: Models, attacked: TargetModel, control: TargetModel | None) -> None:
    """Raise InputError if the control has the weights of the attacked model.

    No attack could find anything: whatever the model still knows, its control knows as well.
    """
    if control is None or control.adapter != attacked.adapter:
        return
    if models.facts(control) == models.facts(attacked):
        raise InputError(
            f"The control {control.base} has the same weights as the attacked model "
            f"{attacked.name}. A control must never have seen the forget rows; name another "
            "--control, or omit it."
        )


def _model_of_run(run: Run, name: str) -> TargetModel:
    known = models_of(run)
    if name == CHOSEN:
        chosen = run.chosen_name()
        if chosen is None:
            raise InputError(
                f"{run.root} has no chosen candidate. Choose one with `mergeforget search "
                f"{run.root}`, or name a model with --run-model: {', '.join(known)}."
            )
        name = chosen
    if name not in known:
        raise InputError(
            f"{run.root} has no model {name!r}.{suggest(name, known)} It has: {', '.join(known)}."
        )
    return TargetModel(name, run.base(), known[name], name)


def _control_of(
    run: Run, models: Models, retain: Sequence[Row], data: DataSpec
) -> TargetModel | None:
    """Return the model before memorising, with a LoRA trained on retain; None if unknown."""
    base = run.read_manifest().get("base") or {}
    if not (base.get("memorised") and base.get("name")):
        return None
    never = TargetModel("control", str(base["name"]), name=str(base["name"]))
    if not retain:
        return never
    facts = models.facts(never) | {
        "rows": [row.to_dict() for row in retain], "data": [data.template, data.system_prompt],
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    place = run.attacks / "control" / digest
    if not (place / "adapter_config.json").is_file():
        with models.opened(never) as (model, tokenizer):
            template = template_of(tokenizer, data)
            train_control(model, tokenizer, retain, place, template=template)
    return replace(never, adapter=place, name=f"{never.base}, trained on the retain rows alone")
