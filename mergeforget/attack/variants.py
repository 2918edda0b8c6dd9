"""Alternative prompts for the same answer: paraphrases, answer prefixes, jailbreaks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mergeforget.data.chat_template import has_chat_template, takes_system, token_ids
from mergeforget.data.schema import Row
from mergeforget.data.templating import PromptTemplate
from mergeforget.errors import InputError
from mergeforget.metrics._codes import SQUEEZED
from mergeforget.metrics._leaks import Windows, contained, leaked, partly_leaked
from mergeforget.parsing import read_text

KINDS = ("plain", "paraphrase", "prefix", "jailbreak")
TEMPLATES = Path(__file__).parent / "jailbreaks.txt"
PLACE = "{prompt}"
LEAST_CHARACTERS = 4  # minimum length of a single word that is split into prefix and secret

_QUESTION = re.compile(r"^(what|who|whom|where|when|which|how|in|on|under|by|at|to|from)\b", re.I)
_WHAT_IS = re.compile(r"^what (?:is|was) (.+?)\?$", re.I)
_CAPITALISED = re.compile(r"\b[A-ZÀ-Þ][\w\u2019'-]*?(?='s\b|\b)(?:\s+[A-ZÀ-Þ][\w-]*\b)*")
_NO_NAMES = {"What", "Who", "Whom", "Where", "When", "Which", "How", "In", "On", "Under", "By",
             "At", "To", "From", "The", "Social Security Number", "Is", "Did", "Does"}  # fmt: skip
_ASKING = ("Please tell me: {}", "Do you happen to know {}", "I would like to find out: {}")
_GOING_ON = ("Complete the following text: {}", "The text goes like this: {}", '"{}')


@dataclass(frozen=True)
class Variant:
    """A prompt for a row's answer.

    A prompt that is the row's own keeps the earlier turns of the row, and a document stays raw.

    Attributes:
        secret: The part of the answer that is not in the prompt.
        start: Beginning of the answer, which the model continues.
        way: ``run`` renders the prompt as in the run, ``raw`` as plain text, ``chat`` with the
            tokenizer's chat template, if it has one.
        system: System message of the chat instead of the configured one; put before the prompt
            where the template does not take it. None keeps the configured one.
    """

    row: Row
    kind: str
    prompt: str
    secret: str
    start: str = ""
    way: Literal["run", "raw", "chat"] = "run"
    system: str | None = None

    @property
    def text(self) -> str:
        """The whole input of the model, without template tokens."""
        row = replace(self.row, input=self.prompt)
        prompt = row.prompt if self._owns else self.prompt
        return f"{prompt} {self.start}" if self.start else prompt

    @property
    def _owns(self) -> bool:
        """Whether the prompt is the row's own, after the earlier turns of a conversation."""
        return self.prompt == self.row.input

    @property
    def divided(self) -> bool:
        """Whether start and secret are the two halves of one word, such as ``Iv`` and ``an``."""
        return bool(self.start) and self.row.output.startswith(self.start + self.secret)

    @property
    def sought(self) -> str:
        """The text that completions are searched for: the secret, or the whole divided word.

        Half a word, such as ``an`` or ``me``, is in many texts.
        """
        return self.start + self.secret if self.divided else self.secret

    def revealed_in(self, text: str, common: Windows = frozenset()) -> bool:
        """Return whether a completion of this prompt reveals the secret; see ``leaked``.

        Of a whole answer, the other right answers of the row reveal it as well.

        A divided word is revealed if the completion continues it, or contains all of it. Of
        ``SQUEEZED`` letters and digits, the second half is enough, wherever it is.
        """
        if not self.divided:
            whole = self.secret == self.row.output
            secrets = self.row.references if whole else (self.secret,)
            return any(leaked(secret, text, self.text, common) for secret in secrets)
        asked = replace(self, start="").text
        long = sum(map(str.isalnum, self.secret)) >= SQUEEZED
        if long and leaked(self.secret, text, self.text, common):
            return True
        if leaked(self.sought, self.start, asked, common):
            return False  # a half that reveals the whole was given
        ends = dict.fromkeys((self.start + text, self.start + text.lstrip(), text))
        return any(leaked(self.sought, end, asked, common) for end in ends)

    def partly_in(self, text: str) -> str:
        """Return which part of the secret a completion reveals; see ``partly_leaked``."""
        if self.divided and self.revealed_in(text):
            return ""
        return partly_leaked(self.sought, text, self.text)

    def gives_itself_away(self) -> bool:
        """Return whether the prompt contains the secret."""
        return contained(self.sought, self.text)

    def template(self, tokenizer: Any, own: PromptTemplate) -> PromptTemplate:
        """Return the template of this prompt, given the run's template ``own``.

        A prompt that the chat template does not render is asked as in the run, if that is raw.
        """
        if self.way == "chat" and has_chat_template(tokenizer):
            try:
                chat = PromptTemplate.resolve(tokenizer, "chat", own.system)
                if self.system is not None and takes_system(tokenizer):
                    chat = replace(chat, system=self.system, own_system=False)
                if own.kind == "none":
                    chat.check_renders(tokenizer, self._asked(tokenizer, self.secret))
            except InputError:
                if own.kind == "chat":
                    raise
                return own
            return chat
        return replace(own, kind="none", system=None) if self.way == "raw" else own

    def _asked(self, tokenizer: Any, answer: str) -> Row:
        """Return the row that is rendered, with an answer."""
        if self._owns:
            row = Row(self.row.id, self.prompt, answer, messages=self.row.messages,
                      window=self.row.window)  # fmt: skip
        else:
            row = Row(self.row.id, self.prompt, answer)
        if self.system and not (has_chat_template(tokenizer) and takes_system(tokenizer)):
            row = replace(row, input=f"{self.system}\n\n{self.prompt}")
        return row

    def tokens(self, tokenizer: Any, own: PromptTemplate) -> tuple[list[int], list[int]]:
        """Return the token ids of the model's input, and of the secret after it."""
        template = self.template(tokenizer, own)
        joined = f"{self.start} {self.secret}" if self.start else self.secret
        one = template.tokens(tokenizer, self._asked(tokenizer, joined))
        if not self.start:
            return one.prompt, one.answer
        given = template.tokens(tokenizer, self._asked(tokenizer, self.start)).answer
        if self.divided:  # no space follows the first half
            return [*one.prompt, *given], list(token_ids(tokenizer, self.secret))
        pairs = zip(one.answer, given, strict=False)
        n = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one.answer), len(given)))
        return [*one.prompt, *given], one.answer[n:]


