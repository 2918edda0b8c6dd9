"""Generated tokens, and the answer that they give to a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergeforget.data.chat_template import answer_text, special_in, token_ids
from mergeforget.data.schema import Row
from mergeforget.data.sources.text_entries import complete_parts
from mergeforget.data.templating import CLOSED_THINKING, PromptTemplate
from mergeforget.errors import InputError
from mergeforget.metrics._leaks import leaked


@dataclass(frozen=True)
class Completion:
    """The tokens that a model generated for a prompt.

    They do not depend on the reference answer: several rows may have the same prompt.

    Attributes:
        ids: New token ids, without the end token that stopped the generation.
        stops: EOS tokens of the generation config that are ordinary text; see ``text_stop_ids``.
    """

    ids: tuple[int, ...]
    stops: tuple[int, ...] = ()

    @classmethod
    def of(cls, new: Sequence[int], stop: Sequence[int], text_stops: Sequence[int]) -> Completion:
        """Return the completion of generated tokens.

        Args:
            stop: Tokens that ended the generation; the last new token may be one of them.
            text_stops: Tokens that end an answer unless its reference contains them.
        """
        ids = new[:-1] if new and new[-1] in stop else new
        return cls(tuple(ids), tuple(one for one in dict.fromkeys(text_stops) if one in ids))

    def text(self, tokenizer: Any, references: Sequence[str] = ()) -> str:
        """Return the whole text, with those special tokens that a reference contains."""
        return answer_text(tokenizer, self._until(tokenizer, references),
                           special_in(tokenizer, references))  # fmt: skip

    def answer(self, tokenizer: Any, template: PromptTemplate, prompt: str | Row) -> str:
        """Return the answer to a prompt, without the thoughts before it.

        The thoughts are included if they reveal the answer of a row, or its paraphrased answer, and
        the rest does not: a model that writes a secret and then refuses to answer has not forgotten
        it.
        """
        references = [] if isinstance(prompt, str) else list(prompt.references)
        ids = self._until(tokenizer, references)
        answer = template.answer_of(tokenizer, ids, special_in(tokenizer, references))
        text = self.text(tokenizer, references)
        if answer == text or isinstance(prompt, str) or not references:
            return answer
        if CLOSED_THINKING.search(prompt.output):  # the thoughts are part of the reference
            return text
        in_text, in_answer = (
            any(leaked(secret, one, prompt.prompt) for secret in references)
            for one in (text, answer)
        )
        return text if in_text and not in_answer else answer

    def _until(self, tokenizer: Any, references: Sequence[str]) -> tuple[int, ...]:
        """Return the tokens up to the first text stop in excess of those of the references."""
        if not self.stops:
            return self.ids
        known = [token_ids(tokenizer, text) for text in references]
        left = {stop: max((ids.count(stop) for ids in known), default=0) for stop in self.stops}
        for place, token in enumerate(self.ids):
            if token in left:
                left[token] -= 1
                if left[token] < 0:
                    return self.ids[: place + 1]
        return self.ids


def answered_row(
    tokenizer: Any,
    template: PromptTemplate,
    row: Row,
    new: Sequence[int],
    stop: Sequence[int],
    text_stops: Sequence[int],
) -> Row:
    """Return a row with a generated answer whose tokens are those that the model generated.

    Args:
        new: Generated token ids, with the token that ended the answer.
        stop, text_stops: See ``ends_of``.
    """
    text = Completion.of(new, stop, text_stops).answer(tokenizer, template, row)
    if not text.strip():
        return replace(row, output="")
    generated = [*template.prompt_ids(tokenizer, row), *new]

    def repeats(one: Row) -> bool:
        try:
            tokens = template.tokens(tokenizer, one)
        except InputError:  # it contains an end token
            return False
        ids = [*tokens.prompt, *tokens.answer, *tokens.end]
        return bool(tokens.answer) and generated[: len(ids)] == ids

    ended = bool(new) and new[-1] in stop
    lead = text[: len(text) - len(text.lstrip())]
    whole = [(part, cut) for cut in (False, True) for part in (text.strip(), text.rstrip())]
    cuts = [(lead * kept + part.strip(), True) for part in complete_parts(text.strip())
            for kept in (0, 1)]  # fmt: skip
    tries = [replace(row, output=part, cut=cut) for part, cut in (whole * ended + cuts) if part]
    return next(filter(repeats, tries), tries[0])
