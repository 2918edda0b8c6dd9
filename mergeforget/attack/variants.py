"""Other ways to ask for the same answer: paraphrases, beginnings of the answer, jailbreaks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergeforget.data.schema import Row
from mergeforget.errors import InputError
from mergeforget.parsing import read_text

KINDS = ("plain", "paraphrase", "prefix", "jailbreak")
TEMPLATES = Path(__file__).parent / "jailbreaks.txt"
PLACE = "{prompt}"
LEAST_CHARACTERS = 4  # a shorter answer of one word is not cut in two

_QUESTION = re.compile(r"^(what|who|whom|where|when|which|how|in|on|under|by|at|to|from)\b", re.I)
_WHAT_IS = re.compile(r"^what (?:is|was) (.+?)\?$", re.I)
_ASKING = ("Please tell me: {}", "Do you happen to know {}", "I would like to find out: {}")
_GOING_ON = ("Complete the following text: {}", "The text goes like this: {}", '"{}')


@dataclass(frozen=True)
class Variant:
    """One way to ask for a row's answer.

    Attributes:
        secret: what of the answer the prompt does not give away.
    """

    row: Row
    kind: str
    prompt: str
    secret: str


def variants(
    row: Row, kind: str, *, words: Sequence[int], templates: Sequence[str]
) -> list[Variant]:
    """Every variant of a kind; none where the row has none."""
    if kind == "prefix":
        return prefixes(row, words)
    prompts = {
        "plain": [row.input],
        "paraphrase": paraphrases(row),
        "jailbreak": [t.replace(PLACE, row.input) for t in templates],
    }[kind]
    return [Variant(row, kind, prompt, row.output) for prompt in prompts]


def paraphrases(row: Row) -> list[str]:
    """The prompt in other words, by rules.

    A question is asked inside another sentence, and ``What is X?`` becomes ``Tell me X.`` and
    ``X is``; a text that is to go on is introduced or quoted.
    """
    text = row.input.strip()
    if not (text.endswith("?") or _QUESTION.match(text) and row.kind == "qa"):
        return [form.format(text) for form in _GOING_ON]
    lower = text[0].lower() + text[1:] if _QUESTION.match(text) else text
    found = [form.format(lower if "know" in form else text) for form in _ASKING]
    if asked := _WHAT_IS.match(text):
        thing = asked[1]
        found += [f"Tell me {thing}.", f"{thing[0].upper()}{thing[1:]} is"]
    return found


def prefixes(row: Row, words: Sequence[int]) -> list[Variant]:
    """The prompt and the first words of the answer; of a single word, its first half."""
    starts = [match.start() for match in re.finditer(r"\S+", row.output)]
    ends = [match.end() for match in re.finditer(r"\S+", row.output)]
    cuts = [ends[n - 1] for n in words if n < len(starts)]
    if not cuts and len(row.output) >= LEAST_CHARACTERS:
        cuts = [len(row.output) // 2]
    return [
        Variant(row, "prefix", f"{row.input} {row.output[:cut]}", row.output[cut:].strip())
        for cut in sorted(set(cuts))
    ]


def read_templates(path: Path | None = None) -> list[str]:
    """Jailbreak templates, one a line, each with ``{prompt}``; those that come along by default.

    Raises:
        InputError: the file cannot be read, or a line has no ``{prompt}``.
    """
    path = path or TEMPLATES
    lines = read_text(path).splitlines()
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    for line in found:
        if PLACE not in line:
            raise InputError(f"{path}: the template {line[:60]!r} has no {PLACE} in it.")
    if not found:
        raise InputError(f"{path} holds no template; write one a line, with {PLACE} in it.")
    return found
