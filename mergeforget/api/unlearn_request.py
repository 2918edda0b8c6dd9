"""A request to forget rows: what was asked, and the run folder it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeforget.api.earlier import REQUEST, start_of
from mergeforget.api.options import Settings
from mergeforget.api.training import assignments_of
from mergeforget.api.unlearn_data import Forget

if TYPE_CHECKING:
    from mergeforget.recipe import Recipe
    from mergeforget.run import Run

OPTIONS = {  # recipe keys that a request overrides, and the options that set them
    "model.name": "MODEL", "data.forget": "--forget", "data.retain": "--retain",
    "data.holdout": "--holdout",
}  # fmt: skip
FOLDERS = ("model", "adapter", "after", "control")  # values that may be paths of folders
LABELS = {"model": "MODEL"}  # of values that are no options


@dataclass(frozen=True)
class UnlearnRequest:
    """A request to forget one set of rows.

    Attributes:
        sources: Forget, retain and holdout rows as given.
        settings: Recipe keys to change, as ``key=value``.
        facts: Values that a repeated call must have in common, written to ``request.json``.
        pair: Existing adapters by side, ``over`` or ``under``.
    """

    sources: tuple[Forget, Any, Any]
    recipe: str | Path | Recipe
    settings: list[str]
    facts: dict[str, Any]
    pair: dict[str, Path] = field(default_factory=dict)


def request_of(
    model: str | Path,
    *,
    forget: Forget,
    retain: Forget | None,
    holdout: Forget | None,
    recipe: str | Path | Recipe,
    memorise: bool,
    control: str | None,
    adapter: str | Path | None,
    after: str | Path | None,
    template: str | None,
    system_prompt: str | None,
    turns: str | None,
    settings: Settings,
    over: str | Path | None = None,
    under: str | Path | None = None,
) -> UnlearnRequest:
    """Return a request; the arguments are those of :func:`unlearn`.

    Raises:
        InputError: An existing adapter cannot be read.
        UsageError: Existing adapters of the model are given with another model to start from.
    """
    from mergeforget.adapter import read_adapter
    from mergeforget.errors import UsageError

    sides = {"over": over, "under": under}
    pair = {side: Path(folder) for side, folder in sides.items() if folder is not None}
    if pair and (memorise or adapter is not None or after is not None):
        raise UsageError(
            "--over and --under are adapters of MODEL itself: leave --memorise, --adapter and "
            "--after out, or merge these into the model first (mergeforget merge-models)."
        )
    for side, folder in pair.items():
        read_adapter(folder, side)
    changes = changes_of(recipe, settings, template, system_prompt, turns)
    given: Any = [  # a generator can be read only once
        list(one) if isinstance(one, Iterator) else one for one in (forget, retain, holdout)
    ]
    forget, retain, holdout = given
    facts = {
        "model": str(model), "forget": facts_of(forget, "forget"),
        "retain": facts_of(retain, "retain"), "holdout": facts_of(holdout, "holdout"),
        "memorise": memorise, "control": control,
        "adapter": None if adapter is None else str(adapter),
        "after": None if after is None else str(after), "start": start_of(adapter, after),
        **{side: start_of(folder, None) for side, folder in sides.items()},
        "settings": changes, "recipe": str(getattr(recipe, "name", recipe)),
    }  # fmt: skip
    return UnlearnRequest((forget, retain, holdout), recipe, changes, facts, pair)


def changes_of(
    recipe: str | Path | Recipe,
    settings: Settings,
    template: str | None,
    system_prompt: str | None,
    turns: str | None,
) -> list[str]:
    """Return the recipe keys that a call changes, as ``key=value``.

    Raises:
        UsageError: A recipe object is given, whose keys are not changed.
    """
    from mergeforget.errors import UsageError
    from mergeforget.recipe import Recipe

    given = {"template": template, "system_prompt": system_prompt, "turns": turns}
    rendered = {f"data.{key}": value for key, value in given.items() if value is not None}
    changes = assignments_of(settings) + assignments_of(rendered)
    if changes and isinstance(recipe, Recipe):
        raise UsageError(
            "settings, template, system_prompt and turns apply only to a recipe given by name or "
            "path. Change a loaded recipe with mergeforget.recipe.change()."
        )
    for key in (change.partition("=")[0].strip() for change in changes):
        if key in OPTIONS:
            raise UsageError(f"--set {key} has no effect here. Give {OPTIONS[key]} instead.")
    return changes


def check_sources(recipe: Recipe, sources: Mapping[str, Any]) -> None:
    """Raise UsageError if the recipe sets retain or holdout rows that the request omits.

    Generated rows would replace them.

    Args:
        sources: Source of each set, or None.
    """
    from mergeforget.errors import UsageError

    for split in ("retain", "holdout"):
        named = getattr(recipe.data, split)
        if named and sources[split] is None:
            raise UsageError(
                f"The recipe sets data.{split} to {named}, but the request has no --{split}. "
                f"Add --{split} {named}, or remove the key from the recipe."
            )


def run_of(out: Path | None, forget: Forget, request: dict[str, Any]) -> Run:
    """Return the run of a request: a new one, or one with the same request."""
    from mergeforget.errors import InputError
    from mergeforget.files import read_json_object
    from mergeforget.run import RUNS, Run

    stem = Path(forget).stem if isinstance(forget, str | Path) else "list"
    run = Run(out or RUNS / f"unlearn-{stem}")
    path = run.root / REQUEST
    if path.exists():
        earlier = read_json_object(path)
        recorded = {k for k in request if k in earlier or k != "start"}  # not by earlier versions
        if changed := differences(earlier, {k: request[k] for k in recorded}):
            raise InputError(
                f"{run.root} contains another request: {'; '.join(changed)}. Choose another folder "
                "with --out, or repeat the same call to resume."
            )
    elif run.recipe.exists():
        raise InputError(
            f"{run.root} contains a run that unlearn did not start. Choose another --out."
        )
    return run


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return how a repeated request differs from the stored one, as ``what was X, now Y``.

    Recipe keys may be set in another order, and a folder may be named by another path.
    """
    changed = []
    for key, value in now.items():
        before = earlier.get(key)
        if before == value or (key in FOLDERS and _is_same_folder(before, value)):
            continue
        if key == "settings":
            old, new = _values_by_key(before), _values_by_key(value)
            changed += [
                f"--set {name} was {old.get(name, 'not given')}, now {new.get(name, 'not given')}"
                for name in {**old, **new} if old.get(name) != new.get(name)
            ]  # fmt: skip
        elif key in ("start", "over", "under"):  # hashes of weights
            option = "--adapter or --after" if key == "start" else f"--{key}"
            changed.append(f"the weights of {option} differ")
        elif isinstance(before, dict | list) or isinstance(value, dict | list):
            changed.append(f"the rows of --{key} differ")
        else:
            changed.append(f"{LABELS.get(key, f'--{key}')} was {_shown(before)}, now "
                           f"{_shown(value)}")  # fmt: skip
    return changed


def _is_same_folder(one: Any, other: Any) -> bool:
    paths = [Path(name) for name in (one, other) if isinstance(name, str)]
    return len(paths) == 2 and all(p.is_dir() for p in paths) and paths[0].samefile(paths[1])


def _values_by_key(settings: Any) -> dict[str, str]:
    """Return settings such as ``key=value`` by key; the last one of a key counts."""
    pairs = (str(one).partition("=") for one in settings or ())
    return {key.strip(): value for key, _, value in pairs}


def _shown(value: Any) -> str:
    """Return an option's value for a message."""
    return (
        "not given" if value is None or value is False else "given" if value is True else str(value)
    )


def facts_of(source: Any, name: str = "given") -> Any:
    """Return what identifies a data source: hashes of files, name of a hub data set, or items.

    Args:
        name: Name of the set in messages.
    """
    from mergeforget.data.sources.memory import items_of
    from mergeforget.files import sha256

    if source is None:
        return None
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            files = (p for p in sorted(path.rglob("*")) if p.is_file())
            return {
                "name": path.name,
                "files": {str(p.relative_to(path)): sha256(p) for p in files},
            }
        if path.is_file():
            return {"name": path.name, "sha256": sha256(path)}
        return {"name": str(source)}
    return items_of(source, name)
