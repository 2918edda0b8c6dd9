"""Relearning: does a little fine-tuning bring back what it does not show?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from mergeforget.attack.methods import attack
from mergeforget.attack.result import Result
from mergeforget.attack.scores import (
    FOLLOWED,
    ScoredRows,
    check_comparable,
    forget_scores,
    losses_of,
)
from mergeforget.attack.target import Facts, Suspect, Target
from mergeforget.attack.tuning import Tuning, tune
from mergeforget.attack.verdict import Estimate, claim, difference, judge, less, share_text
from mergeforget.data.limit import limit_rows
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Row
from mergeforget.errors import InputError, UsageError


@attack(
    "relearn",
    source="Hu et al., Unlearning or Obfuscating? Jogging the Memory of Unlearned LLMs via Benign "
    "Relearning, arXiv:2406.13356",
)
def relearn(
    target: Target,
    *,
    steps: int = 20,
    on: str = "forget",
    shown: int | None = None,
    learning_rate: float = 2e-4,
    batch: int = 4,
    rank: int = 16,
    full: bool = False,
) -> Result:
    """Fine-tune for a few steps and follow the forget rows that are not shown.

    Args:
        on: ``forget`` shows a few documents of the forget set, ``retain`` the retain set alone;
            else a data file, for example of unrelated text.
        shown: rows shown at most, whole documents; None is a quarter of the forget set, and all
            rows of any other.
        rank: of the LoRA that is trained; ``full`` trains every weight instead.

    Raises:
        UsageError: no document of the forget set is left that is not shown.
        InputError: rows of the holdout would be shown.
    """
    target.need("forget")
    lesson, hidden = _lesson(target, on, shown)
    rows = ScoredRows.of(target, hidden)
    tuning = Tuning(steps, learning_rate, batch, rank, full, target.seed)
    curves = {
        suspect.role: _curve(target, suspect, lesson, rows, tuning if suspect.role != "before"
                             else Tuning(0, 0.0, batch, rank, full, target.seed))
        for suspect in target.suspects()
    }  # fmt: skip
    check_comparable(*(curve[0] for curve in curves.values()))
    settings = {**vars(tuning), "on": on, "shown": len(lesson), "hidden": len(hidden)}
    names = {s.role: s.name or s.base for s in target.suspects()}
    return _judged(target.suspect.role, curves, settings | {"models": names})


def _lesson(target: Target, on: str, shown: int | None) -> tuple[list[Row], list[Row]]:
    """Rows that are shown, and forget rows of documents of which none is."""
    lesson = limit_rows(*_source(target, on, shown), target.seed)[0]
    texts = {row.document for row in lesson}
    seen = {row.subject for row in target.forget if row.document in texts}
    hidden = [row for row in target.forget if row.subject not in seen]
    if not hidden:
        raise UsageError(
            f"Relearning shows all {len(target.forget)} forget rows, or a row of each of their "
            "documents, so that none is left to see what comes back by itself. Show fewer with "
            "--shown, or other text with --on retain."
        )
    shared = [row.id for row in target.holdout if row.document in texts]
    if shared:
        raise InputError(
            f"Relearning would show {len(shared)} rows of the holdout, for example {shared[0]}, "
            "and the holdout must be rows that no model sees. Give another --on or --holdout."
        )
    return lesson, hidden


def _source(target: Target, on: str, shown: int | None) -> tuple[list[Row], int | None]:
    """What is shown from, and how many rows of it at most."""
    if on == "forget":
        documents = Counter(row.subject for row in target.forget)
        wanted = max(min(documents.values()), len(target.forget) // 4)
        return target.forget, shown or wanted
    if on == "retain":
        target.need("retain")
        return target.retain, shown
    if not Path(on).is_file():
        raise InputError(f"--on is forget, retain or a data file, and there is no file {on}.")
    return read_rows(Path(on)), shown


def _curve(
    target: Target, suspect: Suspect, lesson: list[Row], rows: ScoredRows, tuning: Tuning
) -> list[Facts]:
    """The scores of one model on the way."""

    def work(model: Any, tokenizer: Any) -> Facts:
        def look(policy: Any, step: int) -> Facts:
            label = f"{suspect.role}, step {step}:"
            return {"step": step, **forget_scores(policy, tokenizer, rows, target, label=label)}

        label = f"{suspect.role} relearns"
        return {
            "points": tune(
                model,
                tokenizer,
                lesson,
                tuning,
                look,
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
    found = target.measured(suspect, "relearn", settings, [*lesson, *rows.every], work)
    return list(found["points"])


def _judged(model: str, curves: dict[str, list[Facts]], settings: dict[str, Any]) -> Result:
    """The advantage of the attacked model at the end, beside what the model before knew."""
    own, before, control = curves[model], curves.get("before"), curves.get("control")
    end = control[-1] if control else own[0]
    found = advantage(end, own[-1])
    known = advantage(control[0] if control else own[0], before[0]).value if before else None
    decided = control is not None or bool(losses_of(own[-1], "holdout"))
    finding = judge(found, known) if decided else "undecided"
    figures = {"advantage": found.to_dict(), "known_before": known, "against": "control"}
    if control:
        figures["advantage_at_start"] = advantage(control[0], own[0]).to_dict()
    else:
        figures["against"] = "holdout" if decided else "nothing"
    verdict = _words(model, curves, settings, found, known)
    ends = {
        "traces": "what it was not shown came back, so traces of it were left",
        "none found": "it learns the hidden rows no faster than a model that never saw them"
        if control
        else "the hidden rows gain no more than rows that it never saw",
        "undecided": "the interval is too wide, more rows would narrow it"
        if decided
        else "without --control or --holdout rows there is nothing to compare with",
    }
    rows = [
        {"model": role, "step": point["step"], **_row(point)}
        for role, curve in curves.items()
        for point in curve
    ]
    verdict = f"{verdict} {claim(finding, ends[finding])}"
    return Result("relearn", model, finding, verdict, rows, figures, settings)


def advantage(worse: Facts, better: Facts) -> Estimate:
    """By how much the second predicts the forget rows better, beyond the same on the holdout.

    ``mean over forget documents of NLL_worse - NLL_better``, less that mean over the holdout's
    documents, in nats a token: what both learned about such text in general falls out.
    """
    splits = [less(losses_of(worse, s), losses_of(better, s)) for s in ("forget", "holdout")]
    return difference(splits[0], splits[1])


def _words(
    model: str,
    curves: dict[str, list[Facts]],
    settings: dict[str, Any],
    found: Estimate,
    known: float | None,
) -> str:
    first, last = curves[model][0], curves[model][-1]
    what = {"forget": "rows of the forget set", "retain": "rows of the retain set"}
    documents = len(losses_of(last, "forget"))
    beyond = ", beyond the same on the holdout" if losses_of(last, "holdout") else ""
    against = (
        f"than a model that never saw them and relearned alike{beyond}"
        if "control" in curves
        else f"than before{beyond}"
    )
    text = (
        f"After {settings['steps']} steps on {settings['shown']} "
        f"{what.get(settings['on'], 'other rows')}, {model} predicts the {settings['hidden']} "
        f"forget rows of {documents} documents that it was not shown by {found} nats a token "
        f"better {against}{share_text(found, known)}."
    )
    for name, title in (("greedy_match", "Exact answers"), ("mia_auc", "the MIA AUC")):
        if first[name] is not None:
            text += f" {title} went from {first[name]:.2f} to {last[name]:.2f}"
            if "control" in curves:
                text += f" (the other model's: {curves['control'][-1][name]:.2f})"
            text += "," if name == "greedy_match" and first["mia_auc"] is not None else "."
    return text


def _row(point: Facts) -> dict[str, Any]:
    holdout = losses_of(point, "holdout")
    mean = sum(holdout.values()) / len(holdout) if holdout else None
    return {name: point[name] for name in (*FOLLOWED, "retain_nll")} | {"holdout_nll": mean}
