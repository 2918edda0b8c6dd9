"""Turn rows into training examples: transforms, tokens, and refusals to the forget rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from mergeforget.console import say
from mergeforget.data.overlap import originals
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.tokens import (
    Encoded,
    encode_rows,
    position_limit,
    truncation,
)
from mergeforget.data.transforms import ROW_TRANSFORMS, TOKEN_TRANSFORMS, check_asks, refuse
from mergeforget.data.twins import origin_of
from mergeforget.errors import InputError
from mergeforget.outputs import ANSWER
from mergeforget.recipe import Memorise, Training
from mergeforget.train.dataset import REFUSAL
from mergeforget.train.objective import any_needs, mask_of, reads_of, sets_of

COMPARED = ("forget", "held", "selected", "unseen", "imitations")  # sets compared by `until`

Length = TypeVar("Length", Training, Memorise)


def encode_sets(
    tokenizer: Any,
    sets: Mapping[str, Sequence[Row]],
    training: Training,
    template: PromptTemplate = RAW,
    alternates: Sequence[Row] | None = None,
) -> dict[str, list[Encoded]]:
    """Apply a recipe's transforms and tokenise; add refusals where a loss reads them.

    Args:
        alternates: The forget rows with alternate answers, for losses that read them. Without them,
            the forget answers take their place, as for an estimate of the cost.

    Raises:
        InputError: A set is empty, an answer has no tokens, or a window of a document would need
            a refusal or an alternate answer.
    """
    check_replaceable(sets["forget"] if "forget" in sets else (), training)
    encoded = {}
    for name, rows in sets.items():
        if not rows:
            raise InputError(f"The {name} set has no rows.")
        check_weights(name, rows)
        encoded[name] = encode_set(tokenizer, rows, name, training, template)
    if any_needs(training.objective, "alternate"):
        others = alternates if alternates is not None else sets["forget"]
        encoded[REFUSAL] = _encoded(tokenizer, others, REFUSAL, training, template)
    elif REFUSAL in reads_of(training.objective):
        rows = refuse(
            _changed(sets["forget"], "forget", training),
            texts=training.refusals,
            seed=training.seed,
        )
        encoded[REFUSAL] = _encoded(tokenizer, rows, REFUSAL, training, template)
    encoded = _with_answers(encoded, training)
    if training.folds and "forget" in encoded and "retain" in encoded:
        encoded = _with_folds(encoded, training.folds)
    return encoded


def check_replaceable(forget: Sequence[Row], training: Training) -> None:
    """Raise InputError if windows of a document would need a refusal or an alternate answer."""
    if any_needs(training.objective, "alternate"):
        check_asks(forget, "alternate answer")
    refused = any(step.transform == "refuse" and step.on == "forget"
                  for step in training.transforms)  # fmt: skip
    if refused or any_needs(training.objective, "refusal"):
        check_asks(forget)


def _with_answers(
    encoded: dict[str, list[Encoded]], training: Training
) -> dict[str, list[Encoded]]:
    """Drop the examples that truncation left without an answer token that is predicted.

    They would count in means over rows, with a loss of 0. Those of a set are kept if every term
    that reads it also counts prompts. A forget row and its refusal are dropped together.

    Raises:
        InputError: No row of a set is left.
    """
    dropped: dict[str, set[int]] = {}
    for name, rows in encoded.items():
        terms = [term for term in training.objective if name in sets_of(term)]
        if terms and all(len(mask_of([term])) > 1 for term in terms):
            continue
        if not terms and name == "forget" and REFUSAL in encoded:
            continue  # only the refusals are trained
        dropped[name] = {i for i, one in enumerate(rows) if ANSWER not in one.kinds[1:]}
    if REFUSAL in encoded and "forget" in encoded:
        both = dropped.get("forget", set()) | dropped.get(REFUSAL, set())
        dropped["forget"] = dropped[REFUSAL] = both
    read = {name for term in training.objective for name in sets_of(term)}
    for name, places in dropped.items():
        size = len(encoded[name])
        if not places or (len(places) == size and name not in read):
            continue
        known = f"{len(places)} of {size} {name} rows have no answer token within max_length: "
        advice = f"{training.max_length} tokens. Raise max_length, or set tokens.truncate: prompt."
        if len(places) == size:
            raise InputError(known + advice)
        say(f"{known}they are not used. It is {advice}")
        kept = [one for i, one in enumerate(encoded[name]) if i not in places]
        encoded[name] = [replace(one, row=index) for index, one in enumerate(kept)]
    return encoded


def encode_set(
    tokenizer: Any, rows: Sequence[Row], name: str, training: Training, template: PromptTemplate
) -> list[Encoded]:
    """Apply a recipe's transforms to the rows of one set and tokenise them."""
    return _encoded(tokenizer, _changed(rows, name, training), name, training, template)


def check_weights(name: str, rows: Sequence[Row]) -> None:
    """Raise InputError if every row of a set has weight 0, so that none would be trained."""
    if rows and not any(row.weight for row in rows):
        raise InputError(
            f"All {len(rows)} rows of the {name} set have weight 0, so none would be trained. "
            "Give at least one row a positive weight, or leave the column weight out."
        )


def within_positions(model: Any, settings: Length) -> Length:
    """Return the settings with ``max_length`` limited to the positions of the model."""
    limit = position_limit(model)
    if limit is None or limit >= settings.max_length:
        return settings
    say(f"max_length is lowered from {settings.max_length} to the model's {limit} positions.")
    return settings.model_copy(update={"max_length": limit})


