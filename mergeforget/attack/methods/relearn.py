"""Relearning: fine-tuning on some rows, measured on the others."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergeforget.attack.advantage import LEAST_NATS, Advantage, difference, judge
from mergeforget.attack.methods import attack
from mergeforget.attack.result import Finding, Result
from mergeforget.attack.scores import (
    FOLLOWED,
    ScoredRows,
    advantage,
    check_comparable,
    exact_leaks,
    forget_scores,
    losses_of,
)
from mergeforget.attack.target import Facts, NotApplicableError, Target, TargetModel
from mergeforget.attack.tuning import Tuning, tune, unrelated_rows
from mergeforget.attack.verdict import (
    Leaks,
    claim,
    conclude,
    doubt_of,
    judge_leaks,
    share_text,
    worst_of,
)
from mergeforget.data.overlap import plain_text, shared_rows
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.data.transforms import limit_rows
from mergeforget.errors import InputError, UsageError

BROKEN = 0.1  # relative excess of the loss over the control's at which a model has not recovered
LONGER = (1, 4)  # multiples of the steps; the second if the model has not recovered after the first


@attack(
    "relearn",
    source="Hu et al., Unlearning or Obfuscating? Jogging the Memory of Unlearned LLMs via Benign "
    "Relearning, arXiv:2406.13356",
    strength={"steps": "more", "rank": "more"},
)
def relearn(
    target: Target,
    *,
    steps: int = 100,
    on: str = "both",
    shown: int | None = None,
    learning_rate: float = 2e-4,
    batch: int = 4,
    rank: int = 16,
    full: bool = False,
) -> Result:
    """Fine-tune on some rows, and measure the forget rows that are not among them.

    The control is fine-tuned in the same way. Exact answers and losses are compared at every
    measured step.

    Args:
        on: Training rows: ``forget`` (some documents of the forget set), ``retain``, ``both``
            (which also repairs a model that forgot too much), ``unrelated`` (built-in general
            text), or a data file.
        shown: Maximum number of training rows, in whole documents. None means a quarter of the
            forget set, and all rows of any other set. With ``both``, it limits the forget rows.
        rank: Rank of the LoRA; ``full`` trains all weights instead.

    Raises:
        UsageError: ``shown`` leaves no document of the forget set to measure.
        NotApplicableError: ``on`` is ``forget``, and there is only one row.
        InputError: Training rows are also in the holdout.
    """
    return by_training(target, "relearn", on, shown,
                       Tuning(steps, learning_rate, batch, rank, full, target.seed))  # fmt: skip


def by_training(target: Target, name: str, on: str, shown: int | None, tuning: Tuning) -> Result:
    """Fine-tune the model and the control in the same way, and compare them at every step.

    A model that forgot too much may not recover its general ability in the given steps. If it is
    undecided for that reason, both are fine-tuned for four times as many steps.
    """
    target.need("forget")
    lesson, hidden = _lesson(target, on, shown)
    rows = ScoredRows.of(target, hidden)
    still = replace(tuning, steps=0, learning_rate=0.0)  # for the model before unlearning
    for factor in LONGER:
        longer = replace(tuning, steps=factor * tuning.steps)
        curves = {
            target_model.role: _curve(
                target,
                target_model,
                lesson,
                rows,
                still if target_model.role == "before" else longer,
            )
            for target_model in target.measured_models()
        }
        check_comparable(*(curve[0] for curve in curves.values()))
        settings = {**vars(longer), "on": on, "shown": len(lesson), "hidden": len(hidden)}
        settings |= {"models": target.names()}
        result = judged(name, target.attacked.role, curves, settings)
        if result.finding != "undecided" or result.figures["recovered"]:
            break
    return result


def _lesson(target: Target, on: str, shown: int | None) -> tuple[list[Row], list[Row]]:
    """Return the training rows, and the forget rows of all other documents.

    Rows that are all about one person count as a document each, and a single row is not trained on:
    relearning other facts about the person, or the retain rows, may bring it back.
    """
    forget = target.forget
    if len({row.subject for row in forget}) == 1:
        forget = [replace(row, subject=row.id) for row in forget]
    lesson = []
    if on != "both" or len(forget) > 1:
        lesson = limit_rows(*_source(target, forget, on, shown), target.seed)[0]
    lesson += target.retain if on == "both" else []
    texts = set(map(plain_text, lesson))
    seen = {row.subject for row in forget if plain_text(row) in texts}
    unseen = {row.id for row in forget if row.subject not in seen}
    hidden = [row for row in target.forget if row.id in unseen]
    if not hidden:
        default = shown is None and on in ("forget", "both")
        problem = NotApplicableError if default else UsageError
        raise problem(
            f"Relearning would train on all {len(target.forget)} forget rows, or on a row of each "
            "of their documents, so none would be left to measure. Use fewer with --shown, or "
            "other text with --on retain."
        )
    shared = [other.id for _, other in shared_rows(lesson, target.holdout)]
    if shared:
        raise InputError(
            f"Relearning would train on {len(shared)} rows of the holdout, for example "
            f"{shared[0]}, but no model may be trained on the holdout. Use another --on or "
            "--holdout."
        )
    return lesson, hidden


def _source(
    target: Target, forget: list[Row], on: str, shown: int | None
) -> tuple[list[Row], int | None]:
    """Return the set of training rows, and the maximum number of rows."""
    if on in ("forget", "both"):
        documents = Counter(row.subject for row in forget)
        wanted = max(min(documents.values()), len(forget) // 4)
        return forget, shown or wanted
    if on == "retain":
        target.need("retain")
        return target.retain, shown
    if on == "unrelated":
        return unrelated_rows(), shown
    if not Path(on).is_file():
        raise InputError(
            f"--on must be forget, retain, both, unrelated or a data file; there is no file {on}."
        )
    return read_rows(Path(on)), shown


def _curve(
    target: Target, target_model: TargetModel, lesson: list[Row], rows: ScoredRows, tuning: Tuning
) -> list[Facts]:
    """Return the scores of one model during the fine-tuning."""

    def work(model: Any, tokenizer: Any) -> Facts:
        def measure(policy: Any, step: int) -> Facts:
            label = f"{target_model.role}, step {step}:"
            return {"step": step, **forget_scores(policy, tokenizer, rows, target, label=label)}

        label = f"{target_model.role} relearns"
        return {
            "points": tune(
                model,
                tokenizer,
                lesson,
                tuning,
                measure,
                label=label,
                template=target.template(tokenizer),
            )
        }

    settings = vars(tuning) | {
        "membership": target.membership,
        "max_new_tokens": target.max_new_tokens,
        "lesson": len(lesson),
        "hidden": len(rows.forget),
    }
    facts = target.measured(target_model, "relearn", settings, [*lesson, *rows.every], work)
    return list(facts["points"])


def judged(
    name: str, model: str, curves: dict[str, list[Facts]], settings: dict[str, Any]
) -> Result:
    """Compare the model at every measured step with the control after the same steps."""
    own, before, control = curves[model], curves.get("before"), curves.get("control")
    known = advantage(control[0], before[0]).value if control and before else None
    evidence, findings, power = None, [], None
    if control:
        evidence = _Evidence.of(own, control)
        findings = evidence.findings(known)
        if before:
            power = worst_of(_Evidence.of(before, control[:1]).findings(known))
    worst = worst_of(findings) if findings else "undecided"
    broken = _still_broken(own[-1], control[-1]) if control else ""
    if worst == "none found" and broken:
        worst = "undecided"
    finding = conclude(worst, power, control=control is not None)
    ends = {
        "traces": "it recovers rows that it was not trained on, so traces of them were left",
        "none found": "it learns the hidden rows no faster than a model that never saw them",
        "undecided": broken
        or (doubt_of([evidence.last], [evidence.leaks]) if evidence else doubt_of([]))
        if own[0]["documents"]["holdout"]
        else "without --holdout rows, faster learning of such text cannot be distinguished from "
        "memory",
    }
    rows = [
        {"model": role, "step": point["step"], **_row(point)}
        for role, curve in curves.items()
        for point in curve
    ]
    verdict = f"{_words(model, own, settings, evidence, known)} {claim(finding, ends)}"
    figures = {
        "evidence": evidence.to_dict() if evidence else None,
        "known_before": known,
        "power": power,
        "recovered": not broken,
    }
    examples = [{"kind": "exact answer", "row": r} for r in evidence.leaks.rows] if evidence else []
    return Result(name, model, finding, verdict, rows, figures, settings, examples)


def _still_broken(last: Facts, control: Facts) -> str:
    """Return why a fine-tuned model cannot be cleared: it still predicts unseen text worse.

    A model that forgot too much must recover its general ability before it can be judged whether
    it recovers the forgotten rows.
    """
    mine, theirs = (difference(losses_of(facts, "holdout")).value if losses_of(facts, "holdout")
                    else facts["retain_nll"] for facts in (last, control))  # fmt: skip
    if mine is None or theirs is None or mine <= theirs + max(LEAST_NATS, BROKEN * theirs):
        return ""
    return (
        f"after the last step it still predicts text outside the training data worse than the "
        f"control ({mine:.2f} against {theirs:.2f} nats per token), so it has not recovered; more "
        "--steps or a larger --learning-rate are needed"
    )


@dataclass(frozen=True)
class _Evidence:
    """Evidence from the fine-tuning of one model and of the control.

    Attributes:
        lowest: Advantage in the lowest loss of each person or document over all steps.
        last: Advantage after the last step.
    """

    lowest: Advantage
    last: Advantage
    leaks: Leaks

    @classmethod
    def of(cls, own: list[Facts], control: list[Facts]) -> _Evidence:
        lowest = advantage(_lowest(control), _lowest(own), conditions=2)
        return cls(lowest, advantage(control[-1], own[-1], conditions=2), exact_leaks(own, control))

    def findings(self, known: float | None) -> list[Finding]:
        return [judge(self.lowest, known), judge(self.last, known), judge_leaks(self.leaks)]

    def to_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest.to_dict(), "last": self.last.to_dict(),
                "leaks": self.leaks.to_dict()}  # fmt: skip


def _lowest(points: list[Facts]) -> Facts:
    """Return the lowest loss of each person or document over all steps, as scores of one point."""
    documents = {
        split: {one: min(losses_of(p, split)[one] for p in points)
                for one in losses_of(points[0], split)}
        for split in ("forget", "holdout")
    }  # fmt: skip
    return {"documents": documents}


def _words(
    model: str,
    own: list[Facts],
    settings: dict[str, Any],
    evidence: _Evidence | None,
    known: float | None,
) -> str:
    what = {"forget": "rows of the forget set", "retain": "rows of the retain set",
            "both": "rows of the forget and the retain set"}  # fmt: skip
    subjects = len(losses_of(own[0], "forget"))
    text = (
        f"Fine-tunes {model} for {settings['steps']} steps on {settings['shown']} "
        f"{what.get(settings['on'], 'unrelated rows')} and scores the {settings['hidden']} forget "
        f"rows of {subjects} people or documents that it was not shown, at {len(own)} points."
    )
    exact = [f"{p['greedy_match']:.2f}" for p in (own[0], own[-1]) if p["greedy_match"] is not None]
    if len(exact) > 1:
        text += f" The share of exact answers changed from {exact[0]} to {exact[1]}."
    if evidence is None:
        return text
    last = evidence.last
    beyond = ", beyond the same on the holdout" if last.beyond_holdout else ""
    return text + (
        f" It gives {len(evidence.leaks.rows)} exact answers that the control, trained in the same "
        f"way, gives at no step (probability of guessing as many: {evidence.leaks.p:.2g}). After "
        f"the last step it predicts the hidden rows better than the control by {last} nats per "
        f"token{beyond}{share_text(last.value, known)}."
    )


def _row(point: Facts) -> dict[str, Any]:
    holdout = losses_of(point, "holdout")
    mean = sum(holdout.values()) / len(holdout) if holdout else None
    return {metric: point[metric] for metric in (*FOLLOWED, "retain_nll")} | {"holdout_nll": mean}
