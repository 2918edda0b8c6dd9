"""Compares values by person between the attacked model and the control.

An attack that measures a value (a rank, a hit, a log-probability by layer) passes the values of all
models to ``compare``. A larger value means that the model knows the row better.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mergeforget.attack.result import Result
from mergeforget.attack.target import Facts, Target
from mergeforget.attack.verdict import (
    Advantage,
    claim,
    conclude,
    difference,
    doubt_of,
    judge,
    less,
    same_kind,
    share_text,
    worst_of,
)
from mergeforget.data.schema import Row

Conditions = Sequence[Facts]  # of one model: {"forget": {subject: value}, "holdout": {...}} each


def compare(
    target: Target,
    name: str,
    found: Mapping[str, Conditions],
    labels: Sequence[str],
    settings: dict[str, Any],
    *,
    what: str,
    unit: str,
    key: str = "condition",
) -> Result:
    """Compare values by subject with those of the control, relative to the holdout.

    Args:
        found: Values of each model in every condition.
        labels: Names of the conditions, for example layers.
        what: Description of the value in the verdict, such as "the rank of the true answer".
        unit: Unit of the value.
        key: Name of the column of conditions.
    """
    model = target.suspect.role
    control, before = found.get("control"), found.get("before")
    evidence, findings, known, power = [], [], None, None
    if control:
        known_by = [one.value for one in _advantages(before, control)] if before else None
        evidence = _advantages(found[model], control)
        known = max(known_by) if known_by else None
        findings = [judge(one, known) for one in evidence]
        if before:
            power = worst_of(judge(one, known) for one in _advantages(before, control))
    own = _combined(findings)
    finding = conclude(own, power, control=control is not None)
    best = min(range(len(evidence)), key=lambda i: (evidence[i].p, -evidence[i].value), default=0)
    ends = {
        "traces": f"{what} shows that it knows more of the forget rows than a model that never saw "
        "them",
        "none found": f"{what} equals that of a model that never saw them",
        "undecided": doubt_of(evidence)
        if target.holdout
        else "without --holdout rows the control cannot be calibrated",
    }
    text = f"Compares {what} of {model} with that of the control."
    if evidence:
        at = f" at {key} {labels[best]}" if len(labels) > 1 else ""
        beyond = ", beyond the same on the holdout" if evidence[best].beyond_holdout else ""
        text += (
            f" The forget rows are ahead by {evidence[best]} {unit}{at}{beyond}"
            f"{share_text(evidence[best].value, known)}."
        )
    rows = [
        {"model": role, key: label, "value": _mean(point["forget"]),
         "holdout": _mean(point["holdout"])}
        for role, points in found.items()
        for label, point in zip(labels, points, strict=True)
    ]  # fmt: skip
    figures = {
        "evidence": {str(label): one.to_dict()
                     for label, one in zip(labels, evidence, strict=False)},
        "known_before": known,
        "power": power,
        "best": labels[best],
    }  # fmt: skip
    return Result(name, model, finding, f"{text} {claim(finding, ends)}", rows, figures,
                  settings | {"models": target.names(), "unit": unit})  # fmt: skip


def _combined(findings: Sequence[Any]) -> Any:
    """Combine the findings of all conditions: traces in any of them, else the majority."""
    if not findings or "traces" in findings:
        return "traces" if findings else "undecided"
    clear = sum(one == "none found" for one in findings)
    return "none found" if 2 * clear > len(findings) else "undecided"


def _advantages(own: Conditions, control: Conditions) -> list[Advantage]:
    found = []
    for mine, theirs in zip(own, control, strict=True):
        forget, holdout = (less(mine[split], theirs[split]) for split in ("forget", "holdout"))
        beyond = difference(forget, holdout) if holdout else None
        alike = same_kind(theirs["forget"], theirs["holdout"])
        found.append(Advantage(difference(forget), beyond, len(own), alike))
    return found


def by_subject(rows: Sequence[Row], values: Sequence[float]) -> dict[str, float]:
    """Return the mean value of each subject."""
    found: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        found.setdefault(row.subject, []).append(value)
    return {subject: sum(every) / len(every) for subject, every in found.items()}


def alternatives(row: Row, pool: Sequence[Row], n: int, seed: int) -> list[str]:
    """Draw plausible wrong answers of the same type as the row's answer.

    The row's perturbed answers come first. For an answer that consists mostly of digits, or a date,
    digits are replaced and the form is kept. Otherwise the answers of other subjects to the most
    similar prompts are used. The true answer is excluded; there may be fewer than ``n`` answers.
    """
    draw = random.Random(f"{seed}-{row.id}-{row.input}")
    found = list(dict.fromkeys(row.perturbed))
    digits = sum(c.isdigit() for c in row.output)
    if 2 * digits > sum(c.isalnum() for c in row.output):
        while len(found) < n and 10**digits > 4 * n:
            found += [text for text in {_other_digits(row.output, draw)} if text not in found]
    others = [r for r in pool if r.subject != row.subject]
    draw.shuffle(others)
    stem = _stem(row)
    others.sort(key=lambda r: (-len(stem & _stem(r)), abs(len(r.output) - len(row.output))))
    found += [r.output for r in others]
    return [a for a in dict.fromkeys(found) if a.strip() != row.output.strip()][:n]


def _other_digits(text: str, draw: random.Random) -> str:
    if date := re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)", text.strip()):
        year = int(date[1]) + draw.randint(-20, 20)
        return f"{year}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"
    return re.sub(r"\d", lambda _: str(draw.randint(0, 9)), text)


def _stem(row: Row) -> frozenset[str]:
    """Return the lower-case words of the prompt, which describe the question and not the person."""
    return frozenset(w for w in re.findall(r"\w+", row.input) if w[0].islower())


def _mean(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None
