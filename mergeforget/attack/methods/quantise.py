"""Quantisation: rounding of the weights to few bits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from mergeforget.attack.advantage import Advantage, judge
from mergeforget.attack.calibration import CALIBRATED, calibrated, calibration_texts
from mergeforget.attack.methods import attack
from mergeforget.attack.result import Result
from mergeforget.attack.rounding import LEAST_ROUNDED, RoundedShare, rounded
from mergeforget.attack.scores import (
    FOLLOWED,
    ScoredRows,
    advantage,
    check_comparable,
    exact_leaks,
    forget_scores,
)
from mergeforget.attack.target import Facts, Target, TargetModel
from mergeforget.attack.verdict import (
    Leaks,
    claim,
    conclude,
    doubt_of,
    judge_leaks,
    share_text,
    worst_of,
)

WHOLE = 0  # stands for the unquantised model
BY_ROW = 8  # from this number of bits on, there is one scale per row; below, one per group


@attack(
    "quantise",
    source="Zhang et al., Catastrophic Failure of LLM Unlearning via Quantization, "
    "arXiv:2410.16454",
    strength={"bits": "all of"},
)
def quantise(target: Target, *, bits: Sequence[int] = (8, 4), group: int = 64) -> Result:
    """Round every weight matrix to 8 and 4 bits and score again.

    Args:
        bits: Numbers of bits, each judged separately: 8 and more with a scale per output channel,
            fewer with a scale per group.
        group: Number of adjacent weights of a channel that share a scale below 8 bits.
    """
    return by_rounding(target, "quantise", sorted(bits, reverse=True), group)


def by_rounding(
    target: Target, name: str, widths: Sequence[int], group: int, kind: str = "nearest"
) -> Result:
    """Score every model with original and rounded weights, and compare with the control.

    Args:
        kind: ``nearest`` or ``nf4``, see ``rounding.rounded``; ``gptq`` or ``awq``, see
            ``calibration.calibrated``.
    """
    target.need("forget")
    rows = ScoredRows.of(target)
    by_model = {
        target_model.role: _scores(target, target_model, rows, name, widths, group, kind)
        for target_model in target.measured_models()
    }
    check_comparable(*(points[0] for points in by_model.values()))
    settings = {"bits": list(widths), "group": group, "kind": kind, "models": target.names()}
    return judged(name, target.attacked.role, by_model, settings)


def _scores(
    target: Target,
    target_model: TargetModel,
    rows: ScoredRows,
    name: str,
    widths: Sequence[int],
    group: int,
    kind: str,
) -> list[Facts]:
    """Return the scores of the original model, then of each width; each is cached separately."""
    points = []
    for width in (WHOLE, *widths):
        size = None if width == WHOLE or (kind == "nearest" and width >= BY_ROW) else group

        def work(model: Any, tokenizer: Any, width: int = width, size: int | None = size) -> Facts:
            label = f"{target_model.role}, {width} bits:" if width else f"{target_model.role}:"
            if width == WHOLE:
                return forget_scores(model, tokenizer, rows, target, label=label)
            with _quantised(model, tokenizer, target, width, size, kind) as done:
                scores = forget_scores(model, tokenizer, rows, target, label=label)
            return scores | {"rounded": done.share}

        settings = {"bits": width, "group": size, "membership": target.membership,
                    "max_new_tokens": target.max_new_tokens, "kind": width and kind}  # fmt: skip
        scores = target.measured(target_model, "quantise", settings, rows.every, work)
        points.append({"bits": width, **scores})
    return points


def _quantised(
    model: Any, tokenizer: Any, target: Target, width: int, size: int | None, kind: str
) -> AbstractContextManager[RoundedShare]:
    """Return a context in which the model is quantised."""
    for method in CALIBRATED:
        if kind == method:
            texts = calibration_texts(tokenizer, target.retain)
            return calibrated(model, width, size, method, texts)
    return rounded(model, width, size, kind)


def judged(
    name: str, model: str, by_model: dict[str, list[Facts]], settings: dict[str, Any]
) -> Result:
    """Compare each width with the control at the same width."""
    own, control = by_model[model], by_model.get("control")
    before = by_model.get("before")
    shares = {p["bits"]: p["rounded"] for p in own[1:]}
    evidence = _evidence(own, control) if control else None
    known = advantage(control[0], before[0]).value if control and before else None
    findings = {b: _finding(one, known) for b, one in evidence.items()} if evidence else {}
    if not all(share >= LEAST_ROUNDED for share in shares.values()):
        findings = {b: "undecided" if f == "none found" else f for b, f in findings.items()}
    power = None
    if before and control:
        power = worst_of(_finding(one, known) for one in _evidence(before, control).values())
    finding = conclude(worst_of(findings.values()) if findings else "undecided", power,
                       control=control is not None)  # fmt: skip
    telling = " and ".join(str(b) for b, one in findings.items() if one == finding)
    ends = {
        "traces": f"at {telling} bits it reveals more of the forget rows than a model that never "
        "saw them, so part of the data was hidden, not removed",
        "none found": "with fewer bits it knows the forget rows no better than a model that never "
        "saw them",
        "undecided": f"at {telling} bits " + _doubt(evidence or {})
        if min(shares.values()) >= LEAST_ROUNDED
        else f"only {min(shares.values()):.1%} of the weights in matrices were rounded",
    }
    verdict = f"{_words(model, own, evidence, known, shares)} {claim(finding, ends)}"
    rows = [
        {"model": role, "bits": point["bits"] or "all",
         **{metric: point[metric] for metric in (*FOLLOWED, "retain_nll")}}
        for role, points in by_model.items()
        for point in points
    ]  # fmt: skip
    figures = {
        "evidence": {
            str(b): {"advantage": a.to_dict(), "leaks": leaks.to_dict(), "finding": findings[b]}
            for b, (a, leaks) in (evidence or {}).items()
        },
        "known_before": known,
        "share_rounded": shares,
        "power": power,
    }
    return Result(name, model, finding, verdict, rows, figures, settings,
                  _examples(evidence or {}))  # fmt: skip


def _evidence(own: list[Facts], control: list[Facts]) -> dict[int, tuple[Advantage, Leaks]]:
    """Return advantage and exact answers of each width, without the original model."""
    conditions = len(own) - 1
    return {
        mine["bits"]: (advantage(theirs, mine, conditions), exact_leaks([mine], [theirs]))
        for mine, theirs in zip(own[1:], control[1:], strict=True)
    }


def _finding(evidence: tuple[Advantage, Leaks], known: float | None) -> Any:
    return worst_of([judge(evidence[0], known), judge_leaks(evidence[1])])


def _doubt(evidence: dict[int, tuple[Advantage, Leaks]]) -> str:
    return doubt_of([a for a, _ in evidence.values()], [leaks for _, leaks in evidence.values()])


def _examples(evidence: dict[int, tuple[Advantage, Leaks]]) -> list[dict[str, Any]]:
    return [
        {"kind": f"{bits} bits", "row": row}
        for bits, (_, leaks) in evidence.items()
        for row in leaks.rows
    ]


def _words(
    model: str,
    own: list[Facts],
    evidence: dict[int, tuple[Advantage, Leaks]] | None,
    known: float | None,
    shares: dict[int, float],
) -> str:
    text = (
        f"Rounds {min(shares.values()):.1%} of the weights in matrices (embeddings and output "
        f"layer stay)."
    )
    for bits, (lead, leaks) in (evidence or {}).items():
        beyond = ", beyond the same on the holdout" if lead.beyond_holdout else ""
        text += (
            f" At {bits} bits, {model} predicts the forget rows better than the control at {bits} "
            f"bits by {lead} nats per token{beyond}{share_text(lead.value, known)}, and gives "
            f"{len(leaks.rows)} of {leaks.asked} exact answers that the control does not give."
        )
    if own[0]["retain_nll"] is not None:
        steps = ", ".join(f"{p['retain_nll']:.2f}" for p in own)
        text += f" Loss of the retain rows: {steps}."
    return text
