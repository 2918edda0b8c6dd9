"""Outputs that the terms of an objective need per set; nothing else is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.recipe import Term
from mergeforget.train.dataset import REFUSAL

Kept = Literal["logps", "hidden"]  # one number per token, or the input of the output layer


@dataclass
class Reads:
    """Outputs that the terms read on one set.

    Attributes:
        layers: Layers whose hidden states are read of the policy.
        reference_layers: Layers whose hidden states are read of the reference.
        logps: Whether the reference's log-probabilities of the labels are read.
        logits: Whether the reference's full distributions are read.
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
        """Output of the reference that suffices if it is computed once and cached, or None."""
        if self.reference_layers or not self.reference:
            return None
        return "hidden" if self.logits else "logps"


def sets_of(term: Term) -> list[str]:
    """Return the sets that a term reads."""
    needs = UNLEARNING_LOSSES.get(term.loss).needs
    if REFUSAL not in needs:
        return [term.on]
    return [term.on, REFUSAL] if "answer" in needs else [REFUSAL]


def layer_of(term: Term) -> int | None:
    """Return the layer whose hidden states a term reads; None if it reads predictions."""
    entry = UNLEARNING_LOSSES.get(term.loss)
    if "hidden" not in entry.needs:
        return None
    return int(term.arguments.get("layer", entry.parameters["layer"].default))


def reads_of(terms: Sequence[Term]) -> dict[str, Reads]:
    """Return, by set, everything that the terms read."""
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
