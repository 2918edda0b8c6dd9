"""The prompt variants of an evaluation: raw, in chat, and with other system messages.

A model may answer in one of them and not in the others, so the worst case over all is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from mergeforget.console import say
from mergeforget.data.chat_template import (
    WAY_OUT,
    drops_thinking_block,
    has_chat_template,
    has_default_system,
    lets_think,
    name_of,
    opening_of,
    takes_system,
)
from mergeforget.data.schema import Row
from mergeforget.data.templating import PromptTemplate, TemplateSpec, template_of
from mergeforget.errors import InputError, UsageError

USUAL_SYSTEM = "You are a helpful assistant."
KNOWN = 0.75  # of the share known in the best variant


def prompt_variants(
    own: PromptTemplate,
    tokenizer: Any,
    rows: Sequence[Row] = (),
    systems: Sequence[str] = (),
    *,
    rendered: bool = True,
) -> list[PromptTemplate]:
    """Return the prompt variants of an evaluation, the configured one first.

    A tokenizer without a chat template has one variant. Otherwise the variants are raw, chat,
    and chat with another system message: without one if the configuration, the rows or the
    template name one, otherwise with a common one. Further variants are the template's own
    system message where the configuration or the rows replace it, prompts without an empty
    thinking block where the template lets the model think before it answers, prompts without any
    block where completed answers follow none, and each of ``systems``.

    A variant other than the configured one is left out, with a warning, if the template does not
    render every row.

    Args:
        own: The configured variant.
        rows: Rows to be asked, which may have a system message.
        systems: Further system messages to try.
        rendered: Leave out variants that do not render every row.

    Raises:
        InputError: The template does not render one of ``systems``, or the configured variant is
            ``chat`` and not rendered.
        UsageError: There are ``systems``, and the template renders no conversation.
    """
    if not has_chat_template(tokenizer):
        return [own]
    try:
        chat = PromptTemplate.resolve(tokenizer, "chat", own.system)
    except InputError as error:
        if own.kind == "chat":
            raise
        if systems:
            raise UsageError(
                f"Further system messages cannot be tried: {str(error).removesuffix(WAY_OUT)}"
                "Leave out --ask-system (evaluation.system_prompts)."
            ) from error
        if rendered:
            _say_left_out({"chat": str(error)}, [own])
        return [own]
    found = [own, replace(chat, kind="none", system=None), chat]
    named = any(m.role == "system" for row in rows for m in row.messages)
    if takes_system(tokenizer):
        default = has_default_system(tokenizer)
        other = "" if own.system or named or default else USUAL_SYSTEM
        found.append(replace(chat, system=other, own_system=False))
        if default and (named or own.system is not None):
            found.append(replace(chat, system=None, own_system=False))
    elif named or own.system:
        found.append(replace(chat, system=None, own_system=False))
    if drops_thinking_block(tokenizer):
        found.append(replace(chat, no_block=True))
    if lets_think(tokenizer):
        found.append(replace(chat, thinking=True, opening=opening_of(tokenizer)))
    for number, text in enumerate(systems, 1):
        one = PromptTemplate.resolve(tokenizer, "chat", text)
        found.append(replace(one, own_system=False, number=number))
    variants: dict[str, PromptTemplate] = {}
    for variant in found:  # without system messages in the rows, own_system has no effect
        variants.setdefault((variant if named else replace(variant, own_system=True)).key, variant)
    every = list(variants.values())
    return _that_render(every, tokenizer, rows) if rendered else every


def _that_render(
    variants: Sequence[PromptTemplate], tokenizer: Any, rows: Sequence[Row]
) -> list[PromptTemplate]:
    """Return the first variant and those that render every row; warn of the others."""
    own, *others = variants
    different = dict.fromkeys(rows)  # members are forget rows, too
    left, failed = [own], dict[str, str]()
    for variant in others:
        try:
            for row in different:
                variant.check_renders(tokenizer, row)
        except InputError as error:
            failed[variant.name] = f"For example row {row.id!r}: {error}"
        else:
            left.append(variant)
    if failed:
        for row in different:
            own.check_renders(tokenizer, row)  # its error ends the evaluation, without a warning
        _say_left_out(failed, left)
    return left


def _say_left_out(failed: Mapping[str, str], asked: Sequence[PromptTemplate]) -> None:
    """Warn of prompt variants that are not asked, and name those that are.

    Args:
        failed: The reason by the name of the variant.
    """
    for reason in dict.fromkeys(failed.values()):
        names = ", ".join(name for name, own in failed.items() if own == reason)
        say(
            f"Warning: the chat template does not render every row, so no row is asked in {names}, "
            f"only in {', '.join(one.name for one in asked)}; a model that answers in {names} may "
            f"be reported as having forgotten. {reason.removesuffix(WAY_OUT).strip()}"
        )


def variants_to_ask(
    tokenizer: Any,
    spec: TemplateSpec,
    rows: Sequence[Row],
    ask: Literal["all", "own"] = "all",
    systems: Sequence[str] = (),
) -> list[PromptTemplate]:
    """Return the prompt variants of an evaluation or a search, the configured one first.

    Args:
        spec: Determines the first variant.
        ask: ``own`` is the first variant only. Windows of documents are equal in every variant.
        systems: Further system messages to try.

    Raises:
        UsageError: Further system messages are given, but only one variant is selected or
            the tokenizer has no chat template.
    """
    own = template_of(tokenizer, spec)
    alike = all(row.window for row in rows)
    if systems and (ask == "own" or alike or not has_chat_template(tokenizer)):
        why = (
            "--ask own asks one variant" if ask == "own"
            else "all rows are documents, which have no prompt" if alike
            else f"{name_of(tokenizer)} has no chat template"
        )  # fmt: skip
        raise UsageError(
            f"Further system messages cannot be tried: {why}. Leave out --ask-system "
            "(evaluation.system_prompts)."
        )
    variants = [own] if ask == "own" or alike else prompt_variants(own, tokenizer, rows, systems)
    if ask == "own" and own.kind == "none" and has_chat_template(tokenizer) and not alike:
        say(
            f"Warning: {name_of(tokenizer)} has a chat template and is asked with raw prompts "
            "only. A model that answers in chat may be reported as having forgotten. Leave out "
            "--ask own (evaluation.ask: own)."
        )
    return variants


def known_best(shares: Mapping[str, float]) -> set[str]:
    """Return the variants with at least 75 % of the share of known answers in the best variant.

    A model that answers only in chat cannot lose answers to raw prompts, which it never gave.

    >>> sorted(known_best({"chat": 1.0, "chat-no-system": 0.8, "raw": 0.1}))
    ['chat', 'chat-no-system']
    >>> known_best({"chat": 0.0, "raw": 0.0})
    set()
    """
    best = max(shares.values(), default=0.0)
    return {variant for variant, share in shares.items() if best and share >= KNOWN * best}