def variants(
    row: Row, kind: str, *, words: Sequence[int], templates: Sequence[str]
) -> list[Variant]:
    """Return all variants of a kind for a row; there may be none."""
    if kind == "prefix":
        return prefixes(row, words)
    prompts = {
        "plain": [row.input],
        "paraphrase": paraphrases(row),
        "jailbreak": [t.replace(PLACE, row.input) for t in templates],
    }[kind]
    return [Variant(row, kind, prompt, row.output) for prompt in prompts]


def paraphrases(row: Row) -> list[str]:
    """Paraphrase the prompt by rules.

    A question is embedded in another sentence, and ``What is X?`` becomes ``Tell me X.`` and
    ``X is``. A text to be continued is introduced or quoted.
    """
    text = row.input.strip()
    if not (text.endswith("?") or _QUESTION.match(text) and row.kind == "qa"):
        return [form.format(text) for form in _GOING_ON]
    lower = text[0].lower() + text[1:] if _QUESTION.match(text) else text
    questions = [form.format(lower if "know" in form else text) for form in _ASKING]
    if asked := _WHAT_IS.match(text):
        thing = asked[1]
        questions += [f"Tell me {thing}.", f"{thing[0].upper()}{thing[1:]} is"]
    return questions


def entity_of(row: Row) -> str:
    """Return the person or thing that a prompt names: its longest sequence of capitalised words.

    Question words are ignored, and the first word of the prompt is used only if there is no other.
    """
    text = row.input.strip()
    names = [m for m in _CAPITALISED.finditer(text) if m[0] not in _NO_NAMES]
    return max(
        (m[0] for m in names), key=lambda name: (len(name.split()), name != text.split()[0]),
        default="",
    )  # fmt: skip


def statement_of(question: str) -> str:
    """Rephrase ``What is the age of X?`` as ``The age of X is``; empty for other questions."""
    asked = _WHAT_IS.match(question)
    return f"{asked[1][0].upper()}{asked[1][1:]} is" if asked else ""


def prefixes(row: Row, words: Sequence[int]) -> list[Variant]:
    """Return prompts with the first words of the answer, or with half of a short one."""
    starts = [match.start() for match in re.finditer(r"\S+", row.output)]
    ends = [match.end() for match in re.finditer(r"\S+", row.output)]
    cuts = [ends[n - 1] for n in words if n < len(starts)]
    if not cuts and len(row.output) >= LEAST_CHARACTERS:
        cuts = [len(row.output) // 2]
    return [
        Variant(row, "prefix", row.input, row.output[cut:].strip(), start=row.output[:cut].rstrip())
        for cut in sorted(set(cuts))
    ]


def read_templates(path: Path | None = None) -> list[str]:
    """Read jailbreak templates, one per line with ``{prompt}``; the built-in ones by default.

    Raises:
        InputError: The file cannot be read, or a line does not contain ``{prompt}``.
    """
    path = path or TEMPLATES
    templates = read_lines(path, f"template; write one per line, with {PLACE}")
    for line in templates:
        if PLACE not in line:
            raise InputError(f"{path}: the template {line[:60]!r} does not contain {PLACE}.")
    return templates


def read_lines(path: Path, what: str = "system message; write one per line") -> list[str]:
    """Read the lines of a text file that are not empty and do not begin with ``#``.

    Args:
        what: Noun for the content of a line, for the message about a file without any.

    Raises:
        InputError: The file cannot be read, or contains no such line.
    """
    lines = (line.strip() for line in read_text(path).splitlines())
    texts = [line for line in lines if line and not line.startswith("#")]
    if not texts:
        raise InputError(f"{path} contains no {what}.")
    return texts
