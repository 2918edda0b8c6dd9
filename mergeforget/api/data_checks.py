"""Check the rows of a request: sets that overlap, a base that knows nothing, unfair non-members."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergeforget.api.unlearn_data import RequestRows
    from mergeforget.data.schema import Row
    from mergeforget.data.tokens import Encoded
    from mergeforget.recipe import Recipe

LIKELIHOODS = 64  # rows of each set whose likelihood is measured
FAIR = 0.15  # maximum distance from 0.5 of the AUC of twins under a model without the data


def check_not_in(forget: Sequence[Row], others: Sequence[Row], name: str) -> None:
    """Raise InputError if other rows contain forget rows; state which have the same prompt.

    Args:
        name: Name of the other rows in the message.
    """
    from mergeforget.console import say
    from mergeforget.data.overlap import shared_rows, without_punctuation
    from mergeforget.errors import InputError

    if shared := shared_rows(forget, others):
        raise InputError(
            f"{len(shared)} {name} rows are also forget rows of this or an earlier request, for "
            f"example {shared[0][1].id}. Remove them from the {name} set: a row to forget is "
            "neither retained nor unseen."
        )
    prompts = {without_punctuation(row.prompt) for row in forget if row.prompt and not row.window}
    asked = [
        row.id for row in others if not row.window and without_punctuation(row.prompt) in prompts
    ]
    if asked:
        say(
            f"Warning: {len(asked)} {name} rows have the prompt of a forget row, for example "
            f"{asked[0]}. If they answer it in other words, the fact is not forgotten or counts as "
            f"unseen: remove them from the {name} set."
        )


def check_rows(recipe: Recipe, rows: RequestRows, request: dict[str, Any]) -> dict[str, Any]:
    """Measure whether the base knows the forget rows, its speed, and whether twins are fair.

    Without a holdout set, perturbed twins become ``rows.holdout`` if enough rows have one.

    Returns:
        ``answer_tokens``, the length of the longest answer; ``expected``, the seconds of each stage
        and attack; ``notes``; and ``membership``, ``measurable`` or ``not measurable``.
    """
    from mergeforget.api.job import expected_seconds, seconds_per_row
    from mergeforget.console import say
    from mergeforget.evaluate.self_check import safe_modes
    from mergeforget.models import load_model
    from mergeforget.outputs import ANSWER
    from mergeforget.train.nlls import auc_of, read_nlls

    loaded = load_model(recipe.model)
    safe_modes(loaded.model)  # refuses masked language models
    control = request["control"]
    never_trained = request["memorise"] or control == request["model"]
    untouched = loaded if never_trained else None
    if control and not never_trained:
        untouched = load_model(recipe.model.model_copy(update={"name": control}))
    notes = _add_twins(recipe, rows, loaded, untouched)
    forget, unseen = (
        _encoded(recipe, loaded, some[:LIKELIHOODS]) for some in (rows.forget, rows.holdout)
    )
    nll, exact = read_nlls(loaded.model, forget)
    unseen_nll, repeated = read_nlls(loaded.model, unseen) if unseen else (None, None)
    auc = auc_of(nll, unseen_nll) if unseen_nll is not None else None
    auc_of_control = auc
    if untouched is not loaded:
        auc_of_control = _auc(recipe, untouched, rows) if untouched else None
    share = 0.0 if repeated is None else float(repeated.float().mean())
    fair, more = _fairness(rows, auc_of_control, share)
    notes += more
    if not never_trained and auc is not None and auc < 0.6 and not exact.any():
        notes.append(f"The model does not seem to know the forget rows: AUC {auc:.2f}, and none of "
                     f"{len(forget)} answers is repeated.")  # fmt: skip
    if len({row.subject for row in rows.forget}) == 1 < len(rows.forget):
        notes.append("All forget rows are about one subject: intervals count it as one document, "
                     "and its membership says nothing about other people.")  # fmt: skip
    answers = _encoded(recipe, loaded, [*rows.forget, *rows.retain])
    lengths = [one.kinds.count(ANSWER) for one in answers]
    pace = seconds_per_row(loaded.model, forget)
    expected = expected_seconds(recipe, rows, bool(request["memorise"]), pace)
    for note in notes:
        say(note)
    return {"answer_tokens": max(lengths), "expected": expected, "notes": notes,
            "membership": "measurable" if fair else "not measurable"}  # fmt: skip


def _encoded(recipe: Recipe, loaded: Any, rows: Sequence[Row]) -> list[Encoded]:
    from mergeforget.data.templating import template_of
    from mergeforget.data.tokens import encode_rows

    template = template_of(loaded.tokenizer, recipe.data)
    return encode_rows(loaded.tokenizer, rows, max_length=256, template=template)


def _add_twins(recipe: Recipe, rows: RequestRows, base: Any, untouched: Any) -> list[str]:
    """Make perturbed twins the holdout set, or add some to a small one; return a note on them.

    Args:
        base: The model of the request, which never saw the holdout set.
        untouched: A model that never saw the forget rows; or None.
    """
    from mergeforget.data.twins import (
        as_stand_ins,
        closest_twins,
        enough,
        nonmember_twins,
        stand_in_note,
        twins_of_unseen,
    )

    seed = recipe.data.seed + 1
    if not rows.twins:
        more = twins_of_unseen(
            rows.holdout, partial(_nlls, recipe, base), trained=[*rows.forget, *rows.retain],
            seed=seed,
        )  # fmt: skip
        few, rows.holdout = len(rows.holdout), [*rows.holdout, *more]
        return [f"Only {few} holdout rows: {len(more)} perturbed twins of them, about as likely "
                "under the model, are further unseen rows."] if more else []  # fmt: skip
    if untouched is None:
        twins = nonmember_twins(rows.forget, corpus=rows.retain, seed=seed)
    else:
        nlls = partial(_nlls, recipe, untouched)
        twins = closest_twins(rows.forget, nlls, corpus=rows.retain, seed=seed)
    if not enough(twins, rows.forget):
        return []  # the training states what is missing
    rows.holdout = as_stand_ins(twins)
    return [stand_in_note(twins, rows.forget)]


def _nlls(recipe: Recipe, loaded: Any, rows: Sequence[Row]) -> list[float]:
    """Return the NLL of each row under a model, the mean over the parts of a long one."""
    from mergeforget.train.nlls import read_nlls

    encoded = _encoded(recipe, loaded, rows)
    parts: dict[int, list[float]] = {place: [] for place in range(len(rows))}
    for one, nll in zip(encoded, read_nlls(loaded.model, encoded)[0].tolist(), strict=True):
        parts[one.row].append(nll)
    return [sum(nlls) / len(nlls) for nlls in parts.values()]


def _auc(recipe: Recipe, loaded: Any, rows: RequestRows) -> float | None:
    """Return the AUC of the forget rows against the holdout under a model; None without any."""
    from mergeforget.train.nlls import auc_of, read_nlls

    if not rows.holdout:
        return None
    members, nonmembers = (
        read_nlls(loaded.model, _encoded(recipe, loaded, some[:LIKELIHOODS]))[0]
        for some in (rows.forget, rows.holdout)
    )
    return auc_of(members, nonmembers)


def _fairness(
    rows: RequestRows, auc_of_control: float | None, repeated: float
) -> tuple[bool, list[str]]:
    """Return whether membership can be measured with the non-members, and notes on them.

    Args:
        auc_of_control: AUC of the forget rows under a model that never saw the data; None if there
            is no such model.
        repeated: Share of the answers to non-members that the base repeats.
    """
    from mergeforget.train.fit import REPEATED

    notes: list[str] = []
    fair = not rows.twins
    if auc_of_control is not None:
        alike = abs(auc_of_control - 0.5) <= FAIR
        if rows.twins:
            fair = alike
            how = "as likely as" if fair else "not as likely as"
            notes.append("Control of the twins: under a model that never saw the data, they are "
                         f"{how} the forget rows (AUC {auc_of_control:.2f}).")  # fmt: skip
        elif not alike:
            notes.append(unfair_holdout_note(auc_of_control))
    if rows.twins and repeated > REPEATED:
        fair = False
        notes.append(repeated_twins_note(repeated))
    return fair, notes


def unfair_holdout_note(auc: float) -> str:
    """Return a note on a holdout that is easier or harder than the forget rows.

    Args:
        auc: AUC of a model that never saw the data.
    """
    how = "less" if auc > 0.5 else "more"
    return (
        f"Control of the holdout: a model that never saw the data finds its rows {how} likely than "
        f"the forget rows (AUC {auc:.2f}), so an AUC of 0.5 is not chance. Give a --holdout of the "
        "same kind as the forget rows, or compare with the control's AUC."
    )


def repeated_twins_note(share: float) -> str:
    """Return why twins that a model repeats are no substitute for unseen rows, as sentences."""
    return (
        f"The model before unlearning repeats {share:.0%} of the answers of the perturbed twins, "
        "because it knows the wording of the forget rows. They are no substitute for unseen rows: "
        "give such rows with --holdout to measure membership."
    )
