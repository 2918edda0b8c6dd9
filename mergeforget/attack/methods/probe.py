"""Probes: linear classification of forget and holdout rows from hidden states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mergeforget.attack.advantage import CONVICT, Estimate, difference, subtracted
from mergeforget.attack.guessing import NOT_FINITE
from mergeforget.attack.logistic import (
    coordinates,
    cross_validated_auc,
    held_out_probabilities,
    shuffled_labels,
)
from mergeforget.attack.methods import attack
from mergeforget.attack.result import Finding, Result
from mergeforget.attack.target import Facts, Target, TargetModel
from mergeforget.attack.verdict import claim, conclude
from mergeforget.console import track
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.tokens import cut_to_positions
from mergeforget.errors import NumericError
from mergeforget.evaluate.batching import in_batches, token_budget

Pool = Literal["last", "mean"]
LEVEL = 0.05  # significance level of the permutation test over all layers
MANY = 10**9  # labelings that are counted; the number may exceed a float, and has 1000 digits
LEAST_EXCESS = 0.1  # minimum excess of the AUC over the control's to convict a model


@attack(
    "probe",
    source="Alain and Bengio, Understanding intermediate layers, arXiv:1610.01644",
    strength={"shuffles": "more"},
)
def probe(
    target: Target,
    *,
    pool: Pool = "last",
    strength: float = 0.1,
    shuffles: int = 39,
    folds: int = 5,
) -> Result:
    """Train a logistic regression per layer to tell forget prompts from holdout prompts.

    Args:
        pool: State of the prompt's last token, or the mean over its tokens.
        strength: Strength of the ridge penalty on standardised features.
        shuffles: Number of permutations of the labels.
        folds: Number of folds of the cross-validation over documents.
    """
    target.need("forget", "holdout")
    settings = {"pool": pool, "strength": strength, "shuffles": shuffles, "folds": folds,
                "seed": target.seed}  # fmt: skip
    by_model = {m.role: _layers(target, m, settings) for m in target.measured_models()}
    return judged(target.attacked.role, by_model, settings | {"models": target.names()})


def _layers(target: Target, target_model: TargetModel, settings: dict[str, Any]) -> Facts:
    """Return the AUC of each layer of one model, and the best AUC under permuted labels."""
    rows = [*target.forget, *target.compared()]

    def work(model: Any, tokenizer: Any) -> Facts:
        states = hidden_states(
            model,
            tokenizer,
            rows,
            settings["pool"],
            template=target.template(tokenizer),
            batch_tokens=target.batch_tokens,
            label=f"{target_model.role}: hidden states",
        )
        labels = np.arange(len(rows)) < len(target.forget)
        documents = [f"{row.split} {row.subject}" for row in rows]
        return probe_layers(states, labels, documents, settings, label=target_model.role)

    return target.measured(target_model, "probe", settings, rows, work)


def probe_layers(
    states: NDArray[np.float32],
    labels: NDArray[np.bool_],
    documents: list[str],
    settings: dict[str, Any],
    *,
    label: str,
) -> Facts:
    """Probe every layer, with the true and with permuted labels.

    Args:
        states: (layers, rows, width).

    Returns:
        ``auc`` by layer; ``chance``: best AUC over layers for each permutation; ``p``: p-value of
        the permutation test; ``labelings``: number of possible assignments of the labels,
        at most ``MANY``; ``documents``: probability of the true label under held-out fits,
        averaged over layers and rows of each document.
    """

    layers = [coordinates(layer.astype(np.float64)) for layer in states]
    chosen = {name: settings[name] for name in ("strength", "folds", "seed")}

    def areas(given: NDArray[np.bool_]) -> list[float]:
        return [cross_validated_auc(layer, given, documents, **chosen) for layer in layers]

    aucs = areas(labels)
    tries = range(1, settings["shuffles"] + 1)
    chance = [
        max(areas(shuffled_labels(labels, documents, settings["seed"] + i)))
        for i in track(tries, f"{label}: probes of shuffled labels", len(tries))
    ]
    as_good = sum(value >= max(aucs) for value in chance)
    chances = np.mean([held_out_probabilities(one, labels, documents, **chosen)
                       for one in layers], axis=0)  # fmt: skip
    by_document: dict[str, list[float]] = {}
    for document, chance_of_true in zip(documents, chances.tolist(), strict=True):
        by_document.setdefault(document, []).append(chance_of_true)
    inside = len({d for d, one in zip(documents, labels, strict=True) if one})
    return {
        "auc": aucs,
        "chance": chance,
        "p": (1 + as_good) / (1 + len(chance)),
        "labelings": min(MANY, math.comb(len(set(documents)), inside)),
        "documents": {d: sum(values) / len(values) for d, values in by_document.items()},
    }


def judged(model: str, by_model: dict[str, Facts], settings: dict[str, Any]) -> Result:
    """Compare the probe of the attacked model with permuted labels and with the control's probe."""
    own, control, before = by_model[model], by_model.get("control"), by_model.get("before")
    best = int(np.argmax(own["auc"]))
    top = own["auc"][best]
    finding: Finding = "undecided"
    power, ahead = None, None
    if control:
        ahead = difference(subtracted(own["documents"], control["documents"]))
        finding = _finding(own, control, ahead)
        if before:
            their = difference(subtracted(before["documents"], control["documents"]))
            power = _finding(before, control, their)
    finding = conclude(finding, power, control=control is not None)
    rows = [
        {"model": role, "layer": layer, "auc": auc}
        for role, facts in by_model.items()
        for layer, auc in enumerate(facts["auc"])
    ]
    figures = {
        "best_layer": best,
        "best_auc": {role: max(facts["auc"]) for role, facts in by_model.items()},
        "p": {role: facts["p"] for role, facts in by_model.items()},
        "chance_95": {role: _upper(facts["chance"]) for role, facts in by_model.items()},
        "ahead_of_control": ahead.to_dict() if ahead else None,
        "power": power,
    }
    others = [f"{role} {max(f['auc']):.2f}" for role, f in by_model.items() if role != model]
    beside = f" ({', '.join(others)}, in their best layers)" if others else ""
    ends = {
        "traces": "its hidden states distinguish the forgotten rows better than those of a model "
        "that never saw them",
        "none found": "no linear probe of its states is better than chance",
        "undecided": "there are too few documents to distinguish a probe from chance"
        if not _enough(own)
        else "the probe is better than chance, but not clearly better than the control's",
    }
    verdict = (
        f"A linear probe of {model} distinguishes forget prompts from holdout prompts with an AUC "
        f"of {top:.2f} in its best layer, {best}{beside}; with permuted labels the AUC is below "
        f"{_upper(own['chance']):.2f} in 95 % of cases (p = {own['p']:.2f}). "
        f"{claim(finding, ends)}"
    )
    return Result("probe", model, finding, verdict, rows, figures, settings)


