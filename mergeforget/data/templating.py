"""Converts rows to prompt and answer tokens, raw or with the tokenizer's chat template.

In both cases the prompt ends exactly where generation starts, and the answer follows it as in one
text, so that training and evaluation use the same tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any, Literal, Protocol

from mergeforget.data.chat_template import (
    MARK,
    OTHER_MARK,
    THINKING_BLOCK,
    Turn,
    add_bos,
    answer_header,
    answer_text,
    check_size,
    end_of_turn,
    has_chat_template,
    name_of,
    render,
    special_ids,
    split_at_answer,
    template_digest,
    token_ids,
)
from mergeforget.data.schema import Row
from mergeforget.errors import InputError, UsageError

Choice = Literal["auto", "none", "chat"]
CLOSED_THINKING = re.compile(r".*</(think|thinking|reasoning)>", re.DOTALL)
OPENED = re.compile(r"\s*<(think|thinking|reasoning)>")


@dataclass(frozen=True)
class RowTokens:
    """The tokens of a row.

    Attributes:
        prompt: Token ids of the prompt, including BOS and template tokens.
        answer: Token ids of the answer, without its end tokens.
        end: Token ids that end the answer; empty for a tokenizer without an end token, and for an
            answer that was cut.
        content: Index of the first token of the row's own text, after template tokens and the
            system message.
    """

    prompt: list[int]
    answer: list[int]
    end: list[int]
    content: int


@dataclass(frozen=True)
class PromptTemplate:
    """Renders rows as prompts. Create it with ``PromptTemplate.resolve``.

    Attributes:
        kind: ``none`` tokenises the row's text as it is; ``chat`` renders it with the tokenizer's
            chat template.
        system: System message; None leaves it to the template, which may insert its own default,
            and "" is an empty system message.
        own_system: Use a row's own system message, if it has one, instead of ``system``.
        thinking: Let the model think before it answers, as the template does by default. Otherwise
            an empty thinking block is inserted, so that the model answers directly.
        no_block: Leave out the thinking block of the prompt, if completed answers follow none.
        header: Text of the template before an answer, for example ``<|im_start|>assistant\\n``.
        end: The token that ends a turn; None if the template has none.
        opening: With ``thinking``, the text that the model writes directly before its answer.
        number: Number of a further system message in ``name``; 0 for the configured one.
        digest: Hash of the chat template's text.
        as_written: Splits whose raw prompts keep the tokens of their final space; in other prompts
            it is left to the first word of the answer.
    """

    kind: Literal["none", "chat"] = "none"
    system: str | None = None
    own_system: bool = True
    thinking: bool = False
    no_block: bool = False
    header: str = ""
    end: int | None = None
    opening: str = ""
    number: int = 0
    digest: str = ""
    as_written: tuple[str, ...] = ()

    @classmethod
    def resolve(
        cls, tokenizer: Any, choice: Choice = "auto", system: str | None = None
    ) -> PromptTemplate:
        """Return the template of a tokenizer.

        Args:
            tokenizer: A transformers tokenizer.
            choice: ``auto`` is ``chat`` for a tokenizer with a chat template, otherwise ``none``.
            system: System message for rows without one; requires ``chat``.

        Raises:
            InputError: ``choice`` is ``chat`` and the tokenizer has no chat template, or its
                template does not render a conversation or the system message.
            UsageError: A system message is given and prompts are raw.
        """
        has = has_chat_template(tokenizer)
        if choice == "chat" and not has:
            raise InputError(
                f"{name_of(tokenizer)} has no chat template, so data.template: chat is not "
                "possible. Use data.template: auto or none, or save the tokenizer with a "
                "chat_template."
            )
        kind: Literal["none", "chat"] = "chat" if has and choice != "none" else "none"
        if system is not None and kind == "none":
            raise UsageError(
                "A system prompt is part of a chat, but the prompts are raw. Leave out "
                "data.system_prompt (--system-prompt), or use data.template: chat with a model "
                "that has a chat template."
            )
        if not has:
            return cls()
        raw = cls(digest=template_digest(tokenizer))
        try:
            header, end = answer_header(tokenizer), end_of_turn(tokenizer)
        except InputError:
            if kind == "chat":
                raise
            return raw  # the template does not matter to raw prompts
        template = replace(raw, kind=kind, system=system, header=header, end=end)
        if kind == "chat":
            template._check(tokenizer)
        return template

    @property
    def key(self) -> str:
        """Part of every cache key; equal for templates that produce the same tokens."""
        raw = [["as written", *sorted(self.as_written)]] if self.as_written else []
        if self.kind == "none":
            return json.dumps(["none", *raw]) if raw else "none"
        thinking = ["thinking"] if self.thinking else ["no block"] if self.no_block else []
        return json.dumps(["chat", self.system, self.own_system, self.digest, *thinking, *raw])

    @property
    def name(self) -> str:
        """Short name in figures and messages: ``raw``, ``chat``, ``chat-no-system``, ..."""
        if self.kind == "none":
            return "raw"
        if self.thinking:
            return "chat-thinking"
        if self.no_block:
            return "chat-no-thinking"
        if self.system is None:
            return "chat" if self.own_system else "chat-default-system"
        if not self.system:
            return "chat-empty-system" if self.own_system else "chat-no-system"
        return f"chat-system-{self.number}" if self.number else "chat-system"

    def facts(self) -> dict[str, Any]:
        """Plain values for a manifest or a model card."""
        values = {"template": self.kind, "system_prompt": self.system, "sha256": self.digest}
        return {k: v for k, v in values.items() if v is not None and v != ""}

    def prompt_text(self, tokenizer: Any, prompt: Row | str) -> str:
        """Return the rendered prompt, without the BOS token that a tokenizer adds."""
        row = _row(prompt)
        if not self._renders(row):
            return row.prompt
        if self.thinking:
            return render(tokenizer, self._turns(row), answers=True, thinking=True)
        return self._rendered(tokenizer, row)[0]

    def answer_in(self, text: str) -> str:
        """Return the answer in a generated text: what follows the thoughts, if they have ended."""
        thinks = self.thinking or self.kind == "chat" and OPENED.match(text)
        closing = CLOSED_THINKING.search(text) if thinks else None
        return text if closing is None else text[closing.end() :]

    def answer_of(
        self, tokenizer: Any, new: Sequence[int], keep: frozenset[int] = frozenset()
    ) -> str:
        """Return the answer in generated tokens: what follows ``opening`` and the thoughts.

        Args:
            keep: Special tokens that are part of the answer.
        """
        before = token_ids(tokenizer, self.opening)
        starts = range(len(new) - len(before), -1, -1) if before else ()
        start = next((i for i in starts if list(new[i : i + len(before)]) == before), None)
        rest = list(new if start is None else new[start + len(before) :])
        if self.end in rest and (start is not None or not before):
            rest = rest[: rest.index(self.end)]
        return self.answer_in(answer_text(tokenizer, rest, keep))

    def prompt_ids(self, tokenizer: Any, prompt: Row | str) -> list[int]:
        """Return the token ids of the prompt, after which the model generates its answer.

        They contain no EOS that the tokenizer appends, and no second BOS.
        """
        row = _row(prompt)
        if self._renders(row):
            return token_ids(tokenizer, self.prompt_text(tokenizer, row))
        ids = token_ids(tokenizer, row.prompt)
        # most tokenizers join a space to the next word
        if row.prompt[-1:] in (" ", "\t") and row.split not in self.as_written:
            ids, _ = self._joined(
                tokenizer, row if row.output else replace(row, output=MARK), ids, " "
            )
        ids = add_bos(tokenizer, ids)
        if not ids:
            start = tokenizer.bos_token_id
            start = tokenizer.eos_token_id if start is None else start
            if start is None:
                raise InputError(
                    f"Row {row.id!r} has an empty prompt and {name_of(tokenizer)} has no BOS token "
                    "that a generation could start with."
                )
            return [int(start)]
        return ids

    def tokens(
        self, tokenizer: Any, row: Row, join: str = " ", *, together: bool = False
    ) -> RowTokens:
        """Tokenise the prompt and the answer of a row.

        Args:
            join: Separator of a raw prompt and its answer. With a space they are tokenised as one
                text, and no space is inserted if whitespace or a template token already separates
                them. With "" they are tokenised separately, as in ZJUKLAB's code.
            together: Tokenise both as one text with any separator, as in iShumei's code.

        Raises:
            InputError: The answer contains the token that ends an answer, or the chat template does
                not render the row.
        """
        token_ids = self._tokens(tokenizer, row, join, together)
        stops = set(() if row.window else self.stop_ids(tokenizer))
        end = next((i for i in token_ids.answer if i in stops), None)
        if end is not None:
            raise InputError(
                f"The answer of row {row.id!r} contains {tokenizer.decode([end])!r}, the token "
                "that ends an answer. Nothing after it would be generated, so the answer could not "
                "be found again. Remove it from the row."
            )
        return token_ids

    def _tokens(self, tokenizer: Any, row: Row, join: str, together: bool) -> RowTokens:
        if self._renders(row) and row.output:
            return self._chat_tokens(tokenizer, row)
        end = self.end if self.header and self._typed(row) else tokenizer.eos_token_id
        ends = [] if end is None or row.cut or row.window in ("start", "middle") else [int(end)]
        prompt = token_ids(tokenizer, row.prompt)
        if join or together:
            prompt, answer = self._joined(tokenizer, row, prompt, join)
        else:
            answer = token_ids(tokenizer, row.output)
        with_bos = add_bos(tokenizer, prompt) if prompt or row.window else prompt
        return RowTokens(with_bos, answer, ends, len(with_bos) - len(prompt))

    def stop_ids(self, tokenizer: Any) -> list[int]:
        """Return the tokens that end an answer, in addition to those of the generation config.

        The end of a turn does not count if the model writes several before it answers.
        """
        ends = [self.end] if (self.kind == "chat" or self.header) and not self.opening else []
        return [int(e) for e in dict.fromkeys([*ends, tokenizer.eos_token_id]) if e is not None]

    def _renders(self, row: Row) -> bool:
        """Return whether a row gets the chat template; documents and rendered prompts do not."""
        return self.kind == "chat" and not row.window and not self._typed(row)

    def _typed(self, row: Row) -> bool:
        """Return whether the prompt ends with the template's header, so it is already rendered."""
        return self._blank_after(row) is not None

    def _blank_after(self, row: Row) -> str | None:
        """Return the whitespace that the template writes after the header that ends a prompt.

        None if the prompt does not end with the header, with or without its thinking block.
        """
        bare, prompt = (THINKING_BLOCK.sub("", text) for text in (self.header, row.input))
        if not bare.strip() or not prompt.rstrip().endswith(bare.strip()):
            return None
        header = bare if prompt == row.input else self.header
        return header[len(header.rstrip()) :]

    def _turns(self, row: Row) -> list[Turn]:
        turns = [{"role": m.role, "content": m.content} for m in row.messages]
        own = bool(turns) and turns[0]["role"] == "system"
        if own and self.own_system:
            system = []
        else:
            turns = [t for t in turns if t["role"] != "system"]
            system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *turns, {"role": "user", "content": row.input}]

    def _rendered(self, tokenizer: Any, row: Row) -> tuple[str, str]:
        """Return the text of the prompt, and the rest, which begins with the answer."""
        turns = self._turns(row)
        prompt = render(tokenizer, turns, answers=True)
        self._check_turns(tokenizer, row, turns, prompt)
        marked = render(tokenizer, [*turns, {"role": "assistant", "content": MARK}])
        answer = row.output.strip()
        full = marked
        if answer:
            full = render(tokenizer, [*turns, {"role": "assistant", "content": row.output}])
        return split_at_answer(
            tokenizer, prompt, full, marked, answer or MARK, without=self.no_block
        )

    def check_renders(self, tokenizer: Any, row: Row) -> None:
        """Raise InputError for a row, or another answer of it, that the template cannot render."""
        if self._renders(row):
            for one in (row, *row.alternatives):
                self._rendered(tokenizer, one)

    def _check_turns(self, tokenizer: Any, row: Row, turns: Sequence[Turn], prompt: str) -> None:
        """Raise InputError for a row whose earlier turns are missing in the rendered prompt."""
        for place, turn in enumerate(turns[:-1]):
            changed = list(turns)
            changed[place] = turn | {"content": f"{turn['content']} {MARK}"}
            if turn["role"] == "assistant" or not turn["content"].strip():
                continue
            if render(tokenizer, changed, answers=True) == prompt:
                raise InputError(
                    f"The chat template of {name_of(tokenizer)} drops the {turn['role']} turn "
                    f"{turn['content'][:40]!r} of row {row.id!r}. Remove the turn, write its "
                    "text into the prompt, or use raw prompts with data.template: none."
                )

    def _content_start(self, tokenizer: Any, row: Row, text: str) -> int:
        """Return the index of the row's own text in a rendered prompt.

        It follows what two conversations with other texts have in common, since the template may
        change the text, or contain it.
        """
        one, other = (
            render(tokenizer, self._turns(replace(row, input=mark)), answers=True)
            for mark in (MARK, OTHER_MARK)
        )
        before = commonprefix([one, other, text])
        own = text[len(before) :]
        return len(before) + len(own) - len(own.lstrip())

    def _chat_tokens(self, tokenizer: Any, row: Row) -> RowTokens:
        text, rest = self._rendered(tokenizer, row)
        prompt = token_ids(tokenizer, text)
        length = len(rest) - len(rest.lstrip()) + len(row.output.strip()) if row.output else 0
        trailing = row.output[len(row.output.rstrip()) :]
        if trailing and rest[length:].startswith(trailing):
            length += len(trailing)
        both = token_ids(tokenizer, text + rest[:length])
        joined = both[: len(prompt)] == prompt
        # a token across the boundary would change the prompt, so the answer is tokenised alone
        answer = both[len(prompt) :] if joined else token_ids(tokenizer, rest[:length])
        end = [] if row.cut else self._end_ids(tokenizer, text + rest, len(text) + length)
        header = token_ids(tokenizer, text[: self._content_start(tokenizer, row, text)])
        # a token across the boundary, such as a space and the first word, belongs to the content
        return RowTokens(prompt, answer, end, len(commonprefix([header, prompt])))

    def _end_ids(self, tokenizer: Any, full: str, place: int) -> list[int]:
        """Return the tokens after the answer, up to and including the end-of-turn token."""
        before, both = token_ids(tokenizer, full[:place]), token_ids(tokenizer, full)
        # alone, the text after the answer may begin with a space that some tokenizers insert
        joined = both[: len(before)] == before
        tail = both[len(before) :] if joined else token_ids(tokenizer, full[place:])
        if self.end in tail:
            return tail[: tail.index(self.end) + 1]
        eos = tokenizer.eos_token_id
        return [] if eos is None else [int(eos)]

    def _joined(
        self, tokenizer: Any, row: Row, prompt: list[int], join: str
    ) -> tuple[list[int], list[int]]:
        """Tokenise prompt and answer as one text; a token across the boundary is the answer's."""
        before = row.prompt
        blank = self._blank_after(row) if prompt else None
        if blank is None:
            blank = "" if prompt and _ends_special(tokenizer, before, prompt[-1]) else join
        text = before + (row.joint(blank) if row.output else "") + row.output
        check_size(text)
        if not getattr(tokenizer, "is_fast", True):  # a tokenizer in Python, which knows no offsets
            ids = token_ids(tokenizer, text)
            pairs = enumerate(zip(prompt, ids, strict=False))
            border = next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(ids)))
            return ids[:border], ids[border:]
        encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        ids = list(encoding["input_ids"])
        ends = [end for _, end in encoding["offset_mapping"]]
        border = next((i for i, end in enumerate(ends) if end > len(before)), len(ends))
        return ids[:border], ids[border:]

    def _check(self, tokenizer: Any) -> None:
        """Raise InputError for a template that drops the system message."""
        if not (self.system or "").strip():
            return
        one, other = (
            render(tokenizer, replace(self, system=text)._turns(Row("", MARK, "")), answers=True)
            for text in (self.system, f"{self.system} {OTHER_MARK}")
        )
        if one == other:
            raise InputError(
                f"The chat template of {name_of(tokenizer)} drops the system message. Remove "
                "data.system_prompt (--system-prompt), or include its text in the prompts."
            )


RAW = PromptTemplate()


class TemplateSpec(Protocol):
    """The fields of a recipe's data section that determine the template."""

    @property
    def template(self) -> Choice: ...

    @property
    def system_prompt(self) -> str | None: ...


def template_of(tokenizer: Any, spec: TemplateSpec) -> PromptTemplate:
    """Return the template of a recipe's data section; see ``PromptTemplate.resolve``."""
    return PromptTemplate.resolve(tokenizer, spec.template, spec.system_prompt)


def _ends_special(tokenizer: Any, text: str, last: int) -> bool:
    """Return whether a text ends with a written special token, not with an unknown character.

    Args:
        last: The last token of the text.
    """
    written = str(tokenizer.convert_ids_to_tokens(last))
    return last in special_ids(tokenizer) and text.endswith(written)


def _row(prompt: Row | str) -> Row:
    return Row("", prompt, "") if isinstance(prompt, str) else prompt
