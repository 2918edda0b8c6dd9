"""Check the objective of a recipe, and compute its terms from the outputs that they need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from mergeforget.data.transforms import find_transform
from mergeforget.distributed import check_launch, sharded, world_size
from mergeforget.errors import MergeforgetError, NumericError, RecipeError, ResourceError
from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.outputs import ANSWER, MASKS, SeveralMicroBatches, TokenOutputs
from mergeforget.recipe import Recipe, Term, Training
from mergeforget.train.dataset import REFUSAL
from mergeforget.train.forward import LAST

ReferenceContent = Literal[
    "logps", "hidden"
]  # one number per token, or the input of the output layer


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
    def kept(self) -> ReferenceContent | None:
        """Output of the reference that suffices if it is computed once and cached, or None."""
        if self.reference_layers or not self.reference:
            return None
        return "hidden" if self.logits else "logps"


def sets_of(term: Term) -> list[str]:
    """Return the sets that a term reads."""
    if not reads_others(term):
        return [term.on]
    return [term.on, REFUSAL] if "answer" in needs(term) else [REFUSAL]


def reads_others(term: Term) -> bool:
    """Return whether a term reads refusals, or alternate answers, to the forget prompts."""
    return bool({"refusal", "alternate"} & set(needs(term)))


def any_needs(terms: Sequence[Term], name: str) -> bool:
    """Return whether one of the terms needs ``name``; see ``mergeforget.losses``."""
    return any(name in needs(term) for term in terms)


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
            if {"scores", "efforts"} & set(entry.needs) and name == term.on:
                reads.layers.add(LAST)
            if (layer := layer_of(term)) is not None:
                reads.layers.add(layer)
                if "reference_hidden" in entry.needs:
                    reads.reference_layers.add(layer)
    return found


LEARNT = ("gd", "idk")  # likelihood losses: minimising them trains on the data


def check_recipe(recipe: Recipe) -> None:
    """Raise RecipeError for errors that the schema does not detect, such as unknown losses."""
    check_launch(trains=True)
    _check_parts(recipe)
    for key, training in recipe.trainings().items():
        if training.full and recipe.model.quantization:
            raise RecipeError(
                f"{key}: full trains weights of the model, which model.quantization freezes. "
                "Leave one of the two out."
            )
        if training.optimizer.endswith("8bit"):
            _check_eight_bits(key, training)
        if training.robust and (recipe.model.quantization or sharded()):
            raise RecipeError(
                f"{key}: robust rounds whole weight matrices, which do not exist with "
                "model.quantization or FSDP. Leave out robust, or train without them."
            )
        if training.average and sharded():
            raise RecipeError(
                f"{key}: average adds up whole weights, which no process has with FSDP. Leave out "
                "average, or train without FSDP."
            )
        for name in training.report_to:
            if find_spec(name) is None:
                raise RecipeError(
                    f"{key}: report_to names {name}, but that package is not installed: "
                    f"pip install {name}, or leave it out; history.jsonl has the same figures."
                )
        for i, term in enumerate(training.objective):
            with _placed(f"{key}.objective.{i}"):
                UNLEARNING_LOSSES.get(term.loss).check_arguments(term.arguments)
                _check_term(term)
                _check_direction(term, training)
                _check_batches(term, training)
                _check_even(term, training)
        _check_helpers(key, training)  # after the terms, whose losses it looks up
        for i, step in enumerate(training.transforms):
            with _placed(f"{key}.transforms.{i}"):
                find_transform(step.transform).check_arguments(step.arguments)
        if mask_of(training.objective) == MASKS["all"] and training.tokens.padding == "none":
            raise RecipeError(
                f"{key}: the mask 'all' counts padding, but packed rows have no "
                "padding. Set tokens.padding to left, or the mask to tokens or answer."
            )


HELPERS = {  # need of a loss -> the section of a training that belongs to it
    "alternate": "alternates",
    "reinforced": "reinforce",
    "scores": "scorer",
}


def _check_helpers(place: str, training: Training) -> None:
    """Raise RecipeError for a helper of a loss that is not in the objective, or cannot be built."""
    terms = training.objective
    for need, key in HELPERS.items():
        if getattr(training, key) is not None and not any_needs(terms, need):
            losses = [
                n for n in UNLEARNING_LOSSES.names() if need in UNLEARNING_LOSSES.get(n).needs
            ]
            raise RecipeError(
                f"{place}: {key} belongs to {' and '.join(losses)}, which the objective does not "
                f"have. Leave out {key}, or add such a term."
            )
    both = any_needs(terms, "refusal") and any_needs(terms, "alternate")
    if both:
        raise RecipeError(
            f"{place}: one term reads refusals and another one alternates, but a training has one "
            "replacement answer per question. Leave out one of the two terms."
        )
    for name in ("also_raw", "forget_variants"):
        if any_needs(terms, "refusal") and training.until and getattr(training.until, name):
            raise RecipeError(
                f"{place}: until.{name} adds forget rows with other prompts, for which there are "
                f"no refusals. Remove {name}, or the term that trains on refusals."
            )
    if any_needs(terms, "alternate"):
        rows = [s.transform for s in training.transforms if s.on == "forget"]
        if rows or training.until:
            raise RecipeError(
                f"{place}: alternates are answers to unchanged forget rows. Leave out "
                f"{'until' if training.until else rows[0]}."
            )
        if training.alternates is None and world_size() > 1:
            raise RecipeError(
                f"{place}: the model writes the alternates in a single process. Give a file, "
                "train.alternates, or launch without several processes."
            )
    kinds = [n for n in ("reinforced", "scores", "efforts") if any_needs(terms, n)]
    if kinds and (training.full or sharded() or world_size() > 1 or training.until):
        name = next(t.loss for t in terms if kinds[0] in needs(t))
        raise RecipeError(
            f"{place}: {name} trains an adapter in one process: leave out full and until, and "
            "launch without several processes."
        )
    others = [t for t in terms if t.on == "forget" and "reinforced" not in needs(t)]
    if "reinforced" in kinds and others and training.tokens.truncate == "end":
        raise RecipeError(
            f"{place}: with tokens.truncate: end, a row may lose its answer, and {others[0].loss} "
            "and whp may not leave out the same rows. Set tokens.truncate: prompt, or leave out "
            "one of the two terms."
        )
    if "scores" in kinds and training.direction != "sum":
        raise RecipeError(f"{place}: atwu needs direction: sum, not {training.direction}.")


def _check_eight_bits(place: str, training: Training) -> None:
    """Raise if this machine cannot store the optimiser state in 8 bits."""
    key = f"{place}.optimizer: {training.optimizer}"
    if find_spec("bitsandbytes") is None:
        raise ResourceError(
            f"{key} needs the package bitsandbytes, which is not installed: "
            "pip install 'mergeforget[gpu]', or set optimizer: adamw."
        )
    if not torch.cuda.is_available():
        raise ResourceError(f"{key} needs a GPU, but none was found. Set adamw.")
    if sharded():
        raise RecipeError(
            f"{key} does not support FSDP, which shards the optimiser state. Set adamw."
        )


def _check_parts(recipe: Recipe) -> None:
    """Raise RecipeError for trainings that DDP or FSDP cannot run."""
    if not sharded():
        if world_size() > 1:
            _check_every_weight(recipe)
        return
    if recipe.model.quantization:
        raise RecipeError(
            "model.quantization: FSDP cannot shard 4-bit weights. Leave it out with FSDP, "
            "or launch with --multi_gpu, where every process has the whole model in 4 bits."
        )
    for key, training in recipe.trainings().items():
        if training.compile:
            raise RecipeError(
                f"{key}: compile does not support FSDP, which gathers the weights of a layer "
                "outside its forward method. Leave it out, or launch with --multi_gpu."
            )
        if training.full:
            raise RecipeError(
                f"{key}: full trains weights of the model, but with FSDP only adapters are "
                "trained. Launch with --multi_gpu, or train an adapter (lora)."
            )


def _check_every_weight(recipe: Recipe) -> None:
    """Raise RecipeError for losses that leave weights without a gradient, for which DDP waits."""
    for key, training in recipe.trainings().items():
        for term in training.objective:
            if layer_of(term) is not None:
                raise RecipeError(
                    f"{key}: {term.loss} reads a layer below the last, so the weights above get "
                    "no gradient, and several processes (DDP) would wait for it. Train in one "
                    "process, or launch with --use_fsdp --fsdp_version 2."
                )


@contextmanager
def _placed(place: str) -> Iterator[None]:
    try:
        yield
    except MergeforgetError as error:
        raise RecipeError(f"{place}: {error}") from error


def _check_term(term: Term) -> None:
    if reads_others(term) and term.on != "forget":
        raise RecipeError(
            f"{term.loss!r} trains on replacement answers, so it applies to the forget set only."
        )
    if {"reinforced", "scores", "efforts"} & set(needs(term)) and term.on != "forget":
        raise RecipeError(f"{term.loss!r} applies to the forget set only.")
    if (layer := layer_of(term)) is not None and layer < 0:
        raise RecipeError(f"layer counts from 0, so {layer} names no layer.")
    parameter = UNLEARNING_LOSSES.get(term.loss).parameters.get("mask")
    if parameter and term.arguments.get("mask", parameter.default) not in MASKS:
        raise RecipeError(
            f"mask must be one of {', '.join(MASKS)}, not {term.arguments['mask']!r}."
        )


def _check_direction(term: Term, training: Training) -> None:
    """Raise RecipeError for a likelihood on the forget set with ``direction: ngdiff``."""
    learns = term.loss in LEARNT and term.on == "forget" and term.weight > 0
    if training.direction == "ngdiff" and learns:
        raise RecipeError(
            f"direction: ngdiff minimises each term, so {term.loss!r} on the forget set would "
            "train on its answers or refusals. Use ga, or set direction: sum."
        )


def _check_batches(term: Term, training: Training) -> None:
    """Raise RecipeError for a term that compares two sets if a step has only one set."""
    if training.batches == "by_set" and "answer" in needs(term) and reads_others(term):
        raise RecipeError(
            f"{term.loss!r} compares two answers to a question, but with batches: by_set a step "
            "has only one of the two. Set batches: together."
        )


def _check_even(term: Term, training: Training) -> None:
    """Raise RecipeError for ``even`` where no check measures what it compares tokens with."""
    if term.loss == "level" and term.arguments.get("even"):
        if not training.until or term.on != "forget":
            raise RecipeError(
                "even compares forget tokens with their mean at the last check of until. Use it on "
                "forget and with until, or leave it out."
            )


def mask_of(terms: Sequence[Term]) -> tuple[int, ...]:
    """Return the kinds of position that the terms read."""
    masks: list[tuple[int, ...]] = [(ANSWER,)]
    for term in terms:
        parameter = UNLEARNING_LOSSES.get(term.loss).parameters.get("mask")
        if parameter is not None:
            masks.append(MASKS[str(term.arguments.get("mask", parameter.default))])
    return max(masks, key=len)


def needs(term: Term) -> tuple[str, ...]:
    """Return what must be computed for a term; see ``mergeforget.losses``."""
    return UNLEARNING_LOSSES.get(term.loss).needs


def compute(
    terms: Sequence[Term],
    policy: Mapping[str, TokenOutputs],
    reference: Mapping[str, TokenOutputs],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the terms, and the unweighted value of each.

    Args:
        policy: Outputs of the trained model, by set (forget, retain).
        reference: Outputs of the model before unlearning, by set, if a term needs them.
    """
    values = {}
    refusal = policy.get(REFUSAL), reference.get(REFUSAL)
    for term in terms:
        outputs, before = policy.get(term.on), reference.get(term.on)
        if refusal[0] is not None and reads_others(term):
            outputs = replace(outputs or refusal[0], refusal=refusal[0])
            before = replace(before or refusal[1], refusal=refusal[1]) if refusal[1] else None
        assert outputs is not None
        values[term.label] = _value(term, outputs, before)
    plain = {label: value.detach() for label, value in values.items()}
    weighted = [term.weight * values[term.label] for term in terms]
    return torch.stack([w.reshape(()) for w in weighted]).sum(), plain