def _finding(own: Facts, control: Facts, ahead: Estimate) -> Finding:
    """Return traces if the probe is better than chance and than the control's, by document."""
    if not _enough(own):
        return "undecided"
    if own["p"] > LEVEL:
        return "none found"
    better = max(own["auc"]) - max(control["auc"]) >= LEAST_EXCESS
    return "traces" if better and ahead.p <= CONVICT else "undecided"


def _enough(facts: Facts) -> bool:
    return bool(facts["labelings"] >= 1 / LEVEL)


def _upper(chance: list[float]) -> float:
    return float(np.quantile(chance, 0.95)) if chance else 1.0


def hidden_states(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str | Row],
    pool: Pool,
    *,
    template: PromptTemplate = RAW,
    batch_tokens: int | None = None,
    label: str = "Hidden states",
) -> NDArray[np.float32]:
    """Return the states after the embeddings and after each layer, (layers + 1, texts, width).

    Args:
        pool: ``last`` selects the state of the last token, ``mean`` the mean over all tokens.

    Raises:
        NumericError: A state is not finite.
    """
    ids, _ = cut_to_positions(model, [template.prompt_ids(tokenizer, text) for text in texts])
    states = in_batches(
        model,
        [len(i) for i in ids],
        lambda places: _pooled(model, [ids[i] for i in places], pool),
        budget=batch_tokens or token_budget(model),
        label=label,
    )
    if not all(np.isfinite(one).all() for one in states):
        raise NumericError(NOT_FINITE)
    return np.stack(states, axis=1)


@torch.inference_mode()
def _pooled(model: Any, texts: list[list[int]], pool: Pool) -> list[NDArray[np.float32]]:
    """Return the pooled states of each text of a batch, (layers + 1, width)."""
    longest = max(len(t) for t in texts)
    lengths = torch.tensor([len(t) for t in texts], device=model.device)
    ids = torch.tensor([t + [0] * (longest - len(t)) for t in texts]).to(model.device)
    mask = torch.arange(longest, device=model.device) < lengths[:, None]
    states = model(
        input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False
    ).hidden_states
    pooled = []
    for layer in states:  # (texts, length, width)
        if pool == "last":
            one = layer[torch.arange(len(texts), device=layer.device), lengths - 1]
        else:
            one = (layer.float() * mask[:, :, None]).sum(1) / lengths[:, None]
        pooled.append(one.float().cpu())
    stacked = torch.stack(pooled, 1).numpy()  # (texts, layers + 1, width)
    return list(stacked)
