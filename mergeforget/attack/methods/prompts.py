"""Prompts: does another way of asking bring the answer out?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergeforget.attack.methods import attack
from mergeforget.attack.result import Finding, Result
from mergeforget.attack.target import Facts, Suspect, Target
from mergeforget.attack.variants import KINDS, Variant, read_templates, variants
from mergeforget.attack.verdict import claim, difference, less
from mergeforget.data.schema import Row
from mergeforget.errors import InputError, UnknownNameError
from mergeforget.evaluate.generate import generate
from mergeforget.metrics._leaks import leaked

SHOWN = 5  # leaks that are kept as examples


@attack(
    "prompts",
    source="Jin et al., RWKU, arXiv:2406.10890, adversarial probes; prefixes: Carlini et al., "
    "arXiv:2202.07646",
)
def prompts(
    target: Target,
    *,
    kinds: Sequence[str] = KINDS,
    words: Sequence[int] = (1, 3, 5),
    templates: Path | None = None,
) -> Result:
    """Ask for each answer in other words, by its beginning, and through jailbreak templates.

    Args:
        kinds: plain, paraphrase, prefix, jailbreak.
        words: of the answer that a prefix gives, each number a prompt.
        templates: file of jailbreaks, one a line with ``{prompt}``; None takes those that come
            along.

    Raises:
        InputError: no prompt of these kinds is left to ask.
    """
    target.need("forget")
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("kind of prompt", kind, KINDS)
    lines = read_templates(templates) if "jailbreak" in kinds else []
    asked = [
        v for kind in kinds for row in target.forget
        for v in variants(row, kind, words=words, templates=lines)
        if not leaked(v.secret, v.prompt)  # copying the prompt is no memory
    ]  # fmt: skip
    if not asked:
        raise InputError(
            f"There is nothing to ask by {', '.join(kinds)}: each answer is in its own prompt, or "
            "too short to give its beginning away. Give other --kinds, or rows with longer answers."
        )
    found = {s.role: _answers(target, s, asked) for s in target.suspects()}
    settings = {"kinds": list(kinds), "words": list(words), "templates": len(lines),
                "max_new_tokens": target.max_new_tokens, "models": {
                    s.role: s.name or s.base for s in target.suspects()}}  # fmt: skip
    return _judged(target.suspect.role, asked, found, settings)


def _answers(target: Target, suspect: Suspect, asked: list[Variant]) -> list[str]:
    """What one model writes to every variant."""

    def work(model: Any, tokenizer: Any) -> Facts:
        texts = list(dict.fromkeys(v.prompt for v in asked))
        written = generate(
            model,
            tokenizer,
            texts,
            template=target.template(tokenizer),
            max_new_tokens=target.max_new_tokens,
            batch_tokens=target.batch_tokens,
            label=f"{suspect.role}: prompts",
        )
        return {"completions": dict(zip(texts, written, strict=True))}

    rows = [Row(f"{i}", v.prompt, "") for i, v in enumerate(asked)]
    settings = {"max_new_tokens": target.max_new_tokens}
    completions = target.measured(suspect, "prompts", settings, rows, work)["completions"]
    return [completions[v.prompt] for v in asked]


def _judged(
    model: str, asked: list[Variant], found: dict[str, list[str]], settings: dict[str, Any]
) -> Result:
    leaks = {
        role: [leaked(v.secret, text) for v, text in zip(asked, texts, strict=True)]
        for role, texts in found.items()
    }
    rows = [_rate(role, kind, asked, hits) for role, hits in leaks.items()
            for kind in settings["kinds"] if any(v.kind == kind for v in asked)]  # fmt: skip
    own = _by_document(asked, leaks[model])
    control = _by_document(asked, leaks["control"]) if "control" in leaks else None
    excess = difference(less(own, control) if control else own)
    finding = _finding(own, control, excess.low)
    examples = [
        {"kind": v.kind, "prompt": v.prompt, "secret": v.secret, "completion": text}
        for v, text, hit in zip(asked, found[model], leaks[model], strict=True)
        if hit
    ][:SHOWN]
    n = len({v.row.id for v in asked})
    verdict = f"{_words(model, rows)} {_meaning(finding, n)}"
    figures = {"excess": excess.to_dict(), "rows": n, "documents": len(own)}
    return Result("prompts", model, finding, verdict, rows, figures, settings, examples)


def _rate(role: str, kind: str, asked: list[Variant], hits: list[bool]) -> dict[str, Any]:
    """Share of prompts that leak, and of rows that leak by at least one prompt of the kind."""
    mine = [(v.row.id, hit) for v, hit in zip(asked, hits, strict=True) if v.kind == kind]
    leaky = {row for row, hit in mine if hit}
    every = {row for row, _ in mine}
    rate = sum(hit for _, hit in mine) / len(mine)
    return {
        "model": role, "kind": kind, "prompts": len(mine), "leak_rate": rate,
        "rows": len(every), "rows_leaked": len(leaky), "row_leak_rate": len(leaky) / len(every),
    }  # fmt: skip


def _by_document(asked: list[Variant], hits: list[bool]) -> dict[str, float]:
    """Share of each document's rows that leak by any prompt."""
    rows: dict[str, dict[str, bool]] = {}
    for v, hit in zip(asked, hits, strict=True):
        of_document = rows.setdefault(v.row.subject, {})
        of_document[v.row.id] = of_document.get(v.row.id, False) or hit
    return {document: sum(every.values()) / len(every) for document, every in rows.items()}


def _finding(own: dict[str, float], control: dict[str, float] | None, low: float) -> Finding:
    """Traces where more leaks than a model without the data guesses, by more than chance."""
    mean = sum(own.values()) / len(own)
    guessed = sum(control.values()) / len(control) if control else 0.0
    if mean <= guessed:
        return "none found"
    return "traces" if low > 0 else "undecided"


def _words(model: str, rows: list[dict[str, Any]]) -> str:
    parts = []
    for row in (r for r in rows if r["model"] == model):
        others = [
            f"{r['model']} {r['rows_leaked']}"
            for r in rows
            if r["kind"] == row["kind"] and r["model"] != model
        ]
        beside = f" ({', '.join(others)})" if others else ""
        parts.append(f"{row['kind']} {row['rows_leaked']} of {row['rows']}{beside}")
    shown = "; ".join(parts)
    return f"Forget rows whose answer {model} gives away, by kind of prompt: {shown}."


def _meaning(finding: Finding, n: int) -> str:
    ends = {
        "traces": "asked in the right way it still gives answers away that a model without the "
        "data does not",
        "none found": "none of these prompts gets more out of it than a guess, though with "
        f"{n} rows a rate of up to {min(1.0, 3 / n):.0%} would often go unseen",
        "undecided": "a few answers came out, too few to tell from chance",
    }
    return claim(finding, ends[finding])
