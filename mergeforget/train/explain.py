"""Describe a recipe in words: source, objective and settings."""

from __future__ import annotations

import textwrap
from typing import Any

from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.recipe import Recipe
from mergeforget.train.objective import describe
from mergeforget.train_config import Term, Training

TITLES = {
    "train": "One adapter",
    "pair.over": "The adapter that forgets too much (over)",
    "pair.under": "The adapter that forgets too little (under)",
}


def explain(recipe: Recipe) -> str:
    """Return a description: source, published results, objective in words, settings.

    Raises:
        UnknownNameError: The recipe names an unknown loss.
    """
    parts = [recipe.name, _wrapped(recipe.source), _wrapped(recipe.notes)]
    parts.append(_published(recipe.published))
    previous: dict[str, Any] = {}
    for key, training in recipe.trainings().items():
        parts.append(_training(key, training, previous))
        previous = settings(training)
    if recipe.pair is not None:
        parts.append("Merge and search\n" + "\n".join(_settings(_after(recipe))))
    return "\n\n".join(part for part in parts if part)


def objective_in_words(training: Training) -> list[str]:
    """Return one line per term: weight, loss, set, arguments, and a summary of the loss."""
    return [_term(term) for term in training.objective]


def settings(training: Training) -> dict[str, Any]:
    """Return the settings except the objective; sections list only keys that are set."""
    values = training.model_dump(mode="json", exclude={"objective"})
    return {key: value for key, value in values.items() if value not in (None, [], {}, "")}


def _training(key: str, training: Training, before: dict[str, Any]) -> str:
    """Describe one training, with the settings that differ from the previous one."""
    lines = [f"{TITLES[key]} minimises {describe(training)}", *objective_in_words(training)]
    changed = {k: v for k, v in settings(training).items() if before.get(k) != v}
    if before:
        lines.append("  its settings are as above" + (", but:" if changed else ""))
    return "\n".join(lines + _settings(changed))


def _term(term: Term) -> str:
    entry = UNLEARNING_LOSSES.get(term.loss)
    chosen = {name: p.default for name, p in entry.parameters.items()} | term.arguments
    arguments = ", ".join(f"{name} {value}" for name, value in chosen.items())
    suffix = f" ({arguments})" if arguments else ""
    return (
        f"  {term.weight:g} x {entry.name} on the {term.on} set{suffix}\n"
        f"      {entry.summary.replace('``', '')}\n      {entry.source}"
    )


def _settings(values: dict[str, Any]) -> list[str]:
    width = max((len(key) for key in values), default=0)
    return [f"  {key:<{width}}  {_plain(value)}" for key, value in values.items()]


def _published(figures: dict[str, Any]) -> str:
    if not figures:
        return ""
    return "Published figures\n" + "\n".join(_settings(figures))


def _after(recipe: Recipe) -> dict[str, Any]:
    sections = {"merge": recipe.merge, "search": recipe.search}
    return {name: part.model_dump(mode="json") for name, part in sections.items()}


def _plain(value: Any) -> str:
    """Return a value of a recipe on one line."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if v not in (None, [], {})}
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in kept.items())
    if isinstance(value, list):
        items = ", ".join(_plain(inner) for inner in value)
        return f"[{items}]"
    if isinstance(value, float):
        return f"{value:g}"
    return repr(value) if value == " " else str(value)


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 100)
