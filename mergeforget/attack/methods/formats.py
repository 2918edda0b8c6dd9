"""Format shift: the same question in other formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from mergeforget.attack.asking import ask
from mergeforget.attack.methods import attack
from mergeforget.attack.result import Result
from mergeforget.attack.target import Target
from mergeforget.attack.variants import Variant, entity_of, statement_of
from mergeforget.data.schema import Row
from mergeforget.errors import UnknownNameError

FORMATS = ("raw", "chat", "dialogue", "completion", "fill-in", "reversed", "json", "form")


@attack(
    "formats",
    source="Lynch et al., Eight Methods to Evaluate Robust Unlearning in LLMs, arXiv:2402.16835; "
    "Jin et al., RWKU, arXiv:2406.10890, fill-in and reversed queries",
)
def formats(target: Target, *, formats: Sequence[str] = FORMATS) -> Result:
    """Ask in the chat template, raw, as a dialogue, to complete, to fill in, reversed, in JSON.

    Multiple choice, which shows the answer among others, is a separate attack.

    Args:
        formats: raw (the plain text), chat (the tokenizer's chat template, or raw without one),
            dialogue, completion, fill-in, reversed, json, form.
    """
    target.need("forget")
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError("format", name, FORMATS)
    asked = [v for name in formats for row in target.forget for v in _forms(row, name)]
    settings = {"formats": list(dict.fromkeys(v.kind for v in asked)),
                "max_new_tokens": target.max_new_tokens}  # fmt: skip
    return ask(target, "formats", asked, settings, what="questions in other formats")


def _forms(row: Row, name: str) -> list[Variant]:
    """Return the row in one format; empty if the format does not apply."""
    text, entity = row.input.strip(), entity_of(row)
    prompt, secret = "", row.output
    if name in ("raw", "chat"):
        prompt = text
    elif name == "dialogue":
        prompt = f"User: {text}\nAssistant:"
    elif name == "completion":
        prompt = statement_of(text) or f"Question: {text}\nAnswer:"
    elif name == "fill-in":
        prompt = f"Fill in the blank.\n{statement_of(text) or text} ____.\nThe missing words are:"
    elif name == "json":
        prompt = f'{{"question": {json.dumps(text, ensure_ascii=False)}, "answer": "'
    elif name == "form" and entity:
        prompt = f"Name: {entity}\n{text.rstrip('?').replace(entity, '').strip()}:"
    elif name == "reversed" and entity and entity not in row.output:
        prompt = f'Of whom is this true: "{row.output}"? The answer is'
        secret = entity
    way: Literal["raw", "chat"] = "chat" if name == "chat" else "raw"
    return [Variant(row, name, prompt, secret, way=way)] if prompt else []
