"""Recipes: the settings of a run, read from YAML and validated."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mergeforget.console import warn_once
from mergeforget.errors import MergeforgetError, RecipeError, suggest
from mergeforget.files import write_text
from mergeforget.parsing import parse_yaml, parse_yaml_lines, read_text, usable_path
from mergeforget.recipe_sections import NEW_TOKENS as NEW_TOKENS
from mergeforget.recipe_sections import UNITS as UNITS
from mergeforget.recipe_sections import DataSpec as DataSpec
from mergeforget.recipe_sections import EvaluationSpec as EvaluationSpec
from mergeforget.recipe_sections import Memorise as Memorise
from mergeforget.recipe_sections import MergeSpec as MergeSpec
from mergeforget.recipe_sections import ModelSpec as ModelSpec
from mergeforget.recipe_sections import SearchSpec as SearchSpec
from mergeforget.run import PAIR
from mergeforget.train_config import Dual as Dual
from mergeforget.train_config import Lora as Lora
from mergeforget.train_config import RecipeSection
from mergeforget.train_config import Term as Term
from mergeforget.train_config import Tokens as Tokens
from mergeforget.train_config import Training as Training

FOLDER = Path(__file__).parent / "recipes"
M = TypeVar("M", bound=BaseModel)


TRUST_KEY = "model.trust_remote_code"
TASKS_KEY = "evaluation.lm_eval_folder"
TRUSTED: ContextVar[bool] = ContextVar("trust_remote_code", default=False)
"""Whether this call may run the code of a model: ``--trust-remote-code``."""
_NESTED: ContextVar[int] = ContextVar("nested_recipes", default=0)


class Pair(RecipeSection):
    """The trainings of over and under; each may be the name of a recipe."""

    over: Training
    under: Training
    trajectory: Literal["separate", "shared"] = "separate"  # shared: under is a snapshot of over
    together: bool | Literal["auto"] = False  # rows of both in each pass; auto: on a GPU

    @field_validator("over", "under", mode="before")
    @classmethod
    def _by_name(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        depth = _NESTED.get()
        if depth > 4:
            raise ValueError(f"recipes refer to each other in a cycle; the last one is {value!r}")
        token = _NESTED.set(depth + 1)
        try:
            return load_recipe(value).training(info.field_name or "over")
        finally:
            _NESTED.reset(token)

    @model_validator(mode="after")
    def _one_trajectory(self) -> Pair:
        if self.trajectory == "shared" and not (self.over.until and self.under.until):
            raise ValueError("trajectory: shared needs over.until and under.until")
        if self.together is True and (reason := self.apart_because()):
            raise ValueError(f"together is true, but {reason}; set together to auto or false")
        return self

    def apart_because(self) -> str:
        """Return why over and under cannot share passes; empty if no setting forbids it."""
        if self.trajectory == "shared":
            return "trajectory: shared has one training"
        for name, side in (("over", self.over), ("under", self.under)):
            reasons = {
                f"direction: {side.direction}": side.direction != "sum",
                "robust": side.robust is not None,
                "full": side.full is not None,
                f"tokens.padding: {side.tokens.padding}": side.tokens.padding != "none",
                "gradient_checkpointing": side.gradient_checkpointing is True,
                "compile": side.compile,
                "lora.target_parameters": bool(side.lora.target_parameters),
                "report_to": bool(set(side.report_to) - {"tensorboard"}),
            }
            for key, applies in reasons.items():
                if applies:
                    return f"{name} has {key}, with which passes are not joined"
        return ""


class Recipe(RecipeSection):
    """The settings of a run, one section per step."""

    name: str
    source: str = ""
    notes: str = ""
    published: dict[str, Any] = {}
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    memorise: Memorise = Memorise()
    train: Training | None = None  # one adapter, for `mergeforget train`
    pair: Pair | None = None  # two, for `mergeforget train-pair`
    merge: MergeSpec = MergeSpec()
    search: SearchSpec = SearchSpec()
    evaluation: EvaluationSpec = EvaluationSpec()

    @model_validator(mode="after")
    def _trains_something(self) -> Recipe:
        if self.train is None and self.pair is None:
            raise ValueError("the recipe has no training: add `train` or `pair`")
        return self

    def trainings(self) -> dict[str, Training]:
        """Return the trainings by their key: ``train``, ``pair.over``, ``pair.under``."""
        found = {} if self.train is None else {"train": self.train}
        if self.pair is not None:
            found |= {"pair.over": self.pair.over, "pair.under": self.pair.under}
        return found

    def training(self, side: str) -> Training:
        """Return the training of a side of the pair, or the only training."""
        if self.pair is not None:
            found: Training = getattr(self.pair, side)
            return found
        assert self.train is not None
        return self.train


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Return the file of a recipe, given by its path or by the name of a packaged recipe."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return usable_path(name, RecipeError)
    if name not in recipe_names():
        known = recipe_names()
        raise RecipeError(
            f"There is no recipe {name!r}.{suggest(name, known)} Known: {', '.join(known)}. Give a "
            "file by its path, ending in .yaml."
        )
    return FOLDER / f"{name}.yaml"


def load_recipe(name: str | Path, assignments: Iterable[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        name: Name of a packaged recipe, or a path.
        assignments: Changes as ``key.of.recipe=value``, as in ``--set``; values are YAML.

    Raises:
        RecipeError: The file has an unknown key (the message names the nearest) or a wrong value,
            or is not YAML.
    """
    path = recipe_path(str(name))
    old = (path.parent / "manifest.json").exists() and not _names_template(path)
    assignments = [*(["data.template=none"] if old else []), *assignments]
    recipe = read_yaml(path, Recipe, assignments)
    asked = any(a.partition("=")[0].strip() in ("model", TRUST_KEY) for a in assignments)
    if recipe.model.trust_remote_code and not (asked or TRUSTED.get()):
        warn_once(
            f"{path} sets {TRUST_KEY}, which is ignored: a file cannot allow code to run. To run "
            "the code of a model that you trust, start the command as `mergeforget "
            "--trust-remote-code ...`."
        )
    trusted = TRUSTED.get() or (asked and recipe.model.trust_remote_code)
    if trusted != recipe.model.trust_remote_code:
        recipe = change(recipe, model={"trust_remote_code": trusted})
    given = any(a.startswith(("evaluation=", TASKS_KEY)) for a in assignments)
    if recipe.evaluation.lm_eval_folder and not (given or TRUSTED.get()):
        warn_once(
            f"{path} sets {TASKS_KEY}, which is ignored: lm-eval tasks can run Python code. "
            "Name the folder with --lm-eval-folder, or start the command with --trust-remote-code."
        )
        recipe = change(recipe, evaluation={"lm_eval_folder": None})
    return recipe


