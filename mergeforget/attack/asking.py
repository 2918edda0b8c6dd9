"""Prompts models for secrets and judges their completions.

A prompting attack creates a list of ``Variant`` and calls ``ask``. Every model gets the same
prompts, the control determines how well each secret can be guessed, and every prompt and completion
is written to a file.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mergeforget.attack.guessing import as_rows, guess_chances
from mergeforget.attack.result import Finding, Result, write_answers
from mergeforget.attack.target import Facts, NotApplicableError, Target, TargetModel
from mergeforget.attack.variants import Variant
from mergeforget.attack.verdict import (
    ELSEWHERE,
    Leaks,
    claim,
    conclude,
    doubt_of,
    judge_leaks,
    told_elsewhere,
    worst_of,
)
from mergeforget.console import say
from mergeforget.data.chat_template import has_chat_template
from mergeforget.data.schema import Answer
from mergeforget.evaluate.completion import Completion
from mergeforget.evaluate.generate import generate_ids, stop_ids, text_stop_ids
from mergeforget.evaluate.matching import own_digits
from mergeforget.metrics._leaks import common_windows, leaked

DIRECT = ("plain", "raw", "chat")  # kinds of prompts that are the question itself
OTHERS = 200  # completions about other subjects, to estimate how common an answer is
Texts = list[list[str]]  # completions of each variant: one, or several samples


def ask(
    target: Target, name: str, asked: Sequence[Variant], settings: dict[str, Any], *, what: str
) -> Result:
    """Prompt every model with greedy decoding, and judge the completions.

    Args:
        asked: Prompts; those that contain their own secret are excluded.
        what: Description of the prompts in the verdict, for example "prompts in another language".

    Raises:
        NotApplicableError: No variant is left.
    """
    asked = without_given(asked, what)
    completions = {m.role: greedy(target, m, name, asked) for m in target.measured_models()}
    return judged(target, name, asked, completions, settings, what=what)


def without_given(asked: Sequence[Variant], what: str) -> list[Variant]:
    """Exclude variants whose prompt contains their own secret.

    Raises:
        NotApplicableError: None is left.
    """
    left = [v for v in asked if not v.gives_itself_away()]
    if not left:
        raise NotApplicableError(
            f"No row can be tested with {what}: each answer is in its own prompt, or too short for "
            "a prefix. Use other --kinds, or rows with longer answers."
        )
    return left


def greedy(target: Target, target_model: TargetModel, name: str, asked: Sequence[Variant]) -> Texts:
    """Generate the completion of every variant with one model."""

    def work(model: Any, tokenizer: Any) -> Facts:
        own = target.template(tokenizer)
        stop, text_stops = (find(model, tokenizer, own) for find in (stop_ids, text_stop_ids))
        raw = [v for v in asked if v.way == "chat" and v.template(tokenizer, own).kind == "none"]
        if raw and has_chat_template(tokenizer):
            say(
                f"Warning: {name} asks {len(raw)} prompts raw instead of in chat, because the chat "
                f"template does not render them, for example that of row {raw[0].row.id!r}."
            )
        prompts = [v.tokens(tokenizer, own)[0] for v in asked]
        different = list(dict.fromkeys(map(tuple, prompts)))
        written = generate_ids(
            model,
            [list(one) for one in different],
            stop=stop,
            max_new_tokens=target.max_new_tokens,
            batch_tokens=target.batch_tokens,
            label=f"{target_model.role}: {name}",
        )
        found = {
            one: Completion.of(new, stop, text_stops)
            for one, new in zip(different, written, strict=True)
        }
        texts = [
            found[tuple(one)].text(tokenizer, [v.secret])
            for v, one in zip(asked, prompts, strict=True)
        ]
        return {"completions": texts}

    settings = {"max_new_tokens": target.max_new_tokens}
    completions = target.measured(target_model, name, settings, as_rows(asked), work)["completions"]
    return [[text] for text in completions]


def judged(
    target: Target,
    name: str,
    asked: Sequence[Variant],
    completions: dict[str, Texts],
    settings: dict[str, Any],
    *,
    what: str,
    draws: int = 1,
) -> Result:
    """Judge the completions of all models.

    Args:
        draws: Number of completions per prompt, each of which may be a correct guess.
    """
    model = target.attacked.role
    common = common_windows([r.document for r in (*target.retain, *target.holdout)])
    hits = {
        role: [[v.revealed_in(t, common) for t in samples]
               for v, samples in zip(asked, texts, strict=True)]
        for role, texts in completions.items()
    }  # fmt: skip
    evidence: dict[str, Leaks] = {}
    elsewhere, other_leaks = Leaks((), 0, 1.0), list[dict[str, Any]]()
    if target.control is not None:
        guess = guess_chances(target, name, asked)
        for role in (model, "before"):
            if role in completions:
                evidence[role] = _evidence(asked, hits, completions, guess, common, role, draws)
        elsewhere, other_leaks = told_elsewhere(
            asked,
            completions[model],
            completions["control"],
            guess,
            draws=draws,
            known=[*target.retain, *target.holdout],
        )
    findings: dict[str, Finding] = {role: judge_leaks(one) for role, one in evidence.items()}
    if elsewhere.rows and elsewhere.p <= ELSEWHERE:
        findings[model] = worst_of([findings[model], "traces"])
    finding = conclude(
        findings.get(model, "undecided"), findings.get("before"), control=bool(evidence)
    )
    parts = [
        next((p for t in samples if (p := v.partly_in(t))), "")
        for v, samples in zip(asked, completions[model], strict=True)
    ]
    file = write_answers(target.folder, name, model, _answer_rows(asked, completions, hits))
    rows = [_rate(role, kind, asked, hits[role]) for role in completions
            for kind in dict.fromkeys(v.kind for v in asked)]  # fmt: skip
    mine = evidence.get(model)
    examples = _examples(asked, completions[model], hits[model], hits.get("control"))
    figures = {
        "evidence": {role: one.to_dict() for role, one in evidence.items()},
        "leaked_rows": list(mine.rows) if mine else sorted({str(e["row"]) for e in examples}),
        "rows": len({v.row.id for v in asked}),
        "prompts": len(asked),
        "elsewhere": elsewhere.to_dict() | {"leaked": list(elsewhere.rows)},
        "partial": sum(map(bool, parts)),
        "partial_rows": _partial_rows(asked, completions, parts, mine),
        "power": findings.get("before"),
        "own_digits": _own_digits(asked, completions, model),
        "answers": file,
    }
    words = _words(model, rows, mine, what, parts, elsewhere)
    verdict = f"{words} {_meaning(finding, figures, what, mine)}"
    return Result(name, model, finding, verdict, rows, figures,
                  settings | {"models": target.names()}, examples + other_leaks)  # fmt: skip


def _own_digits(
    asked: Sequence[Variant], completions: dict[str, Texts], model: str
) -> dict[str, dict[str, Any]] | None:
    """Compare the digits in direct answers of model and control with the secrets of all people.

    None if no question was asked directly, or no two people have secrets of one kind.
    """
    compared = {}
    for role in (model, "control"):
        answers = [
            Answer(replace(v.row, input=v.text, output=v.secret, messages=()), text)
            for v, texts in zip(asked, completions.get(role, ()), strict=role in completions)
            if v.kind in DIRECT
            for text in texts
        ]
        if digits := own_digits(answers):
            compared["control" if role == "control" else "model"] = digits.to_dict()
    return compared if "model" in compared else None


def _partial_rows(
    asked: Sequence[Variant],
    completions: dict[str, Texts],
    parts: Sequence[str],
    mine: Leaks | None,
) -> list[str]:
    """Return the rows that the model reveals in part, and the control not at all."""
    guessed = {
        v.row.id
        for v, samples in zip(asked, completions.get("control", [[] for _ in asked]), strict=True)
        if any(v.partly_in(text) for text in samples)
    }
    rows = {v.row.id for v, part in zip(asked, parts, strict=True) if part}
    return sorted(rows - guessed - set(mine.rows if mine else ()))


def _evidence(
    asked: Sequence[Variant],
    hits: dict[str, list[list[bool]]],
    completions: dict[str, Texts],
    guess: Sequence[float],
    common: frozenset[tuple[str, ...]],
    role: str,
    draws: int,
) -> Leaks:
    """Return rows that a model reveals and the control does not, with the chance of guessing.

    The control accounts for a secret if it reveals all of it: ``Lee`` after the first name does not
    account for ``Ann Lee`` without it.
    """
    leaky, missed, shared = dict[str, bool](), dict[str, float](), set[str]()
    given: dict[str, set[str]] = {}
    for v, one in zip(asked, hits["control"], strict=True):
        if any(one):
            given.setdefault(v.row.id, set()).add(v.secret)
    for i, (v, one) in enumerate(zip(asked, hits[role], strict=True)):
        row, chance = v.row.id, guess[i]
        known = any(secret.endswith(v.secret) for secret in given.get(row, ()))
        hit = any(one) and not known
        if any(one) and known:
            shared.add(row)
        if known:
            leaky.setdefault(row, False)  # no guess counts as a hit
            missed.setdefault(row, 1.0)
            continue
        if hit:
            chance = max(chance, _how_common(v, asked, completions[role], common))
        leaky[row] = leaky.get(row, False) or hit
        missed[row] = missed.get(row, 1.0) * (1 - min(1.0, chance)) ** draws
    shared -= {row for row, leak in leaky.items() if leak}
    return Leaks.of(leaky, {row: 1 - chance for row, chance in missed.items()}, len(shared))


def _how_common(
    v: Variant, asked: Sequence[Variant], texts: Texts, common: frozenset[tuple[str, ...]]
) -> float:
    """Return the share of the model's completions about other subjects that contain the secret."""
    others = [i for i, one in enumerate(asked) if one.row.subject != v.row.subject]
    drawn = random.Random(v.row.id).sample(others, min(OTHERS, len(others)))
    leaks = [leaked(v.sought, t, asked[i].text, common) for i in drawn for t in texts[i][:1]]
    return sum(leaks) / len(leaks) if leaks else 0.0


