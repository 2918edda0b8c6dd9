"""Quantisation: does storing the weights in few bits bring back what was unlearned?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergeforget.attack.methods import attack
from mergeforget.attack.result import Result
from mergeforget.attack.rounding import rounded
from mergeforget.attack.scores import (
    FOLLOWED,
    ScoredRows,
    check_comparable,
    forget_scores,
    losses_of,
)
from mergeforget.attack.target import Facts, Suspect, Target
from mergeforget.attack.verdict import (
    Estimate,
    claim,
    difference,
    judge,
    less,
    share_text,
    worst_of,
)

WHOLE = 0  # bits of the model as it is
BY_ROW = 8  # from so many bits on, a row has one scale; below, a group has


@attack(
    "quantise",
    source="Zhang et al., Catastrophic Failure of LLM Unlearning via Quantization, "
    "arXiv:2410.16454",
)
def quantise(target: Target, *, bits: Sequence[int] = (8, 4), group: int = 64) -> Result:
    """Round every linear weight to 8 and 4 bits and score again.

    Args:
        bits: each of them is tried: 8 and more with a scale for each output channel, fewer with
            one for each group.
        group: neighbouring weights of a channel that share a scale below 8 bits.
    """
    target.need("forget")
    rows = ScoredRows.of(target)
    found = {
        suspect.role: _scores(target, suspect, rows, bits, group)
        for suspect in target.suspects()
        if suspect.role != "control"
    }
    check_comparable(*(points[0] for points in found.values()))
    settings = {"bits": list(bits), "group": group, "models": {
        s.role: s.name or s.base for s in target.suspects() if s.role != "control"}}  # fmt: skip
    return _judged(target.suspect.role, found, settings)


def _scores(
    target: Target, suspect: Suspect, rows: ScoredRows, bits: Sequence[int], group: int
) -> list[Facts]:
    """Scores of the model as it is, then with fewer and fewer bits; each is kept by itself."""
    points = []
    for width in (WHOLE, *sorted(bits, reverse=True)):
        size = None if width >= BY_ROW else group

        def work(model: Any, tokenizer: Any, width: int = width, size: int | None = size) -> Facts:
            label = f"{suspect.role}, {width} bits:" if width else f"{suspect.role}:"
            if width == WHOLE:
                return forget_scores(model, tokenizer, rows, target, label=label)
            with rounded(model, width, size) as done:
                scores = forget_scores(model, tokenizer, rows, target, label=label)
            return scores | {"matrices": done.matrices, "share": done.share}

        settings = {"bits": width, "group": size, "membership": target.membership,
                    "max_new_tokens": target.max_new_tokens}  # fmt: skip
        scores = target.measured(suspect, "quantise", settings, rows.every, work)
        points.append({"bits": width, **scores})
    return points


def _judged(model: str, found: dict[str, list[Facts]], settings: dict[str, Any]) -> Result:
    own, before = found[model], found.get("before")
    whole = losses_of(own[0], "forget")
    gains = {p["bits"]: difference(less(whole, losses_of(p, "forget"))) for p in own[1:]}
    known = None
    if before:
        known = difference(less(whole, losses_of(before[0], "forget"))).value
    findings = {width: judge(gain, known) for width, gain in gains.items()}
    finding = worst_of(findings.values())
    telling = " and ".join(str(width) for width, one in findings.items() if one == finding)
    ends = {
        "traces": f"rounding to {telling} bits brings some of it back, so that part was hidden, "
        "not removed",
        "none found": "fewer bits do not bring it back",
        "undecided": f"the interval at {telling} bits is too wide, more rows would narrow it",
    }
    verdict = f"{_words(model, own, gains, known)} {claim(finding, ends[finding])}"
    rows = [
        {"model": role, "bits": point["bits"] or "all",
         **{name: point[name] for name in (*FOLLOWED, "retain_nll")}}
        for role, points in found.items()
        for point in points
    ]  # fmt: skip
    figures = {
        "gain": {str(width): gain.to_dict() for width, gain in gains.items()},
        "forgotten": known,
    }
    return Result("quantise", model, finding, verdict, rows, figures, settings)


def _words(model: str, own: list[Facts], gains: dict[int, Estimate], known: float | None) -> str:
    part = share_text(gains[min(gains)], known).replace(
        "the model before unlearning knew", "unlearning took away"
    )
    text = " and ".join(
        f"at {width} bits by {gain}{part if width == min(gains) else ''}"
        for width, gain in gains.items()
    )
    sentences = (
        f"Rounding lowers the loss of {model} on the forget rows {text}, in nats a token (below "
        "0 it rises)."
    )
    pairs = (("greedy_match", "Exact answers"), ("mia_auc", "The MIA AUC"))
    for name, title in pairs:
        if own[0][name] is not None:
            steps = ", ".join(f"{p[name]:.2f} at {p['bits']} bits" for p in own[1:])
            sentences += f" {title}: {own[0][name]:.2f}, {steps}."
    if own[0]["retain_nll"] is not None:
        steps = ", ".join(f"{p['retain_nll']:.2f}" for p in own)
        sentences += f" The loss of the retain rows: {steps}."
    return sentences