def pad_id(tokenizer: Any) -> int:
    """Return the padding token: the tokenizer's, otherwise EOS, otherwise 0."""
    pad = tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    return 0 if pad is None else int(pad)


def _changed(rows: Sequence[Row], name: str, training: Training) -> list[Row]:
    for step in training.transforms:
        if step.on == name and step.transform in ROW_TRANSFORMS:
            before = len(rows)
            arguments = step.arguments
            if step.transform == "resegment":
                arguments = {"join": training.tokens.join} | arguments
            rows = ROW_TRANSFORMS[step.transform].fn(rows, **arguments)
            if len(rows) != before:
                say(f"{step.transform}: {before} {name} rows became {len(rows)}.")
    return list(rows)


def _encoded(
    tokenizer: Any, rows: Sequence[Row], name: str, training: Training, template: PromptTemplate
) -> list[Encoded]:
    tokens = training.tokens
    encoded = encode_rows(
        tokenizer,
        rows,
        max_length=training.max_length,
        template=template,
        join=tokens.join,
        prompt_tokens=tokens.prompt_tokens,
        together=tokens.together,
        truncate=tokens.truncate,
    )
    if cut := truncation(encoded, name, training.max_length):
        say(cut)
    for step in training.transforms:
        if step.on == name and step.transform in TOKEN_TRANSFORMS:
            special = set(tokenizer.all_special_ids)
            plain = [i for i in range(len(tokenizer)) if i not in special]
            change = TOKEN_TRANSFORMS[step.transform].fn
            encoded = change(encoded, plain, **step.arguments)
    if training.folds and name == "forget":
        folds = _folds_of(rows, training.folds, training.seed)
        encoded = [replace(one, fold=folds[one.row]) for one in encoded]
    return [replace(one, row=index, source=one.row) for index, one in enumerate(encoded)]


def row_per_example(
    sets: Mapping[str, Sequence[Row]],
    encoded: Mapping[str, Sequence[Encoded]],
    training: Training,
) -> dict[str, list[Row]]:
    """Return the row of each example of the sets that ``until`` compares, and the other sets' rows.

    A row occurs as often as it has examples, such as windows of a long document. The rows of a set
    that a transform of rows changes are returned as they are, because its examples are made of
    other rows.
    """
    changed = {step.on for step in training.transforms if step.transform in ROW_TRANSFORMS}
    return {
        name: list(rows)
        if name in changed or name not in COMPARED
        else [rows[one.source] for one in encoded[name]]
        for name, rows in sets.items()
    }


def twin_places(
    sets: Mapping[str, Sequence[Row]],
    encoded: Mapping[str, Sequence[Encoded]],
    twins: str,
    of: str,
) -> list[int]:
    """Return the index of the example that each twin imitates, or -1.

    The n-th window of a twin imitates the n-th of its row, or the last one if there are fewer.

    Args:
        sets: The row of each example; see ``row_per_example``.

    Returns:
        Indices in ``of``, (examples of ``twins``,); empty unless each example has its own row.
    """
    if any(len(sets[n]) != len(encoded[n]) for n in (twins, of) if sets.get(n)):
        return []
    windows: dict[str, list[int]] = {}
    for i, row in enumerate(sets.get(of, ())):
        windows.setdefault(row.id, []).append(i)
    seen: Counter[str] = Counter()
    places = []
    for row in sets.get(twins, ()):
        found = windows.get(origin_of(row), [-1])
        places.append(found[min(seen[row.id], len(found) - 1)])
        seen[row.id] += 1
    return places


def places_of(
    sets: Mapping[str, Sequence[Row]], encoded: Mapping[str, Sequence[Encoded]], part: str
) -> list[int]:
    """Return the indices in ``forget`` of the rows of a part; empty if examples are not rows.

    Args:
        sets: The row of each example; see ``row_per_example``.
    """
    if len(sets["forget"]) != len(encoded["forget"]):
        return []
    ids = {row.id for row in sets.get(part, ())}
    return [i for i, row in enumerate(sets["forget"]) if row.id in ids]


def _folds_of(rows: Sequence[Row], folds: int, seed: int) -> list[int]:
    """Return the fold of each row: whole subjects, drawn at random into folds of similar size.

    Copies are in the fold of their original, so that no row is forgotten and kept at once.

    Raises:
        InputError: There are fewer subjects than folds.
    """
    copied = originals(rows)
    owner = [copied.get(row.subject, row.subject) for row in rows]
    sizes = Counter(owner)
    if len(sizes) < folds:
        raise InputError(
            f"The forget rows have {len(sizes)} subjects, which is fewer than folds: {folds}."
        )
    subjects = sorted(sizes)
    random.Random(seed).shuffle(subjects)
    filled = [0] * folds
    fold: dict[str, int] = {}
    for subject in subjects:
        fold[subject] = filled.index(min(filled))
        filled[fold[subject]] += sizes[subject]
    return [fold[subject] for subject in owner]


def _with_folds(encoded: dict[str, list[Encoded]], folds: int) -> dict[str, list[Encoded]]:
    """Add the forget rows to the retain set, for the stages in which they are not forgotten yet."""
    retain, forget = encoded["retain"], encoded["forget"]
    later = [one for one in forget if one.fold > 0]  # the first fold is forgotten from the start
    added = [replace(one, row=len(retain) + index) for index, one in enumerate(later)]
    say(f"{folds} folds: {', '.join(str(sum(o.fold == f for o in forget)) for f in range(folds))} "
        "forget rows.")  # fmt: skip
    return encoded | {"retain": [replace(one, fold=folds) for one in retain] + added}
