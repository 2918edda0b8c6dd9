"""The objective of a recipe: its terms checked, computed and added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeforget.errors import NumericError, RecipeError
from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.outputs import ANSWER, PADDING, PROMPT, TokenOutputs
from mergeforget.recipe import Recipe, Term, Training

KINDS = {"answer": (ANSWER,), "tokens": (PROMPT, ANSWER), "all": (PADDING, PROMPT, ANSWER)}


def check_recipe(recipe: Recipe) -> None:
    """Raise RecipeError for what a schema cannot see: unknown losses and their arguments."""
    for side, training in (("over", recipe.pair.over), ("under", recipe.pair.under)):
        for place, term in enumerate(training.objective):
            try:
                UNLEARNING_LOSSES.get(term.loss).check_arguments(term.arguments)
            except Exception as error:
                raise RecipeError(f"pair.{side}.objective.{place}: {error}") from error
        if mask_of(training.objective) == KINDS["all"] and training.tokens.padding == "none":
            raise RecipeError(
                f"pair.{side}: the KL mask 'all' counts padding, but rows are laid end to end "
                "without any. Set tokens.padding to left, or the mask to tokens or answer."
            )


def mask_of(terms: Sequence[Term]) -> tuple[int, ...]:
    """The kinds of position that the terms read between them."""
    masks = [KINDS.get(str(term.arguments.get("mask", "answer")), (ANSWER,)) for term in terms]
    return max(masks, key=len)


def needs_reference(term: Term) -> bool:
    """Whether a term compares with the model before unlearning."""
    parameters = UNLEARNING_LOSSES.get(term.loss).needs
    return any(need.startswith("reference") for need in parameters)


def compute(
    terms: Sequence[Term],
    policy: Mapping[str, TokenOutputs],
    reference: Mapping[str, TokenOutputs],
) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum of the terms, and each of them unweighted.

    Args:
        policy: by set (forget, retain): what the model that is trained says.
        reference: the same from the model before unlearning, where a term needs it.

    Raises:
        NumericError: a term is NaN or infinite.
    """
    values = {}
    for term in terms:
        loss = UNLEARNING_LOSSES.get(term.loss).fn
        values[term.label] = loss(policy[term.on], reference.get(term.on), **term.arguments)
    plain = {label: float(value.detach()) for label, value in values.items()}
    wrong = [label for label, value in plain.items() if not _finite(value)]
    if wrong:
        raise NumericError(
            f"The loss is not finite: {', '.join(f'{w} = {plain[w]}' for w in wrong)}. Lower the "
            "learning rate, or give the retain terms more weight; the last checkpoint is kept."
        )
    weighted = [term.weight * values[term.label] for term in terms]
    return torch.stack([w.reshape(()) for w in weighted]).sum(), plain


def describe(training: Training) -> str:
    """``0.4 npo(forget) + 0.4 gd(retain) + 0.2 kl(retain)``."""
    return " + ".join(f"{t.weight:g} {t.loss}({t.on})" for t in training.objective)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