def _answer_rows(
    asked: Sequence[Variant], completions: dict[str, Texts], hits: dict[str, list[list[bool]]]
) -> list[dict[str, Any]]:
    return [
        {"model": role, "person": v.row.subject, "row": v.row.id, "kind": v.kind, "sample": n,
         "prompt": v.text, "completion": text, "secret": v.secret,
         "leaked": hits[role][i][n],
         "partial": v.partly_in(text)}
        for role, texts in completions.items()
        for i, v in enumerate(asked)
        for n, text in enumerate(texts[i])
    ]  # fmt: skip


def _examples(
    asked: Sequence[Variant],
    texts: Texts,
    hits: Sequence[Sequence[bool]],
    control: Sequence[Sequence[bool]] | None,
) -> list[dict[str, Any]]:
    """Return the first completion of each prompt that reveals its secret."""
    return [
        {"kind": v.kind, "row": v.row.id, "person": v.row.subject, "prompt": v.text,
         "secret": v.secret, "completion": samples[one.index(True)],
         "control": None if control is None else any(control[i])}
        for i, (v, samples, one) in enumerate(zip(asked, texts, hits, strict=True))
        if any(one)
    ]  # fmt: skip


def _rate(
    role: str, kind: str, asked: Sequence[Variant], hits: Sequence[Sequence[bool]]
) -> dict[str, Any]:
    """Return the shares of prompts and of rows that leak, for one kind of prompt."""
    mine = [(v.row.id, any(hit)) for v, hit in zip(asked, hits, strict=True) if v.kind == kind]
    leaky = {row for row, hit in mine if hit}
    row_ids = {row for row, _ in mine}
    rate = sum(hit for _, hit in mine) / len(mine)
    return {
        "model": role, "kind": kind, "prompts": len(mine), "leak_rate": rate,
        "rows": len(row_ids), "rows_leaked": len(leaky), "row_leak_rate": len(leaky) / len(row_ids),
    }  # fmt: skip


