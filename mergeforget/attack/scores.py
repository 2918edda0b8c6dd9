"""Scores of the forget rows during an attack, from one likelihood pass and one generation pass."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergeforget.attack.advantage import Advantage, Values, same_kind, subtracted
from mergeforget.attack.target import Facts, Target
from mergeforget.attack.verdict import GREEDY, Leaks
from mergeforget.data.chat_template import check_size
from mergeforget.data.schema import AnswerLikelihood, DocumentLoss, Measured, Row, kinds_of
from mergeforget.errors import InputError
from mergeforget.evaluate.cache import EvaluationCache, document_key
from mergeforget.evaluate.measure import measure, membership_documents
from mergeforget.evaluate.membership import matched
from mergeforget.metrics import METRICS

FOLLOWED = ("nll", "greedy_match", "regurgitation", "mia_auc")


@dataclass(frozen=True)
class ScoredRows:
    """The rows that are scored in every condition of an attack.

    Attributes:
        forget: Rows of the forget set that the attack does not show to the model.
    """

    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]

    @classmethod
    def of(cls, target: Target, forget: Sequence[Row] | None = None) -> ScoredRows:
        """Return the rows of a target, optionally with other forget rows."""
        hidden = target.forget if forget is None else list(forget)
        return cls(hidden, target.retain, target.compared())

    @property
    def every(self) -> list[Row]:
        """The rows of all splits."""
        return [*self.forget, *self.retain, *self.holdout]


def forget_scores(
    model: Any, tokenizer: Any, rows: ScoredRows, target: Target, *, label: str
) -> Facts:
    """Score a model in its current state.

    Returns:
        ``nll``, ``greedy_match``, ``regurgitation`` and ``mia_auc`` of the forget rows, and
        ``retain_nll``, None without rows; ``documents``: mean NLL of each document's answers by
        split; ``rows``: NLL and number of tokens of each forget row's answer, and whether greedy
        decoding produces it exactly; ``tokens``: a hash of the tokenised rows.
    """
    cache = EvaluationCache()
    answered = measure(
        model,
        tokenizer,
        forget=[
            r for r, kind in zip(rows.forget, kinds_of(rows.forget), strict=True) if kind == "sc"
        ],
        retain=[],
        members=[*rows.forget, *rows.retain],
        nonmembers=rows.holdout,
        max_new_tokens=target.max_new_tokens,
        batch_tokens=target.batch_tokens,
        membership=target.membership,
        template=target.template(tokenizer),
        label=label,
        cache=cache,
    )
    known = _read(cache, [*rows.forget, *rows.retain])
    measured = Measured(answered.answers, _losses(cache, rows, target), likelihoods=known)
    return {
        **{name: _value(name, measured, "forget") for name in FOLLOWED},
        "retain_nll": _value("nll", measured, "retain") if rows.retain else None,
        "documents": {
            split: _by_document(_read(cache, getattr(rows, split)))
            for split in ("forget", "holdout")
        },
        "rows": {
            one.row.id: {"nll": one.nll, "tokens": one.tokens, "exact": one.greedy == 1.0}
            for one in _read(cache, rows.forget)
            if one.tokens
        },
        "tokens": _tokens_hash(tokenizer, rows.every),
    }


def losses_of(facts: Facts, split: str) -> Values:
    """Return the mean NLL of each document of a split."""
    return dict(facts["documents"][split])


def advantage(control: Facts, model: Facts, conditions: int = 1) -> Advantage:
    """Return how much better a model predicts the forget rows than the control does.

    ``over_control`` is the mean of ``NLL_control - NLL_model`` over forget subjects, in nats per
    token. ``beyond_holdout`` subtracts the same mean over the holdout, which removes what the model
    learned about such text in general.
    """
    forget, holdout = (
        subtracted(losses_of(control, split), losses_of(model, split))
        for split in ("forget", "holdout")
    )
    alike = same_kind(losses_of(control, "forget"), losses_of(control, "holdout"))
    return Advantage.of(forget, holdout, conditions, alike, single=True)


def exact_leaks(model: Sequence[Facts], control: Sequence[Facts]) -> Leaks:
    """Return the rows that greedy decoding reproduces in any condition, but not with the control.

    Args:
        model, control: Scores in the same conditions, such as the steps of a fine-tuning.

    Returns:
        The leaks. The chance of a correct guess is the probability that the control assigns to the
        whole answer, summed over the conditions.
    """
    leaked, guess, shared = {}, {}, 0
    for row in model[0]["rows"]:
        mine, theirs = ([p["rows"][row] for p in points] for points in (model, control))
        own, other = (any(p["exact"] for p in points) for points in (mine, theirs))
        leaked[row] = own and not other
        shared += own and other
        guess[row] = GREEDY * sum(math.exp(-p["nll"] * p["tokens"]) for p in theirs)
    return Leaks.of(leaked, guess, shared)


def check_comparable(*facts: Facts) -> None:
    """Raise InputError if the models tokenise the rows differently."""
    if len({one["tokens"] for one in facts}) > 1:
        raise InputError(
            "The models do not have the same tokenizer, so their losses per token cannot be "
            "compared. Use a --control (and --base) with the same tokenizer."
        )


def _read(cache: EvaluationCache, rows: Sequence[Row]) -> list[AnswerLikelihood]:
    return [cache.documents[document_key(row)].answer_likelihood(row) for row in rows]


def _losses(cache: EvaluationCache, rows: ScoredRows, target: Target) -> list[DocumentLoss]:
    """Return the losses of members and matched non-members, as in an evaluation."""
    inside = membership_documents(rows.forget, target.membership)
    outside = membership_documents(rows.holdout, target.membership)
    members, nonmembers = matched(inside, outside, target.seed)
    return [
        cache.documents[document_key(row)].document_loss(row, member)
        for group, member in ((members, True), (nonmembers, False))
        for row in group
    ]


def _value(name: str, measured: Measured, split: str) -> float | None:
    metric = METRICS.get(name).fn
    score = metric(measured) if name == "mia_auc" else metric(measured, split=split)
    return None if score is None else score.value


def _by_document(read: Sequence[AnswerLikelihood]) -> dict[str, float]:
    grouped: dict[str, list[float]] = {}
    for one in read:
        if one.tokens:
            grouped.setdefault(one.row.subject, []).append(one.nll)
    return {document: sum(values) / len(values) for document, values in grouped.items()}


def _tokens_hash(tokenizer: Any, rows: Sequence[Row]) -> str:
    for row in rows:
        check_size(row.document, f"Row {row.id!r}")
    ids = [list(tokenizer(row.document)["input_ids"]) for row in rows]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
