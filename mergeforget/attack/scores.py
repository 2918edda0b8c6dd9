"""The forget scores that an attack follows: one likelihood pass, and completions of documents."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergeforget.attack.target import Facts, Target
from mergeforget.attack.verdict import GREEDY, Advantage, Leaks, Values, difference, less
from mergeforget.data.schema import AnswerLikelihood, DocumentLoss, Measured, Row
from mergeforget.errors import InputError
from mergeforget.evaluate.cache import EvaluationCache, document_key
from mergeforget.evaluate.measure import measure, membership_documents
from mergeforget.evaluate.membership import matched
from mergeforget.metrics import METRICS

FOLLOWED = ("nll", "greedy_match", "regurgitation", "mia_auc")


@dataclass(frozen=True)
class ScoredRows:
    """The rows that are scored at every point of an attack.

    Attributes:
        forget: those of the forget set that the attack does not show to the model.
    """

    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]

    @classmethod
    def of(cls, target: Target, forget: Sequence[Row] | None = None) -> ScoredRows:
        """The rows of a target, with other forget rows if given."""
        hidden = target.forget if forget is None else list(forget)
        return cls(hidden, target.retain, target.compared())

    @property
    def every(self) -> list[Row]:
        """The rows of all splits."""
        return [*self.forget, *self.retain, *self.holdout]


def forget_scores(
    model: Any, tokenizer: Any, rows: ScoredRows, target: Target, *, label: str
) -> Facts:
    """Scores of a model as it stands.

    Returns:
        ``nll``, ``greedy_match``, ``regurgitation`` and ``mia_auc`` of the forget rows and
        ``retain_nll``, None where there is no row to score; ``documents``: mean NLL of each
        document's answers by split; ``rows``: NLL and number of tokens of each forget row's
        answer, and whether greedy decoding gives all of it; ``tokens``: a hash that is the same
        for models of one tokenizer.
    """
    kept = EvaluationCache()
    answered = measure(
        model,
        tokenizer,
        forget=[row for row in rows.forget if row.kind == "sc"],
        retain=[],
        members=[*rows.forget, *rows.retain],
        nonmembers=rows.holdout,
        max_new_tokens=target.max_new_tokens,
        batch_tokens=target.batch_tokens,
        membership=target.membership,
        template=target.template(tokenizer),
        label=label,
        cache=kept,
    )
    known = _read(kept, [*rows.forget, *rows.retain])
    measured = Measured(answered.answers, _losses(kept, rows, target), likelihoods=known)
    return {
        **{name: _value(name, measured, "forget") for name in FOLLOWED},
        "retain_nll": _value("nll", measured, "retain") if rows.retain else None,
        "documents": {
            split: _by_document(_read(kept, getattr(rows, split)))
            for split in ("forget", "holdout")
        },
        "rows": {
            one.row.id: {"nll": one.nll, "tokens": one.tokens, "exact": one.greedy == 1.0}
            for one in _read(kept, rows.forget)
            if one.tokens
        },
        "tokens": _tokens_hash(tokenizer, rows.every),
    }


def losses_of(facts: Facts, split: str) -> Values:
    """Mean NLL of each document of a split."""
    return dict(facts["documents"][split])


def advantage(control: Facts, model: Facts, looks: int = 1) -> Advantage:
    """How much better a model predicts the forget rows than the control does.

    ``over_control`` is the mean over forget subjects of ``NLL_control - NLL_model``, in nats a
    token; ``beyond_holdout`` subtracts the same mean of the holdout, which removes what the model
    learned about such text in general.
    """
    forget, holdout = (
        less(losses_of(control, split), losses_of(model, split)) for split in ("forget", "holdout")
    )
    return Advantage(difference(forget), difference(forget, holdout) if holdout else None, looks)


def exact_leaks(model: Sequence[Facts], control: Sequence[Facts]) -> Leaks:
    """Rows that greedy decoding gives word for word in any condition, the control in none.

    Args:
        model, control: scores in the same conditions, such as the steps of a fine-tuning.

    Returns:
        The leaks; the chance of a guess is the probability that the control gives to the whole
        answer, summed over the conditions.
    """
    leaked, guess = {}, {}
    for row in model[0]["rows"]:
        mine, theirs = ([p["rows"][row] for p in points] for points in (model, control))
        leaked[row] = any(p["exact"] for p in mine) and not any(p["exact"] for p in theirs)
        guess[row] = GREEDY * sum(math.exp(-p["nll"] * p["tokens"]) for p in theirs)
    return Leaks.of(leaked, guess)


def check_comparable(*facts: Facts) -> None:
    """Raise InputError where models cut the rows into different tokens."""
    if len({one["tokens"] for one in facts}) > 1:
        raise InputError(
            "The models do not have the same tokenizer, so their losses a token cannot be compared."
            " Give a --control (and --base) of the same family, with the same tokenizer."
        )


def _read(kept: EvaluationCache, rows: Sequence[Row]) -> list[AnswerLikelihood]:
    return [kept.documents[document_key(row)].answer_likelihood(row) for row in rows]


def _losses(kept: EvaluationCache, rows: ScoredRows, target: Target) -> list[DocumentLoss]:
    """Members and non-members of like kind, as an evaluation compares them."""
    inside = membership_documents(rows.forget, target.membership)
    outside = membership_documents(rows.holdout, target.membership)
    members, nonmembers = matched(inside, outside, target.seed)
    return [
        kept.documents[document_key(row)].document_loss(row, member)
        for group, member in ((members, True), (nonmembers, False))
        for row in group
    ]


def _value(name: str, measured: Measured, split: str) -> float | None:
    metric = METRICS.get(name).fn
    score = metric(measured) if name == "mia_auc" else metric(measured, split=split)
    return None if score is None else score.value


def _by_document(read: Sequence[AnswerLikelihood]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for one in read:
        if one.tokens:
            found.setdefault(one.row.subject, []).append(one.nll)
    return {document: sum(values) / len(values) for document, values in found.items()}


def _tokens_hash(tokenizer: Any, rows: Sequence[Row]) -> str:
    ids = [list(tokenizer(row.document)["input_ids"]) for row in rows]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
