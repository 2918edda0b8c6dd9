"""Add examples of the same rows with other prompts: raw, and in other chat variants.

A model is trained with one form of prompts and asked in several, see ``data/prompt_variants.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergeforget.console import say
from mergeforget.data.prompt_variants import known_best, prompt_variants
from mergeforget.data.schema import Row
from mergeforget.data.templating import PromptTemplate
from mergeforget.data.tokens import Encoded
from mergeforget.distributed import gather
from mergeforget.errors import InputError
from mergeforget.recipe import Training
from mergeforget.train.checks import SAMPLE, evenly_spaced
from mergeforget.train.nlls import read_nlls
from mergeforget.train.tokenize import COMPARED, encode_set


def other_forms(
    tokenizer: Any,
    sets: Mapping[str, Sequence[Row]],
    training: Training,
    template: PromptTemplate,
    encoded: dict[str, list[Encoded]],
) -> dict[str, list[Row]]:
    """Add the other forms of prompts of the forget rows, their twins and the unseen rows.

    These are raw prompts with ``until.also_raw``, and the chat variants of an evaluation with
    ``until.forget_variants``. An example with the same tokens in both forms, such as a document
    without a prompt, is not added.

    Args:
        sets: The row of each example; see ``row_per_example``.
        template: Template of the prompts; nothing is added to raw prompts.

    Returns:
        The row of each example, ``ID@VARIANT`` for those that were added, such as ``a@raw``.
    """
    rows_by_set = {name: list(rows) for name, rows in sets.items()}
    sources = {name: _sources(sets[name], encoded[name]) for name in COMPARED if name in sets}
    form = 0
    for variant in forms_to_add(tokenizer, sets, training, template):
        try:
            more = {
                name: encode_set(tokenizer, rows, name, training, variant)
                for name, rows in sources.items()
            }
        except InputError as error:
            say(f"The forget rows are not trained in {variant.name}: {error}")
            continue
        known = {name: {tuple(one.ids) for one in encoded[name]} for name in more}
        new = {name: [one for one in found if tuple(one.ids) not in known[name]]
               for name, found in more.items()}  # fmt: skip
        form += any(new.values())
        for name, added in new.items():
            own, rows = encoded[name], sources[name]
            if len(rows_by_set[name]) == len(own):
                rows_by_set[name] += [
                    replace(rows[one.source], id=f"{rows[one.source].id}@{variant.name}")
                    for one in added
                ]
            encoded[name] = own + [
                replace(one, row=len(own) + place, form=form) for place, one in enumerate(added)
            ]
    return rows_by_set


def forms_to_add(
    tokenizer: Any,
    sets: Mapping[str, Sequence[Row]],
    training: Training,
    template: PromptTemplate,
) -> list[PromptTemplate]:
    """Return the forms of prompts that forget rows have besides the run's; the first is form 1."""
    until = training.until
    if until is None or template.kind != "chat":
        return []
    found = [replace(template, kind="none", system=None)] if until.also_raw else []
    if until.forget_variants:
        variants = prompt_variants(template, tokenizer, sets["forget"], rendered=False)[1:]
        found += [one for one in variants if one.kind == "chat" and not one.thinking]
    return found


def _sources(rows: Sequence[Row], examples: Sequence[Encoded]) -> list[Row]:
    """Return the rows that the examples were made of, each once."""
    if len(rows) == len(examples):  # otherwise a transform makes other rows of these
        return list({one.source: row for one, row in zip(examples, rows, strict=True)}.values())
    return list(rows)


def retain_variants(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    training: Training,
    template: PromptTemplate,
    encoded: Sequence[Encoded],
) -> tuple[list[Encoded], list[int]]:
    """Add the retain rows in the other prompt variants in which the base knows them.

    An evaluation counts an answer as kept if the model gives it in every variant in which the base
    knows the rows, for example with and without the template's system message.

    Args:
        model: The base model.
        encoded: The retain rows with ``template``.

    Returns:
        All examples, and for each the index of its row, or -1 for an example with ``template`` if
        the base knows the row in other variants only. Without other variants, or if transforms
        have made several examples of a row, the examples are unchanged.
    """
    own, places = list(encoded), list(range(len(encoded)))
    if len(own) != len(rows):
        say("Retain rows are trained with one form of prompts, since some have several examples.")
        return own, places
    seen = {tuple(one.ids) for one in own}
    examples_by_variant = {template.name: own}
    for variant in prompt_variants(template, tokenizer, rows, rendered=False)[1:]:
        try:
            found = encode_set(tokenizer, rows, "retain", training, variant)
        except InputError as error:
            say(f"The retain rows are not trained in {variant.name}: {error}")
            continue
        if len(found) == len(rows) and any(tuple(one.ids) not in seen for one in found):
            examples_by_variant[variant.name] = found
    if len(examples_by_variant) == 1:
        return own, places
    sample = evenly_spaced(range(len(rows)), SAMPLE)
    shares = {
        name: float(read_nlls(model, [examples[i] for i in sample])[1].float().mean())
        for name, examples in examples_by_variant.items()
    }
    known = known_best(gather(shares)[0])  # all ranks train the same examples
    examples = list(own)
    for name in (n for n in examples_by_variant if n in known - {template.name}):
        for place, one in enumerate(examples_by_variant[name]):
            if tuple(one.ids) not in seen:
                seen.add(tuple(one.ids))
                examples.append(replace(one, row=len(examples)))
                places.append(place)
    if known and template.name not in known:
        elsewhere = set(places[len(own) :])
        places[: len(own)] = [-1 if row in elsewhere else row for row in range(len(own))]
    return examples, places
