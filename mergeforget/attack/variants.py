"""Other ways to ask for the same answer: paraphrases, beginnings of the answer, jailbreaks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mergeforget.data.schema import Row
from mergeforget.data.templating import PromptTemplate, has_chat_template
from mergeforget.errors import InputError
from mergeforget.parsing import read_text

KINDS = ("plain", "paraphrase", "prefix", "jailbreak")
TEMPLATES = Path(__file__).parent / "jailbreaks.txt"
PLACE = "{prompt}"
LEAST_CHARACTERS = 4  # a shorter answer of one word is not cut in two

_QUESTION = re.compile(r"^(what|who|whom|where|when|which|how|in|on|under|by|at|to|from)\b", re.I)
_WHAT_IS = re.compile(r"^what (?:is|was) (.+?)\?$", re.I)
_CAPITALISED = re.compile(r"\b[A-ZÀ-Þ][\w\u2019'-]*?(?='s\b|\b)(?:\s+[A-ZÀ-Þ][\w-]*\b)*")
_NO_NAMES = {"What", "Who", "Whom", "Where", "When", "Which", "How", "In", "On", "Under", "By",
             "At", "To", "From", "The", "Social Security Number", "Is", "Did", "Does"}  # fmt: skip
_ASKING = ("Please tell me: {}", "Do you happen to know {}", "I would like to find out: {}")
_GOING_ON = ("Complete the following text: {}", "The text goes like this: {}", '"{}')


@dataclass(frozen=True)
class Variant:
    """One way to ask for a row's answer.

    Attributes:
        secret: what of the answer the prompt does not give away.
        start: beginning of the answer that the model continues.
        way: ``run`` renders the prompt as the run does, ``raw`` as plain text, ``chat`` with the
            tokenizer's chat template, where it has one.
    """

    row: Row
    kind: str
    prompt: str
    secret: str
    start: str = ""
    way: Literal["run", "raw", "chat"] = "run"

    @property
    def text(self) -> str:
        """All that the model is given, without template tokens."""
        return f"{self.prompt} {self.start}" if self.start else self.prompt

    def template(self, tokenizer: Any, own: PromptTemplate) -> PromptTemplate:
        """How this prompt is rendered, where ``own`` is the run's template."""
        if self.way == "chat" and has_chat_template(tokenizer):
            return PromptTemplate.resolve(tokenizer, "chat", own.system)
        return replace(own, kind="none", system=None) if self.way == "raw" else own

    def tokens(self, tokenizer: Any, own: PromptTemplate) -> tuple[list[int], list[int]]:
        """Token ids of all that the model is given, and of the secret after it."""
        template = self.template(tokenizer, own)
        joined = f"{self.start} {self.secret}" if self.start else self.secret
        one = template.tokens(tokenizer, Row(self.row.id, self.prompt, joined))
        if not self.start:
            return one.prompt, one.answer
        given = template.tokens(tokenizer, Row(self.row.id, self.prompt, self.start)).answer
        pairs = zip(one.answer, given, strict=False)
        n = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one.answer), len(given)))
        return [*one.prompt, *given], one.answer[n:]


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


def entity_of(row: Row) -> str:
    """The person or thing that a prompt names: its longest run of capitalised words.

    Question words do not count; the first word of the prompt only where there is no other.
    """
    text = row.input.strip()
    found = [m for m in _CAPITALISED.finditer(text) if m[0] not in _NO_NAMES]
    return max(
        (m[0] for m in found), key=lambda name: (len(name.split()), name != text.split()[0]),
        default="",
    )  # fmt: skip


def statement_of(question: str) -> str:
    """``What is the age of X?`` as ``The age of X is``; empty for other questions."""
    asked = _WHAT_IS.match(question)
    return f"{asked[1][0].upper()}{asked[1][1:]} is" if asked else ""


def prefixes(row: Row, words: Sequence[int]) -> list[Variant]:
    """The prompt and the first words of the answer; of a single word, its first half."""
    starts = [match.start() for match in re.finditer(r"\S+", row.output)]
    ends = [match.end() for match in re.finditer(r"\S+", row.output)]
    cuts = [ends[n - 1] for n in words if n < len(starts)]
    if not cuts and len(row.output) >= LEAST_CHARACTERS:
        cuts = [len(row.output) // 2]
    return [
        Variant(row, "prefix", row.input, row.output[cut:].strip(), start=row.output[:cut])
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