def _names_template(path: Path) -> bool:
    """Return whether the recipe of a run sets a template; older runs used raw prompts."""
    try:
        values = parse_yaml(read_text(path), path)
        return "template" in values["data"]
    except (MergeforgetError, TypeError, KeyError):
        return False


def read_yaml(
    path: Path, model: type[M], assignments: Iterable[str] = (), what: str = "recipe"
) -> M:
    """Read a YAML file and validate it against a pydantic model.

    Args:
        model: Model of the file.
        what: Type of the file in messages.

    Raises:
        RecipeError: The file has an unknown key (the message names the nearest) or a wrong value,
            or is not YAML.
        InputError: The file cannot be read.
    """
    values, lines = parse_yaml_lines(read_text(path, RecipeError), path, RecipeError)
    if not isinstance(values, dict):
        raise RecipeError(f"{path} is not a {what}: it has no keys.")
    assignments = list(assignments)
    for assignment in assignments:
        _assign(values, assignment)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        assigned = {tuple(a.partition("=")[0].strip().split(".")) for a in assignments}
        raise RecipeError(_explain(error, path, lines, model, what, assigned)) from error


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as YAML."""
    values = recipe.model_dump(mode="json")
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100))


def change(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    """Return a copy with changed keys, for example ``change(r, data={"limit": 64})``."""
    values = recipe.model_dump(mode="json")
    for section, changes in sections.items():
        values[section].update(changes)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, Path("the recipe"), {}, Recipe)) from error


def _assign(values: dict[str, Any], assignment: str) -> None:
    keys, equals, value = assignment.partition("=")
    if not equals or not keys.strip():
        raise RecipeError(
            f"--set expects KEY=VALUE, for example pair.over.epochs=3, not {assignment!r}."
        )
    parsed = parse_yaml(value, f"--set {keys.strip()}", RecipeError)
    *path, last = keys.strip().split(".")
    inner: Any = values
    for key in path:
        if isinstance(inner, dict) and key in PAIR and isinstance(inner.get(key), str):
            inner[key] = load_recipe(inner[key]).training(key).model_dump(mode="json")
        if isinstance(inner, list):
            inner = inner[_index(inner, key, keys)]
        else:
            inner = inner.setdefault(key, {})
        if not isinstance(inner, dict | list):
            raise RecipeError(f"--set {keys}: {key!r} is a value, not a section.")
    if isinstance(inner, list):
        inner[_index(inner, last, keys)] = parsed
    else:
        inner[last] = parsed


def _index(inner: list[Any], key: str, keys: str) -> int:
    """Return the index of a list entry that ``--set`` names."""
    if not key.isdecimal() or len(key) > 4 or int(key) >= len(inner):
        raise RecipeError(
            f"--set {keys}: {key[:40]!r} is not the number of an entry; the list has "
            f"{len(inner)}, counted from 0."
        )
    return int(key)


def _explain(
    error: ValidationError,
    path: Path,
    lines: dict[tuple[str, ...], int],
    model: type[BaseModel],
    what: str = "recipe",
    assigned: Collection[tuple[str, ...]] = (),
) -> str:
    """Describe each error of a file with its position and the nearest known key.

    Args:
        assigned: Keys that were set by ``--set``.
    """
    faults = []
    for fault in error.errors():
        where = tuple(str(p) for p in fault["loc"])
        line = lines.get(where)
        place = f"line {line}, {'.'.join(where)}" if line else ".".join(where) or f"the {what}"
        if any(where[: len(keys)] == keys for keys in assigned):
            place = f"--set {'.'.join(where)}"
        elif inside := [".".join(keys) for keys in assigned if keys[: len(where)] == where]:
            place += f" with --set {', '.join(sorted(inside))}"
        if fault["type"] == "extra_forbidden":
            known = _keys(where[:-1], model)
            text = (
                f"unknown key {where[-1]!r}.{suggest(where[-1], known)} Known: {', '.join(known)}"
            )
        else:
            text = fault["msg"].removeprefix("Value error, ").rstrip(".")
            if not isinstance(fault["input"], dict | list):
                text += f", found {fault['input']!r}"
            text = text[:300]
        faults.append(f"  {place}: {text}")
    changed = ", changed by --set," if any(one.startswith("  --set") for one in faults) else ""
    return f"{path}{changed} is not a valid {what}:\n" + "\n".join(faults)


def _keys(where: tuple[str, ...], model: type[BaseModel]) -> list[str]:
    """Return the keys of the section at ``where``; list indices are skipped."""
    section = model
    for key in where:
        if key.isdigit():
            continue
        inner = section.model_fields.get(key)
        parts = [] if inner is None else _models(inner.annotation)
        if not parts:
            return []
        section = parts[0]
    return list(section.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections in a type annotation: Part in ``list[Part] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _models(inner)]
