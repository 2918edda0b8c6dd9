"""Exposure: rank of the true secret among answers of the same type."""

from __future__ import annotations

import math
from typing import Any

from mergeforget.attack.comparing import alternatives, by_subject, compare
from mergeforget.attack.guessing import secret_logps
from mergeforget.attack.methods import attack
from mergeforget.attack.result import Result
from mergeforget.attack.target import Facts, NotApplicableError, Target, TargetModel
from mergeforget.attack.variants import Variant
from mergeforget.data.schema import Row


@attack(
    "exposure",
    source="Carlini et al., The Secret Sharer, arXiv:1802.08232; candidates are typed and drawn, "
    "not enumerated",
    strength={"candidates": "more"},
)
def exposure(target: Target, *, candidates: int = 15) -> Result:
    """Rank each true answer among answers of the same type by likelihood.

    The exposure of a row is ``log2(candidates + 1) - log2(rank)``, in bits. Its mean is about 1 bit
    for a model that does not know the answer.

    Args:
        candidates: Number of alternatives per row.

    Raises:
        NotApplicableError: No row has an alternative.
    """
    target.need("forget")
    rows = [*target.forget, *target.compared()]
    pool = [*target.holdout, *target.forget]
    options = [alternatives(row, pool, candidates, target.seed) for row in rows]
    comparable = [(row, others) for row, others in zip(rows, options, strict=True) if others]
    if not comparable:
        raise NotApplicableError("No row has alternative answers of the same type.")
    by_model = {m.role: [_ranked(target, m, comparable)] for m in target.measured_models()}
    settings = {"candidates": candidates, "seed": target.seed}
    return compare(target, "exposure", by_model, ["all"], settings, unit="bits",
                   what="the rank of the true answer among answers of its type")  # fmt: skip


def _ranked(
    target: Target, target_model: TargetModel, comparable: list[tuple[Row, list[str]]]
) -> Facts:
    """Return the exposure of one model by subject."""
    texts = [
        Variant(row, "", row.input, a) for row, others in comparable for a in (row.output, *others)
    ]

    def work(model: Any, tokenizer: Any) -> Facts:
        logps = secret_logps(
            target, model, tokenizer, texts, label=f"{target_model.role}: exposure"
        )
        return {"nll": [-sum(one) / max(1, len(one)) for one in logps]}

    asked = [Row(f"{i}", v.prompt, v.secret) for i, v in enumerate(texts)]
    losses = target.measured(target_model, "exposure", {}, asked, work)["nll"]
    forget: list[tuple[Row, float]] = []
    holdout: list[tuple[Row, float]] = []
    n_forget = {id(row) for row in target.forget}
    place = 0
    for row, others in comparable:
        own, *rest = losses[place : place + 1 + len(others)]
        place += 1 + len(others)
        value = exposure_of(own, rest)
        (forget if id(row) in n_forget else holdout).append((row, value))
    return {
        split: by_subject([r for r, _ in some], [v for _, v in some])
        for split, some in (("forget", forget), ("holdout", holdout))
    }


def exposure_of(own: float, others: list[float]) -> float:
    """Return ``log2(n + 1) - log2(rank)``; a tie counts one half.

    Example:
        >>> exposure_of(0.1, [1.0, 2.0, 3.0])
        2.0
    """
    rank = 1 + sum(1.0 if other < own else 0.5 if other == own else 0.0 for other in others)
    return math.log2(len(others) + 1) - math.log2(rank)
