"""Renders conversations with a tokenizer's chat template, and finds out what the template does.

A template is a program in the tokenizer's files. It may insert a system message or reject one,
print the date, open a thinking block, trim answers or drop parts of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import date
from typing import Any

from mergeforget.errors import InputError, first_line

Turn = dict[str, str]
OPEN_THINKING = re.compile(r"<(think|thinking|reasoning)>\s*$")
THINKING_BLOCK = re.compile(r"<(?P<tag>think|thinking|reasoning)>\s*(?P<end></(?P=tag)>\s*)?$")
PARTS = re.compile(r"""\bin\s+\w+(?:\.content|\[['"]content['"]\])\s*(?:%|\||if\b)""")
TEXTS = re.compile(r"\bis\s+(?:not\s+)?(?:string|iterable|sequence|mapping)\b")
CLOCK = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
MARK = "Lorem ipsum"  # a text that no template contains
OTHER_MARK = "dolor sit"  # differs from MARK at its first character, in any case
TODAY = date(2024, 7, 26)  # in templates that print the date; Llama 3's own default
WAY_OUT = "Use data.template: none (--template none) to use raw prompts."
CHARACTERS = 4_000_000  # of one row


def has_chat_template(tokenizer: Any) -> bool:
    """Return whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def takes_system(tokenizer: Any) -> bool:
    """Return whether the tokenizer's chat template renders a system message."""
    turns = [{"role": "system", "content": MARK}, {"role": "user", "content": "a"}]
    try:
        return MARK in render(tokenizer, turns, answers=True)
    except InputError:
        return False


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of special tokens: EOS, template tokens and others marked as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    ids = {int(i) for i, token in added.items() if getattr(token, "special", False)}
    return frozenset(ids | set(map(int, tokenizer.all_special_ids)))


def check_size(text: str, where: str = "") -> None:
    """Raise InputError for a text of more than 4,000,000 characters, about a million tokens."""
    if len(text) > CHARACTERS:
        where = where or f"The row that begins {text[:40]!r}"
        raise InputError(
            f"{where} has {len(text):,} characters; at most {CHARACTERS:,} are read. Split it into "
            "several rows."
        )


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokenise a text without the special tokens that the tokenizer adds."""
    check_size(text)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def answer_text(tokenizer: Any, ids: Sequence[int], keep: frozenset[int] = frozenset()) -> str:
    """Return the text of generated tokens, without special tokens and with its own spaces.

    A tokenizer with ``clean_up_tokenization_spaces`` would remove spaces before punctuation, so
    that a repeated answer differed from the reference.

    Args:
        keep: Special tokens that are part of the text; see ``special_in``.
    """
    dropped = special_ids(tokenizer) - keep if keep else frozenset()
    text = tokenizer.decode(
        [i for i in ids if i not in dropped],
        skip_special_tokens=not keep,
        clean_up_tokenization_spaces=False,
    )
    return str(text)


def special_in(tokenizer: Any, references: Sequence[str]) -> frozenset[int]:
    """Return the special tokens that are written out in reference answers, such as ``<|red|>``."""
    return frozenset(
        i
        for i in special_ids(tokenizer)
        if any(str(tokenizer.convert_ids_to_tokens(i)) in text for text in references)
    )


def add_bos(tokenizer: Any, ids: list[int]) -> list[int]:
    """Prepend the tokens that the tokenizer puts before a text, unless they are there already."""
    before = _prefix(tokenizer)
    return ids if before and ids[: len(before)] == before else [*before, *ids]


def _prefix(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer puts before a text, usually BOS."""
    bare = token_ids(tokenizer, MARK)
    around = list(tokenizer(MARK)["input_ids"])
    places = range(len(around) - len(bare) + 1)
    return around[: next((i for i in places if around[i : i + len(bare)] == bare), 0)]


def render(
    tokenizer: Any, turns: list[Turn], *, answers: bool = False, thinking: bool = False
) -> str:
    """Render a conversation; with ``answers``, append the header of the next answer.

    A template that prints today's date gets a fixed one, so that the tokens of a row, its cached
    measurements and a resumed training do not depend on the day.
    """
    given: Any = turns
    if _reads_parts(tokenizer.chat_template):
        given = [t | {"content": [{"type": "text", "text": t["content"]}]} for t in turns]
    try:
        text = tokenizer.apply_chat_template(
            given,
            tokenize=False,
            add_generation_prompt=answers,
            enable_thinking=thinking,
            chat_template=_undated(tokenizer.chat_template),
        )
    except Exception as error:  # a template may raise TemplateError, TypeError or ValueError
        what = first_line(error)
        roles = ", ".join(dict.fromkeys(t["role"] for t in turns))
        hint = (
            "Remove data.system_prompt (--system-prompt) or the system messages of the rows."
            if turns[0]["role"] == "system"
            else WAY_OUT
        )
        raise InputError(
            f"The chat template of {name_of(tokenizer)} rejects a conversation of {roles}: {what}. "
            f"{hint}"
        ) from error
    return str(text)


def _reads_parts(template: Any) -> bool:
    """Return whether a template reads the content of a turn as a list of parts only.

    Those of some multimodal models loop over the parts, and render nothing for a text.
    """
    text = template.get("default") if isinstance(template, dict) else template
    return isinstance(text, str) and bool(PARTS.search(text)) and not TEXTS.search(text)


def _undated(template: Any) -> str | None:
    """Return a template that prints today's date with ``TODAY`` instead; None for any other."""
    text = template.get("default") if isinstance(template, dict) else template
    if not isinstance(text, str) or not CLOCK.search(text):
        return None
    return CLOCK.sub(lambda match: repr(TODAY.strftime(match[2])), text)


def split_at_answer(
    tokenizer: Any, prompt: str, full: str, marked: str, answer: str, *, without: bool = False
) -> tuple[str, str]:
    """Split a rendered conversation where the model starts to generate its answer.

    Text between the prompt and the answer, such as an empty thinking block or a header that the
    generation prompt lacks, becomes part of the prompt, so that the model generates the answer
    directly. A thinking block that the prompt opens is closed.

    Args:
        prompt: The conversation up to the answer, with the generation prompt.
        full: The conversation with the answer.
        marked: The same with ``MARK`` as its answer, which shows where the template writes it: a
            short answer may also occur in the header.
        answer: The answer without whitespace around it.
        without: Remove the prompt's thinking block instead, for completed answers without thoughts.

    Returns:
        The prompt, and the rest, which begins with whitespace or the answer.

    Raises:
        InputError: The template changes the text of the answer, or renders the prompt differently
            if an answer follows.
    """
    shared, asked = prompt, prompt
    if not full.startswith(prompt):
        block = THINKING_BLOCK.search(prompt)
        shared = "" if block is None else prompt[: block.start()]
        if block is None or not full.startswith(shared):
            raise InputError(
                f"The chat template of {name_of(tokenizer)} renders a prompt differently if it is "
                f"followed by an answer, so the answer cannot be trained or evaluated. {WAY_OUT}"
            )
        closed = prompt if block["end"] else f"{prompt.rstrip()}\n\n</{block['tag']}>\n\n"
        asked = shared if without else closed
    place = _answer_start(full, marked, answer)
    if place is None:
        raise InputError(
            f"The chat template of {name_of(tokenizer)} changes the text of answers, for example "
            f"{answer[:40]!r}. {WAY_OUT}"
        )
    between, rest = full[len(shared) : place], full[max(place, len(shared)) :]
    if shared != asked:  # the closed block ends with the whitespace before the answer
        between, rest = between.lstrip(), rest if between.strip() else rest.lstrip()
    return (asked + between, rest) if between.strip() else (asked, between + rest)


def _answer_start(full: str, marked: str, answer: str) -> int | None:
    """Return the index of the answer in a conversation; None if it is not there unchanged.

    Whitespace before the answer is part of it where the template keeps it.
    """
    before, mark, after = marked.rpartition(MARK)
    if mark and full.startswith(before) and full[len(before) :].lstrip().startswith(answer):
        return len(before)
    # the text before an answer may depend on it: an answer with thoughts gets no empty block
    body = full[: len(full) - len(after)].rstrip() if mark and full.endswith(after) else ""
    return len(body) - len(answer) if body.endswith(answer) else None


def answer_header(tokenizer: Any) -> str:
    """Return the text that the template writes before an answer.

    It is the generation prompt, with the whitespace and an empty thinking block that follow it; in
    a template without one, all text between a user's turn and the answer, such as `` [/INST] ``.
    """
    turns = [{"role": "user", "content": MARK}]
    without, text = render(tokenizer, turns), render(tokenizer, turns, answers=True)
    if not text.startswith(without):  # Phi-3 writes EOS if no answer follows
        without = without.removesuffix(str(tokenizer.eos_token))
    header = text[len(without) :] if text.startswith(without) else ""
    full = render(tokenizer, [*turns, {"role": "assistant", "content": OTHER_MARK}])
    before, mark, _ = full.rpartition(OTHER_MARK)
    _, asked, between = before.rpartition(MARK)
    if not mark or not asked:
        return header
    if not header.strip():
        return between
    place = between.rfind(header.strip())
    rest = between[place + len(header.strip()) :]
    own = place < 0 or bool(THINKING_BLOCK.sub("", rest).strip())
    return header if own else header.strip() + rest


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the first special token after an answer; EOS if the template writes none."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
    text = render(tokenizer, turns)
    if MARK not in text:
        raise InputError(
            f"The chat template of {name_of(tokenizer)} does not render answers. {WAY_OUT}"
        )
    tail = token_ids(tokenizer, text[text.rindex(MARK) + len(MARK) :])
    special = special_ids(tokenizer)
    end = next((i for i in tail if i in special), tokenizer.eos_token_id)
    return None if end is None else int(end)


def has_default_system(tokenizer: Any) -> bool:
    """Return whether the template inserts its own system message if there is none."""
    turns = [{"role": "user", "content": MARK}]
    empty = [{"role": "system", "content": ""}, *turns]
    try:
        without = render(tokenizer, empty, answers=True)
    except InputError:
        return False
    return len(render(tokenizer, turns, answers=True)) > len(without)


def opening_of(tokenizer: Any) -> str:
    """Return the text that the template writes between the generation prompt and an answer.

    The model itself writes it before it answers: the channel of gpt-oss, or the header of an
    assistant turn in a template without a generation prompt. Empty if there is none.
    """
    turns = [{"role": "user", "content": "a"}]
    prompt = render(tokenizer, turns, answers=True, thinking=True)
    full = render(tokenizer, [*turns, {"role": "assistant", "content": MARK}])
    between = full[len(prompt) : full.find(MARK)] if full.startswith(prompt) else ""
    return between if between.strip() else ""


def drops_thinking_block(tokenizer: Any) -> bool:
    """Return whether a completed answer follows no thinking block, but the prompt has one.

    Fine-tuning on whole conversations then trains answers directly after the template's header.
    """
    turns = [{"role": "user", "content": "a"}]
    prompt = render(tokenizer, turns, answers=True)
    full = render(tokenizer, [*turns, {"role": "assistant", "content": MARK}])
    return not full.startswith(prompt) and THINKING_BLOCK.search(prompt) is not None


def lets_think(tokenizer: Any) -> bool:
    """Return whether the template lets the model write something else before it answers."""
    if opening_of(tokenizer):
        return True
    turns = [{"role": "user", "content": MARK}]
    text = render(tokenizer, turns, answers=True, thinking=True)
    closed = render(tokenizer, turns, answers=True)
    return text != closed or OPEN_THINKING.search(text) is not None


def template_digest(tokenizer: Any) -> str:
    """Return a hash of the chat template's text."""
    text = json.dumps(tokenizer.chat_template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def name_of(tokenizer: Any) -> str:
    """Return the name of a tokenizer for messages."""
    return str(getattr(tokenizer, "name_or_path", "") or "this tokenizer")
