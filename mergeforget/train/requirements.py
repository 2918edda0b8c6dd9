"""What the terms of an objective read of each set, so that nothing else is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.recipe import Term
from mergeforget.train.dataset import REFUSAL

Kept = Literal["logps", "hidden"]  # one number a token, or what goes into the output layer


@dataclass
class Reads:
    """What is read of one set.

    Attributes:
        layers: whose hidden states are read, of the policy and of the reference.
        logps: whether the reference's log-probabilities of the labels are read.
        logits: whether its whole distributions are.
    """

    layers: set[int] = field(default_factory=set)
    reference_layers: set[int] = field(default_factory=set)
    logps: bool = False
    logits: bool = False

    @property
    def reference(self) -> bool:
        """Whether the reference must run on the set."""
        return bool(self.logps or self.logits or self.reference_layers)

    @property
    def kept(self) -> Kept | None:
        """What of the reference, computed once, is all that is read of it."""
        if self.reference_layers or not self.reference:
            return None
        return "hidden" if self.logits else "logps"


def sets_of(term: Term) -> list[str]:
    """The sets that a term reads."""
    needs = UNLEARNING_LOSSES.get(term.loss).needs
    if REFUSAL not in needs:
        return [term.on]
    return [term.on, REFUSAL] if "answer" in needs else [REFUSAL]


def layer_of(term: Term) -> int | None:
    """The layer whose hidden states a term reads, instead of predictions."""
    entry = UNLEARNING_LOSSES.get(term.loss)
    if "hidden" not in entry.needs:
        return None
    return int(term.arguments.get("layer", entry.parameters["layer"].default))


def reads_of(terms: Sequence[Term]) -> dict[str, Reads]:
    """By set: what all the terms read of it between them."""
    found: dict[str, Reads] = {}
    for term in terms:
        entry = UNLEARNING_LOSSES.get(term.loss)
        for name in sets_of(term):
            reads = found.setdefault(name, Reads())
            reads.logps |= "reference" in entry.needs
            reads.logits |= "reference_logits" in entry.needs
            if (layer := layer_of(term)) is not None:
                reads.layers.add(layer)
                if "reference_hidden" in entry.needs:
                    reads.reference_layers.add(layer)
    return found