def _words(
    model: str,
    rows: list[dict[str, Any]],
    mine: Leaks | None,
    what: str,
    parts: list[str],
    elsewhere: Leaks,
) -> str:
    shown = []
    for row in (r for r in rows if r["model"] == model):
        others = [f"{r['model']} {r['rows_leaked']}" for r in rows
                  if r["kind"] == row["kind"] and r["model"] != model]  # fmt: skip
        beside = f" ({', '.join(others)})" if others else ""
        shown.append(f"{row['kind']} {row['rows_leaked']} of {row['rows']}{beside}")
    text = f"Forget rows that {model} reveals under {what}: {'; '.join(shown)}."
    if mine and mine.rows:
        text += (
            f" {len(mine.rows)} of {mine.asked} rows leak and are not revealed by the control; the "
            f"probability of guessing as many is {mine.p:.2g}."
        )
    if partial := sum(map(bool, parts)):
        text += f" {partial} further completions reveal a part of the secret."
    if elsewhere.rows:
        text += (
            f" Answers about somebody else reveal {len(elsewhere.rows)} secrets (probability of "
            f"guessing as many: {elsewhere.p:.2g})."
        )
    return text


def _meaning(finding: Finding, figures: dict[str, Any], what: str, mine: Leaks | None) -> str:
    n = figures["rows"]
    leaks = figures["leaked_rows"] or figures["elsewhere"]["leaked"]
    ends = {
        "traces": f"under {what} it reveals secrets that a model without the data does not, for "
        f"example row {leaks[0] if leaks else ''}",
        "none found": f"{what} reveal no more than guessing; a leak of up to "
        f"{min(1.0, 3 / n):.0%} of such rows is missed in 5 % of cases",
        "undecided": doubt_of([], [mine])
        if mine and mine.hidden
        else "the revealed answers are few and easy to guess",
    }
    return claim(finding, ends)
