"""Compares values by person between the attacked model and the control.

An attack that measures a value (a rank, a hit, a log-probability by layer) passes the values of all
models to ``compare``. A larger value means that the model knows the row better.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mergeforget.attack.advantage import Advantage, judge, same_kind, subtracted
from mergeforget.attack.result import Finding, Result
from mergeforget.attack.target import Facts, Target
from mergeforget.attack.verdict import claim, conclude, doubt_of, share_text, worst_of
from mergeforget.data.schema import Row
from mergeforget.metrics._rows import similar_questions

Conditions = Sequence[Facts]  # of one model: {"forget": {subject: value}, "holdout": {...}} each


def compare(
    target: Target,
    name: str,
    by_model: Mapping[str, Conditions],
    labels: Sequence[str],
    settings: dict[str, Any],
    *,
    what: str,
    unit: str,
    key: str = "condition",
    single: bool = False,
) -> Result:
    """Compare values by subject with those of the control, relative to the holdout.

    Args:
        by_model: Values of each model in every condition.
        labels: Names of the conditions, for example layers.
        what: Description of the value in the verdict, such as "the rank of the true answer".
        unit: Unit of the value.
        key: Name of the column of conditions.
        single: Whether a single person that stands out prevents clearing the model; requires
            continuous values.
    """
    model = target.attacked.role
    control, before = by_model.get("control"), by_model.get("before")
    evidence: list[Advantage] = []
    findings: list[Finding] = []
    known, power = None, None
    if control:
        earlier = _advantages(before, control, single) if before else []
        evidence = _advantages(by_model[model], control, single)
        known = max((one.value for one in earlier), default=None)
        findings = [judge(one, known) for one in evidence]
        theirs = [judge(one, known) for one in earlier]
        power = worst_of(theirs) if theirs else None
        if "traces" not in findings:
            findings = _with_power(findings, theirs, [one.value for one in earlier])
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
        for role, points in by_model.items()
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


def _with_power(
    findings: Sequence[Finding], before: Sequence[Finding], known: Sequence[float]
) -> list[Finding]:
    """Keep the findings of the conditions in which the model before unlearning is convicted.

    A layer that shows nothing even in that model cannot clear another one. The condition in which
    that model is furthest ahead comes first. All findings are kept if it is convicted in none.
    """
    places = [i for i, finding in enumerate(before) if finding == "traces"]
    places.sort(key=lambda i: -known[i])
    return [findings[i] for i in places] or list(findings)


def _combined(findings: Sequence[Finding]) -> Finding:
    """Combine the findings of all conditions: traces in any of them.

    The result is ``none found`` if the first condition and most of the conditions have that
    finding.
    """
    if not findings or "traces" in findings:
        return "traces" if findings else "undecided"
    clear = sum(one == "none found" for one in findings)
    most = 2 * clear > len(findings) and findings[0] == "none found"
    return "none found" if most else "undecided"


def _advantages(own: Conditions, control: Conditions, single: bool) -> list[Advantage]:
    advantages = []
    for mine, theirs in zip(own, control, strict=True):
        forget, holdout = (
            subtracted(mine[split], theirs[split]) for split in ("forget", "holdout")
        )
        alike = same_kind(theirs["forget"], theirs["holdout"])
        advantages.append(Advantage.of(forget, holdout, len(own), alike, single=single))
    return advantages


def by_subject(rows: Sequence[Row], values: Sequence[float]) -> dict[str, float]:
    """Return the mean value of each subject."""
    grouped: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        grouped.setdefault(row.subject, []).append(value)
    return {subject: sum(group) / len(group) for subject, group in grouped.items()}


def alternatives(row: Row, pool: Sequence[Row], n: int, seed: int) -> list[str]:
    """Draw plausible wrong answers of the same type as the row's answer.

    The row's perturbed answers come first. For an answer that consists mostly of digits, or a date,
    digits are replaced and the form is kept, with the digits that all answers of this form in the
    pool share (an area code): a model that knows the form alone must not prefer the true answer.
    Otherwise the answers of other subjects to the most similar prompts are used. The true answer is
    excluded; there may be fewer than ``n`` answers.
    """
    draw = random.Random(f"{seed}-{row.id}-{row.input}")
    options = list(dict.fromkeys(row.perturbed))
    digits = sum(c.isdigit() for c in row.output)
    if 2 * digits > sum(c.isalnum() for c in row.output):
        shared = _shared_digits(row, pool)
        if 10 ** (digits - len(shared)) <= 4 * n:
            shared = frozenset()
        while len(options) < n and 10 ** (digits - len(shared)) > 4 * n:
            new = _other_digits(row.output, draw, shared)
            options += [new] if new not in options else []
    others = [r for r in pool if r.subject != row.subject]
    draw.shuffle(others)
    resemble = similar_questions([row, *others])
    order = sorted(range(len(others)), key=lambda i: (
        -resemble(0, i + 1), abs(len(others[i].output) - len(row.output))
    ))  # fmt: skip
    options += [others[i].output for i in order]
    return [a for a in dict.fromkeys(options) if a.strip() != row.output.strip()][:n]


def _shared_digits(row: Row, pool: Sequence[Row]) -> frozenset[int]:
    """Return the places of digits that are equal in all answers of the same form, of three or more.

    The form of an answer is its text with every digit replaced by 0.
    """
    form = re.sub(r"\d", "0", row.output)
    same = [r.output for r in pool if r.subject != row.subject]
    same = [text for text in same if re.sub(r"\d", "0", text) == form]
    if len(same) < 3:
        return frozenset()
    return frozenset(
        place for place, c in enumerate(row.output)
        if c.isdigit() and all(text[place] == c for text in same)
    )  # fmt: skip


def _other_digits(text: str, draw: random.Random, shared: frozenset[int]) -> str:
    if date := re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)", text.strip()):
        year = int(date[1]) + draw.randint(-20, 20)
        return f"{year}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"
    return "".join(
        str(draw.randint(0, 9)) if c.isdigit() and place not in shared else c
        for place, c in enumerate(text)
    )


def _mean(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None