def _value(term: Term, outputs: TokenOutputs, before: TokenOutputs | None) -> Tensor:
    """Return the loss of a term on a pass.

    A loss that depends on the mean of its micro-batch is not additive; it is computed on the
    outputs of each micro-batch of the pass.
    """
    if not outputs.own_rows:
        return _nothing(outputs, term)
    entry = UNLEARNING_LOSSES.get(term.loss)
    if len(outputs.parts) <= 1 or entry.traits.get("additive", True):
        with suppress(SeveralMicroBatches):
            value: Tensor = entry.fn(outputs, before, **term.arguments)
            return value
    parts = outputs.micro_batches()
    befores = [None] * len(parts) if before is None else before.micro_batches()
    each = [_value(term, p, b) for p, b in zip(parts, befores, strict=True)]
    for name in sorted({name for part in parts for name in part.notes}):
        noted = [part.notes[name] for part in parts if name in part.notes]
        outputs.notes[name] = torch.stack(noted).sum()
    return torch.stack([e.reshape(()) for e in each]).sum()


def check_finite(values: Mapping[str, float]) -> None:
    """Raise NumericError if a term of a step is NaN or infinite."""
    wrong = [label for label, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise NumericError(
            f"The loss is not finite: {', '.join(f'{w} = {values[w]}' for w in wrong)}. Lower the "
            "learning rate, or give the retain terms more weight; the last checkpoint is kept."
        )


def _nothing(outputs: TokenOutputs, term: Term) -> Tensor:
    """Return a zero that depends on the weights, for a micro-batch whose rows have weight 0.

    The other ranks run a backward pass and wait for this rank at every layer.
    """
    layer = layer_of(term)
    tensors = [outputs.token_logps if layer is None else (outputs.hidden or {})[layer]]
    if outputs.refusal is not None:
        tensors.append(outputs.refusal.token_logps)
    return torch.stack([(0 * values).sum() for values in tensors]).sum()


def describe(training: Training) -> str:
    """``0.4 npo(forget) + 0.4 gd(retain) + 0.2 kl(retain)``."""
    return " + ".join(f"{t.weight:g} {t.loss}({t.on})" for t in training.objective)
